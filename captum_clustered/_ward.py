"""Ward's linkage by matrix products, where no tie decides: the tree that SciPy builds.

SciPy updates a table of distances map by map. Here all pairs of groups that are each other's
nearest are joined at once. In Ward's linkage that gives the same tree, because a joint group comes
no nearer to a third one than its nearer member was; only the groups whose nearest has gone look
again. They look in float32. Wherever its rounding might decide between two groups, float64 does;
where even that comes too close, the order in which SciPy goes through the table decides, and there
is no tree from here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["pays", "ward"]

_FEWEST, _LONGEST = 1536, 64
"""With fewer points, or more values in each, SciPy's own loops take less time."""

_TIE = 1e-10
"""Squared distances that differ by less, in proportion, are a tie: rounding may order them."""

_BLOCK = 256
"""Groups that look for their nearest at a time, so that their distances stay in the cache."""

_LOOK, _FEW = 0.35, 96
"""The share of the waiting groups that look again in a round, the nearest first, and the number up
to which all do. Who waits may lose its next nearest meanwhile, which spares a look."""

_SHRINK = 0.9
"""The share of live rows below which the others are let go of."""

_GONE = 1e30
"""The squared length of a group that has become part of another: nobody is further away."""

_Array = Any  # np.ndarray; its type parameters would say nothing more


class _Tie(Exception):  # noqa: N818  it is no error
    """Where the order of SciPy's table would decide."""


def pays(points: _Array) -> bool:
    """Whether this takes less time for these points, `(n, D)`, than SciPy."""
    return len(points) >= _FEWEST and points.shape[1] <= _LONGEST


def ward(points: _Array) -> _Array | None:
    """Joins points into a tree.

    Args:
        points (ndarray): float `(n, D)`, with `n` at least 2.

    Returns:
        *ndarray* or *None*: The matrix that `scipy.cluster.hierarchy.linkage(points, "ward")`
        returns, heights up to rounding; None where a tie would decide, or a value is not finite.
    """
    with np.errstate(all="ignore"):  # what is not finite is found below
        points = points.astype(np.float64)
        scale = np.sqrt(np.square(points - points.mean(0)).sum(1).max())
    if not 0 < scale < np.inf:
        return None
    scale = np.exp2(np.ceil(np.log2(scale)))  # a power of two, by which nothing is rounded
    try:
        return _Groups(points / scale).tree(scale)
    except _Tie:
        return None


