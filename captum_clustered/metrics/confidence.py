"""Average drop, increase in confidence, average gain: the model's scores of masked images.

:func:`confidences` runs the model; the metrics are arithmetic on its numbers. So an evaluation with
many metrics runs the model on each masked image once, and a table that keeps `original`, `masked`
and `complement` is enough to compute another metric later.

This library writes ADC for the average drop in confidence and PIC for the percentage increase in
confidence, as the paper on Clustered-CAM does. Other papers call the same two AD (average drop) and
AI or IC (average increase, increase in confidence).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

from captum_clustered._borrow import lent_to
from captum_clustered.fills import Fill, describe, fill_image, masked
from captum_clustered.metrics.maps import Interpolation, Normalization, prepare
from captum_clustered.metrics.scoring import (
    Conventions,
    ImageModel,
    as_labels,
    check_score,
    name_of_target,
    resolve_target,
)
from captum_clustered.targets import Score, Target, target_scores

__all__ = [
    "Confidences",
    "average_drop",
    "average_gain",
    "confidences",
    "drop",
    "drop_on_complement",
    "gain",
    "increase",
    "increase_in_confidence",
    "mean_area",
    "wins",
]

P = ParamSpec("P")

# --- arithmetic -----------------------------------------------------------------------------------


def drop(original: Tensor, masked: Tensor, *, clamp: bool = True) -> Tensor:
    r"""The loss of confidence in percent, :math:`100 \, [p - o]_+ / p`.

    Its mean over images is the average drop (ADC) of Chattopadhay et al., "Grad-CAM++", WACV 2018.

    Args:
        original (Tensor): Scores :math:`p` of the images, any shape.
        masked (Tensor): Scores :math:`o` of the masked images, same shape.
        clamp (bool, optional): Whether a rise counts as 0 and not as a negative drop. Default: True

    Returns:
        *Tensor*: In percent; at most 100 if no score is negative. A negative score is divided by
        its magnitude. Where the score does not change the drop is 0, even for a score of 0.

    Example::

        >>> drop(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.9]))
        tensor([75.,  0.])
    """
    fall = original - masked
    if clamp:
        fall = fall.relu()
    return torch.where(fall == 0, 0, 100 * fall / original.abs())


def gain(original: Tensor, masked: Tensor) -> Tensor:
    r"""The gain of confidence in percent, :math:`100 \, [o - p]_+ / (1 - p)`.

    Source: Zhang et al., "Opti-CAM", arXiv 2301.07002, equation 15.

    Args:
        original (Tensor): Probabilities :math:`p` of the images, any shape.
        masked (Tensor): Probabilities :math:`o` of the masked images, same shape.

    Returns:
        *Tensor*: In percent, 0 to 100.

    Example::

        >>> gain(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.9]))
        tensor([ 0.0000, 80.0000])
    """
    rise = (masked - original).relu()
    return torch.where(rise == 0, 0, 100 * rise / (1 - original))


def increase(original: Tensor, masked: Tensor) -> Tensor:
    """Whether the confidence rises: 100 where `masked > original`, else 0.

    Its mean over images is the percentage increase in confidence (PIC) of Chattopadhay et al.,
    "Grad-CAM++", WACV 2018. To ignore small rises, add a tolerance to `original`.

    Args:
        original (Tensor): Scores of the images, any shape.
        masked (Tensor): Scores of the masked images, same shape.

    Returns:
        *Tensor*: 0 or 100; NaN where a score is NaN.

    Example::

        >>> increase(torch.tensor([0.8, 0.5, 0.5]), torch.tensor([0.2, 0.9, 0.5]))
        tensor([  0., 100.,   0.])
    """
    risen = 100.0 * (masked > original).to(original.dtype)
    return torch.where((original + masked).isnan(), torch.nan, risen)


def wins(first: Tensor, second: Tensor, *, higher_is_better: bool = False) -> Tensor:
    """Whether the first method beats the second on an image: 100, or 0, also for a tie.

    Source: Chattopadhay et al., "Grad-CAM++", WACV 2018, for drops, where the smaller number wins.

    Args:
        first (Tensor): A number per image, for example drops, `(N,)`.
        second (Tensor): The other method's numbers on the same images, `(N,)`.
        higher_is_better (bool, optional): Whether the larger number wins. Default: False

    Returns:
        *Tensor*: 0 or 100, `(N,)`; NaN where a number is NaN.

    Raises:
        ValueError: If the shapes differ.

    Example::

        >>> wins(torch.tensor([10.0, 30.0, 5.0]), torch.tensor([20.0, 30.0, 0.0]))
        tensor([100.,   0.,   0.])
    """
    if first.shape != second.shape:
        raise ValueError(
            f"`first` and `second` must be of the same images; got shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)}. Leave out images that only one method has."
        )
    better = first > second if higher_is_better else first < second
    won = 100 * better.to(torch.promote_types(first.dtype, torch.float32))
    return torch.where((first + second).isnan(), torch.nan, won)


# --- the model's scores ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Confidences:
    """The model's scores for a batch of images and for what their heat maps show and hide.

    `N` is the number of images. Scores are float64 if the device has it.

    Attributes:
        original (Tensor): Scores of the images, `(N,)`.
        masked (Tensor): Scores of the images seen through their maps, `(N,)`.
        complement (Tensor or None): Scores of what the maps hide, `(N,)`; None if not asked for.
        target (Tensor or None): int64 `(N,)`: the classes (`(N, d)` for an output of several axes);
            None if the model gives one score per image.
        area (Tensor): Mean of each map at the size of the images, in percent, `(N,)`.
        status (Tensor): int8 `(N,)`, a :class:`~captum_clustered.metrics.Status` for each map.
        conventions (Conventions): How the numbers were made.

    Example::

        >>> found = Confidences(
        ...     original=torch.tensor([0.8, 0.5]), masked=torch.tensor([0.2, 0.9]), complement=None,
        ...     target=None, area=torch.tensor([30.0, 40.0]), status=torch.zeros(2),
        ...     conventions=Conventions("softmax", "predicted", "0", "minmax", "bilinear"),
        ... )
        >>> found.average_drop
        tensor([75.,  0.])
    """

    original: Tensor
    masked: Tensor
    complement: Tensor | None
    target: Tensor | None
    area: Tensor
    status: Tensor
    conventions: Conventions

    @property
    def average_drop(self) -> Tensor:
        """The :func:`drop` of each image, in percent; lower is better."""
        return drop(self.original, self.masked)

    @property
    def increase_in_confidence(self) -> Tensor:
        """The :func:`increase` of each image, 0 or 100; higher is better."""
        return increase(self.original, self.masked)

    @property
    def _are_probabilities(self) -> bool:
        """Whether the scores are probabilities; of a callable's, on the CPU, their values tell."""
        name = self.conventions.score
        if name in ("softmax", "sigmoid", "probabilities"):
            return True
        if name in ("identity", "log_odds"):
            return False
        scores = torch.cat([self.original, self.masked])
        return scores.device.type != "cpu" or not bool(((scores < 0) | (scores > 1)).any())

    @property
    def average_gain(self) -> Tensor:
        """The :func:`gain` of each image, in percent; higher is better.

        Raises:
            ValueError: If the scores are logits, or log odds.
        """
        if not self._are_probabilities:
            raise ValueError(
                "`score` must be a probability for the average gain; got "
                f"{self.conventions.score!r}, which gives none. Pass score='softmax' or 'sigmoid' "
                "for logits, or 'probabilities' for a model that returns these."
            )
        return gain(self.original, self.masked)

    @property
    def drop_on_complement(self) -> Tensor:
        """The :func:`drop` for what the maps hide, not clamped, in percent; higher is better.

        Raises:
            ValueError: If the complement was not asked for.
        """
        if self.complement is None:
            raise ValueError(
                "`complement` must be True for the drop on the complement; got False. Pass "
                "complement=True to `confidences`."
            )
        return drop(self.original, self.complement, clamp=False)

    def columns(self) -> dict[str, Tensor]:
        """One column `(N,)` for each number and each metric, for a table with a row per image."""
        columns = {
            field.name: value
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor) and value.ndim == 1
        }
        columns["average_drop"] = self.average_drop
        columns["increase_in_confidence"] = self.increase_in_confidence
        if self._are_probabilities:
            columns["average_gain"] = self.average_gain
        if self.complement is not None:
            columns["drop_on_complement"] = self.drop_on_complement
        return columns


