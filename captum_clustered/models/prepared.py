"""A model that is ready to be explained: loaded, on its device, its layer found, all checked once.

The command line, the evaluation and the benchmarks start here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from captum_clustered._borrow import lent
from captum_clustered._checks import check_choice
from captum_clustered._files import first_line, place_of
from captum_clustered._outputs import are_probabilities, are_shares, squashed_twice, with_graph
from captum_clustered._warn import warn
from captum_clustered.fills import Fill
from captum_clustered.heatmap import normalize
from captum_clustered.layers import TargetLayer, find_layer
from captum_clustered.models.images import Picture, check_enlarged, pixel_scale, probe
from captum_clustered.models.loading import LoadedModel, load, resolve_target
from captum_clustered.targets import SCORES, as_scores

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DEVICES", "Prepared", "find_device", "prepare"]

DEVICES = ("auto", "cpu", "cuda")
"""Where a model may run; ``"auto"`` is ``"cuda"`` if there is a GPU, else ``"cpu"``."""

_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model, its layer and its device, and the steps from a picture to scores.

    Attributes:
        loaded (LoadedModel): The model with its transform; it is on the device.
        layer (TargetLayer): The layer whose maps explain, and how they are read.
        device (str): ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        n_classes (int): Number of scores that the model gives for an example.
        gives_probabilities (bool): Whether the scores of an example are probabilities: they are
            not negative and 1 in sum, or the model ends in a sigmoid or the like. Seen on one
            example.
        score (str): What turns the scores into probabilities: one of
            :data:`captum_clustered.targets.SCORES`. Of a single logit it is the sigmoid.
        example (array or None): An empty volume like those that the model takes; None if it takes
            images.
    """

    loaded: LoadedModel
    layer: TargetLayer
    device: str
    n_classes: int
    gives_probabilities: bool = False
    score: str = "softmax"
    example: np.ndarray | None = None

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        return self.loaded.model

    @property
    def has_random_weights(self) -> bool:
        """Whether the model knows nothing."""
        return self.loaded.weights == "random"

    def input(self, picture: Picture | Image.Image | np.ndarray) -> Tensor:
        """Turns a picture into the model's input.

        Args:
            picture (Picture, PIL.Image.Image or array): An image, or a volume `(D, H, W)` or
                `(C, D, H, W)`.

        Returns:
            *Tensor*: `(1, C, *spatial)`, on the device.

        Raises:
            ValueError: If the transform fails or gives something else.
        """
        return _input(self.loaded, picture).to(self.device)

    def at(self, layer: str) -> Prepared:
        """The same model at another layer.

        Args:
            layer (str): As for :func:`captum_clustered.layers.find_layer`.

        Returns:
            *Prepared*: The same otherwise.

        Raises:
            ValueError: If there is no such layer.
        """
        return replace(self, layer=find_layer(self.model, layer, self.input(probe(self.example))))

    def scores(self, inputs: Tensor) -> Tensor:
        """Runs the model, without gradients.

        Args:
            inputs (Tensor): `(N, C, *spatial)`.

        Returns:
            *Tensor*: `(N, n_classes)`.

        Raises:
            ValueError: If the model fails, or returns something else.
        """
        return _scores(self.model, inputs)

    def display(self, picture: Picture | Image.Image | np.ndarray) -> np.ndarray:
        """Shows what the model sees of a picture.

        Args:
            picture (Picture, PIL.Image.Image or array): As for :meth:`input`.

        Returns:
            *array*: `(H, W, 3)`, float in [0, 1]. Of a volume `(D, H, W, 3)`, grey: the mean of the
            channels, scaled from its smallest to its largest value.
        """
        pixels = _pixels(picture)
        if not isinstance(pixels, np.ndarray):
            return self.loaded.display(pixels)
        voxels = _input(self.loaded, pixels)[0].detach().float().cpu().nan_to_num().mean(0)
        grey = normalize(voxels[None])[0].numpy()  # (D, H, W)
        shown: np.ndarray = grey[..., None].repeat(3, axis=-1)
        return shown

    def target(self, spec: str | int, scores: Tensor | None = None) -> int:
        """Finds the index of a class; see :func:`captum_clustered.models.resolve_target`.

        Args:
            spec (str or int): An index, a name, or ``"predicted"``.
            scores (Tensor, optional): `(n_classes,)`; needed for ``"predicted"``. Default: None

        Returns:
            *int*: The index.

        Raises:
            ValueError: If no class, or more than one, fits.
        """
        if scores is None:
            scores = torch.zeros(self.n_classes)
        return resolve_target(spec, scores, self.loaded.class_names)

    def class_name(self, index: int) -> str | None:
        """The name of a class, if names are known."""
        return None if self.loaded.class_names is None else self.loaded.class_names[index]

    def probability(self, scores: Tensor, target: int) -> tuple[float | None, str]:
        """The probability of a class, if there is one.

        Args:
            scores (Tensor): Of one example, `(n_classes,)`.
            target (int): The class.

        Returns:
            *tuple*: The probability, in [0, 1], and in words what it is: the score itself if the
            scores are probabilities, else their softmax or sigmoid; None if the scores are taken as
            they are, and are no probabilities.

        Raises:
            ValueError: If the scores are said to be probabilities, and are not.
        """
        said = self.score == "probabilities"
        if said and not 0 <= scores[target] <= 1:
            raise ValueError(
                "`score`='probabilities' must have scores in [0, 1]; got "
                f"{float(scores[target]):.3g}. Take softmax or sigmoid for logits."
            )
        if said or self.gives_probabilities or are_shares(scores[None]):
            return float(scores[target]), "the score: the model returns probabilities"
        if self.score == "identity":
            return None, "none: the score is taken as it is"
        if self.score == "sigmoid":
            return float(scores[target].sigmoid()), "sigmoid of the score"
        return float(scores.softmax(0)[target]), "softmax of the scores"

    def title(self, scores: Tensor, target: int) -> str:
        """A class and its probability in words, such as ``"daisy (985), probability 0.91"``.

        Where there is no probability, the score is named.

        Args:
            scores (Tensor): Of one example, `(n_classes,)`.
            target (int): The class.

        Returns:
            *str*: For a picture's title.
        """
        probability = self.probability(scores, target)[0]
        name = f"{self.class_name(target) or 'class'} ({target})"
        if probability is None:
            return f"{name}, score {float(scores[target]):.3g}"
        chance = "below 0.01" if probability < 0.01 else f"{probability:.2f}"
        return f"{name}, probability {chance}"

    def explainer(self, factory: Callable[..., _Made], **settings: Any) -> _Made:
        """Makes an explainer of the layer.

        Args:
            factory (callable): ``factory(model, layer, channel_dim=…, reshape_transform=…, …)``,
                such as :class:`captum_clustered.ClusteredLayerAblation`.
            **settings (Any): Further settings of the factory.

        Returns:
            *Any*: What the factory made. Call its `attribute` with
            ``attribute_to_layer_input=prepared.layer.at_input``.
        """
        return factory(self.model, self.layer.layer, **self.layer.settings, **settings)

    def fill(self, name: str, argument: str = "fill") -> Fill:
        """Turns the name of a fill into the fill for this model's input.

        Args:
            name (str): ``"black"``, ``"mean"`` (the mean colour) or ``"blur"``.
            argument (str, optional): What the error message calls it. Default: ``"fill"``

        Returns:
            *Fill*: See :func:`captum_clustered.fills.fill_image`.

        Raises:
            ValueError: If the transform does not tell where black, or the mean colour, lies.
        """
        check_choice(argument, name, ("black", "mean", "blur"))
        if name == "blur":
            return "blur"
        scale = pixel_scale(self.loaded.transform, self.example)
        if scale is None or (name == "mean" and not any(scale.values)):
            raise ValueError(
                f"`{argument}` must be blur for a model whose transform does not normalise each "
                f"channel by a mean and a standard deviation; got {name}."
            )
        return scale if name == "black" else "mean"


