"""Clustered-CAM, in which groups of maps are switched off together, and Ablation-CAM."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from captum.attr import PerturbationAttribution
from torch import Tensor, nn

from captum_clustered._checks import check_choice
from captum_clustered.clustering import EveryMap, Groups, as_clusterer, numbered
from captum_clustered.engine.capture import FirstPass
from captum_clustered.engine.parts import Parts
from captum_clustered.engine.replay import Replay, Replaying, replay
from captum_clustered.engine.switching import Ablation, as_baselines
from captum_clustered.explainers.base import (
    LayerExplainer,
    check_parts,
    check_perturbations,
    group_parts,
    progress,
    unwrap,
)
from captum_clustered.explainers.results import ClusteredAttribution, Tensors
from captum_clustered.heatmap import ReshapeTransform
from captum_clustered.targets import Target, plain
from captum_clustered.weighting import as_weighting
from captum_clustered.weighting import by_map as by_group

__all__ = ["ClusteredLayerAblation", "LayerAblationCam"]


class ClusteredLayerAblation(LayerExplainer, PerturbationAttribution):
    r"""Clustered-CAM: similar feature maps of a layer are switched off together.

    The maps :math:`A_k` of the layer are grouped. Each group :math:`G` is replaced by the baseline,
    the target score falls from :math:`S` to :math:`S_G`, and with the weight
    :math:`w_G = (S - S_G) / |S|` the heat map is

    .. math:: M = \mathrm{ReLU}\Big(\sum_G w_G \sum_{k \in G} A_k\Big)

    (Eskandari, Du, AlZoubi, "Clustered-CAM: Visual Explanations for Deep Convolutional Networks for
    Thyroid Nodule Ultrasound Image Classification", MIDL 2022, equation 1, made safe for negative
    scores). The model runs once; for the groups, only the part after the layer runs again.

    The formula is made for maps that are nowhere negative. So each map is taken apart into two
    parts that are: what it says above its baseline, and what it says below
    (:func:`captum_clustered.engine.parts.as_parts`). Parts are clustered, switched off, weighed and
    painted. After a ReLU the maps are their own parts, and the formula is the one above.

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
            norm of the group's maps; ``"auto"`` is ``"drop_per_map"`` for an example whose maps lie
            nowhere below the baseline, and ``"drop_per_norm"`` for one whose maps have two signs;
            or a callable ``(scores, ablated_scores, labels, activations) -> (N, K)``.
            Default: ``"auto"``, since the paper's counts a group of n maps n times
        parts (str, optional): ``"signed"`` takes each map apart into what it says above its
            baseline and what it says below, where there is any; ``"whole"`` keeps maps whole and
            paints the magnitude of their deviation. Given labels `(N, C)` keep them whole as well;
            labels `(N, 2 C)` are of parts, those above the baseline first. Default: ``"signed"``
        unpainted (str, optional): What becomes of values that `reshape_transform` drops, such as
            the class token, when a part is switched off: ``"keep"`` leaves them as they are, since
            what the score loses through them would be painted elsewhere; ``"ablate"`` switches them
            off too. Default: ``"keep"``
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
        weighting: Any = "auto",
        parts: Literal["signed", "whole"] = "signed",
        unpainted: Literal["keep", "ablate"] = "keep",
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
        check_choice("replay", replay, ("auto", "suffix", "full"))
        check_parts(parts)
        check_choice("unpainted", unpainted, ("keep", "ablate"))
        self.clusterer = as_clusterer(clusterer, n_clusters)
        self.weighting = as_weighting(weighting)
        self.parts: str = parts
        self.unpainted: str = unpainted
        self.replay = replay
        self._checked: set[Any] = set()

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

        The arguments are those of :meth:`attribute`.

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
            measured = self._measure(first, layer_baselines, perturbations_per_eval, show_progress)
        return self._result(first.maps, measured, relu_attributions, attr_dim_summation)

    def _measure(
        self, first: FirstPass, baselines: Any, chunk: int | None, show_progress: bool
    ) -> _Measured:
        """The parts of the maps, their groups, and the scores without each."""
        baselines = plain(baselines, "layer_baselines")
        ready = as_baselines(baselines, first.activations)
        parts = self._parts(first, self.clusterer, self.parts, baselines)
        if self.unpainted == "keep":
            ready = [self._keep(*pair) for pair in zip(first.activations, ready, strict=True)]
        dims = [self._channel_dim(tensor) for tensor in first.activations]
        check, key = self._needs_check(first)

        def run(ablation: Ablation, tick: Callable[[int], object]) -> Replay:
            return replay(first, ablation, Replaying(self.replay, chunk, check, tick))

        def ablate(groups: list[Groups]) -> Ablation:
            return Ablation.of(first.activations, groups, dims, ready)

        def bar(total: int) -> AbstractContextManager[Callable[[int], object]]:
            return progress(self.get_name(), total, show_progress)

        found: _Measured | None = None
        if hasattr(self.clusterer, "search"):  # it asks for drops, as Adaptive does
            asking: Any = self.clusterer
            with bar(asking.budget) as tick:
                found = _descend(asking, first, parts, lambda groups: run(ablate(groups), tick))
            groups = found.groups
        else:
            groups = [
                group_parts(self.clusterer, one, jointly=first.has_joint_score) for one in parts
            ]
        ablation = ablate(groups)
        if hasattr(self.weighting, "measure"):  # it asks for orders, as Shapley does
            weighting: Any = self.weighting
            with bar(weighting.n_permutations * ablation.n_groups) as tick:
                found = _in_orders(weighting, parts, groups, ablation, lambda one: run(one, tick))
        elif found is None:
            with bar(ablation.n_groups) as tick:
                found = _Measured(parts, groups, run(ablation, tick))
        if found.replayed.path == "suffix":
            self._checked.add(key)
        return found

    def _keep(self, activation: Tensor, baseline: Tensor) -> Tensor:
        """A baseline that leaves what the heat map does not show as it is."""
        painted = self._painted(activation)
        return baseline if painted is None else torch.where(painted, baseline, activation)

    def _needs_check(self, first: FirstPass) -> tuple[bool, Any]:
        """Where reading a value makes the host wait, one check per layer and shapes is enough."""
        shapes = tuple(tuple(a.shape) if isinstance(a, Tensor) else None for a in first.model.args)
        key = (first.io, shapes)
        return first.scores.device.type == "cpu" or key not in self._checked, key

    def _result(
        self, maps: list[Tensor], measured: _Measured, relu: bool, sum_maps: bool
    ) -> ClusteredAttribution:
        parts, groups, replayed = measured.parts, measured.groups, measured.replayed
        errors = measured.errors
        counts = [grouped.n_groups for grouped in groups]
        ablated = replayed.ablated_scores.split(counts, dim=1)
        drops = replayed.scores.unsqueeze(1) - replayed.ablated_scores
        self._warn_if_idle(replayed.scores, [drops])
        weights = [
            self._group_weights(replayed.scores, scores, grouped, one)
            for scores, grouped, one in zip(ablated, groups, parts, strict=True)
        ]
        share = getattr(self.weighting, "share", None) or _equally
        part_weights = [
            share(weight, grouped.labels, one.values)
            for weight, grouped, one in zip(weights, groups, parts, strict=True)
        ]
        heats = [
            one.paint(weight, relu, sum_maps)
            for one, weight in zip(parts, part_weights, strict=True)
        ]
        labels = [
            one.by_map(grouped.labels, -1) for one, grouped in zip(parts, groups, strict=True)
        ]
        by_map = [one.by_map(weight, 0) for one, weight in zip(parts, part_weights, strict=True)]
        return ClusteredAttribution(
            attributions=unwrap(heats),
            activations=unwrap(maps),
            parts=unwrap(one.values for one in parts),
            labels=unwrap(above for above, _ in labels),
            labels_below=unwrap(below for _, below in labels),
            scores=replayed.scores,
            ablated_scores=unwrap(ablated),
            group_weights=unwrap(weights),
            valid=unwrap(grouped.sizes > 0 for grouped in groups),
            channel_weights=unwrap(above for above, _ in by_map),
            channel_weights_below=unwrap(below for _, below in by_map),
            replay=replayed.path,
            replay_reason=replayed.reason,
            standard_errors=None if errors is None else unwrap(errors.split(counts, dim=1)),
        )

    def _group_weights(
        self, scores: Tensor, ablated: Tensor, grouped: Groups, parts: Parts
    ) -> Tensor:
        """The weights `(N, K)`, 0 for a group that an example does not have."""
        n, k = len(parts.values), grouped.n_groups
        precise = torch.promote_types(scores.dtype, torch.float32)
        weighting: Any = self.weighting
        if hasattr(weighting, "of") and parts.has_signs:
            weighting = weighting.of(parts.signed)
        weights = weighting(
            scores.to(precise).expand(n),
            ablated.to(precise).expand(n, k),
            grouped.labels,
            parts.values,
        )
        if not isinstance(weights, Tensor) or weights.shape != (n, k):
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise ValueError(
                f"`weighting` must return one weight per group, a tensor of shape {(n, k)}; got "
                f"{got}. A map takes the weight of its group."
            )
        return torch.where(grouped.sizes > 0, weights, 0)


