r"""Parts: what each map says above its baseline, and what it says below.

An ablation takes the deviation of a map from its baseline away, and a deviation has two sides. With
:math:`b_k` the baseline of the map :math:`A_k`, its parts are

.. math:: A_k^+ = \max(A_k - b_k, 0), \qquad A_k^- = \max(b_k - A_k, 0)

Both are nowhere negative, and :math:`A_k = b_k + A_k^+ - A_k^-`. Maps are clustered, switched off,
weighed and painted by their parts. A map that is nowhere below its baseline is its only part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_clustered.heatmap import build

__all__ = ["Parts", "as_parts"]


@dataclass(frozen=True, eq=False)
class Parts:
    """The maps of one of the layer's tensors, taken apart.

    `N` is the number of examples, `C` of maps, `P` of parts: `C`, or `2 C` with the parts above the
    baseline first and those below it behind them in the same order.

    Attributes:
        values (Tensor): `(N, P, *spatial)`, nowhere negative: what is painted, and what masks are
            made of. For whole maps it is the magnitude of the deviation.
        features (Tensor): `(N, P, D)`, what is clustered. For whole maps it has both signs.
        n_maps (int): `C`.
        signed (Tensor): bool `(N,)`, which examples have a part below the baseline.
        whole (bool): Whether maps stay whole: both their parts are then in one group.
    """

    values: Tensor
    features: Tensor
    n_maps: int
    signed: Tensor
    whole: bool = False

    @property
    def two_sided(self) -> bool:
        """Whether there are parts below the baseline."""
        return self.values.shape[1] > self.n_maps

    @property
    def has_signs(self) -> bool:
        """Whether an example may have a part below the baseline."""
        return self.two_sided or self.whole

    def by_map(self, values: Tensor, absent: float) -> tuple[Tensor, Tensor]:
        """Splits what is known of each part, `(N, P)`, by maps.

        Args:
            values (Tensor): `(N, P)`, such as labels or weights.
            absent (float): The value of a part that does not exist.

        Returns:
            *tuple*: Of the parts above and below the baseline, `(N, C)` each.
        """
        if self.two_sided:
            above, below = values.split(self.n_maps, dim=1)
            return above, below
        nothing = torch.full_like(values, absent)
        if self.whole:
            return values, torch.where(self.signed.to(values.device)[:, None], values, nothing)
        return values, nothing

    def paint(self, weights: Tensor, relu: bool, sum_maps: bool) -> Tensor:
        r"""The heat map :math:`M = \mathrm{ReLU}(\sum_k w_k^+ A_k^+ + w_k^- A_k^-)`.

        Args:
            weights (Tensor): `(N, P)`.
            relu (bool): Whether negative values are set to zero.
            sum_maps (bool): Whether the weighted maps are summed; else each is kept.

        Returns:
            *Tensor*: `(N, 1, *spatial)`, or `(N, C, *spatial)` without the sum.
        """
        if sum_maps or not self.two_sided:
            return build(self.values, weights, relu, sum_maps)
        each = build(self.values, weights, relu=False, sum_maps=False)  # (N, 2 C, *spatial)
        above, below = each.split(self.n_maps, dim=1)
        both: Tensor = above + below
        return both.relu() if relu else both


def as_parts(
    maps: Tensor,
    baseline: Tensor | None,
    *,
    whole: bool = False,
    both: bool = False,
    rectified: bool = False,
) -> Parts:
    """Takes maps apart.

    On an accelerator no value is read. Unless `rectified`, parts below the baseline are then always
    there; those of maps that are nowhere below it are zero.

    Args:
        maps (Tensor): `(N, C, *spatial)`.
        baseline (Tensor or None): Broadcasts against the maps. None is zero.
        whole (bool, optional): Whether maps stay whole. Default: False
        both (bool, optional): Whether each map has two parts even if nothing lies below the
            baseline. Default: False
        rectified (bool, optional): Whether it is known that nothing lies below the baseline.
            Default: False

    Returns:
        *Parts*: Of each map one part, or two.

    Example::

        >>> as_parts(torch.tensor([[[1.0, -2.0], [3.0, 4.0]]]), None).values
        tensor([[[1., 0.],
                 [3., 4.],
                 [0., 2.],
                 [0., 0.]]])
        >>> as_parts(torch.tensor([[[3.0, 4.0]]]), torch.tensor(3.0)).values
        tensor([[[0., 1.]]])
    """
    change = maps  # (N, C, *spatial)
    if baseline is not None:  # of an infinite deviation the map's own magnitude is painted
        change = torch.where(baseline.isinf(), -baseline.sign() * maps.abs(), maps - baseline)
    n, c = change.shape[:2]
    if rectified:
        signed = torch.zeros(n, dtype=torch.bool, device=change.device)
        two_sided = both
    elif change.device.type == "cpu":
        signed = change.reshape(n, -1).amin(1) < 0
        two_sided = both or bool(signed.any())
    else:  # which examples have any is not read
        signed = change.reshape(n, -1).amin(1) < 0
        two_sided = True
    values = change
    if two_sided and whole:
        values = change.abs()
    elif two_sided:
        values = torch.cat([change.clamp(min=0), (-change).clamp(min=0)], 1)
    features = (change if whole else values).reshape(n, -1, change[0, 0].numel())
    return Parts(values, features, c, signed, whole)
