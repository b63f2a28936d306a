"""How much a heat map hangs on arbitrary choices: the seed, the clusterer, the number of groups."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_clustered.clustering import as_clusterer
from captum_clustered.explainers.results import Tensors
from captum_clustered.heatmap import normalize
from captum_clustered.targets import Target

__all__ = ["Stability", "stability"]


@dataclass(frozen=True, eq=False)
class Stability:
    """The heat maps of several groupings, and how far they agree.

    `N` is the number of examples, `R` of groupings.

    Attributes:
        mean (Tensor): The mean of the maps, each scaled to [0, 1], `(N, 1, *spatial)`.
        std (Tensor): Their standard deviation at each place, `(N, 1, *spatial)`.
        attributions (Tensor): The maps, scaled, `(R, N, 1, *spatial)`.
        agreement (Tensor): The adjusted Rand index of each two groupings, `(N, R, R)`: 1 for equal
            groups, about 0 for groups that agree by chance.
        clusterers (list): What made each grouping.
    """

    mean: Tensor
    std: Tensor
    attributions: Tensor
    agreement: Tensor
    clusterers: list[Any]


def stability(
    explainer: Any,
    inputs: Tensors,
    target: Target = None,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    clusterers: Sequence[Any] | None = None,
    n_clusters: Sequence[int] | None = None,
    **arguments: Any,
) -> Stability:
    """Explains the same inputs with several groupings.

    Every clusterer is combined with every number of groups and every seed; one that does not draw
    at random runs once for all seeds.

    Args:
        explainer (LayerAttribution): One of this package that has a clusterer. It is not changed.
        inputs (Tensor or tuple[Tensor, ...]): The model's inputs.
        target (int, tuple, Tensor or list, optional): The class to explain. Default: None
        seeds (sequence of int, optional): Seeds. Default: (0, 1, 2, 3, 4)
        clusterers (sequence, optional): Names or clusterers. Default: None (the explainer's own)
        n_clusters (sequence of int, optional): Numbers of groups, for clusterers that have one.
            Default: None (their own; 64 for a name)
        **arguments (Any): More arguments of the explainer's `explain`.

    Returns:
        *Stability*: The mean map, its standard deviation, and the agreement of the groups.

    Raises:
        TypeError: If the explainer has no clusterer.
        ValueError: If there is nothing to vary, or the layer gives several tensors.

    Example::

        >>> from torch import nn
        >>> from captum_clustered import ClusteredLayerAblation
        >>> model = nn.Sequential(nn.Conv2d(1, 9, 3), nn.Flatten(), nn.Linear(36, 2)).eval()
        >>> cam = ClusteredLayerAblation(model, model[0], n_clusters=3)
        >>> found = stability(cam, torch.rand(2, 1, 4, 4), target=1, seeds=range(3))
        >>> found.mean.shape, found.agreement.shape
        (torch.Size([2, 1, 2, 2]), torch.Size([2, 3, 3]))
    """
    if not hasattr(explainer, "clusterer") or not hasattr(explainer, "explain"):
        raise TypeError(
            "`explainer` must have a clusterer, such as ClusteredLayerAblation; got "
            f"{type(explainer).__name__}."
        )
    varied = _variants(
        [explainer.clusterer] if clusterers is None else clusterers, n_clusters, seeds
    )
    heats, labels = [], []
    for clusterer in varied:
        one = copy.copy(explainer)
        one.clusterer = clusterer
        found = one.explain(inputs, target, **arguments)
        if isinstance(found.attributions, tuple):
            raise ValueError(
                "`explainer` must have a layer that gives one tensor; this one gives "
                f"{len(found.attributions)}. Choose another layer."
            )
        heats.append(normalize(found.attributions))
        labels.append((found.labels.cpu(), found.labels_below.cpu()))
    attributions = torch.stack(heats)
    return Stability(
        mean=attributions.mean(0),
        std=attributions.std(0, correction=0),
        attributions=attributions,
        agreement=_agreement(_of_parts(labels)),
        clusterers=varied,
    )


def _variants(
    clusterers: Sequence[Any], counts: Sequence[int] | None, seeds: Sequence[int]
) -> list[Any]:
    varied: list[Any] = []
    for given in clusterers:
        for count in [None] if counts is None else counts:
            clusterer: Any = as_clusterer(given, 64 if count is None else count)
            known = _fields(clusterer)
            if count is not None and "n_clusters" in known:
                clusterer = dataclasses.replace(clusterer, n_clusters=count)
            for seed in seeds if "seed" in known else [None]:
                one = clusterer if seed is None else dataclasses.replace(clusterer, seed=seed)
                if not any(one is other or one == other for other in varied):
                    varied.append(one)
    if len(varied) < 2:
        raise ValueError(
            "`seeds`, `clusterers` and `n_clusters` must make at least two groupings; got "
            f"{varied}. Name more of them."
        )
    return varied


def _fields(clusterer: Any) -> set[str]:
    if not dataclasses.is_dataclass(clusterer):
        return set()
    return {field.name for field in dataclasses.fields(clusterer) if field.init}


def _of_parts(labels: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Labels `(N, 2 C)` of what maps say above and below; `(N, C)` where all maps are whole."""
    if all(bool(((below < 0) | (below == above)).all()) for above, below in labels):
        return [above for above, _ in labels]
    return [torch.cat(both, 1) for both in labels]


def _agreement(labels: Sequence[Tensor]) -> Tensor:
    """Adjusted Rand indices `(N, R, R)` of labels `(N, P)`, over parts that both put in a group."""
    from sklearn.metrics import adjusted_rand_score

    n, r = len(labels[0]), len(labels)
    found = torch.ones(n, r, r, dtype=torch.float64)
    for i in range(n):
        for a in range(r):
            for b in range(a):
                both = (labels[a][i] >= 0) & (labels[b][i] >= 0)
                score = adjusted_rand_score(labels[a][i][both], labels[b][i][both])
                found[i, a, b] = found[i, b, a] = score
    return found
