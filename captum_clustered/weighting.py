"""From score drops to the weights of the groups; sums and shares by group.

A weighting is a function of the scores `(N,)`, the scores without each group `(N, K)`, the labels
`(N, C)` and the maps `(N, C, *spatial)`. It returns one weight per group, `(N, K)`, and each map
of the group carries that weight. A weighting that gives the maps of a group different weights also
has a method `share`: from the weights `(N, K)`, the labels and the maps to one weight per map,
`(N, C)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_clustered._checks import check_choice

__all__ = [
    "SHARES",
    "WEIGHTINGS",
    "BySign",
    "DropByActivation",
    "Weighting",
    "as_weighting",
    "auto",
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
    2020). A negative score is divided by its magnitude, which keeps the meaning of the sign: a
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
    size = scores.abs()  # (N,)
    size = torch.where(size == 0, torch.ones_like(size), size)
    return (scores.unsqueeze(1) - ablated_scores) / size.unsqueeze(1)  # (N, K)


def drop_per_map(
    scores: Tensor, ablated_scores: Tensor, labels: Tensor, activations: Tensor
) -> Tensor:
    """The relative drop divided by the number of maps in the group.

    The drop is the joint effect of the group. If each of its `n` maps carried the whole drop, it
    would count `n` times. With this weighting the weights of the maps add up to the drop.

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

    With :math:`F_G` the sum of the group's maps, its part of the heat map is
    :math:`w_G F_G / \sum F_G`, so the whole heat map sums to the sum of the drops. That holds for
    maps without negative values. The mass of other maps is the sum of their absolute values, since
    a sum near zero would make the weight huge.

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

    With :math:`a_k` the sum of the absolute activations of map `k`, each map of the group `G` has
    the weight

    .. math:: w_k = \frac{S - S_G}{|S|} \cdot \frac{a_k}{\sum_{j \in G} a_j}

    Before average pooling and a linear layer, this is the weight that Ablation-CAM gives each map,
    if the maps of a group have equal weights in the linear layer. With 32 groups the heat map is
    nearer to Ablation-CAM's than with :func:`drop_per_map`. The formula is our own proposal.

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
        """Divides the weight of each group among its maps.

        Args:
            weights (Tensor): `(N, K)`.
            labels (Tensor): `(N, C)`; a map labelled -1 gets zero.
            activations (Tensor): `(N, C, *spatial)`.

        Returns:
            *Tensor*: `(N, C)`; the weights of a group's maps add up to the group's weight.
        """
        masses = _flat(activations, weights).abs().sum(2)  # (N, C)
        return by_map(_per_mass(weights, labels, activations), labels) * masses


drop_by_activation = DropByActivation()
"""The weighting ``"drop_by_activation"``, see :class:`DropByActivation`."""


def drop_per_norm(
    scores: Tensor, ablated_scores: Tensor, labels: Tensor, activations: Tensor
) -> Tensor:
    r"""The drop divided by the norm of what is switched off, :math:`(S - S_G) / \|A_G\|_2`.

    For single maps this is the first weight of Ablation-CAM (Desai and Ramaswamy, WACV 2020): the
    slope of the score on the straight line from the map to zero. In their experiments the authors
    used the score in place of the norm, see :func:`drop`. :math:`A_G` are all values of the group's
    maps, so that the norm is the length of that line for a group as well. The paper has no groups;
    this extension is ours.

    Args:
        scores (Tensor): `(N,)`.
        ablated_scores (Tensor): `(N, K)`.
        labels (Tensor): `(N, C)`.
        activations (Tensor): `(N, C, *spatial)`.

    Returns:
        *Tensor*: `(N, K)`, in units of score per unit of activation; 0 where the norm is 0.

    Example::

        >>> maps = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
        >>> labels = torch.tensor([[0, 1]])
        >>> drop_per_norm(torch.tensor([4.0]), torch.tensor([[2.0, 3.0]]), labels, maps)
        tensor([[0.4000, 0.5000]])
    """
    drops = scores.unsqueeze(1) - ablated_scores  # (N, K)
    squares = _flat(activations, drops).square().sum(2)  # (N, C)
    return _divide(drops, sum_by_group(squares, labels, drops.shape[1]).sqrt())