@torch.no_grad()
def confidences(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    heatmaps: Any,
    target: Target = None,
    *,
    additional_forward_args: Any = None,
    score: Score = "softmax",
    normalize: Normalization = "minmax",
    interpolation: Interpolation = "bilinear",
    fill: Fill = 0.0,
    complement: bool = True,
    original: Tensor | None = None,
) -> Confidences:
    """Runs the model on the images, on what the heat maps show, and on what they hide.

    Put the model into evaluation mode first. A model that returns probabilities needs
    ``score="identity"``. No value is read from an accelerator.

    Args:
        forward_func (callable): The model, or a function that returns its logits, `(N, classes)`.
        inputs (Tensor or tuple[Tensor, ...]): The model's inputs. The first one is the images,
            `(N, C, *spatial)`, as the model takes them; only the images are masked.
        heatmaps (Tensor or array): `(N, 1, *spatial)` or `(N, *spatial)`, floating point, of any
            library, range and resolution.
        target (int, tuple, Tensor or list, optional): The class to judge by, as in Captum.
            Default: None (the class that the model predicts for the image without a mask)
        additional_forward_args (Any, optional): Further arguments of `forward_func`, one or a
            tuple. Default: None
        score (str or callable, optional): What becomes of the model's output: ``"softmax"``;
            ``"sigmoid"`` for one logit, or for labels that do not exclude each other;
            ``"identity"``, also for a model that returns probabilities; ``"probabilities"``, to say
            that it does where that is not found out; or a callable. Default: ``"softmax"``
        normalize (str or None, optional): ``"minmax"``, ``"max"``, or None for maps that lie in
            [0, 1]; see :func:`~captum_clustered.metrics.prepare`. Default: ``"minmax"``
        interpolation (str or None, optional): How a map of another size is resized:
            ``"bilinear"``, ``"nearest"``, or None to raise an error. Default: ``"bilinear"``
        fill (float, sequence, Tensor, Black, Blur or str, optional): What replaces the masked part.
            With 0.0 the masked image is the product of image and map: black for a model that takes
            images in [0, 1], the mean colour for normalised images, whose black is
            ``Black(mean, std)``. See :func:`~captum_clustered.fills.fill_image`. Default: 0.0
        complement (bool, optional): Whether to run the model on what the maps hide. Default: True
        original (Tensor, optional): Scores of the images, `(N,)`, from an earlier call with the
            same target and score; saves a forward pass. Default: None

    Returns:
        *Confidences*: The scores, and for each map whether something is wrong with it.

    Raises:
        TypeError: If an argument, or what the model returns, has a wrong type.
        ValueError: If a shape or a value does not fit; the message says what to change.

    Example::

        >>> def logits(x):  # two classes: how bright the left half and the right half are
        ...     return torch.stack([x[..., :2].sum((1, 2, 3)), x[..., 2:].sum((1, 2, 3))], 1)
        >>> images = torch.tensor([[[[1.0, 1.0, 0.0, 1.0]]]])
        >>> heat = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
        >>> found = confidences(logits, images, heat)
        >>> found.original, found.masked  # the softmax of 2 against 1, and of 2 against 0
        (tensor([0.7311], dtype=torch.float64), tensor([0.8808], dtype=torch.float64))
        >>> found.area
        tensor([50.])
    """
    model = ImageModel.of(forward_func, inputs, additional_forward_args)
    image = model.image  # (N, C, *spatial)
    maps = prepare(
        heatmaps,
        image.shape[2:],
        n_examples=len(image),
        device=image.device,
        normalize=normalize,
        interpolation=interpolation,
    )
    background = fill_image(fill, image)
    with lent_to(model) as model:
        if original is None:
            output = model(image)
            name = check_score(score, output, model)
            classes = resolve_target(output, target)
            original = target_scores(output, classes, score)
            output = model(masked(image, maps.values, background))
        else:
            output = model(masked(image, maps.values, background))
            name = check_score(score, output, model)
            _check_original(original, target, output)
            classes = resolve_target(output, target)
        seen = target_scores(output, classes, score)
        hidden = None
        if complement:
            output = model(masked(image, 1 - maps.values, background))
            hidden = target_scores(output, classes, score)
    return Confidences(
        original=original.to(seen),
        masked=seen,
        complement=hidden,
        target=as_labels(classes),
        area=100 * maps.values.flatten(1).mean(1),
        status=maps.status,
        conventions=Conventions(
            score=name,
            target=name_of_target(target, classes),
            fill=describe(fill),
            normalize=normalize or "none",
            interpolation=interpolation or "none",
        ),
    )


