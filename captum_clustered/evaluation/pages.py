"""The tables as HTML: one page for all images, and one for each image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_clustered._files import write_text
from captum_clustered.evaluation.report import Report, excludes_zero
from captum_clustered.evaluation.rows import Key, Row, Variant, key_of, title_of
from captum_clustered.page import picture_uri, render
from captum_clustered.statistics import Interval

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FOLDER", "REPORT", "write"]

REPORT = "report.html"
FOLDER = "pages"

Show = Callable[[str], "np.ndarray | None"]


def write(
    out: Path,
    report: Report,
    rows: Mapping[Key, Row],
    images: Sequence[str],
    show: Show = lambda image: None,  # noqa: ARG005
) -> Path:
    """Writes ``report.html`` and a page for each image in ``pages/``.

    Args:
        out (Path): The folder of the evaluation.
        report (Report): The tables.
        rows (mapping): All rows.
        images (sequence of str): The images' names, in the order of the data.
        show (callable, optional): From an image's name to what the model sees of it, `(H, W, 3)`
            in [0, 1], or None. Default: no pictures

    Returns:
        *Path*: ``report.html``.

    Raises:
        ImportError: If Jinja2 is missing.
    """
    (out / FOLDER).mkdir(exist_ok=True)
    names = [f"{number:0{len(str(len(images)))}d}.html" for number in range(1, len(images) + 1)]
    variants = [line.variant for line in report.lines]
    own = [[rows[key_of(image, v)] for v in variants] for image in images]
    for place, (image, found) in enumerate(zip(images, own, strict=True)):
        before = names[place - 1] if place else None
        after = names[place + 1] if place + 1 < len(names) else None
        page = _image_page(image, found, report, show(image), before, after)
        write_text(out / FOLDER / names[place], page)
    listed = [
        _listed(image, name, found) for image, name, found in zip(images, names, own, strict=True)
    ]
    write_text(out / REPORT, _report_page(report, listed))
    return out / REPORT


def _image_page(
    image: str,
    found: Sequence[Row],
    report: Report,
    picture: np.ndarray | None,
    before: str | None,
    after: str | None,
) -> str:
    return render(
        "rows.html",
        title=image,
        subtitle=_subtitle(found),
        picture=None if picture is None else picture_uri(picture),
        back=f"../{REPORT}",
        before=before,
        after=after,
        columns=[column.title for column in report.columns],
        rows=[
            _row(row, line.variant, report) for row, line in zip(found, report.lines, strict=True)
        ],
    )


def _report_page(report: Report, images: Sequence[dict[str, Any]]) -> str:
    return render(
        "report.html",
        title="Evaluation",
        notes=list(report.notes),
        columns=[column.title for column in report.columns],
        lines=[
            {
                "title": line.title,
                "control": line.variant.control,
                "cells": _cells(line.intervals, report),
                "seconds": line.seconds,
                "faulty": sum(line.faults.values()),
                "failed": line.failed,
            }
            for line in report.lines
        ],
        differences=[
            {
                "first": title_of(difference.first),
                "second": title_of(difference.second),
                "control": difference.first.control,
                "cells": _cells(difference.intervals, report),
            }
            for difference in report.differences
        ],
        images=images,
    )


def _listed(image: str, page: str, found: Sequence[Row]) -> dict[str, Any]:
    """An image in the list of all."""
    return {
        "name": image,
        "href": f"{FOLDER}/{page}",
        "case": found[0]["case"],
        "target": _known(found, "target"),
        "score": _known(found, "original_score"),
        "failed": sum(row["status"] != "ok" for row in found),
    }


def _cells(intervals: Mapping[str, Interval], report: Report) -> list[dict[str, Any]]:
    return [_cell(intervals[column.name]) for column in report.columns]


def _row(row: Row, variant: Variant, report: Report) -> dict[str, Any]:
    judged = row["status"] == "ok"
    return {
        "title": title_of(variant),
        "control": variant.control,
        "cells": [row[column.name] if judged else None for column in report.columns],
        "seconds": row["seconds"] if judged else None,
        "state": row["map"] if judged else f"failed: {row['reason']} ({row.get('place')})",
    }


def _subtitle(rows: Sequence[Row]) -> str:
    target, score = _known(rows, "target"), _known(rows, "original_score")
    parts = [] if target is None else [f"class {target}, score {score:.3g}"]
    if rows[0]["label"] is not None:
        parts.append(f"labelled {rows[0]['label']}")
    if rows[0]["case"] is not None:
        parts.append(f"case {rows[0]['case']}")
    return "; ".join(parts)


def _known(rows: Sequence[Row], name: str) -> Any:
    return next((row[name] for row in rows if row["status"] == "ok"), None)


def _cell(interval: Interval) -> dict[str, Any]:
    known = not math.isnan(interval.estimate)
    has_ends = not math.isnan(interval.low)
    return {
        "estimate": interval.estimate if known else None,
        "ends": f"[{interval.low:.2f}, {interval.high:.2f}]" if has_ends else "",
        "n": interval.n,
        "excludes_zero": excludes_zero(interval),
    }
