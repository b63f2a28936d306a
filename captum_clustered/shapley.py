"""Shapley values of groups: the drop of a group, averaged over which others are switched off."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_clustered._checks import check_int
from captum_clustered.weighting import as_weighting

__all__ = ["Shapley"]


@dataclass(frozen=True)
class Shapley:
    r"""A weighting by Shapley values, estimated from permutations of the groups.

    The groups are switched off one after the other, in a random order; the loss of score at each
    step is the value of the group that is switched off there. The mean over several orders
    estimates the Shapley value :math:`\phi_G`. The values of all groups add up to the drop with all
    groups switched off. Every second order is the reverse of the one before (antithetic sampling:
    Mitchell et al., "Sampling Permutations for Shapley Value Estimation", JMLR 23, 2022). If the
    drops of the groups add up, as before a linear head, one order is exact and gives the plain
    drop.

    For :class:`captum_clustered.ClusteredLayerAblation`: its `ablated_scores` are then
    :math:`S - \phi_G`, and its `standard_errors` say how well :math:`\phi_G` is known. It takes
    `n_permutations` times as many evaluations as a plain drop.

    Args:
        n_permutations (int, optional): Number of orders, even and at least 2; with 2 there is no
            standard error. Default: 8
        weighting (str or callable, optional): How :math:`\phi_G` becomes a weight, as for
            :class:`captum_clustered.ClusteredLayerAblation`. Default: ``"auto"``
        seed (int, optional): Seed of the orders, which all examples share. Default: 0

    Raises:
        TypeError: If `weighting` is neither a name nor a callable.
        ValueError: If `n_permutations` is not an even int >= 2, or the name is unknown.

    Example::

        >>> from torch import nn
        >>> from captum_clustered import ClusteredLayerAblation
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> cam = ClusteredLayerAblation(model.eval(), model[1], n_clusters=3, weighting=Shapley(4))
        >>> cam.explain(torch.rand(2, 1, 4, 4), target=1).standard_errors.shape
        torch.Size([2, 3])
    """

    n_permutations: int = 8
    weighting: Any = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("n_permutations", self.n_permutations, 2)
        if self.n_permutations % 2:
            raise ValueError(
                f"`n_permutations` must be even; got {self.n_permutations}. Every second order is "
                "the reverse of the one before, so add or take 1."
            )
        as_weighting(self.weighting)

    def __call__(
        self, scores: Tensor, ablated_scores: Tensor, labels: Tensor, activations: Tensor
    ) -> Tensor:
        """Weights `(N, K)`; `ablated_scores` are the scores minus what :meth:`measure` returns."""
        return as_weighting(self.weighting)(scores, ablated_scores, labels, activations)

    def of(self, signed: Tensor) -> Any:
        """The weighting where it is known which examples have parts below the baseline."""
        weighting: Any = as_weighting(self.weighting)
        return weighting.of(signed) if hasattr(weighting, "of") else self

    @property
    def share(self) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """How a group's weight is divided among its maps; None if each map carries all of it."""
        return getattr(as_weighting(self.weighting), "share", None)

    def measure(
        self, n_groups: int, run: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Estimates the Shapley values.

        Args:
            n_groups (int): `K`.
            run (callable): Takes the rank of each group, `(K,)`. Returns the scores, `(N,)`, and
                for each rank the scores without the groups up to that rank, `(N, K)`.

        Returns:
            *tuple*: The values and their standard errors, `(N, K)` each; the errors are NaN for
            two orders.

        Example::

            >>> worth = torch.tensor([4.0, 2.0, 1.0])  # of groups whose drops add up
            >>> def run(rank):
            ...     left = worth.sum() - worth[rank.argsort()].cumsum(0)
            ...     return worth.sum().view(1), left.view(1, -1)
            >>> Shapley(2).measure(3, run)[0]
            tensor([[4., 2., 1.]])
        """
        generator = torch.Generator().manual_seed(self.seed)
        worth = []
        for _ in range(self.n_permutations // 2):
            order = torch.randperm(n_groups, generator=generator)
            for one in (order, order.flip(0)):
                rank = one.argsort()
                scores, ablated = run(rank)
                lost = torch.cat([scores.unsqueeze(1), ablated[:, :-1]], 1) - ablated  # (N, K)
                worth.append(lost.index_select(1, rank.to(lost.device)))
        # an order and its reverse are not independent, but the pairs are
        pairs = torch.stack(worth).unflatten(0, (-1, 2)).mean(1)  # (pairs, N, K)
        errors = pairs.std(0) / math.sqrt(len(pairs)) if len(pairs) > 1 else pairs[0] * math.nan
        return pairs.mean(0), errors
