"""What the explainers of a layer have in common: settings, first pass, form of the results."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from captum._utils.gradient import compute_layer_gradients_and_eval
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_clustered.clustering import Clusterer, Groups, group
from captum_clustered.engine.capture import Capture, LayerIO, capture
from captum_clustered.engine.model import Model, ModuleStates, as_model, borrowed
from captum_clustered.explainers.results import Tensors
from captum_clustered.heatmap import ReshapeTransform, to_maps
from captum_clustered.targets import Target, format_target

__all__ = [
    "FirstPass",
    "LayerExplainer",
    "check_perturbations",
    "group_maps",
    "progress",
    "unwrap",
]


@dataclass(frozen=True, eq=False)
class FirstPass:
    """What one forward pass, and one back where gradients were asked for, left behind.

    Attributes:
        model (Model): The model with its inputs.
        io (LayerIO): The layer, and which side of it.
        targets (Tensor or None): From :func:`captum_clustered.targets.format_target`.
        captured (Capture): Activations, scores and frozen prefix.
        maps (list[Tensor]): The activations as `(N, C, *spatial)`.
        gradients (list[Tensor]): The gradients of the scores in the same form; empty if they were
            not asked for.
    """

    model: Model
    io: LayerIO
    targets: Tensor | None
    captured: Capture
    maps: list[Tensor]
    gradients: list[Tensor]

    @property
    def n_scores(self) -> int:
        """One score per example, or 1 if the model gives one for the batch."""
        return len(self.captured.scores)


class LayerExplainer(LayerAttribution):
    """Base of the explainers: holds the settings that say how a layer is read.

    Args:
        forward_func (callable): The model, or a function that runs it.
        layer (nn.Module): The layer whose maps are explained.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        channel_dim (int, optional): Axis of the maps in the layer's own output. Default: 1
        reshape_transform (callable, optional): Turns the layer's output into `(N, C, *spatial)`.
            Default: None
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        channel_dim: int = 1,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        if not isinstance(channel_dim, int) or channel_dim == 0:
            raise ValueError(
                f"`channel_dim` must be an int other than 0, the batch axis; got {channel_dim!r}."
            )
        self.channel_dim = channel_dim
        self.reshape_transform = reshape_transform

    @contextmanager
    def _first_pass(
        self,
        inputs: Any,
        target: Target,
        additional_forward_args: Any,
        at_input: bool,
        gradients: bool = False,
    ) -> Iterator[FirstPass]:
        """Runs the model once; until the context is left, the model is borrowed."""
        io = LayerIO(self.layer, at_input)
        with borrowed() as seen:
            model = as_model(self.forward_func, inputs, additional_forward_args)
            targets = format_target(target, model.n)

            def read(tensors: list[Tensor]) -> list[Tensor]:
                return [self._maps(tensor, model.args[0].ndim) for tensor in tensors]

            if gradients:
                captured, found = _differentiate(model, io, targets, seen, read)
            else:
                captured, found = capture(model, io, targets, seen), []
            if captured.stochastic:
                warnings.warn(
                    "The model has dropout or batch norm in training mode, so that its scores are "
                    "random or depend on the batch. Call model.eval() before explaining it.",
                    UserWarning,
                    stacklevel=4,
                )
            model = replace(model, overwrites=captured.overwrites)
            maps = read(captured.activations)
            yield FirstPass(model, io, targets, captured, maps, read(found))

    def _maps(self, activations: Tensor, input_ndim: int) -> Tensor:
        if not 2 <= activations.ndim <= 5:
            raise ValueError(
                "`layer` must give tensors of 2 to 5 axes, the batch first; got shape "
                f"{tuple(activations.shape)}. Choose a layer that gives feature maps."
            )
        if not activations.is_floating_point():
            raise TypeError(
                f"`layer` must give floating point tensors; got {activations.dtype}. Choose a "
                "layer that gives feature maps."
            )
        channel_dim = self._channel_dim(activations)
        return to_maps(activations, channel_dim, self.reshape_transform, self.layer, input_ndim)

    def _channel_dim(self, activations: Tensor) -> int:
        dim = self.channel_dim + (activations.ndim if self.channel_dim < 0 else 0)
        if not 0 < dim < activations.ndim:
            raise ValueError(
                f"`channel_dim` must be an axis behind the batch axis of the layer's output "
                f"{tuple(activations.shape)}; got {self.channel_dim}."
            )
        return dim


