"""From rows to tables: intervals of each variant, and paired differences between variants."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from captum_clustered.evaluation import resampling
from captum_clustered.evaluation.resampling import LEVEL, Resampled, case_numbers
from captum_clustered.evaluation.rows import Grid, Key, Row, Variant, title_of
from captum_clustered.evaluation.table import Table
from captum_clustered.statistics import Interval, normal_ends, rate_interval

__all__ = [
    "Column",
    "Difference",
    "Line",
    "Report",
    "differences_csv",
    "excludes_zero",
    "in_words",
    "make_report",
    "summary_csv",
    "summary_md",
    "summary_tex",
]

_MAP_FAULTS = ("flat", "not_finite", "negative")
_ABLATION, _RANDOM = "ablation-cam", "random-groups"


@dataclass(frozen=True)
class Column:
    """A metric in the table.

    Attributes:
        name (str): Its key in a row.
        title (str): Its head, with an arrow to where better is.
        is_rate (bool): Whether an image either has it or not, 100 or 0.
        unit (str): ``"%"``, or ``""`` if it is not known.
        needs_object (bool): Whether it is measured only on images with an object.
        higher_is_better (bool or None): None for what is neither good nor bad in itself.
        meaning (str): What it measures, in words.
    """

    name: str
    title: str
    is_rate: bool = False
    unit: str = "%"
    needs_object: bool = False
    higher_is_better: bool | None = None
    meaning: str = ""

    @property
    def name_alone(self) -> str:
        """The title without the arrow."""
        return self.title.rstrip(" ↑↓")


@dataclass(frozen=True)
class Line:
    """The numbers of a variant.

    Attributes:
        variant (Variant): Which.
        images (int): Number of rows.
        failed (int): Rows without numbers.
        faults (dict[str, int]): Number of maps that are flat, not finite or negative; they are part
            of the intervals. Where objects matter, also the number of images that have none in the
            model's input, ``"no_object"``; they are not part of the metrics that need one.
        intervals (dict[str, Interval]): For each metric the mean with its interval.
        seconds (float or None): Median time of a map.
    """

    variant: Variant
    images: int
    failed: int
    faults: dict[str, int]
    intervals: dict[str, Interval]
    seconds: float | None

    @property
    def title(self) -> str:
        """The variant in a few words."""
        return title_of(self.variant)


@dataclass(frozen=True)
class Difference:
    """The difference between two variants on the same images.

    Attributes:
        first (Variant): The first.
        second (Variant): The second, which is subtracted.
        intervals (dict[str, Interval]): For each metric the mean difference with its interval.
    """

    first: Variant
    second: Variant
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Report:
    """All that the tables and figures show.

    Attributes:
        columns (sequence of Column): The metrics.
        lines (sequence of Line): The methods, then the controls.
        differences (sequence of Difference): Against Ablation-CAM, and against random groups.
        notes (sequence of str): What one must know to read the numbers.
    """

    columns: Sequence[Column]
    lines: Sequence[Line]
    differences: Sequence[Difference]
    notes: Sequence[str]

    @property
    def faults(self) -> list[str]:
        """What is counted beside the metrics, in the order of the table."""
        return list(self.lines[0].faults) if self.lines else list(_MAP_FAULTS)


# --- gathering ------------------------------------------------------------------------------------


def make_report(
    rows: Mapping[Key, Row] | Table,
    images: Sequence[str],
    variants: Sequence[Variant],
    columns: Sequence[Column],
    notes: Sequence[str] = (),
    seed: int = 0,
) -> Report:
    """Computes means, intervals and paired differences.

    Args:
        rows (mapping or Table): All rows; or what is needed of them, of these images and variants.
        images (sequence of str): The images, in the order of the data.
        variants (sequence of Variant): The lines of the table.
        columns (sequence of Column): The metrics.
        notes (sequence of str, optional): What one must know to read the numbers. Default: ()
        seed (int, optional): Of the bootstrap. Default: 0

    Returns:
        *Report*: It does not depend on the order in which the rows were made. Intervals are 95 %:
        Wilson's for a rate over independent images, else a bootstrap over images, or over cases if
        an image has one; from 100,000 of these on, the normal interval.
    """
    if not isinstance(rows, Table):
        names = [column.name for column in columns]
        rows = Table.from_rows(rows.values(), Grid(images, variants), names)
    pairs = [
        (v, variants.index(second))
        for v, first in enumerate(variants)
        for second in _references(first, variants)
    ]
    means = _drawn(rows, columns, pairs, seed)
    return Report(
        columns=columns,
        lines=[_line(rows, v, columns, means) for v in range(len(variants))],
        differences=[_difference(rows, pair, columns, means) for pair in pairs],
        notes=notes,
    )


def _drawn(
    table: Table, columns: Sequence[Column], pairs: Sequence[tuple[int, int]], seed: int
) -> Resampled:
    """The bootstrap of all that the tables show, in one go."""
    means = Resampled(case_numbers(table.cases), seed)
    for name in (column.name for column in columns):
        found = [table.of(name, v) for v in range(table.grid.shape[1])]
        known = [~np.isnan(values) for values in found]
        for v, values in enumerate(found):
            means.add((name, v), values, known[v])
        for pair in pairs:
            both = known[pair[0]] & known[pair[1]]
            for v in pair:
                means.add((name, v), found[v], both)
    means.draw()
    return means


def _line(table: Table, v: int, columns: Sequence[Column], means: Resampled) -> Line:
    state = table.state[v]
    judged = state == 1
    intervals = {}
    for column in columns:
        values = table.of(column.name, v)
        known = ~np.isnan(values)
        if column.is_rate and table.independent(known):
            intervals[column.name] = rate_interval(values[known])
        else:
            intervals[column.name] = _interval(means, [(column.name, v)], values)
    with_objects = any(column.needs_object for column in columns)
    shown = [*_MAP_FAULTS, "no_object"] if with_objects else _MAP_FAULTS
    seconds = table.values["seconds"][v, judged]
    return Line(
        variant=table.grid.variants[v],
        images=int((state != 0).sum()),
        failed=int((state == -1).sum()),
        faults={fault: int(table.faults[fault][v]) for fault in shown},
        intervals=intervals,
        seconds=float(np.median(seconds)) if len(seconds) else None,
    )


def _difference(
    table: Table, pair: tuple[int, int], columns: Sequence[Column], means: Resampled
) -> Difference:
    intervals = {
        name: _interval(
            means, [(name, v) for v in pair], table.of(name, pair[0]) - table.of(name, pair[1])
        )
        for name in (column.name for column in columns)
    }
    first, second = (table.grid.variants[v] for v in pair)
    return Difference(first, second, intervals)


def _interval(means: Resampled, names: Sequence[tuple[str, int]], values: np.ndarray) -> Interval:
    """What :func:`captum_clustered.statistics.mean_interval` gives for these values."""
    known = values[~np.isnan(values)]
    estimate = float(known.mean()) if len(known) else math.nan
    sums, counts = means.by_case(values)
    if len(sums) >= resampling.MANY:
        low, high = normal_ends(sums, counts, LEVEL)
        return Interval(estimate, low, high, LEVEL, len(known), len(sums), "normal")
    ends = means.ends(names, values)
    return Interval(estimate, ends.low, ends.high, LEVEL, len(known), ends.cases, "percentile")


def _references(variant: Variant, variants: Sequence[Variant]) -> list[Variant]:
    """What a variant is compared with: Ablation-CAM, and random groups of the same number."""
    ablation = [other for other in variants if other.method == _ABLATION]
    same = [other for other in ablation if other.weighting == variant.weighting] or ablation
    references = same[:1] if variant.method != _ABLATION else []
    if variant.clusters is not None and variant.method != _RANDOM:
        random = Variant(_RANDOM, variant.clusters, variant.weighting, control=True)
        references += [other for other in variants if other == random]
    return references


# --- tables ---------------------------------------------------------------------------------------


def summary_csv(report: Report) -> str:
    """The table with every number in a field of its own."""
    records = []
    for line in report.lines:
        record: dict[str, Any] = {
            **_named(line.variant),
            "control": int(line.variant.control),
            "images": line.images,
            "failed": line.failed,
            **line.faults,
        }
        for name, interval in line.intervals.items():
            record.update(_numbers(name, interval))
        record["seconds_median"] = "" if line.seconds is None else f"{line.seconds:.6f}"
        records.append(record)
    return _csv(records)


def differences_csv(report: Report) -> str:
    """The paired differences with every number in a field of its own."""
    records = []
    for difference in report.differences:
        second = {f"minus_{name}": value for name, value in _named(difference.second).items()}
        record: dict[str, Any] = {**_named(difference.first), **second}
        for name, interval in difference.intervals.items():
            record.update(_numbers(name, interval))
        records.append(record)
    return _csv(records)


def _named(variant: Variant) -> dict[str, Any]:
    return {
        "method": variant.method,
        "clusters": "" if variant.clusters is None else variant.clusters,
        "weighting": variant.weighting or "",
    }


def _numbers(name: str, interval: Interval) -> dict[str, Any]:
    values = {"": interval.estimate, "_low": interval.low, "_high": interval.high}
    numbers: dict[str, Any] = {
        f"{name}{end}": "" if math.isnan(value) else f"{value:.6f}" for end, value in values.items()
    }
    return {**numbers, f"{name}_n": interval.n}


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    if records:
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return text.getvalue()


def summary_md(report: Report) -> str:
    """Both tables as Markdown, with the notes."""
    heads = [column.title for column in report.columns]
    faults = [fault.replace("_", " ") for fault in report.faults]
    table = [["Method", "images", *heads, "Time per image", *faults, "failed"]]
    for line in report.lines:
        cells = [_shown(line.intervals[column.name], line) for column in report.columns]
        counts = [*line.faults.values(), line.failed]
        name = f"*{line.title}*" if line.variant.control else line.title
        judged = str(line.images - line.failed)
        table.append([name, judged, *cells, _time(line.seconds), *map(str, counts)])
    parts = ["# Summary", _markdown(table)]
    if any(line.variant.control for line in report.lines):
        parts.append("Controls are in italics.")
    if report.differences:
        table = [["Method", "minus", *heads]]
        for difference in report.differences:
            intervals = [difference.intervals[column.name] for column in report.columns]
            cells = [f"**{in_words(i)}**" if excludes_zero(i) else in_words(i) for i in intervals]
            table.append([title_of(difference.first), title_of(difference.second), *cells])
        parts += [
            "# Paired differences",
            _markdown(table),
            "Mean of the first minus the second on the same images. Bold: the interval excludes 0. "
            "The intervals are not corrected for multiple comparisons.",
        ]
    notes = "\n".join(f"- {note}" for note in report.notes)
    return "\n\n".join([*parts, "# Notes", notes]) + "\n"


def _shown(interval: Interval, line: Line) -> str:
    """An interval, with the number of images where that is not the line's."""
    judged = line.images - line.failed
    return in_words(interval) + (f" (n={interval.n})" if interval.n != judged else "")


