"""What the explainers of a layer have in common: settings, `attribute`, the first pass.

Private part of Captum: `captum._utils.gradient`, with which its own layer methods take gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from captum._utils.gradient import compute_layer_gradients_and_eval
from captum.attr import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_clustered._borrow import borrowed
from captum_clustered._checks import check_choice
from captum_clustered._gradients import gradients_reach
from captum_clustered._modules import find_module
from captum_clustered._warn import warn
from captum_clustered.clustering import Clusterer, GivenLabels, Groups, RandomGroups, group
from captum_clustered.engine.calls import LayerIO
from captum_clustered.engine.capture import FirstPass, capture, check_kind
from captum_clustered.engine.model import Model, as_model
from captum_clustered.engine.parts import Parts, as_parts
from captum_clustered.explainers.results import Attribution, Tensors
from captum_clustered.heatmap import ReshapeTransform, to_maps
from captum_clustered.targets import Target, format_target, plain_args

__all__ = [
    "NO_GRADIENT",
    "LayerExplainer",
    "check_parts",
    "check_perturbations",
    "group_maps",
    "group_parts",
    "is_given",
    "progress",
    "unwrap",
]


class LayerExplainer(LayerAttribution):
    """Base of the explainers: holds the settings that say how a layer is read.

    A method defines `explain(inputs, target, *, ...)`, which returns an
    :class:`~captum_clustered.explainers.results.Attribution`. `attribute` takes the same arguments
    and returns the heat map alone.

    Args:
        forward_func (callable): The model, or a function that runs it.
        layer (nn.Module or str): The layer whose maps are explained, or its name in the model.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        channel_dim (int, optional): Axis of the maps in the layer's own output. Default: 1
        reshape_transform (callable, optional): Turns the layer's output into `(N, C, *spatial)`.
            Default: None
    """

    explain: Callable[..., Attribution]

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        channel_dim: int = 1,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        if isinstance(forward_func, torch.export.ExportedProgram):
            raise TypeError(
                "`forward_func` must be a module or a function; got an ExportedProgram. Pass what "
                "`torch.export.unflatten` makes of it, with a layer of that."
            )
        layer = find_module(forward_func, layer)
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        if not isinstance(channel_dim, int) or channel_dim == 0:
            raise ValueError(
                f"`channel_dim` must be an int other than 0, the batch axis; got {channel_dim!r}. "
                "Pass -1 for layers whose maps lie on the last axis."
            )
        self.channel_dim = channel_dim
        self.reshape_transform = reshape_transform

    def __init_subclass__(cls) -> None:
        """Gives `attribute` the signature of the class's own `explain`, for help and editors."""
        super().__init_subclass__()
        if "explain" in cls.__dict__:
            cls.attribute = _with_signature_of(cls.explain)  # type: ignore[method-assign]
            cls.explain = _watched(cls.explain)

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(self, inputs: Tensors, target: Target = None, **arguments: Any) -> Tensors:
        """Computes the heat map.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): The model's inputs, the batch axis first.
            target (int, tuple, Tensor or list, optional): The class to explain: an int (or a tuple
                for an output of several axes) for all examples, or a list or tensor with one entry
                per example. None if the model gives one score per example. Default: None
            **arguments (Any): Those of the following that the method's `explain` has, by keyword.
            layer_baselines (scalar, Tensor or tuple, optional): What replaces the maps that are
                switched off: a number, a tensor that broadcasts against the layer's output, or a
                tuple of these for a layer of several tensors. Default: None (zero)
            additional_forward_args (Any, optional): Further arguments of `forward_func`, one or a
                tuple. Default: None
            attribute_to_layer_input (bool, optional): Whether to use the layer's input instead of
                its output. Default: False
            relu_attributions (bool, optional): Whether to set negative values of the heat map to
                zero. Default: True
            attr_dim_summation (bool, optional): Whether to sum over the maps. Default: True
            perturbations_per_eval (int, optional): Groups that are switched off, or masked images
                of an example, in one pass. It changes memory and time, never the result.
                Default: None (as many as fit a budget)
            show_progress (bool, optional): Whether to show a progress bar. Default: False

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**: `(N, 1, *spatial)`, or
            `(N, C, *spatial)` with ``attr_dim_summation=False``, in the layer's own resolution,
            detached, on the device of the layer's output. A tuple if the layer gives one.

        Raises:
            TypeError: If an argument, or what the model or the layer gives, is of a wrong type.
            ValueError: If a shape or a value does not fit; the message says what to change.

        Example::

            >>> import torch
            >>> from captum_clustered import ClusteredLayerAblation
            >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
            >>> cam = ClusteredLayerAblation(model.eval(), model[1], clusterer="every-map")
            >>> cam.attribute(torch.rand(3, 1, 4, 4), target=[0, 1, 1]).shape
            torch.Size([3, 1, 2, 2])
        """
        return self.explain(inputs, target, **arguments).attributions

    @contextmanager
    def _first_pass(
        self,
        inputs: Any,
        target: Target,
        additional_forward_args: Any,
        at_input: bool,
        gradients: bool = False,
        lay_out: bool = True,
    ) -> Iterator[FirstPass]:
        """Runs the model once; until the context is left, the model is borrowed."""
        io = LayerIO(self.layer, at_input)
        with borrowed(self.forward_func) as forward_func:
            model = as_model(forward_func, *plain_args(inputs, additional_forward_args))
            targets = format_target(target, model.n)

            def read(tensors: list[Tensor]) -> list[Tensor]:
                return [self._maps(tensor, model.args[0].ndim) for tensor in tensors]

            if gradients:
                first, found = model.settled(lambda: _differentiate(model, io, targets, read))
            else:
                first, found = capture(model, io, targets, lay_out=lay_out), []
            if first.stochastic:
                warn(
                    "The model has dropout or batch norm in training mode, so that its scores are "
                    "random or depend on the batch. Call model.eval() before explaining it."
                )
            slopes = read(found)
            if slopes:
                self._warn_if_idle(first.scores, slopes)
            yield replace(first, maps=read(first.activations), gradients=slopes)

    def _warn_if_idle(self, scores: Tensor, effects: Sequence[Tensor]) -> None:
        """Warns of tokens that do not reach the score; on an accelerator nothing is read."""
        if self.reshape_transform is None or effects[0].device.type != "cpu":
            return
        # nothing changes the scores of a new head of zeros
        if bool(scores.any()) and not any(bool(effect.any()) for effect in effects):
            warn(
                "`layer` gives tokens of which none that the heat map shows changes the score, so "
                "that the map means nothing. Behind the last attention of a transformer, for "
                "example, the class token alone is read. Choose the norm before the last attention."
            )

    def _maps(self, activations: Tensor, input_ndim: int) -> Tensor:
        check_kind(activations)
        if not 2 <= activations.ndim <= 5:
            raise ValueError(
                "`layer` must give tensors of 2 to 5 axes, the batch first; got shape "
                f"{tuple(activations.shape)}. Choose a layer that gives feature maps."
            )
        channel_dim = self._channel_dim(activations)
        return to_maps(activations, channel_dim, self.reshape_transform, self.layer, input_ndim)

    def _parts(
        self, first: FirstPass, clusterer: Clusterer, parts: str, baselines: Any = None
    ) -> list[Parts]:
        """Takes the maps of each of the layer's tensors apart.

        Args:
            first (FirstPass): The first pass, with maps.
            clusterer (Clusterer): One with given labels of whole maps keeps them whole.
            parts (str): ``"signed"`` or ``"whole"``.
            baselines (scalar, Tensor, tuple or None, optional): As the caller passed them.
                Default: None (zero)
        """
        n = len(first.maps)
        given = baselines if isinstance(baselines, tuple) else (baselines,) * n
        found = []
        for maps, activation, baseline in zip(first.maps, first.activations, given, strict=True):
            like = None
            if isinstance(baseline, Tensor) or baseline:  # no number but 0 is false
                value = torch.as_tensor(baseline, dtype=maps.dtype, device=maps.device)
                like = self._maps(value.expand_as(activation), first.model.args[0].ndim)
            c = maps.shape[1]
            whole = parts == "whole" or _has_labels_of(clusterer, c)
            both = not whole and _has_labels_of(clusterer, 2 * c)
            known = first.rectified and like is None and self.reshape_transform is None
            found.append(as_parts(maps, like, whole=whole, both=both, rectified=known))
        return found

    def _painted(self, activation: Tensor) -> Tensor | None:
        """Which values of the layer's output the heat map shows, bool `(1, …)`; None for all.

        A reshape transform may drop tokens. What it drops has no gradient; of a transform that has
        none either, such as one by NumPy, what it drops does not come out.
        """
        if self.reshape_transform is None:
            return None
        count = activation[0].numel()
        # on the CPU, where gradients can be taken whatever stands in for the device
        probe = torch.arange(1, count + 1, device="cpu").div(count)
        probe = probe.reshape(1, *activation.shape[1:])
        with torch.enable_grad(), suppress(RuntimeError):
            maps = self.reshape_transform(probe.requires_grad_())
            # with unequal weights, since the sum of what has no mean has no gradient
            unequal = torch.arange(1, maps.numel() + 1, device="cpu").sin().view_as(maps)
            (slopes,) = torch.autograd.grad((maps * unequal).sum(), probe)
            return slopes.ne(0).to(activation.device)
        probe = probe.detach()
        with suppress(RuntimeError):
            maps = self.reshape_transform(probe).to(probe.dtype)
            computed = ~torch.isin(maps, probe).all()  # then nothing is known
            return (torch.isin(probe, maps) | computed).to(activation.device)
        return None

    def _channel_dim(self, activations: Tensor) -> int:
        dim = self.channel_dim + (activations.ndim if self.channel_dim < 0 else 0)
        if not 0 < dim < activations.ndim:
            raise ValueError(
                f"`channel_dim` must be an axis behind the batch axis of the layer's output "
                f"{tuple(activations.shape)}; got {self.channel_dim}. Pass the axis of the maps."
            )
        return dim


