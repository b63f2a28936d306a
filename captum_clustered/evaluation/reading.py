"""Rows on disk become a table, read by an engine that is made for many, or one by one.

If DuckDB is installed (the extra ``scale``), it reads the lines, several at a time, and keeps what
does not fit into its memory on the disk; otherwise Python reads them. Both give the same table, up
to the rounding of sums.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captum_clustered.evaluation.records import each_row
from captum_clustered.evaluation.rows import Grid
from captum_clustered.evaluation.table import Table

__all__ = ["MEMORY", "read_table"]

MEMORY = "1GiB"
"""What DuckDB may take; the rest goes to the disk."""

_VARIANT = dict.fromkeys(("method", "clusters", "weighting"), "VARCHAR")  # a number or "auto"
_HEAD = {"image": "VARCHAR", **_VARIANT, "status": "VARCHAR"}
_WORDS = ("case", "reason", "place", "map", "object")

Array = NDArray[np.float64]


def read_table(
    path: Path,
    grid: Grid,
    metrics: Sequence[str],
    curves: Sequence[str] = (),
) -> Table:
    """Reads a table from a file of rows, by DuckDB if that is installed (the extra ``scale``).

    Args:
        path (Path): One row of JSON in each line, at most one of each image and variant, as
            :func:`captum_clustered.evaluation.records.merge` leaves them.
        grid (Grid): The images and variants.
        metrics (sequence of str): Which numbers.
        curves (sequence of str, optional): Those of them that have a curve. Default: ()

    Returns:
        *Table*: The numbers of the grid.
    """
    if importlib.util.find_spec("duckdb") is not None:
        import duckdb

        try:
            return _read_by_engine(path, grid, metrics, curves)
        except (duckdb.Error, OSError):  # a name that is not UTF-8, or a disk without room
            pass
    return Table.from_rows(each_row(path), grid, metrics, curves)


@contextmanager
def _engine(grid: Grid) -> Iterator[Any]:
    """DuckDB, with a table of the `images` and one of the `variants`, both with their places."""
    import duckdb

    with (
        tempfile.TemporaryDirectory() as folder,
        duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": folder}) as engine,
    ):
        engine.execute("SET preserve_insertion_order = false")
        for name, kinds, entries in (
            ("images", {"image": "VARCHAR", "i": "INTEGER"}, grid.places.items()),
            ("variants", {**_VARIANT, "v": "INTEGER"}, ((*k, v) for k, v in grid.lines.items())),
        ):
            path = Path(folder, f"{name}.jsonl")
            with path.open("w", encoding="utf-8") as file:
                file.writelines(
                    f"{json.dumps(dict(zip(kinds, entry, strict=True)))}\n" for entry in entries
                )
            engine.execute(f"CREATE TEMP TABLE {name} AS SELECT * FROM {_lines(path, kinds)}")
        yield engine


def _lines(path: Path, kinds: Mapping[str, str]) -> str:
    """The lines of a file as DuckDB reads them, with the type of each column."""
    columns = ", ".join(f"{_text(name)}: '{kind}'" for name, kind in kinds.items())
    return (
        f"read_json({_text(glob.escape(str(path)))}, format = 'newline_delimited', "
        f"columns = {{{columns}}})"
    )


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _read_by_engine(
    path: Path,
    grid: Grid,
    metrics: Sequence[str],
    curves: Sequence[str],
) -> Table:
    table = Table.empty(grid, metrics)
    names = list(table.values)
    kinds = _HEAD | dict.fromkeys(_WORDS, "VARCHAR") | dict.fromkeys(names, "DOUBLE")
    # a metric may have any name, such as that of a column here
    numbered = {name: f"metric_{k}" for k, name in enumerate(names)}
    chosen = ", ".join(
        [*(f"r.{_quoted(name)} AS word_{name}" for name in _WORDS)]
        + [f"r.{_quoted(name)} AS {column}" for name, column in numbered.items()]
    )
    shape = table.state.shape
    with _engine(grid) as engine:
        engine.execute(
            f"CREATE TEMP TABLE found AS SELECT images.i, s.v, r.status = 'ok' AS ok, {chosen} "
            + _source(path, kinds)
        )

        def fetch(query: str) -> list[Any]:
            return list(engine.execute(query).fetchnumpy().values())

        at = f"v::BIGINT * {shape[1]} + i"
        for ok, state in ((True, 1), (False, -1)):
            (places,) = fetch(f"SELECT {at} FROM found WHERE ok = {ok}")
            table.state.flat[places] = state
        for name, column in numbered.items():
            places, numbers = fetch(
                f"SELECT {at}, {column} FROM found WHERE ok AND {column} IS NOT NULL"
            )
            table.values[name].flat[places] = numbers
        for i, case in engine.execute(
            "SELECT i, any_value(word_case) FROM found WHERE word_case IS NOT NULL GROUP BY i"
        ).fetchall():
            table.cases[i] = case
        for v, what, count in engine.execute(
            "SELECT v, word_map, count(*) FROM found WHERE ok GROUP BY ALL "
            "UNION ALL SELECT v, 'no_object', count(*) FROM found "
            "WHERE ok AND word_object <> 'inside' GROUP BY ALL"
        ).fetchall():
            if what in table.faults:
                table.faults[what][v] = count
        table.failures.extend(
            (grid.images[i], str(reason), place)
            for i, reason, place in engine.execute(
                "SELECT i, word_reason, word_place FROM found WHERE NOT ok ORDER BY i, v"
            ).fetchall()
        )
        for name in curves:
            table.curves[name] = _mean_curves(engine, path, f"{name}_curve", shape[0])
    return table


def _source(path: Path, kinds: Mapping[str, str]) -> str:
    """The rows `r` of the grid, with their places `images.i` and `s.v`."""
    return (
        f"FROM {_lines(path, kinds)} r JOIN images ON r.image = images.image "
        "JOIN variants s ON r.method = s.method AND r.clusters IS NOT DISTINCT FROM s.clusters "
        "AND r.weighting IS NOT DISTINCT FROM s.weighting"
    )


def _mean_curves(engine: Any, path: Path, column: str, variants: int) -> Array:
    """The mean of a column of lists; they are read again, since they would fill the memory."""
    source, column = _source(path, {**_HEAD, column: "DOUBLE[]"}), f"r.{_quoted(column)}"
    found = engine.execute(f"SELECT len({column}) {source} WHERE {column} IS NOT NULL LIMIT 1")
    points = (found.fetchone() or (0,))[0]
    curves = np.full((variants, points), np.nan)
    if points:
        means = ", ".join(f"avg({column}[{k + 1}])" for k in range(points))
        for v, *curve in engine.execute(
            f"SELECT s.v, {means} {source} "
            f"WHERE r.status = 'ok' AND {column} IS NOT NULL GROUP BY s.v"
        ).fetchall():
            curves[v] = curve
    return curves


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
