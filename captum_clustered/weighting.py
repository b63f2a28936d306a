"""From score drops to the weights of the groups.

A weighting is a function of the scores `(N,)`, the scores without each group `(N, K)`, the labels
`(N, C)` and the maps `(N, C, *spatial)`; it returns one weight per group, `(N, K)`, which every map
of the group carries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["WEIGHTINGS", "Weighting", "as_weighting", "drop", "drop_per_map", "drop_per_mass"]

Weighting = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def drop(scores: Tensor, ablated_scores: Tensor, labels: Tensor, activations: Tensor) -> Tensor:
    r"""The relative drop of the score, :math:`w_G = (S - S_G) / |S|`.

    For a positive score this is equation 1 of Clustered-CAM (Eskandari, Du, AlZoubi, MIDL 2022)
    and, with single maps as groups, the weight of Ablation-CAM (Desai and Ramaswamy, WACV
    2020). Where the score is negative, dividing by its magnitude keeps the meaning of the sign: a
    group whose absence lowers the score has a positive weight. A score of zero divides nothing.

    Args:
        scores (Tensor): `(N,)`.
        ablated_scores (Tensor): `(N, K)`.
        labels (Tensor): `(N, C)`, not used.
        activations (Tensor): `(N, C, *spatial)`, not used.

    Returns:
        *Tensor*: `(N, K)`.

    Example::

        >>> drop(torch.tensor([-4.0]), torch.tensor([[-5.0, -3.0]]), None, None)
        tensor([[ 0.2500, -0.2500]])
    """
    size = scores.abs()
    size = torch.where(size == 0, torch.ones_like(size), size)
    return (scores.unsqueeze(1) - ablated_scores) / size.unsqueeze(1)


def drop_per_map(
    scores: Tensor, ablated_scores: Tensor, labels: Tensor, activations: Tensor
) -> Tensor:
    """The relative drop divided by the number of maps in the group.

    The drop is the joint effect of the group. Given whole to each member, it counts a group of `n`
    maps `n` times; shared out, the members' weights add up to the drop.

    Args:
        scores (Tensor): `(N,)`.
        ablated_scores (Tensor): `(N, K)`.
        labels (Tensor): `(N, C)`.
        activations (Tensor): `(N, C, *spatial)`, not used.

    Returns:
        *Tensor*: `(N, K)`.

    Example::

        >>> labels = torch.tensor([[0, 0, 1]])
        >>> drop_per_map(torch.tensor([4.0]), torch.tensor([[2.0, 3.0]]), labels, None)
        tensor([[0.2500, 0.2500]])
    """
    weights = drop(scores, ablated_scores, labels, activations)
    sizes = _sum_by_group(torch.ones_like(labels, dtype=weights.dtype), labels, weights)
    return weights / sizes.clamp(min=1)


def drop_per_mass(
    scores: Tensor, ablated_scores: Tensor, labels: Tensor, activations: Tensor
) -> Tensor:
    r"""The relative drop divided by the group's mass, the sum of its activations.

    The group's heat is :math:`w_G F_G / \sum F_G`, with :math:`F_G` the sum of its maps: the heat
    of all groups adds up to the sum of their drops. That holds for maps that are nowhere negative.
    Of others the absolute values are summed, since a mass that cancels to nearly nothing would blow
    the weight up.

    Args:
        scores (Tensor): `(N,)`.
        ablated_scores (Tensor): `(N, K)`.
        labels (Tensor): `(N, C)`.
        activations (Tensor): `(N, C, *spatial)`.

    Returns:
        *Tensor*: `(N, K)`.

    Example::

        >>> maps = torch.tensor([[[3.0, 1.0], [0.0, 2.0]]])
        >>> labels = torch.tensor([[0, 1]])
        >>> drop_per_mass(torch.tensor([4.0]), torch.tensor([[2.0, 3.0]]), labels, maps)
        tensor([[0.1250, 0.1250]])
    """
    weights = drop(scores, ablated_scores, labels, activations)
    masses = activations.to(weights.dtype).abs().reshape(*labels.shape, -1).sum(2)
    mass = _sum_by_group(masses, labels, weights)
    return torch.where(mass > 0, weights / torch.where(mass > 0, mass, 1), 0)


def _sum_by_group(values: Tensor, labels: Tensor, like: Tensor) -> Tensor:
    """Sums `values` `(N, C)` over the members of each group, into the shape of `like` `(N, K)`."""
    sums = like.new_zeros(len(labels), like.shape[1] + 1)
    return sums.scatter_add_(1, labels + 1, values)[:, 1:]


WEIGHTINGS: dict[str, Weighting] = {
    "drop": drop,
    "drop_per_map": drop_per_map,
    "drop_per_mass": drop_per_mass,
}


def as_weighting(weighting: Any) -> Weighting:
    """Turns a name, a key of :data:`WEIGHTINGS`, or a callable into a weighting.

    Args:
        weighting (str or callable): The name, or the function itself.

    Returns:
        *callable*: The weighting.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If `weighting` is neither.

    Example::

        >>> as_weighting("drop") is drop
        True
    """
    if isinstance(weighting, str):
        if weighting not in WEIGHTINGS:
            raise ValueError(
                f"`weighting` must be one of {', '.join(WEIGHTINGS)}, or a callable; "
                f"got {weighting!r}."
            )
        return WEIGHTINGS[weighting]
    if callable(weighting):
        return weighting  # type: ignore[no-any-return]
    raise TypeError(
        f"`weighting` must be one of {', '.join(WEIGHTINGS)}, or a callable; got {weighting!r}."
    )