def _watched(explain: Callable[..., Attribution]) -> Callable[..., Attribution]:
    """Warns of heat maps that are not finite; on an accelerator nothing is read."""

    @wraps(explain)
    def watched(*args: Any, **kwargs: Any) -> Attribution:
        result = explain(*args, **kwargs)
        found = result.attributions
        heats = found if isinstance(found, tuple) else (found,)
        bad = {
            row
            for heat in heats
            if heat.device.type == "cpu" and not bool(heat.isfinite().all())
            for row in (~heat.flatten(1).isfinite()).any(1).nonzero().flatten().tolist()
        }
        if bad:
            warn(
                f"The heat maps of examples {sorted(bad)} are not finite. Their inputs, maps or "
                "scores hold NaN or infinite values; the other examples are not affected."
            )
        return result

    return watched


def _with_signature_of(explain: Callable[..., Any]) -> Any:
    inherited = LayerExplainer.attribute

    @wraps(inherited)
    def attribute(*args: Any, **kwargs: Any) -> Any:
        return inherited(*args, **kwargs)

    signature = inspect.signature(explain)
    attribute.__signature__ = signature.replace(return_annotation="Tensors")  # type: ignore[attr-defined]
    return attribute


def _differentiate(
    model: Model,
    io: LayerIO,
    targets: Tensor | None,
    check: Callable[[list[Tensor]], object],
) -> tuple[FirstPass, list[Tensor]]:
    """The first pass by Captum, as in its Grad-CAM, and the gradients that come back to the layer.

    Nothing is written into the `.grad` of a parameter or of an input.
    """
    found: list[FirstPass] = []
    ours: list[Tensor] = []
    theirs: list[Any] = []

    def watch(tensors: list[Tensor]) -> None:
        check(tensors)
        ours.extend(tensors)

    def forward(_: Tensor) -> Tensor:
        found.append(capture(model, io, targets))
        if not found[0].scores.requires_grad:
            raise ValueError(NO_GRADIENT)
        return found[0].scores

    def keep(tensors: Any) -> Any:
        theirs.append(tensors)
        if len(theirs) == 1:
            return tensors
        # zero where the score needs only others of the layer's tensors
        return tuple(
            torch.zeros_like(of) if tensor is None else tensor
            for tensor, of in zip(tensors, theirs[0], strict=True)
        )

    handle = io.hook(watch)
    try:
        with gradients_reach(NO_GRADIENT):
            gradients, _ = compute_layer_gradients_and_eval(
                forward,
                io.layer,
                model.args[0],
                attribute_to_layer_input=io.at_input,
                output_fn=keep,  # called with the layer's tensors, then with their gradients
                grad_kwargs={"allow_unused": True},
            )
    finally:
        handle.remove()
    # Captum's hook, unlike ours, acts in all threads
    if not all(one is other for one, other in zip(theirs[0], ours, strict=True)):
        raise RuntimeError(
            "`layer` must not run in another thread while gradients are taken; it did. Call again, "
            "with a lock around whatever runs the model."
        )
    if len(theirs) > 1 and all(gradient is None for gradient in theirs[1]):
        raise ValueError(NO_GRADIENT)
    return replace(found[0], scores=found[0].scores.detach(), prefix=[]), list(gradients)