class _Groups:
    """The groups so far, a row each, among rows of groups that have become part of another.

    With `right = (x, |x|², 1)` and `left = (-2x, 1, |x|²)` the squared distances of centres are
    one matrix product. Both are float32, and `x` is taken from the mean of all points, so that
    little is lost by rounding. `centres` are float64, as they are, so that differences of points
    are exact.
    """

    def __init__(self, points: _Array) -> None:
        n, d = points.shape
        self.shift = points.mean(0)
        self.centres = points
        self.sizes = np.ones(n)
        self.ids = np.arange(n)  # as in SciPy's matrix: the points, then the joins
        self.right = np.empty((n, d + 2), np.float32)
        self.left = np.empty((n, d + 2), np.float32)
        self._place(self.ids)
        self.live = np.ones(n, bool)
        self.nearest = np.zeros(n, np.int64)
        self.bound = np.zeros(n)  # nobody is nearer: the squared height of a join, halved
        self.waits = np.ones(n, bool)  # for a look at who is nearest
        # the bound of rounding in a product of D + 2 terms, of two distances, per |x|²
        self.rounding = 4 * (d + 8) * float(np.finfo(np.float32).eps) / 2
        self.longest = np.sqrt(np.square(points).sum(1).max())

    def tree(self, scale: float) -> _Array:
        n = len(self.centres)
        joins: list[tuple[_Array, _Array, _Array, _Array]] = []
        made = 0
        while made < n - 1:
            rows = self._next()
            if not len(rows):  # rounding has led in a circle
                raise _Tie
            for start in range(0, len(rows), _BLOCK):
                self._look(rows[start : start + _BLOCK])
            self.waits[rows] = False
            one, other = self._mutual(rows)
            joins.append(self._join(one, other, n + made))
            made += len(one)
            if np.count_nonzero(self.live) < _SHRINK * len(self.live):
                self._shrink()
        first, second, squared, sizes = (
            np.concatenate(column) for column in zip(*joins, strict=True)
        )
        order = squared.argsort(kind="stable")
        squared = squared[order]
        if (np.diff(squared) <= _TIE * squared[1:]).any():
            raise _Tie
        ids = np.concatenate([np.arange(n), n + order.argsort()])
        pairs = np.sort(ids[np.stack([first[order], second[order]], 1)], 1)
        return np.column_stack([pairs, scale * np.sqrt(squared), sizes[order]])

    def _next(self) -> _Array:
        """The waiting groups that may be nearest to another."""
        rows = np.flatnonzero(self.waits)
        number = max(_FEW, int(_LOOK * len(rows)))
        if number >= len(rows):
            return rows
        bound = self.bound[rows]
        return rows[bound <= np.partition(bound, number)[number]]

    def _look(self, rows: _Array) -> None:
        """Finds the nearest of each group."""
        left, right = torch.from_numpy(self.left[rows]), torch.from_numpy(self.right)
        far = (left @ right.T).numpy()  # (rows, all)
        # Ward's distance is this times s t / (s + t), with the sizes s and t; s is left out
        sizes = self.sizes.astype(np.float32)
        far /= 1 + np.multiply.outer(sizes[rows], 1 / sizes)
        at = np.arange(len(rows))
        far[at, rows] = np.inf
        nearest = far.argmin(1)
        least = far[at, nearest]
        far[at, nearest] = np.inf
        # who competes for it is no further away, and so not much longer
        longer = 2 * (self.right[rows, -2] + (1 + sizes[rows]) * least)
        limit = least + self.rounding * (self.right[rows, -2] + longer)
        close = np.flatnonzero(far.min(1) <= limit)
        if len(close):
            far[at, nearest] = least
            nearest[close] = self._exactly(rows[close], far[close] <= limit[close, None])
        self.nearest[rows] = nearest
        self.bound[rows] = least * self.sizes[rows]

    def _exactly(self, rows: _Array, near: _Array) -> _Array:
        """The nearest of groups, in float64, of those that are marked, at least two for each."""
        place, other = near.nonzero()
        s, t = self.sizes[rows[place]], self.sizes[other]
        squares = np.square(self.centres[other] - self.centres[rows[place]]).sum(1)
        far = squares * (t / (s + t))
        order = np.lexsort((far, place))
        first = np.flatnonzero(np.diff(place, prepend=-1))
        least, next_ = far[order[first]], far[order[first + 1]]
        # the smaller a difference of centres, which are rounded, the more of it may be rounding
        if (next_ - least <= _TIE * least + 1e-12 * self.longest * np.sqrt(least)).any():
            raise _Tie
        return other[order[first]]

    def _mutual(self, rows: _Array) -> tuple[_Array, _Array]:
        """The pairs that are each other's nearest, of which one has just looked."""
        nearest = self.nearest[rows]
        both = (self.nearest[nearest] == rows) & ~self.waits[nearest]
        pairs = np.sort(np.stack([rows[both], nearest[both]], 1), 1)
        one, place = np.unique(pairs[:, 0], return_index=True)
        return one, pairs[place, 1]

    def _join(self, one: _Array, other: _Array, made: int) -> tuple[_Array, ...]:
        """Makes a group of each pair, in the row of its first; returns columns of the tree."""
        s, t = self.sizes[one], self.sizes[other]
        sizes = s + t
        x, y = self.centres[one], self.centres[other]
        squared = np.square(x - y).sum(1) * (2 * s * t / sizes)
        columns = (self.ids[one], self.ids[other], squared, sizes)
        self.centres[one] = x * (s / sizes)[:, None] + y * (t / sizes)[:, None]
        self.sizes[one] = sizes
        self.ids[one] = np.arange(made, made + len(one))
        self._place(one)
        self.right[other, -2] = _GONE
        self.live[other] = False
        gone = ~self.live
        gone[one] = True
        self.waits |= gone[self.nearest]
        self.waits[one] = True
        self.waits &= self.live
        self.bound[one] = squared / 2
        return columns

    def _place(self, rows: _Array) -> None:
        """Writes where groups are into both factors of the product of distances."""
        x = (self.centres[rows] - self.shift).astype(np.float32)
        squares = np.square(x).sum(1)
        self.right[rows, :-2], self.right[rows, -2], self.right[rows, -1] = x, squares, 1
        self.left[rows, :-2], self.left[rows, -2], self.left[rows, -1] = -2 * x, 1, squares

    def _shrink(self) -> None:
        """Lets go of the rows of groups that have become part of another."""
        keep = self.live
        self.nearest = (keep.cumsum() - 1)[self.nearest]
        names = ("centres", "sizes", "ids", "right", "left", "nearest", "bound", "waits", "live")
        for name in names:
            setattr(self, name, getattr(self, name)[keep])
