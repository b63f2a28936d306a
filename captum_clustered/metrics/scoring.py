"""One score per image from whatever the model returns, and a record of how it was computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_clustered._checks import check_int
from captum_clustered._copies import (
    MIXES,
    UNSTEADY,
    Parted,
    agree,
    first_that_agrees,
    loud,
    opposite,
    plans,
    tolerance,
    watched,
)
from captum_clustered._layout import Layout, fitting_inputs
from captum_clustered._outputs import are_probabilities, squashed_twice, with_graph
from captum_clustered._warn import warn
from captum_clustered.targets import Score, Target, as_scores, check_target, format_target, plain

__all__ = ["Conventions", "ImageModel", "Mixed", "at_a_time", "resolve_target"]


@dataclass(frozen=True)
class Conventions:
    """How a number was computed: two numbers can be compared only if these are equal.

    Attributes:
        score (str): How a score was made from the model's output: ``"softmax"``, ``"sigmoid"``,
            ``"identity"``, or the name of a callable; ``"probabilities"`` if the output was taken
            as it is, and is a probability.
        target (str): The class of the score: ``"predicted"``, ``"given"``, or ``"only"`` if the
            model gives one score per image.
        fill (str): What replaces the masked part of the image.
        normalize (str): How the map was scaled to [0, 1]: ``"minmax"``, ``"max"``, ``"none"``; or
            ``"ranks"`` if only the order of its values counts.
        interpolation (str): How a map of another size was resized, or ``"none"``.
        step (int or None): For a curve, the number of pixels that change at a time.
        ties (str or None): For a curve, which of several equal pixels comes first.

    Example::

        >>> Conventions("softmax", "given", "0", "minmax", "bilinear").as_dict()["score"]
        'softmax'
    """

    score: str
    target: str
    fill: str
    normalize: str
    interpolation: str
    step: int | None = None
    ties: str | None = None

    def as_dict(self) -> dict[str, str | int]:
        """The conventions as columns of a table, without those that are None."""
        given = dataclasses.asdict(self)
        return {name: value for name, value in given.items() if value is not None}


def name_of(score: Score) -> str:
    """The name of a score for :class:`Conventions`."""
    if isinstance(score, str):
        return score
    return str(getattr(score, "__qualname__", None) or repr(score))


def check_score(score: Score, output: Tensor, model: ImageModel) -> str:
    """Refuses to squash probabilities again. On an accelerator no value is read.

    Args:
        score (str or callable): What is to become of the output.
        output (Tensor): What the model returned for the images.
        model (ImageModel): The model, for a second look at where its outputs come from.

    Returns:
        *str*: The name of the score for :class:`Conventions`.

    Raises:
        ValueError: If the outputs are probabilities, and `score` would squash them; or if they are
            said to be probabilities, and are not.
    """
    if score == "probabilities":
        _check_bounds(output)
    if score not in ("softmax", "sigmoid", "log_odds", "identity"):
        return name_of(score)
    probable = are_probabilities(output, model.traced)
    if score == "identity":
        return "probabilities" if probable else "identity"
    if probable:
        remedy = "torch.logit" if score == "log_odds" else "'identity'"
        raise ValueError(
            f"`score` must be {remedy} for a model that returns probabilities; got {score!r}, "
            "which would squash them a second time. If they are logits that look like "
            "probabilities by chance, pass a callable, for example "
            "`score=lambda logits: logits.softmax(1)`."
        )
    if probable is None:
        warn(squashed_twice(score))
    return name_of(score)


def _check_bounds(output: Tensor) -> None:
    if output.device.type != "cpu":
        return
    outside = output[(output < 0) | (output > 1)]  # without what is not a number
    if len(outside):
        raise ValueError(
            "`score`='probabilities' must have outputs in [0, 1]; got "
            f"{float(outside[0]):.3g}. Pass 'softmax' or 'sigmoid' for logits."
        )


def name_of_target(target: Target, resolved: Tensor | None) -> str:
    """The name of a target for :class:`Conventions`."""
    if target is not None:
        return "given"
    return "only" if resolved is None else "predicted"


def at_a_time(images: Tensor, given: int | None = None) -> int:
    """How many images go through a whole model at a time, at least one.

    Args:
        images (Tensor): The images that are judged, `(N, …)`; another one is as large.
        given (int, optional): What the caller asked for, `max_examples_per_batch`.
            Default: None (as many as fit)

    Raises:
        ValueError: If `given` is not an int >= 1.
    """
    check_int("max_examples_per_batch", given, 1, or_none=True)
    return given or fitting_inputs(images[:1].nbytes, images.device)


def as_labels(target: Tensor | None) -> Tensor | None:
    """A formatted target as Captum takes it: `(N,)` if the output has one axis of classes."""
    return target.squeeze(1) if target is not None and target.shape[1] == 1 else target


@dataclass(frozen=True, eq=False)
class ImageModel:
    """A model as a function of the images alone; its other inputs are fixed.

    Attributes:
        forward_func (callable): The model; takes the images, then the other inputs.
        image (Tensor): The images that are judged, `(N, C, *spatial)`.
        others (tuple): Further inputs and forward arguments.
        layout (Layout): How images of several examples are laid out for the model.
    """

    forward_func: Callable[..., Any]
    image: Tensor
    others: tuple[Any, ...]
    layout: Layout = field(default_factory=Layout)

    @classmethod
    def of(cls, forward_func: Callable[..., Any], inputs: Any, additional: Any) -> ImageModel:
        """Checks and splits the arguments of a metric.

        Args:
            forward_func (callable): The model, or a function that returns its logits.
            inputs (Tensor or tuple[Tensor, ...]): The images, then what else the model takes.
            additional (Any): Further arguments, one or a tuple.

        Raises:
            TypeError: If `forward_func` cannot be called, or the images are not a tensor.
            ValueError: If the images are not floating point, or have too few axes.
        """
        if not callable(forward_func):
            raise TypeError(
                f"`forward_func` must be the model or a function; got {forward_func!r}. Pass "
                "what returns the logits when it is called with the images."
            )
        image, rest = split(inputs)
        if additional is None:
            additional = ()
        others = additional if isinstance(additional, tuple) else (additional,)
        return cls(forward_func, image, rest + others)

    def __call__(self, image: Tensor) -> Tensor:
        """Runs the model on other images, one for each of the `N`, in the same order.

        Args:
            image (Tensor): `(N, C, *spatial)`.

        Returns:
            *Tensor*: The output, `(N, ...)`.
        """
        if image is self.image:  # the model may write into what it gets
            image = image.clone()
        return self.run(image, self.others)

    def run(self, image: Tensor, others: tuple[Any, ...]) -> Tensor:
        """Runs the model on images `(M, C, *spatial)` with other inputs for them.

        The output has a graph of gradients only where the caller asks for one with
        ``torch.enable_grad``, not where the model itself does.
        """
        output = as_scores(self.forward_func(image, *others))
        if not isinstance(output, Tensor):
            raise TypeError(
                f"`forward_func` must return one tensor; got {type(output).__name__}. Wrap it, for "
                "example `lambda *args: model(*args).logits`."
            )
        if output.ndim == 0 or len(output) != len(image):
            raise ValueError(
                f"`forward_func` must return one row for each of {len(image)} images; got shape "
                f"{tuple(output.shape)}. Keep the batch axis first."
            )
        return output if torch.is_grad_enabled() else output.detach()

    def put_back(self) -> None:
        """Gives a lent model's other inputs what the last pass may have written over."""
        put_back = getattr(self.forward_func, "put_back", None)
        if put_back is not None:
            put_back()

    def traced(self) -> Any:
        """What the model returns for the images, with the graph of its gradients."""
        self.put_back()
        return with_graph(self.forward_func, (self.image, *self.others))

    def mixed(self, image: Tensor, rows: Tensor, output: Tensor) -> tuple[Mixed, Tensor | None]:
        """Finds out whether images of several examples, in any number, may share a batch.

        The last of the `N` images goes along unchanged, and must get what it got in `output`; and
        the first of the others what it gets among the `N` images as they are.

        Args:
            image (Tensor): The first images of which the outputs are wanted, `(M, C, *spatial)`.
            rows (Tensor): int64 `(M,)`: the example that each belongs to.
            output (Tensor): What the model gave for the `N` images themselves.

        Returns:
            *tuple*: How to run the model on further images, and the output of these, `(M, ...)`;
            None if they may not share a batch.
        """
        last = self.image[-1:]
        images = torch.cat([loud(last), image, last, opposite(last)])  # (M + 3, C, *spatial)
        at_last = rows.new_tensor([len(self.image) - 1])
        at = torch.cat([at_last, rows, at_last, at_last])
        args = (self.image, *self.others)
        real = output if output.is_floating_point() else output.float()
        kinds = [real.dtype, image.dtype]
        allowed = tolerance(real[-1:].abs().amax(), kinds)

        # without reading a row from the device
        batch = self.image.index_copy(0, rows[:1], image[:1])
        one = self(batch).index_select(0, rows[:1].to(output.device))[0]
        # rounding grows with the scores, and hidden images may have much larger ones
        finite = torch.where(one.isfinite(), one, 0).to(real.dtype).abs().amax()
        of_one = torch.maximum(allowed, tolerance(finite, kinds))

        def judge(found: Tensor) -> Tensor | str:
            if found.shape[1:] != output.shape[1:]:
                return f"the output has the shape {tuple(found.shape)} for {len(images)} images"
            same = agree(found[-2], output[-1], allowed) and agree(found[1], one, of_one)
            return found[1:-2] if same else MIXES

        def parts(taken: frozenset[int]) -> list[Tensor]:
            return [images, *(args[place] for place in sorted(taken))]

        shared = self.layout.checked(
            lambda: first_that_agrees(
                plans(args, len(self.image), [0]),
                parts,
                lambda taken: Mixed(self, taken)(images, at),
                judge,
            ),
            lambda shared: shared.repeated is None,
        )
        if shared.repeated is not None:
            checked = Checked(len(images), output[-1], allowed)
            return Mixed(self, shared.repeated, shared.relied, checked), shared.found
        if agree(self(self.image)[-1], output[-1], allowed):
            return self.parted(shared.found), None
        warn(UNSTEADY)
        return Mixed(self, None), None

    def parted(self, reason: object) -> Mixed:
        """How to run a model whose examples may not share a batch with others."""
        warn(
            f"The images stay in the batch in which they were passed, because {reason}. That takes "
            "more time and gives the right result."
        )
        return Mixed(self, None)