NO_GRADIENT = (
    "`forward_func` must give a score that has a gradient with respect to `layer`; got one "
    "without. Leave out what cuts it off (`.item()`, `.detach()`, argmax, `torch.no_grad`, "
    "`torch.inference_mode`), choose a layer that the score depends on, or take a method without "
    "gradients, such as ClusteredLayerAblation."
)


def group_maps(clusterer: Clusterer, maps: Tensor, *, jointly: bool = False) -> Groups:
    """Groups maps of any number of axes.

    Args:
        clusterer (Clusterer): From :func:`captum_clustered.clustering.as_clusterer`.
        maps (Tensor): `(N, C, *spatial)`.
        jointly (bool, optional): Whether all examples have the same groups. They must where the
            model gives one score for the whole batch, since a map is then switched off in all
            examples at once. Default: False

    Returns:
        *Groups*: One row of labels per example.

    Example::

        >>> import torch
        >>> from captum_clustered.clustering import EveryMap
        >>> group_maps(EveryMap(), torch.ones(2, 3, 4, 4)).labels
        tensor([[0, 1, 2],
                [0, 1, 2]])
    """
    n = len(maps)
    features = maps.reshape(*maps.shape[:2], -1)  # (N, C, D)
    if not jointly:
        return group(clusterer, features)
    shared = group(clusterer, features.transpose(0, 1).flatten(1).unsqueeze(0))  # (1, C, N * D)
    return Groups(shared.labels.expand(n, -1), shared.n_groups, shared.sizes.expand(n, -1))


