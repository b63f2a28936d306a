"""The bootstrap of many columns at once: each draw is made once, and all columns take part.

:func:`captum_clustered.statistics.mean_interval` draws for each number anew. With the same seed,
and as many images, it draws the same ones each time. So the draws may as well be shared, and the
means of all columns in many draws are one matrix product: how often each image was drawn, times its
numbers. The mean of a difference is the difference of the means, so that paired differences cost no
draw of their own. The intervals are those of `mean_interval`, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_clustered.statistics import Interval

__all__ = ["Resampled", "case_numbers"]

_LEVEL = 0.95
_N_RESAMPLES = 10_000
_AT_A_TIME = 2**24  # numbers: how often each image was drawn, in so many draws
_ROUNDING = 1e-12

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
        >>> means.interval(["a"], values) == mean_interval(values)
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
        if name not in part.names:
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
        """Draws for all columns that were named."""
        by_units: dict[int, list[_Part]] = {}
        for part in self._parts.values():
            by_units.setdefault(len(part.counts), []).append(part)
        for units, parts in by_units.items():
            if units > 1:
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

    def interval(self, names: Sequence[Hashable], values: Array) -> Interval:
        """The mean of a column, or of the first less the second, with its interval.

        Args:
            names (sequence): One name, or two.
            values (array): The column, or the difference of both; NaN for images that do not take
                part. Both columns were named with the images of the others.

        Returns:
            *Interval*: NaN at both ends if there are fewer than two cases.
        """
        known = ~np.isnan(values)
        part, found = self._parts[known.tobytes()], values[known]
        n, units = len(found), len(part.counts)
        estimate = float(found.mean()) if n else math.nan
        low = high = math.nan
        if units > 1:
            means = part.by_unit(found) / part.counts
            if np.all(means == means[0]):  # all draws have the same mean
                low = high = float(means[0])
            elif part.drawn is not None:
                columns = [part.drawn[:, part.names[name]] for name in names]
                drawn = columns[0]
                if len(columns) > 1:
                    drawn = columns[0] - columns[1]
                    # an interval that touches 0 must not leave it by rounding
                    drawn[np.abs(drawn) <= _ROUNDING * np.abs(columns[0])] = 0
                ends = [50 * (1 - _LEVEL), 50 * (1 + _LEVEL)]
                low, high = (float(end) for end in np.percentile(drawn, ends))
        return Interval(estimate, low, high, _LEVEL, n, units, "percentile")