def prepare(
    model: str | LoadedModel,
    *,
    layer: str = "auto",
    checkpoint: str | Path | None = None,
    weights: str = "default",
    device: str = "auto",
    seed: int = 0,
    score: str = "softmax",
    example: np.ndarray | None = None,
) -> Prepared:
    """Loads a model, finds its layer and checks what it gives.

    Args:
        model (str or LoadedModel): As for :func:`captum_clustered.models.load`, or what that
            returned.
        layer (str, optional): The dotted name of the layer, or ``"auto"`` for the last layer with
            spatial maps. Default: ``"auto"``
        checkpoint (str or Path, optional): File with a state dict. Default: None
        weights (str, optional): ``"default"`` or ``"none"`` (random). Default: ``"default"``
        device (str, optional): One of :data:`DEVICES`, or ``"cuda:1"``. Default: ``"auto"``
        seed (int, optional): Seed of random weights. The global random state is left as it was.
            Default: 0
        score (str, optional): One of :data:`captum_clustered.targets.SCORES`.
            Default: ``"softmax"`` (of a single logit the sigmoid)
        example (array, optional): A volume of the size to come, `(D, H, W)` or `(C, D, H, W)`, for
            a network of three dimensions. Its values do not matter. Default: None (images)

    Returns:
        *Prepared*: The model, on the device, with its layer.

    Raises:
        ValueError: If an argument does not fit, if the model cannot be loaded, or if it does not
            return scores `(N, n_classes)`.
        ImportError: If a package is missing. The message says what to install.

    Example::

        >>> prepared = prepare("resnet18", weights="none", device="cpu")
        >>> prepared.layer.name, prepared.n_classes
        ('layer4', 1000)
    """
    check_choice("score", score, SCORES)
    device = find_device(device)  # a wrong name shows before a model is downloaded
    if isinstance(model, LoadedModel):
        loaded = model
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # random weights are the same in every process
            loaded = load(model, checkpoint, weights)
    loaded.model.to(device)
    x = _input(loaded, probe(example)).to(device)
    output = _scores(loaded.model, x).cpu()
    scores = output[0]
    with lent(loaded.model) as lent_model:
        probable = are_probabilities(output, lambda: with_graph(lent_model, (x,)))
    score = "sigmoid" if score == "softmax" and len(scores) == 1 else score
    if probable is None and score in ("softmax", "sigmoid", "log_odds"):
        warn(squashed_twice(score))
    return Prepared(
        loaded,
        find_layer(loaded.model, layer, x),
        device,
        len(scores),
        gives_probabilities=bool(probable),
        score=score,
        example=None if example is None else np.zeros_like(example),
    )