def group_parts(clusterer: Clusterer, parts: Parts, *, jointly: bool = False) -> Groups:
    """Groups the parts of maps.

    An example without parts below the baseline is clustered as if there were none in the batch, so
    that no result depends on an example's neighbours.

    Args:
        clusterer (Clusterer): From :func:`captum_clustered.clustering.as_clusterer`.
        parts (Parts): The parts of each map.
        jointly (bool, optional): As for :func:`group_maps`. Default: False

    Returns:
        *Groups*: With labels `(N, P)`.
    """
    mixed = parts.two_sided and not jointly and not is_given(clusterer)
    if not mixed or parts.features.device.type != "cpu" or bool(parts.signed.all()):
        return group_maps(clusterer, parts.features, jointly=jointly)
    n, p = parts.features.shape[:2]
    some = {
        rows: group(clusterer, parts.features[rows == parts.signed][:, :count])
        for rows, count in ((True, p), (False, parts.n_maps))
    }
    k = max(grouped.n_groups for grouped in some.values())
    labels = torch.full((n, p), -1, dtype=torch.int64)
    sizes = torch.zeros(n, k, dtype=torch.int64)
    for rows, grouped in some.items():
        at = (parts.signed == rows).nonzero().squeeze(1)
        labels[at, : grouped.labels.shape[1]] = grouped.labels
        sizes[at, : grouped.n_groups] = grouped.sizes
    return Groups(labels, k, sizes)


def _has_labels_of(clusterer: Clusterer, count: int) -> bool:
    """Whether labels of so many maps, or parts, were given beforehand."""
    like = clusterer.like if isinstance(clusterer, RandomGroups) else clusterer
    return isinstance(like, GivenLabels) and like.labels.shape[-1] == count


def is_given(clusterer: Clusterer) -> bool:
    """Whether the labels, or the sizes of the groups, were given beforehand."""
    like = clusterer.like if isinstance(clusterer, RandomGroups) else clusterer
    return isinstance(like, GivenLabels)


def check_parts(parts: Any) -> None:
    """Raises where `parts` is neither ``"signed"`` nor ``"whole"``."""
    check_choice("parts", parts, ("signed", "whole"))


def unwrap(tensors: Iterable[Tensor]) -> Tensors:
    """A tuple, or its only tensor."""
    tensors = tuple(tensors)
    return tensors[0] if len(tensors) == 1 else tensors


@contextmanager
def progress(name: str, total: int, show: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar over groups, if one is wanted.

    Args:
        name (str): Name of the explainer.
        total (int): Number of groups.
        show (bool): Whether there is a bar at all.

    Yields:
        A function to call with the number of groups that are done.
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