@dataclass(frozen=True)
class _Measured:
    """Parts and groups of each of the layer's tensors, their scores, standard errors, if any."""

    parts: list[Parts]
    groups: list[Groups]
    replayed: Replay
    errors: Tensor | None = None  # (N, K)


def _equally(weights: Tensor, labels: Tensor, _: Tensor) -> Tensor:
    return by_group(weights, labels)


def _in_orders(
    weighting: Any,
    parts: list[Parts],
    groups: list[Groups],
    ablation: Ablation,
    run: Callable[[Ablation], Replay],
) -> _Measured:
    """Scores of groups that are switched off one after the other, in the orders asked for."""
    last: list[Replay] = []

    def in_order(rank: Tensor) -> tuple[Tensor, Tensor]:
        last[:] = [run(ablation.in_order(rank))]
        return last[0].scores, last[0].ablated_scores

    values, errors = weighting.measure(ablation.n_groups, in_order)  # (N, K)
    without = last[0].scores.unsqueeze(1) - values
    return _Measured(parts, groups, replace(last[0], ablated_scores=without), errors)


def _descend(
    clusterer: Any, first: FirstPass, parts: list[Parts], run: Callable[[list[Groups]], Replay]
) -> _Measured:
    """Groups that depend on the drops, in the rounds that the clusterer asks for."""
    kind = type(clusterer).__name__
    if len(first.maps) > 1:
        raise ValueError(
            f"`clusterer` must not be {kind} for a layer that gives several tensors; this one "
            f"gives {len(first.maps)}. Choose a layer that gives one."
        )
    (one,) = parts
    n = first.model.n
    if first.has_joint_score:
        raise ValueError(
            f"`clusterer` must not be {kind} for a model that gives one score for the whole "
            f"batch; got {n} examples and {len(first.scores)} score. Pass one example at "
            "a time."
        )
    finite = one.features.flatten(1).isfinite().all(1)[:, None]  # (N, 1)
    search = clusterer.search(torch.where(finite[:, None], one.features, 0))  # (N, P, D)
    labels = next(search)
    while True:
        replayed = run([numbered(labels)])
        try:
            labels = search.send(replayed.scores.unsqueeze(1) - replayed.ablated_scores)
        except StopIteration as end:
            labels, drops = end.value
            break
    labels = torch.where(finite, labels, 0)  # so that the score of such an example is used
    without = replayed.scores.unsqueeze(1) - drops.to(replayed.scores)
    return _Measured(parts, [numbered(labels)], replace(replayed, ablated_scores=without))