def in_words(interval: Interval) -> str:
    """An estimate with its interval, as far as they are known.

    Example::

        >>> from captum_clustered.statistics import mean_interval
        >>> in_words(mean_interval([2.0])), in_words(mean_interval([2.0, 2.0]))
        ('2.00', '2.00 [2.00, 2.00]')
    """
    if math.isnan(interval.estimate):
        return "-"
    return f"{interval.estimate:.2f}" if math.isnan(interval.low) else str(interval)


def _markdown(table: Sequence[Sequence[str]]) -> str:
    head, *body = table
    ruler = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ruler, *body))


def summary_tex(report: Report) -> str:
    """The table in the paper's layout, for the package booktabs."""
    heads = [_tex(column.title) for column in report.columns]
    lines = [
        *(f"% {note}" for note in report.notes),
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * (len(heads) + 1)}}}",
        r"\toprule",
        " & ".join(["Method", *heads, "Time per image"]) + r" \\",
        r"\midrule",
    ]
    for i, line in enumerate(report.lines):
        if i and line.variant.control and not report.lines[i - 1].variant.control:
            lines.append(r"\midrule")
        intervals = [line.intervals[column.name] for column in report.columns]
        cells = [_tex_interval(i) for i in intervals]
        lines.append(" & ".join([_tex(line.title), *cells, _tex(_time(line.seconds))]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex_interval(interval: Interval) -> str:
    estimate, _, ends = in_words(interval).partition(" ")
    return rf"{estimate} {{\scriptsize {ends}}}" if ends else estimate


def _tex(text: str) -> str:
    for plain, command in (
        ("\\", r"\textbackslash "),
        ("&", r"\&"),
        ("%", r"\%"),
        ("_", r"\_"),
        ("#", r"\#"),
        ("K=", "$K$="),
        (" ↓", r" $\downarrow$"),
        (" ↑", r" $\uparrow$"),
    ):
        text = text.replace(plain, command)
    return text


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def excludes_zero(interval: Interval) -> bool:
    """Whether an interval of a difference lies on one side of 0."""
    return interval.low > 0 or interval.high < 0
