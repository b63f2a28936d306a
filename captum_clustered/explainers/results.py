"""What the explainers return: frozen values that can show themselves and save what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = [
    "Attribution",
    "ClusteredAttribution",
    "EntropyAttribution",
    "MaskingAttribution",
    "OptimizationAttribution",
    "Tensors",
]

Tensors = Tensor | tuple[Tensor, ...]
"""One tensor for a layer that gives one, else a tuple."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """A heat map, and what can be done with it.

    Attributes:
        attributions (Tensor or tuple[Tensor, ...]): `(N, 1, *spatial)`, in the layer's own
            resolution; a tuple if the layer gives several tensors.
    """

    attributions: Tensors


@dataclass(frozen=True, eq=False)
class ClusteredAttribution(Attribution):
    """Everything that one call of :meth:`ClusteredLayerAblation.explain` found out.

    `N` is the number of examples, `C` of feature maps, `K` of groups. Where the layer gives several
    tensors, every field marked * is a tuple with one entry for each.

    Attributes:
        attributions (Tensor or tuple[Tensor, ...]): * The heat map, `(N, 1, *spatial)`, or
            `(N, C, *spatial)` with ``attr_dim_summation=False``.
        activations (Tensor or tuple[Tensor, ...]): * The maps, `(N, C, *spatial)`.
        labels (Tensor or tuple[Tensor, ...]): * int64 `(N, C)`: each map's group; -1 marks a dead
            map, or one that the clusterer put into no group.
        scores (Tensor): The target scores, `(N,)`.
        ablated_scores (Tensor or tuple[Tensor, ...]): * The scores without each group, `(N, K)`.
        group_weights (Tensor or tuple[Tensor, ...]): * The weight that each map of a group carries,
            or that they share, as the weighting says, `(N, K)`; 0 for a group that an example does
            not have.
        valid (Tensor or tuple[Tensor, ...]): * bool `(N, K)`: which groups an example has.
        channel_weights (Tensor or tuple[Tensor, ...]): * The weight of each map, `(N, C)`.
        replay (str): ``"suffix"`` if only what lies behind the layer ran again, else ``"full"``.
        replay_reason (str or None): Why the whole model ran again.
        standard_errors (Tensor or tuple[Tensor, ...] or None): * Of `ablated_scores`, where these
            are estimates, as with :class:`captum_clustered.shapley.Shapley`; else None.
    """

    activations: Tensors
    labels: Tensors
    scores: Tensor
    ablated_scores: Tensors
    group_weights: Tensors
    valid: Tensors
    channel_weights: Tensors
    replay: Literal["suffix", "full"]
    replay_reason: str | None = None
    standard_errors: Tensors | None = None


@dataclass(frozen=True, eq=False)
class MaskingAttribution(Attribution):
    """Everything that one call of `explain` found out.

    `N` is the number of examples, `C` of feature maps, `K` of groups. Where the layer gives several
    tensors, every field marked * is a tuple with one entry for each.

    Attributes:
        attributions (Tensor or tuple[Tensor, ...]): * The heat map, `(N, 1, *spatial)`, or
            `(N, C, *spatial)` with ``attr_dim_summation=False``.
        activations (Tensor or tuple[Tensor, ...]): * The maps, `(N, C, *spatial)`.
        labels (Tensor or tuple[Tensor, ...]): * int64 `(N, C)`: each map's group; -1 is none.
        group_maps (Tensor or tuple[Tensor, ...]): * What the masks are made of, in the layer's own
            resolution: the joint map of each group, `(N, K, *spatial)`.
        masked_scores (Tensor or tuple[Tensor, ...]): * What the model says of the class when
            it sees the image through the group, `(N, K)`.
        hidden_scores (Tensor or None): What it says when all of the image is hidden, `(N,)`; None
            where that is not asked, as in Score-CAM.
        group_weights (Tensor or tuple[Tensor, ...]): * The weight of each group, `(N, K)`, as it is
            given to its joint map (Group-CAM) or to each of its maps (Score-CAM); 0 for a group
            that is not valid.
        valid (Tensor or tuple[Tensor, ...]): * bool `(N, K)`: which groups an example has, without
            those whose joint map is flat, since a flat map is no mask.
    """

    activations: Tensors
    labels: Tensors
    group_maps: Tensors
    masked_scores: Tensors
    hidden_scores: Tensor | None
    group_weights: Tensors
    valid: Tensors


@dataclass(frozen=True, eq=False)
class OptimizationAttribution(Attribution):
    """Everything that one call of :meth:`ClusteredLayerOptimization.explain` found out.

    `N` is the number of examples, `C` of feature maps, `K` of groups, `T` of steps.

    Attributes:
        attributions (Tensor): The heat map, `(N, 1, *spatial)`, or `(N, C, *spatial)` with
            ``attr_dim_summation=False``.
        activations (Tensor): The maps, `(N, C, *spatial)`.
        labels (Tensor): int64 `(N, C)`: each map's group; -1 is none.
        group_weights (Tensor): The weight of each group, `(N, K)`; those of an example sum to 1.
        valid (Tensor): bool `(N, K)`: which groups an example has.
        objectives (Tensor): The objective before each step, `(N, T)`.
    """

    activations: Tensor
    labels: Tensor
    group_weights: Tensor
    valid: Tensor
    objectives: Tensor


@dataclass(frozen=True, eq=False)
class EntropyAttribution(Attribution):
    """Everything that one call of :meth:`LayerEGradCam.explain` found out.

    `N` is the number of examples, `C` of feature maps. Where the layer gives several tensors, every
    field marked * is a tuple with one entry for each.

    Attributes:
        attributions (Tensor or tuple[Tensor, ...]): * The heat map, `(N, 1, *spatial)`, or
            `(N, C, *spatial)` with ``attr_dim_summation=False``.
        activations (Tensor or tuple[Tensor, ...]): * The maps, `(N, C, *spatial)`.
        scores (Tensor): The target scores, `(N,)`.
        entropies (Tensor or tuple[Tensor, ...]): * The entropy of each map in bits, `(N, C)`.
        kept (Tensor or tuple[Tensor, ...]): * bool `(N, C)`: the maps that are not frozen out.
        channel_weights (Tensor or tuple[Tensor, ...]): * The weight of each map, `(N, C)`: the mean
            of its gradient, 0 for a map that is frozen out.
    """

    activations: Tensors
    scores: Tensor
    entropies: Tensors
    kept: Tensors
    channel_weights: Tensors
