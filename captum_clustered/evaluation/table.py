"""The numbers of an evaluation by columns: what tables and figures are made of.

Rows are many and wide; of ten million of them a program in Python holds no dicts. Of what a table
needs, one number of each row, an array is small. :func:`read_table` fills such arrays from the rows
on disk. If DuckDB is installed (the extra ``scale``) it reads them, several lines at a time;
otherwise Python does, line by line. Both give the same table, up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from captum_clustered.evaluation.rows import Grid, Row

__all__ = ["FAULTS", "Table"]

FAULTS = ("flat", "not_finite", "negative", "no_object")
"""What is counted of maps, and of their objects."""

_TIME = "seconds"

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Table:
    """What is known of `V` variants on `n` images.

    Attributes:
        grid (Grid): The images and variants.
        state (array): int8 `(V, n)`: 1 for a row with numbers, -1 for one that failed, 0 for none.
        values (dict[str, array]): For each metric, and for the time, float64 `(V, n)`; NaN where a
            row has no number.
        cases (list[str or None]): The case of each image.
        faults (dict[str, array]): int64 `(V,)` for each of :data:`FAULTS`.
        curves (dict[str, array]): The mean curve of each variant, `(V, points)`, for each metric
            that has one; NaN for a variant without.
        failures (list[tuple]): For each row that failed the image, the reason and the place, in the
            order of the images and then of the variants.
    """

    grid: Grid
    state: NDArray[np.int8]
    values: dict[str, Array]
    cases: list[str | None]
    faults: dict[str, NDArray[np.int64]]
    curves: dict[str, Array]
    failures: list[tuple[str, str, str | None]]

    def independent(self, chosen: NDArray[np.bool_]) -> bool:
        """Whether none of the chosen images, bool `(n,)`, has a case."""
        return all(self.cases[i] is None for i in np.flatnonzero(chosen))

    def of(self, name: str, variant: int) -> Array:
        """A metric of the rows of a variant that have numbers, `(n,)`; NaN for other images."""
        return np.where(self.state[variant] == 1, self.values[name][variant], np.nan)

    @classmethod
    def empty(cls, grid: Grid, metrics: Iterable[str]) -> Table:
        """A table without a row."""
        shape = n_variants, n_images = grid.shape[::-1]
        return cls(
            grid=grid,
            state=np.zeros(shape, dtype=np.int8),
            values={name: np.full(shape, np.nan) for name in (*metrics, _TIME)},
            cases=[None] * n_images,
            faults={fault: np.zeros(n_variants, dtype=np.int64) for fault in FAULTS},
            curves={},
            failures=[],
        )

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Row],
        grid: Grid,
        metrics: Iterable[str],
        curves: Iterable[str] = (),
    ) -> Table:
        """Makes a table of rows, one at a time.

        Args:
            rows (iterable): At most one of each image and variant. Rows of others than those of the
                grid are left out.
            grid (Grid): The images and variants.
            metrics (iterable of str): Which numbers.
            curves (iterable of str, optional): Those of them that have a curve. Default: ()

        Returns:
            *Table*: It does not depend on the order of the rows.
        """
        table = cls.empty(grid, metrics)
        sums = {name: _Sums(grid.shape[1]) for name in curves}
        failures: dict[tuple[int, int], tuple[str, str, str | None]] = {}
        for row in rows:
            place = grid.place((row["image"], row["method"], row["clusters"], row["weighting"]))
            if place is None:
                continue
            i, v = place
            table.cases[i] = row["case"]
            if row["status"] != "ok":
                table.state[v, i] = -1
                failures[i, v] = row["image"], str(row.get("reason")), row.get("place")
                continue
            table.state[v, i] = 1
            for name, values in table.values.items():
                number = row.get(name)
                values[v, i] = np.nan if number is None else number
            if row["map"] in table.faults:
                table.faults[row["map"]][v] += 1
            table.faults["no_object"][v] += row.get("object", "inside") != "inside"
            for name, total in sums.items():
                total.add(v, row.get(f"{name}_curve"))
        table.failures.extend(failures[key] for key in sorted(failures))
        table.curves.update({name: total.means() for name, total in sums.items()})
        return table


class _Sums:
    """The sum of the curves of each variant."""

    def __init__(self, variants: int) -> None:
        self._counts = np.zeros((variants, 1))
        self._sums: Array | None = None

    def add(self, variant: int, curve: Sequence[float] | None) -> None:
        if curve is not None:
            if self._sums is None:
                self._sums = np.zeros((len(self._counts), len(curve)))
            self._sums[variant] += curve
            self._counts[variant] += 1

    def means(self) -> Array:
        if self._sums is None:
            return np.full((len(self._counts), 0), np.nan)
        with np.errstate(invalid="ignore"):
            means: Array = self._sums / self._counts
        return means