def find_device(name: str) -> str:
    """Checks the name of a device.

    Args:
        name (str): One of :data:`DEVICES`, or ``"cuda:1"``.

    Returns:
        *str*: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        ValueError: If there is no such device.
    """
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (number and not (kind == "cuda" and number.isdecimal())):
        raise ValueError(f"`device` must be one of {', '.join(DEVICES)}; got {name!r}.")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ValueError(f"`device` {name} is not available here; use auto or cpu.")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _pixels(picture: Picture | Image.Image | np.ndarray) -> Image.Image | np.ndarray:
    return picture.pixels if isinstance(picture, Picture) else picture


def _input(loaded: LoadedModel, picture: Picture | Image.Image | np.ndarray) -> Tensor:
    pixels: Any = _pixels(picture)
    is_volume = isinstance(pixels, np.ndarray)
    axes = "(C, D, H, W)" if is_volume else "(C, H, W)"
    if not is_volume:
        check_enlarged(loaded.transform, pixels.size)
    try:
        x: Any = loaded.transform(pixels)
    except Exception as error:  # the user's transform may raise anything
        rule = "turn a float32 array (D, H, W) into" if is_volume else "turn a PIL image into"
        remedy = (
            " Use --model package.module:callable with a callable that returns the model and such "
            "a transform."
        )
        raise ValueError(
            f"the model's transform must {rule} a tensor {axes}; it failed "
            f"({first_line(error)}; {place_of(error)})."
            f"{remedy if is_volume else ''}"
        ) from error
    if not isinstance(x, Tensor) or x.ndim != (4 if is_volume else 3):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"the model's transform must return a tensor {axes}; got {got}.")
    return x.unsqueeze(0)


@torch.no_grad()
def _scores(model: nn.Module, inputs: Tensor) -> Tensor:
    try:
        with lent(model) as lent_model:
            output = lent_model(inputs)
    except Exception as error:  # the user's model may raise anything
        raise ValueError(
            f"`model` failed on an input of shape {tuple(inputs.shape)} ({first_line(error)}; "
            f"{place_of(error)})."
        ) from error
    if isinstance(output, Tensor) and not output.is_complex():
        scores: Tensor = as_scores(output)
        if scores.ndim == 2 and len(scores) == len(inputs) and scores.shape[1]:
            return scores
    raise ValueError(
        "`model` must return real scores of shape (N, n_classes), with as many rows as examples "
        f"({len(inputs)}); got {_described(output)}. Wrap it in a module whose forward gives, for "
        f"example, `{_wrapped(output, len(inputs))}`."
    )


def _described(output: Any) -> str:
    if not isinstance(output, Tensor):
        return type(output).__name__
    return f"{'complex ' if output.is_complex() else ''}{tuple(output.shape)}"


def _wrapped(output: Any, n: int) -> str:
    """How scores may be made of what a model returned."""
    if isinstance(output, dict) and output:
        key = "logits" if "logits" in output else next(iter(output))
        return f"self.model(x)[{key!r}]"
    if not isinstance(output, Tensor):
        return "self.model(x)[0]" if isinstance(output, (tuple, list)) else "self.model(x).logits"
    if output.is_complex():
        return "self.model(x).abs()"
    if output.ndim < 2:
        return "self.model(x).reshape(len(x), 1)"
    if len(output) != n:
        return "self.model(x).reshape(len(x), -1, n_classes).mean(1)"
    one_axis = output.numel() == n * max(output.shape[1:])
    return "self.model(x).flatten(1)" if one_axis else "self.model(x).flatten(2).mean(2)"
