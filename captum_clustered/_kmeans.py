"""The arithmetic of k-means for a batch of `N` examples, `C` maps of `D` values, `K` groups.

Everything here works on points `(N, C, D)` of one floating point dtype and reads nothing from an
accelerator. :class:`captum_clustered.clustering.KMeans` prepares the points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Candidates that a step of k-means++ draws, and how many of them it takes. A step consists of many
# small operations, so there should be few steps, but each small enough for a single thread.
_CANDIDATES, _TAKEN = 12, 4


def draws_for(k: int) -> tuple[int, int]:
    """The shape of the random numbers that :func:`k_means` needs for `k` groups."""
    return 1 + math.ceil((k - 1) / _TAKEN), _CANDIDATES


def k_means(
    points: Tensor, live: Tensor, draws: Tensor, k: int, n_iter: int, cosine: bool
) -> Tensor:
    """Labels `(N, C)`: greedy k-means++, then at most `n_iter` of Lloyd's iterations.

    Args:
        points (Tensor): `(N, C, D)`.
        live (Tensor): `(N, C)`, 1 for a live map, else 0; dead maps move no centre.
        draws (Tensor): Random numbers in [0, 1), of the shape that :func:`draws_for` gives.
        k (int): Number of groups, at most `C`.
        n_iter (int): Largest number of iterations.
        cosine (bool): Whether centres are directions, as the points then are.
    """
    centres = _first_centres(points, live, draws, k)  # (N, K, D)
    labels = _nearest(points, centres)  # (N, C)
    for _ in range(n_iter):
        centres = _means(points, live, labels, centres, cosine)
        previous, labels = labels, _nearest(points, centres)
        # Equal labels mean that further steps change nothing. On an accelerator it takes longer to
        # find that out than to take the steps.
        if labels.device.type == "cpu" and torch.equal(labels, previous):
            break
    return labels


def _means(points: Tensor, live: Tensor, labels: Tensor, old: Tensor, cosine: bool) -> Tensor:
    """Means of the groups, `(N, K, D)`; an empty group keeps its centre."""
    n, k, d = old.shape
    rows = labels + torch.arange(0, n * k, k, device=labels.device).unsqueeze(1)  # (N, C)
    sums = old.new_zeros(n * k, d)
    # `index_add_` adds whole rows, which is several times faster than `scatter_add_`
    sums = sums.index_add_(0, rows.flatten(), points.flatten(0, 1)).reshape(n, k, d)
    counts = old.new_zeros(n, k).scatter_add_(1, labels, live).unsqueeze(2)  # (N, K, 1)
    means = F.normalize(sums, dim=2) if cosine else sums / counts.clamp(min=1)
    return torch.where(counts > 0, means, old)


def _first_centres(points: Tensor, live: Tensor, draws: Tensor, k: int) -> Tensor:
    """First centres `(N, K, D)`: of the maps drawn, those that leave the smallest distances."""
    n, c, d = points.shape
    t = draws.shape[1]
    squares = points.square().sum(2)  # (N, C)
    rows, turned = points.flatten(0, 1), points.transpose(1, 2)  # (N * C, D) and (N, D, C)
    example = torch.arange(n, device=points.device)
    first_row, first_candidate = (c * example).unsqueeze(1), t * example  # of each example
    weights = live  # the first centre is any live map
    # (N, 1, C): squared distance to the nearest centre
    rest = torch.where(live > 0, torch.inf, 0).unsqueeze(1)
    # Many small steps: new memory for each, and each operation more, would take longer than the
    # arithmetic.
    distances = points.new_empty(n, t, c)
    each = distances.view(n * t, 1, c)
    chosen: list[Tensor] = []
    for step, uniform in enumerate(draws):
        index = _draw(weights, uniform.expand(n, -1)) + first_row  # (N, T), rows of `rows`
        drawn = rows.index_select(0, index.flatten()).view(n, t, d)
        # (N, T, C): squared distance of each map from each candidate
        torch.baddbmm(squares.unsqueeze(1), drawn, turned, alpha=-2, out=distances)
        distances += squares.take(index).unsqueeze(2)
        taken: list[Tensor] = []
        for _ in range(min(_TAKEN, k - 1 - _TAKEN * (step - 1)) if step else 1):
            torch.minimum(distances, rest, out=distances)
            taken.append(distances.sum(2).argmin(1) + first_candidate)  # (N,), a row of `each`
            rest = each.index_select(0, taken[-1])
        chosen.append(index.take(torch.stack(taken, 1)))  # (N, 1), then (N, 4)
        weights = rest.squeeze(1).clamp(min=0)  # rounding can leave a negative distance
    return rows.index_select(0, torch.cat(chosen, 1).flatten()).reshape(n, k, d)


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Indices `(N, T)` drawn in proportion to `weights` `(N, C)`, given draws from [0, 1)."""
    total = weights.cumsum(1)  # (N, C)
    index = torch.searchsorted(total, (uniform * total[:, -1:]).contiguous(), right=True)
    return index.clamp(max=weights.shape[1] - 1)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of each map, `(N, C)`; |p|² is left out, being equal for all centres."""
    offset = centres.square().sum(2).unsqueeze(1)  # (N, 1, K)
    scores = torch.baddbmm(offset, points, centres.transpose(1, 2), alpha=-2)  # (N, C, K)
    if scores.device.type != "cpu":
        return scores.argmin(2)
    # torch takes as long for it as for the product
    return torch.from_numpy(scores.numpy().argmin(2))
