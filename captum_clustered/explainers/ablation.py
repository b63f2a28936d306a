"""The public door: :class:`ClusteredLayerAblation`, a Captum layer attribution; Ablation-CAM."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import torch
from captum.attr import PerturbationAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_clustered.adaptive import Adaptive
from captum_clustered.clustering import EveryMap, Groups, as_clusterer, numbered
from captum_clustered.engine.replay import Ablation, Replay, replay
from captum_clustered.explainers.base import (
    FirstPass,
    LayerExplainer,
    check_perturbations,
    group_maps,
    progress,
    unwrap,
)
from captum_clustered.explainers.results import ClusteredAttribution, Tensors
from captum_clustered.heatmap import ReshapeTransform, build
from captum_clustered.shapley import Shapley
from captum_clustered.targets import Target
from captum_clustered.weighting import as_weighting, by_map

__all__ = ["ClusteredLayerAblation", "LayerAblationCam"]


class ClusteredLayerAblation(LayerExplainer, PerturbationAttribution):
    r"""Clustered-CAM: similar feature maps of a layer are switched off together.

    The maps :math:`A_k` of the layer are grouped. Each group :math:`G` is replaced by the baseline,
    the target score falls from :math:`S` to :math:`S_G`, and with the weight
    :math:`w_G = (S - S_G) / |S|` the heat map is

    .. math:: M = \mathrm{ReLU}\Big(\sum_G w_G \sum_{k \in G} A_k\Big)

    (Eskandari, Du, AlZoubi, "Clustered-CAM: Visual Explanations for Deep Convolutional Networks for
    Thyroid Nodule Ultrasound Image Classification", MIDL 2022, equation 1, made safe for negative
    scores). The model runs once; for the groups, only what lies behind the layer runs again.

    With ``clusterer="every-map"`` this is Ablation-CAM (Desai and Ramaswamy, WACV 2020). The result
    has the form of Captum's `LayerGradCam`, which it can replace; no gradient is needed.

    Args:
        forward_func (callable): The model, or a function that runs it, as in Captum.
        layer (nn.Module): The layer whose maps are grouped. Its output, or its input, is a tensor
            of 2 to 5 axes, batch first, or a tuple or list of such tensors.
        device_ids (list[int], optional): Accepted as in Captum, but not needed: a model wrapped in
            `DataParallel` is unwrapped and runs on one device. Default: None
        clusterer (str, estimator, callable or Tensor, optional): What groups the maps: a name
            (``"kmeans"``, ``"cosine"``, ``"agglomerative"``, ``"contiguous"``, ``"random"``,
            ``"every-map"``), a clusterer of :mod:`captum_clustered.clustering`, a scikit-learn
            estimator, a callable from features `(N, C, D)` to labels `(N, C)`, or labels.
            Default: ``"kmeans"``
        n_clusters (int or str, optional): Number of groups for a clusterer given by name;
            ``"auto"`` for a number of each example's own, with ``"agglomerative"``. Default: 64
        weighting (str or callable, optional): How a drop becomes a weight: ``"drop"``, the paper's,
            gives the joint drop to each map of the group; ``"drop_per_map"`` shares it among them;
            ``"drop_per_mass"`` shares it by activation; ``"drop_per_norm"`` divides the drop by the
            norm of the group's maps; or a callable
            ``(scores, ablated_scores, labels, activations) -> (N, K)``.
            Default: ``"drop_per_map"``, since the paper's counts a group of n maps n times
        channel_dim (int, optional): Axis of the maps in the layer's own output, -1 for tokens and
            channels-last layers. Default: 1
        reshape_transform (callable, optional): Turns the layer's output into `(N, C, *spatial)` for
            clustering and the heat map, where the axes of the image have to be made, such as
            :func:`captum_clustered.heatmap.vit_reshape_transform`. Default: None
        replay (str, optional): ``"auto"``; ``"suffix"`` to get an error instead of the slow path
            where the fast one cannot be taken; ``"full"`` to run the whole model for each group.
            Default: ``"auto"``

    Example::

        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...     nn.Linear(8, 5),
        ... ).eval()
        >>> x = torch.rand(2, 3, 16, 16)
        >>> cam = ClusteredLayerAblation(model, model[1], n_clusters=4)
        >>> heat = cam.attribute(x, target=3)
        >>> heat.shape
        torch.Size([2, 1, 14, 14])
        >>> cam.interpolate(heat, (16, 16), "bilinear").shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        clusterer: Any = "kmeans",
        n_clusters: int | Literal["auto"] = 64,
        weighting: Any = "drop_per_map",
        channel_dim: int = 1,
        reshape_transform: ReshapeTransform | None = None,
        replay: Literal["auto", "suffix", "full"] = "auto",
    ) -> None:
        LayerExplainer.__init__(
            self,
            forward_func,
            layer,
            device_ids,
            channel_dim=channel_dim,
            reshape_transform=reshape_transform,
        )
        PerturbationAttribution.__init__(self, forward_func)
        if replay not in ("auto", "suffix", "full"):
            raise ValueError(f"`replay` must be one of auto, suffix, full; got {replay!r}.")
        self.clusterer = as_clusterer(clusterer, n_clusters)
        self.weighting = as_weighting(weighting)
        self.replay = replay
        self._checked: set[Any] = set()

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        *,
        layer_baselines: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = True,
        attr_dim_summation: bool = True,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> Tensors:
        r"""Computes the heat map.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): The model's inputs, the batch axis first.
            target (int, tuple, Tensor or list, optional): The class to explain: an int (or a tuple
                for an output of several axes) for all examples, or a list or tensor with one entry
                per example. None if the model gives one score per example. Default: None
            layer_baselines (scalar, Tensor or tuple, optional): What replaces the maps that are
                switched off: a number, a tensor that broadcasts against the layer's output, or a
                tuple of these for a layer of several tensors. Default: None (zero)
            additional_forward_args (Any, optional): Further arguments of `forward_func`, one or a
                tuple. Default: None
            attribute_to_layer_input (bool, optional): Whether to use the layer's input instead of
                its output. Default: False
            relu_attributions (bool, optional): Whether to set negative values of the heat map to
                zero, as the paper does. Default: True
            attr_dim_summation (bool, optional): Whether to sum over the maps. Default: True
            perturbations_per_eval (int, optional): Groups that are switched off in one pass; it
                changes memory and time, never the result. Default: None (as many as fit a budget)
            show_progress (bool, optional): Whether to show a progress bar. Default: False

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**: `(N, 1, *spatial)`, or
            `(N, C, *spatial)` with ``attr_dim_summation=False``, in the layer's own resolution,
            detached, on the device of the layer's output. A tuple if the layer gives one.

        Raises:
            TypeError: If an argument, or what the model or the layer gives, is of a wrong type.
            ValueError: If a shape or a value does not fit; the message says what to change.

        Example::

            >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
            >>> cam = ClusteredLayerAblation(model.eval(), model[1], clusterer="every-map")
            >>> cam.attribute(torch.rand(3, 1, 4, 4), target=[0, 1, 1]).shape
            torch.Size([3, 1, 2, 2])
        """
        return self.explain(
            inputs,
            target,
            layer_baselines=layer_baselines,
            additional_forward_args=additional_forward_args,
            attribute_to_layer_input=attribute_to_layer_input,
            relu_attributions=relu_attributions,
            attr_dim_summation=attr_dim_summation,
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
        ).attributions

    def explain(
        self,
        inputs: Tensors,
        target: Target = None,
        *,
        layer_baselines: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = True,
        attr_dim_summation: bool = True,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> ClusteredAttribution:
        """Computes the heat map and returns it with all that led to it.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): As for :meth:`attribute`, like all arguments.
            target (int, tuple, Tensor or list, optional): The class to explain. Default: None
            layer_baselines (scalar, Tensor or tuple, optional): What replaces a map. Default: None
            additional_forward_args (Any, optional): Further arguments of the model. Default: None
            attribute_to_layer_input (bool, optional): Use the layer's input. Default: False
            relu_attributions (bool, optional): Set negative values to zero. Default: True
            attr_dim_summation (bool, optional): Sum over the maps. Default: True
            perturbations_per_eval (int, optional): Groups in one pass. Default: None
            show_progress (bool, optional): Show a progress bar. Default: False

        Returns:
            *ClusteredAttribution*: The heat map, the groups, their scores and weights.

        Raises:
            TypeError: As :meth:`attribute`.
            ValueError: As :meth:`attribute`.

        Example::

            >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
            >>> cam = ClusteredLayerAblation(model.eval(), model[1], n_clusters=2)
            >>> result = cam.explain(torch.rand(3, 1, 4, 4), target=1)
            >>> result.labels.shape, result.ablated_scores.shape, result.replay
            (torch.Size([3, 4]), torch.Size([3, 2]), 'suffix')
        """
        check_perturbations(perturbations_per_eval)
        with self._first_pass(
            inputs, target, additional_forward_args, attribute_to_layer_input
        ) as first:
            groups, replayed, errors = self._measure(
                first, layer_baselines, perturbations_per_eval, show_progress
            )
        return self._result(
            first.maps, groups, replayed, errors, relu_attributions, attr_dim_summation
        )

    def _measure(
        self, first: FirstPass, baselines: Any, chunk: int | None, show_progress: bool
    ) -> tuple[list[Groups], Replay, Tensor | None]:
        """The groups, the scores without each, and the standard errors of these, if any."""
        activations = first.captured.activations
        dims = [self._channel_dim(tensor) for tensor in activations]
        check, key = self._needs_check(first)

        def ablate(groups: list[Groups]) -> Ablation:
            return Ablation.of(activations, groups, dims, baselines)

        def run(ablation: Ablation, tick: Callable[[int], object]) -> Replay:
            return replay(
                first.model,
                first.io,
                first.targets,
                first.captured,
                ablation,
                mode=self.replay,
                chunk=chunk,
                check=check,
                tick=tick,
            )

        def show(n_groups: int) -> AbstractContextManager[Callable[[int], object]]:
            return progress(self.get_name(), n_groups, show_progress)

        errors = None
        if isinstance(self.clusterer, Adaptive):
            with show(self.clusterer.budget) as tick:
                groups, replayed = _descend(
                    self.clusterer, first, lambda found: run(ablate(found), tick)
                )
        else:
            groups = [group_maps(self.clusterer, maps, first.n_scores) for maps in first.maps]
        ablation = ablate(groups)
        if isinstance(self.weighting, Shapley):
            with show(self.weighting.n_permutations * ablation.n_groups) as tick:

                def in_order(rank: Tensor) -> tuple[Tensor, Tensor]:
                    nonlocal replayed
                    replayed = run(ablation.in_order(rank), tick)
                    return replayed.scores, replayed.ablated_scores

                values, errors = self.weighting.measure(ablation.n_groups, in_order)
            without = replayed.scores.unsqueeze(1) - values
            replayed = replace(replayed, ablated_scores=without)
        elif not isinstance(self.clusterer, Adaptive):
            with show(ablation.n_groups) as tick:
                replayed = run(ablation, tick)
        if replayed.path == "suffix":
            self._checked.add(key)
        return groups, replayed, errors

    def _needs_check(self, first: FirstPass) -> tuple[bool, Any]:
        """Where reading a value makes the host wait, one check per layer and shapes is enough."""
        shapes = tuple(tuple(a.shape) if isinstance(a, Tensor) else None for a in first.model.args)
        key = (first.io, shapes)
        return first.captured.scores.device.type == "cpu" or key not in self._checked, key

    def _result(
        self,
        maps: list[Tensor],
        groups: list[Groups],
        replayed: Replay,
        errors: Tensor | None,
        relu: bool,
        sum_maps: bool,
    ) -> ClusteredAttribution:
        counts = [grouped.n_groups for grouped in groups]
        parts = replayed.ablated_scores.split(counts, dim=1)
        weights = [
            self._group_weights(replayed.scores, part, grouped, tensor)
            for part, grouped, tensor in zip(parts, groups, maps, strict=True)
        ]
        share = getattr(self.weighting, "share", None) or _equally
        channel_weights = [
            share(weight, grouped.labels, tensor)
            for weight, grouped, tensor in zip(weights, groups, maps, strict=True)
        ]
        heats = [
            build(tensor, weight, relu, sum_maps)
            for tensor, weight in zip(maps, channel_weights, strict=True)
        ]

        return ClusteredAttribution(
            attributions=unwrap(heats),
            activations=unwrap(maps),
            labels=unwrap(grouped.labels for grouped in groups),
            scores=replayed.scores,
            ablated_scores=unwrap(parts),
            group_weights=unwrap(weights),
            valid=unwrap(grouped.sizes > 0 for grouped in groups),
            channel_weights=unwrap(channel_weights),
            replay=replayed.path,
            replay_reason=replayed.reason,
            standard_errors=None if errors is None else unwrap(errors.split(counts, dim=1)),
        )

    def _group_weights(
        self, scores: Tensor, ablated: Tensor, grouped: Groups, maps: Tensor
    ) -> Tensor:
        n, k = len(maps), grouped.n_groups
        precise = torch.promote_types(scores.dtype, torch.float32)
        weights = self.weighting(
            scores.to(precise).expand(n),
            ablated.to(precise).expand(n, k),
            grouped.labels,
            maps,
        )
        if not isinstance(weights, Tensor) or weights.shape != (n, k):
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise ValueError(
                f"`weighting` must return one weight per group, a tensor of shape {(n, k)}; got "
                f"{got}. A map takes the weight of its group."
            )
        return torch.where(grouped.sizes > 0, weights, 0)


def _equally(weights: Tensor, labels: Tensor, _: Tensor) -> Tensor:
    return by_map(weights, labels)


def _descend(
    clusterer: Adaptive, first: FirstPass, run: Callable[[list[Groups]], Replay]
) -> tuple[list[Groups], Replay]:
    """Groups that depend on the drops."""
    if len(first.maps) > 1:
        raise ValueError(
            "`clusterer` must not be Adaptive for a layer that gives several tensors; this one "
            f"gives {len(first.maps)}. Choose a layer that gives one."
        )
    (maps,) = first.maps
    if first.n_scores != len(maps):
        raise ValueError(
            "`clusterer` must not be Adaptive for a model that gives one score for the whole "
            f"batch; got {len(maps)} examples and {first.n_scores} score."
        )
    search = clusterer.search(maps.reshape(*maps.shape[:2], -1))
    labels = next(search)
    while True:
        replayed = run([numbered(labels)])
        try:
            labels = search.send(replayed.scores.unsqueeze(1) - replayed.ablated_scores)
        except StopIteration as end:
            labels, drops = end.value
            break
    scores = replayed.scores
    return [numbered(labels)], replace(
        replayed, ablated_scores=scores.unsqueeze(1) - drops.to(scores)
    )


class LayerAblationCam(ClusteredLayerAblation):
    r"""Ablation-CAM: each feature map of a layer is switched off alone.

    With the score :math:`S` and the score :math:`S_k` without the map :math:`A_k` the heat map is
    :math:`\mathrm{ReLU}(\sum_k w_k A_k)`, where :math:`w_k = (S - S_k) / |S|` or, with
    ``weighting="drop_per_norm"``, :math:`w_k = (S - S_k) / \|A_k\|_2` (Desai and Ramaswamy,
    "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
    Localization", WACV 2020, which gives both and uses the former; the magnitude in its divisor is
    ours, since a negative score would turn the map inside out).

    It is :class:`ClusteredLayerAblation` with each map as its own group: exact, maps are set to
    zero and to nothing else, and only what lies behind the layer runs once for each map.

    Args:
        forward_func (callable): The model, or a function that runs it, as in Captum.
        layer (nn.Module): The layer, as for :class:`ClusteredLayerAblation`.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        weighting (str or callable, optional): ``"drop"``, ``"drop_per_norm"``, or what else
            :class:`ClusteredLayerAblation` takes. Default: ``"drop"``
        channel_dim (int, optional): Axis of the maps in the layer's own output. Default: 1
        reshape_transform (callable, optional): Turns the layer's output into `(N, C, *spatial)`.
            Default: None
        replay (str, optional): ``"auto"``, ``"suffix"`` or ``"full"``. Default: ``"auto"``

    Example::

        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> cam = LayerAblationCam(model.eval(), model[1])
        >>> cam.attribute(torch.rand(3, 1, 4, 4), target=1).shape
        torch.Size([3, 1, 2, 2])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        weighting: Any = "drop",
        channel_dim: int = 1,
        reshape_transform: ReshapeTransform | None = None,
        replay: Literal["auto", "suffix", "full"] = "auto",
    ) -> None:
        super().__init__(
            forward_func,
            layer,
            device_ids,
            clusterer=EveryMap(),
            weighting=weighting,
            channel_dim=channel_dim,
            reshape_transform=reshape_transform,
            replay=replay,
        )