class Checked(NamedTuple):
    """What is known of images that share a batch.

    Attributes:
        size (int): How many there were.
        output (Tensor): What the model gives for the last example, unchanged, `(...)`.
        tolerance (Tensor): How much rounding may change it.
    """

    size: int
    output: Tensor
    tolerance: Tensor


@dataclass(frozen=True, eq=False)
class Mixed:
    """The model on images of several examples, in any number and order.

    Attributes:
        model (ImageModel): The model.
        taken (frozenset[int] or None): Places of the arguments that have one row for each example;
            None if examples must stay in their batch.
        relied (bool): Whether the model decided by what held for each example so far. Where it
            holds no longer, a `Parted` of `_copies` says so.
        checked (Checked or None): What a batch of several images, but not of the size that was
            checked, is checked by: the last example rides along. Here, too, a `Parted` is raised.
    """

    model: ImageModel
    taken: frozenset[int] | None
    relied: bool = False
    checked: Checked | None = None

    def __call__(self, image: Tensor, rows: Tensor) -> Tensor:
        """Runs the model on images.

        Args:
            image (Tensor): `(M, C, *spatial)`.
            rows (Tensor): int64 `(M,)`: the example that each belongs to, whose other inputs go
                with it.

        Returns:
            *Tensor*: The output, `(M, ...)`.
        """
        model = self.model
        if self.checked and len(image) not in (1, self.checked.size):
            return self._riding(image, rows, self.checked)
        if self.taken is not None:
            return model.layout(lambda laid: self._together(laid, rows), image)
        # each batch has one image of each example: the k-th of each is in the k-th batch
        number = (rows[:, None] == rows).tril(-1).sum(1)  # (M,)
        outputs: dict[int, Tensor] = {}
        for k in range(int(number.max()) + 1 if len(rows) else 0):
            at = (number == k).nonzero().squeeze(1)
            batch = model.image.index_copy(0, rows[at], image[at])
            outputs |= zip(at.tolist(), model(batch)[rows[at]], strict=True)
        return torch.stack([outputs[i] for i in range(len(rows))])

    def _riding(self, image: Tensor, rows: Tensor, known: Checked) -> Tensor:
        """The same with the last example, unchanged, behind the images."""
        last = rows.new_tensor([len(self.model.image) - 1])
        images, at = torch.cat([image, self.model.image[-1:]]), torch.cat([rows, last])
        output = replace(self, checked=None)(images, at)
        if not agree(output[-1], known.output, known.tolerance):
            raise Parted(MIXES)
        return output[:-1]

    def _together(self, image: Tensor, rows: Tensor) -> Tensor:
        model, taken = self.model, self.taken or ()
        model.put_back()
        others = tuple(
            other[rows.to(other.device)] if place in taken else other
            for place, other in enumerate(model.others, start=1)
        )
        with watched([image]) if self.relied else nullcontext():
            return model.run(image, others)