def _check_original(original: Tensor, target: Target, output: Tensor) -> None:
    if original.shape != (len(output),):
        raise ValueError(
            f"`original` must have one score for each of the {len(output)} images; got shape "
            f"{tuple(original.shape)}. Pass `original` of an earlier result."
        )
    if target is None and output.ndim > 1 and output.shape[1] > 1:
        raise ValueError(
            "`target` must be given with `original`, which holds scores of certain classes; got "
            "None. Pass `target` of the earlier result."
        )


# --- one metric at a time -------------------------------------------------------------------------


def average_drop(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    heatmaps: Any,
    target: Target = None,
    *,
    additional_forward_args: Any = None,
    score: Score = "softmax",
    normalize: Normalization = "minmax",
    interpolation: Interpolation = "bilinear",
    fill: Fill = 0.0,
) -> Tensor:
    """How much confidence the model loses when it sees each image through its heat map.

    The mean over images is the average drop in confidence (ADC). A large map can have a small drop
    for its size alone: a map of ones has 0. So report :func:`mean_area` beside it. If you need
    several metrics, or the record of all conventions, call :func:`confidences` once.

    Args:
        forward_func (callable): The model, or a function that returns its logits.
        inputs (Tensor or tuple[Tensor, ...]): As for :func:`confidences`, like all arguments.
        heatmaps (Tensor or array): The maps to judge, of any library.
        target (int, tuple, Tensor or list, optional): Default: None (the predicted class)
        additional_forward_args (Any, optional): Default: None
        score (str or callable, optional): Default: ``"softmax"``
        normalize (str or None, optional): Default: ``"minmax"``
        interpolation (str or None, optional): Default: ``"bilinear"``
        fill (float, sequence, Tensor, Black, Blur or str, optional): Default: 0.0

    Returns:
        *Tensor*: In percent, `(N,)`, as from :func:`drop`; lower is better.

    Example::

        >>> def logits(x):
        ...     return torch.stack([x.sum((1, 2, 3)), torch.zeros(len(x))], 1)
        >>> heat = torch.tensor([[[1.0, 0.0]]])
        >>> average_drop(logits, torch.ones(1, 1, 1, 2), heat, target=0)
        tensor([17.0003], dtype=torch.float64)
    """
    found = confidences(
        forward_func,
        inputs,
        heatmaps,
        target,
        additional_forward_args=additional_forward_args,
        score=score,
        normalize=normalize,
        interpolation=interpolation,
        fill=fill,
        complement=False,
    )
    return found.average_drop


