"""Rows on disk at scale: simulated rows of many images are looked up, merged and summarised.

:mod:`benchmarks.scaling` starts this for each number of rows, in a process of its own, so that the
peak of its memory is that of these rows. It prints one line of JSON: the seconds of each part, and
the peak.

- *write*: a row, as an evaluation writes it; measured on a few thousand rows, given for all.
- *look up*: which rows are there, as when a run goes on.
- *merge*: the files of two processes become one, in the order of the plan.
- *read*: the file becomes a table, by DuckDB or by Python.
- *summarise*: means, intervals and paired differences.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import typer

from captum_clustered._files import require
from captum_clustered.evaluation import reading, records, report
from captum_clustered.evaluation.measures import METRICS
from captum_clustered.evaluation.rows import Grid, Variant

__all__ = ["METRIC_NAMES", "VARIANTS", "simulate", "summarise"]

_NUMBERS = [2**k for k in range(9)]
VARIANTS = (
    Variant("ablation-cam", None, "drop"),
    Variant("grad-cam"),
    *(Variant("clustered-cam", number, "drop") for number in _NUMBERS),
    *(Variant("random-groups", number, "drop", control=True) for number in _NUMBERS),
)
"""The 20 lines of the simulated table; 28 pairs of them are compared."""

METRIC_NAMES = ("adc", "pic", "ag", "area")

_PROCESSES = 2  # that the rows came from
_WRITTEN = 4000  # rows whose writing is timed


def _row(image: str, variant: Variant, numbers: Any) -> dict[str, Any]:
    """A row like those of an evaluation with these metrics on maps of 7 by 7."""
    first, second, third, fourth = (float(number) for number in numbers)
    return {
        "image": image,
        "case": None,
        "label": 0,
        "method": variant.method,
        "clusters": variant.clusters,
        "weighting": variant.weighting,
        "status": "ok",
        "reason": None,
        "target": 0,
        "adc": 100 * first,
        "pic": 100.0 * (second < 0.3),
        "ag": 100 * third,
        "area": 100 * fourth,
        "original_score": second,
        "masked_score": third,
        "map": "ok",
        "heat": {"shape": [7, 7], "bytes": "A" * 68},
        "conventions": {
            "score": "softmax",
            "target": "predicted",
            "fill": "Black(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))",
            "normalize": "minmax",
            "interpolation": "bilinear",
        },
        "seconds": first / 10,
    }


def simulate(folder: Path, images: int) -> Grid:
    """Writes the rows of some images, as two processes would have done it.

    Args:
        folder (Path): An empty folder.
        images (int): How many images; each has a row for each of :data:`VARIANTS`.

    Returns:
        *Grid*: The images and variants.
    """
    rng = np.random.default_rng(0)
    marks = (0.125, 0.25, 0.5, 0.75)  # stand for the numbers
    forms = []
    for variant in VARIANTS:
        text = json.dumps(_row("IMAGE", variant, marks))
        for name in ("adc", "ag", "area", "pic"):
            value = _row("", variant, marks)[name]
            text = text.replace(f'"{name}": {value}', f'"{name}": {name.upper()}')
        text = text.replace("%", "%%").replace("IMAGE", "%s")
        for name in ("ADC", "PIC", "AG", "AREA"):
            text = text.replace(f": {name},", ": %r,")
        forms.append(f"{text}\n")
    names = [f"n{i // 1000:08d}/{i:08d}.JPEG" for i in range(images)]
    with ExitStack() as stack:
        files = [
            stack.enter_context((folder / name).open("w", encoding="utf-8"))
            for name in ("rows.jsonl", *(f"rows.{rank}.jsonl" for rank in range(1, _PROCESSES)))
        ]
        for i, name in enumerate(names):
            numbers = 100 * rng.random((len(VARIANTS), 4))
            numbers[:, 1] = 100.0 * (numbers[:, 1] < 30)
            files[i % _PROCESSES].writelines(
                form % (name, *values) for form, values in zip(forms, numbers.tolist(), strict=True)
            )
    return Grid(names, VARIANTS)


def summarise(
    folder: Path, grid: Grid, with_engine: bool
) -> tuple[report.Report, dict[str, tuple[float, float]]]:
    """Does with the rows what an evaluation does when it goes on and ends.

    Args:
        folder (Path): From :func:`simulate`.
        grid (Grid): From there, too.
        with_engine (bool): Whether DuckDB reads the rows.

    Returns:
        *tuple*: The tables, and of each part the seconds on the clock and those of the processor.
    """
    seconds: dict[str, tuple[float, float]] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begin, used = time.perf_counter(), time.process_time()
        yield
        seconds[name] = time.perf_counter() - begin, time.process_time() - used

    with timed("look up"):
        done = records.find_done(folder, grid, METRIC_NAMES)
    if len(done) != len(grid.images) * len(grid.variants):
        raise RuntimeError(f"{len(done)} rows were found")
    with timed("merge"):
        records.merge(folder, grid)
    with timed("read"), _without_engine() if not with_engine else ExitStack():
        table = reading.read_table(folder / "rows.jsonl", grid, METRIC_NAMES)
    columns = [
        report.Column(name, METRICS[name].head, is_rate=METRICS[name].is_rate)
        for name in METRIC_NAMES
    ]
    with timed("summarise"):
        found = report.make_report(table, grid.images, grid.variants, columns)
    return found, seconds


def _without_engine() -> Any:
    missing: Callable[[str], None] = lambda name: None  # noqa: E731, ARG005
    return mock.patch.object(reading.importlib.util, "find_spec", missing)


def _seconds_to_write() -> tuple[float, float]:
    """For one row, on the clock and of the processor."""
    with tempfile.TemporaryDirectory() as folder, records.Rows(Path(folder)) as rows:
        made = [_row(f"{i}.JPEG", VARIANTS[i % 20], (0.1, 0.2, 0.3, 0.4)) for i in range(_WRITTEN)]
        begin, used = time.perf_counter(), time.process_time()
        for row in made:
            rows.append(row)
        clock, processor = time.perf_counter() - begin, time.process_time() - used
    return clock / _WRITTEN, processor / _WRITTEN


def main(
    rows: Annotated[int, typer.Option()],
    engine: Annotated[str, typer.Option()],
) -> None:
    """Simulates rows, summarises them, and prints the seconds and the peak of the memory."""
    if engine == "duckdb":
        require("duckdb", "scale", "to read many rows")
    with tempfile.TemporaryDirectory() as folder:
        grid = simulate(Path(folder), rows // len(VARIANTS))
        _, seconds = summarise(Path(folder), grid, engine == "duckdb")
    # kilobytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    clock, processor = _seconds_to_write()
    parts = {"write": (rows * clock, rows * processor), **seconds}
    print(json.dumps({"seconds": parts, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    typer.run(main)