@dataclass(frozen=True)
class BySign:
    """The weighting ``"auto"``: one where nothing lies below the baseline, another elsewhere.

    Maps behind a ReLU are much alike in size. Where maps have two signs, as in the blocks of a
    transformer, a few are often hundreds of times larger than the rest. A weight for each map then
    counts their size twice, in the drop and in the map.

    Called like any other weighting, it is that of maps with one sign.

    Attributes:
        one_sided (callable): For examples whose maps lie nowhere below the baseline.
        two_sided (callable): For the others.
    """

    one_sided: Weighting = drop_per_map
    two_sided: Weighting = drop_per_norm

    def __call__(
        self, scores: Tensor, ablated_scores: Tensor, labels: Tensor, activations: Tensor
    ) -> Tensor:
        """The weights `(N, K)` of maps with one sign."""
        return self.one_sided(scores, ablated_scores, labels, activations)

    def of(self, signed: Tensor) -> Weighting:
        """The weighting where it is known which examples have parts below the baseline.

        Args:
            signed (Tensor): bool `(N,)`.

        Example::

            >>> weights = BySign().of(torch.tensor([False, True]))(
            ...     torch.tensor([4.0, 4.0]), torch.tensor([[2.0], [2.0]]),
            ...     torch.tensor([[0, 0], [0, 0]]), torch.tensor([[[3.0], [4.0]]]).expand(2, 2, 1),
            ... )
            >>> weights  # half of the score, by two maps; two units of score, by a norm of 5
            tensor([[0.2500],
                    [0.4000]])
        """

        def weigh(scores: Tensor, ablated: Tensor, labels: Tensor, activations: Tensor) -> Tensor:
            one, two = (
                weighting(scores, ablated, labels, activations)
                for weighting in (self.one_sided, self.two_sided)
            )
            return torch.where(signed.to(one.device).unsqueeze(1), two, one)

        return weigh


auto = BySign()
"""The weighting ``"auto"``, see :class:`BySign`."""


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
        labels (Tensor): int64 `(N, C)`; values labelled -1 are left out.
        n_groups (int): `K`, more than any label.

    Returns:
        *Tensor*: `(N, K, *rest)`; zero for a group without members.

    Example::

        >>> sum_by_group(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[1, 0, 1, -1]]), 3)
        tensor([[2., 5., 0.]])
    """
    # the first row takes the values labelled -1 and is cut off
    sums = values.new_zeros(len(values), n_groups + 1, *values.shape[2:])
    places = (labels + 1).reshape(*labels.shape, *[1] * (values.ndim - 2)).expand_as(values)
    return sums.scatter_add_(1, places, values)[:, 1:]


def by_map(weights: Tensor, labels: Tensor) -> Tensor:
    """Gives each map the weight of its group.

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
    masses = _flat(activations, weights).abs().sum(2)  # (N, C)
    return _divide(weights, sum_by_group(masses, labels, weights.shape[1]))


SHARES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": _whole,
    "map": _per_map,
    "mass": _per_mass,
}
"""What each map of a group carries: the whole weight, an equal part, or a part by activation."""


def _flat(activations: Tensor, like: Tensor) -> Tensor:
    """The maps as rows, `(N, C, D)`, in the dtype of `like`."""
    return activations.to(like.dtype).reshape(*activations.shape[:2], -1)


def _divide(weights: Tensor, by: Tensor) -> Tensor:
    """`weights / by`, and 0 where `by` is 0."""
    return torch.where(by > 0, weights / torch.where(by > 0, by, 1), 0)


WEIGHTINGS: dict[str, Weighting] = {
    "auto": auto,
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
        TypeError: If `weighting` is neither a name nor a callable.

    Example::

        >>> as_weighting("drop") is drop
        True
    """
    if isinstance(weighting, str):
        check_choice("weighting", weighting, tuple(WEIGHTINGS), "Or pass a callable.")
        return WEIGHTINGS[weighting]
    if callable(weighting):
        return weighting  # type: ignore[no-any-return]
    raise TypeError(
        f"`weighting` must be a name or a callable; got {weighting!r}. The names are "
        f"{', '.join(WEIGHTINGS)}."
    )