def split(inputs: Any) -> tuple[Tensor, tuple[Any, ...]]:
    """The images, detached, and the other inputs of the model."""
    inputs = plain(inputs, "inputs")
    image, *rest = inputs if isinstance(inputs, tuple) and inputs else (inputs,)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"`inputs` must be a tensor, or a tuple whose first entry is the images; got "
            f"{type(image).__name__}. Convert arrays with `torch.as_tensor`."
        )
    special = image.is_nested or image.is_meta or image.layout is not torch.strided
    if special or not image.is_floating_point() or image.ndim < 3:
        kind = "nested" if image.is_nested else f"{tuple(image.shape)}, {image.layout}"
        raise ValueError(
            "`inputs` must be dense floating point images (N, C, *spatial); got "
            f"{image.dtype} {kind} on {image.device}. Pass them as the model takes them."
        )
    return image.detach(), tuple(rest)


def resolve_target(output: Tensor, target: Target) -> Tensor | None:
    """The class of each image: the given one, or the one that the model predicts.

    Args:
        output (Tensor): Logits of the images without a mask, `(N, classes)`.
        target (int, tuple, list, Tensor or None): As in Captum; None takes the largest logit.

    Returns:
        *Tensor* or *None*: int64 `(N, d)`, for :func:`captum_clustered.targets.select`; None if the
        model gives one score per image.

    Raises:
        TypeError: If the target has a wrong type.
        ValueError: If the target does not fit the output. An index outside the output is noticed
            only if the target is on the CPU.

    Example::

        >>> import torch
        >>> resolve_target(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), None)
        tensor([[1],
                [0]])
    """
    formatted = format_target(target, len(output))
    if formatted is None:
        many = output.ndim == 2 and output.shape[1] > 1
        return output.argmax(1, keepdim=True) if many else None
    check_target(output, formatted)
    return formatted.to(output.device)