def _differentiate(
    model: Model,
    io: LayerIO,
    targets: Tensor | None,
    seen: ModuleStates,
    check: Callable[[list[Tensor]], object],
) -> tuple[Capture, list[Tensor]]:
    """The first pass by Captum, as in its Grad-CAM, and what comes back to the layer.

    Nothing is written into the `.grad` of a parameter or of an input.
    """
    found: list[Capture] = []
    ours: list[Tensor] = []
    theirs: list[Any] = []

    def watch(tensors: list[Tensor]) -> None:
        check(tensors)
        ours.extend(tensors)

    def forward(_: Tensor) -> Tensor:
        found.append(capture(model, io, targets, seen))
        if not found[0].scores.requires_grad:
            raise ValueError(
                "`forward_func` must give a score that has a gradient with respect to `layer`; it "
                "has none. Leave out what cuts it off (`.item()`, `.detach()`, argmax), or take "
                "a method without gradients, such as ClusteredLayerAblation."
            )
        return found[0].scores

    def keep(tensors: Any) -> Any:
        theirs.append(tensors)
        return tensors

    handle = io.hook(watch)
    try:
        gradients, _ = compute_layer_gradients_and_eval(
            forward,
            io.layer,
            model.args[0],
            attribute_to_layer_input=io.at_input,
            output_fn=keep,  # called with the layer's tensors, then with their gradients
            grad_kwargs={"materialize_grads": True},  # zero where the score needs no such tensor
        )
    finally:
        handle.remove()
    # Captum's hook, unlike ours, acts in all threads
    if not all(one is other for one, other in zip(theirs[0], ours, strict=True)):
        raise RuntimeError(
            "`layer` must not run in another thread while gradients are taken; it did. Call again, "
            "with a lock around whatever runs the model."
        )
    captured = found[0]
    return replace(captured, scores=captured.scores.detach(), prefix=[]), list(gradients)


def group_maps(clusterer: Clusterer, maps: Tensor, n_scores: int) -> Groups:
    """Groups maps of any number of axes.

    Args:
        clusterer (Clusterer): From :func:`captum_clustered.clustering.as_clusterer`.
        maps (Tensor): `(N, C, *spatial)`.
        n_scores (int): The number of scores that the model gives: where it is one for the whole
            batch, what it says of a map holds in all examples alike, and so do the groups.

    Returns:
        *Groups*: One row of labels per example.

    Example::

        >>> import torch
        >>> from captum_clustered.clustering import EveryMap
        >>> group_maps(EveryMap(), torch.ones(2, 3, 4, 4), n_scores=2).labels
        tensor([[0, 1, 2],
                [0, 1, 2]])
    """
    n = len(maps)
    features = maps.reshape(*maps.shape[:2], -1)
    if n_scores == n:
        return group(clusterer, features)
    shared = group(clusterer, features.transpose(0, 1).flatten(1).unsqueeze(0))
    return Groups(shared.labels.expand(n, -1), shared.n_groups, shared.sizes.expand(n, -1))


def unwrap(tensors: Iterable[Tensor]) -> Tensors:
    """A tuple, or the one tensor that is in it."""
    tensors = tuple(tensors)
    return tensors[0] if len(tensors) == 1 else tensors


@contextmanager
def progress(name: str, total: int, show: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar over groups, if wanted.

    Args:
        name (str): Of the explainer.
        total (int): Number of groups.
        show (bool): Whether there is a bar at all.

    Yields:
        A function to call with the number of groups done.
    """
    if not show:
        yield lambda groups: None  # noqa: ARG005
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=f"{name} attribution") as bar:
        yield bar.update


def check_perturbations(value: Any) -> None:
    """Raises where `perturbations_per_eval` is neither None nor an int of at least 1."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"`perturbations_per_eval` must be an int >= 1, or None; got {value!r}.")
