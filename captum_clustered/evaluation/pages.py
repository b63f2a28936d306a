"""The tables as HTML: one page for all images, and behind it one for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_clustered._files import whole
from captum_clustered.evaluation.plan import Variant
from captum_clustered.evaluation.records import Key, Row, key_of
from captum_clustered.evaluation.report import Report, title_of
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
    variants = [line.variant for line in report.lines]
    heads = [column.title for column in report.columns]
    names = [f"{number:0{len(str(len(images)))}d}.html" for number in range(1, len(images) + 1)]
    own = [[rows[key_of(image, v)] for v in variants] for image in images]
    for place, (image, found) in enumerate(zip(images, own, strict=True)):
        picture = show(image)
        page = render(
            "rows.html",
            title=image,
            subtitle=_subtitle(found),
            picture=None if picture is None else picture_uri(picture),
            back=f"../{REPORT}",
            before=names[place - 1] if place else None,
            after=names[place + 1] if place + 1 < len(names) else None,
            columns=heads,
            rows=[_row(row, variant, report) for row, variant in zip(found, variants, strict=True)],
        )
        _save(page, out / FOLDER / names[place])
    page = render(
        "report.html",
        title="Evaluation",
        notes=list(report.notes),
        columns=heads,
        lines=[
            {
                "title": line.title,
                "control": line.variant.control,
                "cells": [_cell(line.intervals[column.name]) for column in report.columns],
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
                "cells": [_cell(difference.intervals[column.name]) for column in report.columns],
            }
            for difference in report.differences
        ],
        images=[
            {
                "name": image,
                "href": f"{FOLDER}/{name}",
                "case": found[0]["case"],
                "target": _known(found, "target"),
                "score": _known(found, "original_score"),
                "failed": sum(row["status"] != "ok" for row in found),
            }
            for image, name, found in zip(images, names, own, strict=True)
        ],
    )
    _save(page, out / REPORT)
    return out / REPORT


def _row(row: Row, variant: Variant, report: Report) -> dict[str, Any]:
    judged = row["status"] == "ok"
    return {
        "title": title_of(variant),
        "control": variant.control,
        "cells": [row[column.name] if judged else None for column in report.columns],
        "seconds": row["seconds"] if judged else None,
        "state": row["map"] if judged else f"failed: {row['reason']}",
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
        "clear": interval.low > 0 or interval.high < 0,
    }


def _save(text: str, path: Path) -> None:
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")