def _like(
    metric: Callable[P, Tensor], complement: bool = False
) -> Callable[[Callable[[Confidences], Tensor]], Callable[P, Tensor]]:
    """Turns what reads one metric off :class:`Confidences` into a metric with `metric`'s arguments.

    Signature and docstring say these arguments too, for help() and for the pages of the reference.
    """

    def decorate(read: Callable[[Confidences], Tensor]) -> Callable[P, Tensor]:
        @wraps(read)
        def judge(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            return read(confidences(*args, complement=complement, **kwargs))  # type: ignore[arg-type]

        judge.__signature__ = inspect.signature(metric)  # type: ignore[attr-defined]
        judge.__annotations__ = metric.__annotations__
        arguments = inspect.cleandoc(metric.__doc__ or "").partition("Args:")[2]
        arguments = arguments.partition("Returns:")[0]
        judge.__doc__ = inspect.cleandoc(read.__doc__ or "").replace(
            "Returns:", f"Args:{arguments}Returns:", 1
        )
        return judge

    return decorate


@_like(average_drop)
def increase_in_confidence(found: Confidences) -> Tensor:
    """Whether the model is more confident when it sees each image through its heat map.

    The mean over images is the percentage increase in confidence (PIC). It is noisy if the model's
    probabilities are already near 1. The arguments are those of :func:`confidences`.

    Returns:
        *Tensor*: 0 or 100, `(N,)`, as from :func:`increase`; higher is better.

    Example::

        >>> def logits(x):
        ...     return torch.stack([x.sum((1, 2, 3)), torch.zeros(len(x))], 1)
        >>> image = torch.tensor([[[[1.0, -1.0]]]])
        >>> increase_in_confidence(logits, image, torch.tensor([[[1.0, 0.0]]]), target=0)
        tensor([100.], dtype=torch.float64)
    """
    return found.increase_in_confidence


@_like(average_drop)
def average_gain(found: Confidences) -> Tensor:
    """How much of the missing confidence the model gains when it sees each image through its map.

    The mean over images is the average gain (AG). A map that is 1 nearly everywhere gains nothing.
    The arguments are those of :func:`confidences`; `score` has to be a probability.

    Returns:
        *Tensor*: In percent, `(N,)`, as from :func:`gain`; higher is better.

    Raises:
        ValueError: If `score` is ``"identity"`` and the model does not return probabilities.

    Example::

        >>> def logits(x):
        ...     return torch.stack([x.sum((1, 2, 3)), torch.zeros(len(x))], 1)
        >>> image = torch.tensor([[[[1.0, -1.0]]]])
        >>> average_gain(logits, image, torch.tensor([[[1.0, 0.0]]]), target=0)
        tensor([46.2117], dtype=torch.float64)
    """
    return found.average_gain


@_like(average_drop, complement=True)
def drop_on_complement(found: Confidences) -> Tensor:
    """How much confidence the model loses when it sees only what the heat map hides.

    The mean over images is the average drop in deletion (ADD; Jung and Oh, "Towards Better
    Explanations of Class Activation Mapping", ICCV 2021). A rise is a negative drop; ``.relu()`` of
    the result counts it as 0. The arguments are those of :func:`confidences`.

    Returns:
        *Tensor*: In percent, `(N,)`, as from :func:`drop` without `clamp`; higher is better.

    Example::

        >>> def logits(x):
        ...     return torch.stack([x.sum((1, 2, 3)), torch.zeros(len(x))], 1)
        >>> heat = torch.tensor([[[1.0, 0.0]]])
        >>> drop_on_complement(logits, torch.ones(1, 1, 1, 2), heat, target=0)
        tensor([17.0003], dtype=torch.float64)
    """
    return found.drop_on_complement


def mean_area(
    heatmaps: Any,
    size: tuple[int, ...] | None = None,
    *,
    normalize: Normalization = "minmax",
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """The mean of each heat map: how much of the image it shows.

    This is the complexity in ADCC (Poppi et al. 2021). A larger area alone lowers the average drop,
    so show both in one table.

    Args:
        heatmaps (Tensor or array): `(N, 1, *spatial)` or `(N, *spatial)`.
        size (tuple[int, ...], optional): Spatial size of the images. A map of another size is
            resized first, which changes its mean. Default: None (the size of the maps)
        normalize (str or None, optional): See :func:`confidences`. Default: ``"minmax"``
        interpolation (str or None, optional): See :func:`confidences`. Default: ``"bilinear"``

    Returns:
        *Tensor*: In percent, `(N,)`.

    Example::

        >>> mean_area(torch.tensor([[[0.0, 1.0], [1.0, 4.0]]]))
        tensor([37.5000])
    """
    if size is None:
        shape = tuple(getattr(heatmaps, "shape", ()))
        # (N, 1, W) could be 1 x W maps or 1-D maps with a channel: an axis of 1 is the channel
        size = shape[2:] if len(shape) > 2 and shape[1] == 1 else shape[1:]
    maps = prepare(heatmaps, size, normalize=normalize, interpolation=interpolation)
    return 100 * maps.values.flatten(1).mean(1)
