"""What the page of an image shows beside the map: other numbers of groups, the highest classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_clustered.clustering import Agglomerative
from captum_clustered.explainers.ablation import ClusteredLayerAblation
from captum_clustered.explainers.results import ClusteredAttribution
from captum_clustered.models.prepared import Prepared
from captum_clustered.page.image import ClassScore

if TYPE_CHECKING:
    from captum_clustered.app.explain import Explained

__all__ = ["highest_classes", "other_levels", "shown_on_page"]

_LEVELS = (2, 4, 8, 16, 32, 64, 128)  # numbers of groups beside the one that was asked for
_CLASSES = 5


def shown_on_page(found: Sequence[Explained]) -> Explained | None:
    """What the page shows: Clustered-CAM, or else the first method with groups, if there is one."""
    grouped = [one for one in found if one.panel.has_groups]
    grouped.sort(key=lambda one: one.panel.variant.method != "clustered-cam")
    return grouped[0] if grouped else None


def other_levels(shown: Explained, x: Tensor) -> tuple[int, dict[int, ClusteredAttribution]]:
    """The number of groups that was asked for or chosen, and results by number of groups.

    With other numbers of groups the tree of an agglomerative clusterer is cut again; other
    clusterers run again.
    """
    panel, result, prepared = shown.panel, shown.result, shown.panel.prepared
    assert isinstance(result, ClusteredAttribution)  # for the type checker
    clusterer: Any = panel.explainer.clusterer
    varies = is_dataclass(clusterer) and "n_clusters" in {f.name for f in fields(clusterer)}
    asked = clusterer.n_clusters if varies else None
    chosen = asked if isinstance(asked, int) else int(result.valid[0].sum())
    by_level = {chosen: result}
    parts = result.parts
    if not varies or not isinstance(parts, Tensor):
        return chosen, by_level
    n_live = int((parts[0].flatten(1) != 0).any(1).sum())
    tree = clusterer.tree(parts.flatten(2)) if isinstance(clusterer, Agglomerative) else None
    for k in _LEVELS:
        if k <= max(chosen, 64) and k < n_live and k != chosen:
            cam = prepared.explainer(
                ClusteredLayerAblation,
                clusterer=_counting(clusterer, k) if tree is None else tree.cut(k),
                weighting=panel.explainer.weighting,
            )
            at_input = prepared.layer.at_input
            by_level[k] = cam.explain(x, shown.target, attribute_to_layer_input=at_input)
    return chosen, by_level


def _counting(clusterer: Any, k: int) -> Any:
    """The same clusterer with another number of groups; of random groups, that of their model."""
    like = getattr(clusterer, "like", None)
    if like is not None:
        return replace(clusterer, like=replace(like, n_clusters=k))
    return replace(clusterer, n_clusters=k)


def highest_classes(prepared: Prepared, scores: Tensor, target: int) -> tuple[ClassScore, ...]:
    """The highest classes, and the one that is explained, for scores `(n_classes,)`."""
    order = scores.argsort(descending=True).tolist()[:_CLASSES]
    return tuple(
        ClassScore(
            index=index,
            name=prepared.class_name(index),
            score=float(scores[index]),
            probability=prepared.probability(scores, index)[0],
            is_target=index == target,
        )
        for index in (order if target in order else [*order, target])
    )
