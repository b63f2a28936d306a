"""From score drops to the weights of the groups; sums and shares by group.

A weighting is a function of the scores `(N,)`, the scores without each group `(N, K)`, the labels
`(N, C)` and the maps `(N, C, *spatial)`; it returns one weight per group, `(N, K)`, which every map
of the group carries. One whose maps carry different weights has a method `share` besides, from the
weights `(N, K)`, the labels and the maps to the weight of each map, `(N, C)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "SHARES",
    "WEIGHTINGS",
    "DropByActivation",
    "Weighting",
    "as_weighting",
    "by_map",
    "drop",
    "drop_by_activation",
    "drop_per_map",
    "drop_per_mass",
    "drop_per_norm",
    "gradient_weights",
    "sum_by_group",
]

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
    return _per_map(drop(scores, ablated_scores, labels, activations), labels, activations)


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
    return _per_mass(drop(scores, ablated_scores, labels, activations), labels, activations)


@dataclass(frozen=True)
class DropByActivation:
    r"""The relative drop, shared among the maps of the group in proportion to their activation.

    With :math:`a_k` the sum of a map's activations, absolute where they are negative, a map of the
    group has the weight

    .. math:: w_k = \frac{S - S_G}{|S|} \cdot \frac{a_k}{\sum_{j \in G} a_j}

    Behind average pooling and a linear layer that is what Ablation-CAM gives each map, if the maps
    of a group weigh the same in the head: of 32 groups the map comes nearer to Ablation-CAM's than
    with :func:`drop_per_map`. The reading is ours.

    Example::

        >>> maps = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
        >>> labels = torch.tensor([[0, 0]])
        >>> weights = drop_by_activation(torch.tensor([4.0]), torch.tensor([[2.0]]), labels, maps)
        >>> weights, drop_by_activation.share(weights, labels, maps)
        (tensor([[0.5000]]), tensor([[0.3750, 0.1250]]))
    """

    def __call__(
        self, scores: Tensor, ablated_scores: Tensor, labels: Tensor, activations: Tensor
    ) -> Tensor:
        """The relative drops `(N, K)`, see :func:`drop`."""
        return drop(scores, ablated_scores, labels, activations)

    def share(self, weights: Tensor, labels: Tensor, activations: Tensor) -> Tensor:
        """Shares the weights of groups among their maps.

        Args:
            weights (Tensor): `(N, K)`.
            labels (Tensor): `(N, C)`; a map labelled -1 gets zero.
            activations (Tensor): `(N, C, *spatial)`.

        Returns:
            *Tensor*: `(N, C)`; those of a group add up to its weight.
        """
        masses = _flat(activations, weights).abs().sum(2)
        return by_map(_per_mass(weights, labels, activations), labels) * masses


drop_by_activation = DropByActivation()
"""The weighting ``"drop_by_activation"``, see :class:`DropByActivation`."""


def drop_per_norm(
    scores: Tensor, ablated_scores: Tensor, labels: Tensor, activations: Tensor
) -> Tensor:
    r"""The drop divided by the norm of what is switched off, :math:`(S - S_G) / \|A_G\|_2`.

    For single maps this is the first weight of Ablation-CAM (Desai and Ramaswamy, WACV 2020): the
    slope of the score along the way from the map to zero. The authors replaced the norm by the
    score in their experiments, see :func:`drop`. :math:`A_G` are all values of the group's maps,
    so that the norm is the length of that way for a group as well; this reading is ours.

    Args:
        scores (Tensor): `(N,)`.
        ablated_scores (Tensor): `(N, K)`.
        labels (Tensor): `(N, C)`.
        activations (Tensor): `(N, C, *spatial)`.

    Returns:
        *Tensor*: `(N, K)`, in units of the score per unit of activation. A norm of zero gives zero.

    Example::

        >>> maps = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
        >>> labels = torch.tensor([[0, 1]])
        >>> drop_per_norm(torch.tensor([4.0]), torch.tensor([[2.0, 3.0]]), labels, maps)
        tensor([[0.4000, 0.5000]])
    """
    drops = scores.unsqueeze(1) - ablated_scores
    squares = _flat(activations, drops).square().sum(2)
    return _divide(drops, sum_by_group(squares, labels, drops.shape[1]).sqrt())


def gradient_weights(gradients: Tensor) -> Tensor:
    """The weights of Grad-CAM: the mean of each map's gradient.

    Args:
        gradients (Tensor): `(N, C, *spatial)`.

    Returns:
        *Tensor*: `(N, C)`, at least float32.

    Example::

        >>> gradient_weights(torch.tensor([[[1.0, 3.0], [0.0, -1.0]]]))
        tensor([[ 2.0000, -0.5000]])
    """
    precise = torch.promote_types(gradients.dtype, torch.float32)
    return gradients.to(precise).reshape(*gradients.shape[:2], -1).mean(2)


def sum_by_group(values: Tensor, labels: Tensor, n_groups: int) -> Tensor:
    """Sums values over the members of each group.

    Args:
        values (Tensor): `(N, C, *rest)`.
        labels (Tensor): int64 `(N, C)`; what is labelled -1 is left out.
        n_groups (int): `K`, more than any label.

    Returns:
        *Tensor*: `(N, K, *rest)`; zero for a group without members.

    Example::

        >>> sum_by_group(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[1, 0, 1, -1]]), 3)
        tensor([[2., 5., 0.]])
    """
    sums = values.new_zeros(len(values), n_groups + 1, *values.shape[2:])
    places = (labels + 1).reshape(*labels.shape, *[1] * (values.ndim - 2)).expand_as(values)
    return sums.scatter_add_(1, places, values)[:, 1:]


def by_map(weights: Tensor, labels: Tensor) -> Tensor:
    """Hands each map the weight of its group.

    Args:
        weights (Tensor): `(N, K)`.
        labels (Tensor): int64 `(N, C)`; a map labelled -1 gets zero.

    Returns:
        *Tensor*: `(N, C)`.

    Example::

        >>> by_map(torch.tensor([[0.5, 2.0]]), torch.tensor([[1, 0, 1, -1]]))
        tensor([[2.0000, 0.5000, 2.0000, 0.0000]])
    """
    return torch.where(labels < 0, 0, weights.gather(1, labels.clamp(min=0)))


def _whole(weights: Tensor, labels: Tensor, activations: Tensor) -> Tensor:
    return weights


def _per_map(weights: Tensor, labels: Tensor, activations: Tensor) -> Tensor:
    ones = torch.ones_like(labels, dtype=weights.dtype)
    return weights / sum_by_group(ones, labels, weights.shape[1]).clamp(min=1)


def _per_mass(weights: Tensor, labels: Tensor, activations: Tensor) -> Tensor:
    masses = _flat(activations, weights).abs().sum(2)
    return _divide(weights, sum_by_group(masses, labels, weights.shape[1]))


SHARES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": _whole,
    "map": _per_map,
    "mass": _per_mass,
}
"""How a group's weight is shared among its maps: whole to each, equally, or by activation."""


def _flat(activations: Tensor, like: Tensor) -> Tensor:
    return activations.to(like.dtype).reshape(*activations.shape[:2], -1)


def _divide(weights: Tensor, by: Tensor) -> Tensor:
    return torch.where(by > 0, weights / torch.where(by > 0, by, 1), 0)


WEIGHTINGS: dict[str, Weighting] = {
    "drop": drop,
    "drop_per_map": drop_per_map,
    "drop_per_mass": drop_per_mass,
    "drop_per_norm": drop_per_norm,
    "drop_by_activation": drop_by_activation,
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
