"""The bootstrap of many columns at once: each draw is made once, and all columns take part.

:func:`captum_clustered.statistics.mean_interval` draws for each number anew. With the same seed,
and as many images, it draws the same ones each time. So the draws may as well be shared, and the
means of all columns in many draws are one matrix product: how often each image was drawn, times its
numbers. The mean of a difference is the difference of the means, so that paired differences cost no
draw of their own. The intervals are those of `mean_interval`, up to rounding.

With very many cases nothing is drawn, which would take longer than all other steps together. The
mean is then as good as normal, and :meth:`Resampled.by_case` has what its interval is made of.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVEL", "MANY", "Ends", "Resampled", "case_numbers"]

LEVEL = 0.95
"""Of all intervals."""

_N_RESAMPLES = 10_000
_AT_A_TIME = 2**24  # numbers: how often each image was drawn, in so many draws
_ROUNDING = 1e-12
MANY = 100_000
"""From so many cases on, means are taken as normal."""

Array = NDArray[np.float64]
Known = NDArray[np.bool_]


def case_numbers(cases: Sequence[Hashable | None]) -> NDArray[np.int64] | None:
    """A number for each image, the same for images of one case; None if no image has a case.

    An image without a case is one of its own.

    Example::

        >>> case_numbers(["a", None, "a", None]).tolist()
        [0, 1, 0, 2]
    """
    if all(case is None for case in cases):
        return None
    places: dict[Any, int] = {}
    keys = ((i, None) if case is None else (None, case) for i, case in enumerate(cases))
    return np.array([places.setdefault(key, len(places)) for key in keys])


@dataclass(eq=False)
class _Part:
    """Columns that are known of the same images."""

    unit: NDArray[np.int64] | None  # of each image, in the order in which they come first
    counts: Array  # of images in each unit
    names: dict[Hashable, int] = field(default_factory=dict)
    sums: list[Array] = field(default_factory=list)  # over the images of each unit
    drawn: Array | None = None  # (n_resamples, columns)

    def by_unit(self, values: Array) -> Array:
        """The sum of the values of each unit."""
        if self.unit is None:
            return values
        sums: Array = np.bincount(self.unit, values, minlength=len(self.counts)).astype(float)
        return sums


class Ends(NamedTuple):
    """The ends of an interval, and the number of cases that were drawn."""

    low: float
    high: float
    cases: int


class Resampled:
    """Means of columns in draws with replacement, the same draws for all.

    Columns are named first, then drawn together, then asked for. Memory: the columns, and a few
    hundred megabytes.

    Args:
        cases (array or None): For each image the number of its case, from :func:`case_numbers`;
            cases are then drawn whole. None if each image is a case.
        seed (int, optional): Of the draws. Default: 0

    Example::

        >>> from captum_clustered.statistics import mean_interval
        >>> values = np.array([10.0, 20.0, 30.0, 60.0])
        >>> means = Resampled(None)
        >>> means.add("a", values, np.isfinite(values))
        >>> means.draw()
        >>> alone = mean_interval(values)
        >>> np.allclose(means.ends(["a"], values), [alone.low, alone.high, alone.n_cases])
        True
    """

    def __init__(self, cases: NDArray[np.int64] | None, seed: int = 0) -> None:
        self._cases, self._seed = cases, seed
        self._parts: dict[bytes, _Part] = {}

    def add(self, name: Hashable, column: Array, known: Known) -> None:
        """Names a column.

        Args:
            name (hashable): Its name; the same again with the same images is no second column.
            column (array): A number for each image, `(n,)`.
            known (array): bool `(n,)`: the images that take part.
        """
        key = known.tobytes()
        if key not in self._parts:
            self._parts[key] = self._part(known)
        part = self._parts[key]
        if name not in part.names and len(part.counts) < MANY:
            part.names[name] = len(part.names)
            part.sums.append(part.by_unit(column[known]))

    def _part(self, known: Known) -> _Part:
        cases = None if self._cases is None else self._cases[known]
        n = int(known.sum())
        # if no case has two images, the images are drawn in the same way
        if cases is None or len(numbers := np.unique(cases)) == n:
            return _Part(None, np.ones(n))
        _, first, inverse = np.unique(cases, return_index=True, return_inverse=True)
        rank = np.empty(len(numbers), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(numbers))
        unit = rank[inverse]
        return _Part(unit, np.bincount(unit, minlength=len(numbers)).astype(np.float64))

    def draw(self) -> None:
        """Draws for all columns that were named, unless they have :data:`MANY` cases."""
        by_units: dict[int, list[_Part]] = {}
        for part in self._parts.values():
            by_units.setdefault(len(part.counts), []).append(part)
        for units, parts in by_units.items():
            if 1 < units < MANY:
                self._draw(units, parts)

    def _draw(self, units: int, parts: Sequence[_Part]) -> None:
        rng = np.random.default_rng(self._seed)  # parts with as many units share their draws
        for part in parts:
            part.drawn = np.empty((_N_RESAMPLES, len(part.names)))
        sums = []  # (columns, units)
        for part in parts:
            sums.append(np.stack(part.sums))
            part.sums = []
        at_a_time = max(1, min(_N_RESAMPLES, _AT_A_TIME // units))
        often = np.empty((at_a_time, units))
        for begin in range(0, _N_RESAMPLES, at_a_time):
            rows = often[: min(at_a_time, _N_RESAMPLES - begin)]
            for row in rows:
                row[:] = np.bincount(rng.integers(0, units, units), minlength=units)
            for part, columns in zip(parts, sums, strict=True):
                means = (rows @ columns.T) / (rows @ part.counts)[:, None]
                part.drawn[begin : begin + len(rows)] = means  # type: ignore[index]

    def by_case(self, values: Array) -> tuple[Array, Array]:
        """The sum of a column over the images of each case, and their number.

        Args:
            values (array): As for :meth:`ends`.
        """
        known = ~np.isnan(values)
        part = self._parts[known.tobytes()]
        return part.by_unit(values[known]), part.counts

    def ends(self, names: Sequence[Hashable], values: Array) -> Ends:
        """The interval of the mean of a column, or of the first less the second.

        Args:
            names (sequence): One name, or two.
            values (array): The column, or the difference of both; NaN for images that do not take
                part. Both columns were named with the images of the others.

        Returns:
            *Ends*: NaN if there are fewer than two cases.
        """
        part = self._parts[(~np.isnan(values)).tobytes()]
        units = len(part.counts)
        if units < 2:
            return Ends(np.nan, np.nan, units)
        sums, counts = self.by_case(values)
        means = sums / counts
        if part.drawn is None or np.all(means == means[0]):  # all draws have the same mean
            return Ends(float(means[0]), float(means[0]), units)
        first, *second = (part.drawn[:, part.names[name]] for name in names)
        drawn = first
        if second:
            drawn = first - second[0]
            drawn[np.abs(drawn) <= _ROUNDING * np.abs(first)] = 0  # as it is but for rounding
        low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        return Ends(float(low), float(high), units)