class LayerAblationCam(ClusteredLayerAblation):
    r"""Ablation-CAM: each feature map of a layer is switched off alone.

    With the score :math:`S` and the score :math:`S_k` without the map :math:`A_k` the heat map is
    :math:`\mathrm{ReLU}(\sum_k w_k A_k)`, where :math:`w_k = (S - S_k) / |S|` or, with
    ``weighting="drop_per_norm"``, :math:`w_k = (S - S_k) / \|A_k\|_2` (Desai and Ramaswamy,
    "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
    Localization", WACV 2020, which gives both and uses the former; the magnitude in its divisor is
    ours, since a negative score would turn the map inside out).

    It is :class:`ClusteredLayerAblation` with each map as its own group: exact, maps are set to
    zero and to nothing else, and only the part after the layer runs once for each map. Where maps
    have two signs, each of their parts is its own group.

    Args:
        forward_func (callable): The model, or a function that runs it, as in Captum.
        layer (nn.Module): The layer, as for :class:`ClusteredLayerAblation`.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        weighting (str or callable, optional): ``"drop"``, ``"drop_per_norm"``, or what else
            :class:`ClusteredLayerAblation` takes. Default: ``"drop"``
        parts (str, optional): ``"signed"`` or ``"whole"``, as there. Default: ``"signed"``
        unpainted (str, optional): ``"keep"`` or ``"ablate"``, as there. Default: ``"keep"``
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
        parts: Literal["signed", "whole"] = "signed",
        unpainted: Literal["keep", "ablate"] = "keep",
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
            parts=parts,
            unpainted=unpainted,
            channel_dim=channel_dim,
            reshape_transform=reshape_transform,
            replay=replay,
        )
