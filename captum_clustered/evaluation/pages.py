"""The tables as HTML: one page for all images, and one for each image."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captum_clustered._files import write_text
from captum_clustered._pictures import ALPHA, CMAP
from captum_clustered.evaluation.report import Report, excludes_zero
from captum_clustered.evaluation.rows import Key, Row, Variant, key_of, title_of
from captum_clustered.page import picture_uri, render
from captum_clustered.page.image import colours, packed
from captum_clustered.statistics import Interval

__all__ = ["FOLDER", "REPORT", "write"]

REPORT = "report.html"
FOLDER = "pages"

Show = Callable[[str], "np.ndarray | None"]
ClassName = Callable[[int], str]


def write(
    out: Path,
    report: Report,
    rows: Mapping[Key, Row],
    images: Sequence[str],
    show: Show = lambda image: None,  # noqa: ARG005
    class_name: ClassName = str,
    figures: Sequence[Path] = (),
) -> Path:
    """Writes ``report.html`` and a page for each image in ``pages/``.

    Args:
        out (Path): The folder of the evaluation.
        report (Report): The tables.
        rows (mapping): All rows.
        images (sequence of str): The images' names, in the order of the data.
        show (callable, optional): From an image's name to what the model sees of it, `(H, W, 3)`
            in [0, 1], or None. Default: no pictures
        class_name (callable, optional): From the index of a class to its name in words.
            Default: str (the index)
        figures (sequence of Path, optional): PNG files that the report shows. Default: ()

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
        around = {
            "before": names[place - 1] if place else None,
            "after": names[place + 1] if place + 1 < len(names) else None,
        }
        page = _image_page(image, found, report, show(image), class_name, around)
        write_text(out / FOLDER / names[place], page)
    listed = [
        _listed(image, name, found, class_name)
        for image, name, found in zip(images, names, own, strict=True)
    ]
    write_text(out / REPORT, _report_page(report, listed, figures))
    return out / REPORT


def _image_page(
    image: str,
    found: Sequence[Row],
    report: Report,
    picture: np.ndarray | None,
    class_name: ClassName,
    around: Mapping[str, str | None],
) -> str:
    return render(
        "rows.html",
        title=image,
        subtitle=_subtitle(found, class_name),
        picture=None if picture is None else picture_uri(picture),
        data=None if picture is None else _heats(found, report, picture.shape[:2]),
        back=f"../{REPORT}",
        columns=_heads(report),
        rows=[
            _row(row, line.variant, report) for row, line in zip(found, report.lines, strict=True)
        ],
        **around,
    )


def _heats(rows: Sequence[Row], report: Report, size: Sequence[int]) -> dict[str, Any]:
    """The maps of an image, for the script; those of older rows are not known."""
    maps = []
    for row, line in zip(rows, report.lines, strict=True):
        if row["status"] == "ok" and "heat" in row:
            shape, data = row["heat"]["shape"], base64.b64decode(row["heat"]["bytes"])
            grid = torch.from_numpy(np.frombuffer(data, np.uint8).reshape(shape).copy())
            maps.append(
                {"title": line.title, "control": line.variant.control, **packed(grid, size)}
            )
    return {"size": [1, *size], "maps": maps, "colours": colours(CMAP), "opacity": ALPHA}


def _report_page(report: Report, images: Sequence[dict[str, Any]], figures: Sequence[Path]) -> str:
    return render(
        "report.html",
        title="Evaluation",
        notes=list(report.notes),
        columns=_heads(report),
        lines=[
            {
                "title": line.title,
                "control": line.variant.control,
                "cells": _cells(line.intervals, report, line.images - line.failed),
                "seconds": line.seconds,
                "faulty": sum(n for fault, n in line.faults.items() if fault != "no_object"),
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
        figures=[
            {
                "name": path.stem,
                "uri": f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}",
            }
            for path in figures
        ],
        images=images,
    )


def _heads(report: Report) -> list[dict[str, str]]:
    """The metrics in the heads of tables, with which way is better."""
    better = {True: "higher is better", False: "lower is better", None: ""}
    return [
        {
            "title": f"{column.name_alone} ({column.unit})" if column.unit else column.name_alone,
            "better": better[column.higher_is_better],
            "meaning": column.meaning,
        }
        for column in report.columns
    ]


def _listed(image: str, page: str, found: Sequence[Row], class_name: ClassName) -> dict[str, Any]:
    """An image in the list of all."""
    target = _known(found, "target")
    return {
        "name": image,
        "href": f"{FOLDER}/{page}",
        "case": found[0]["case"],
        "target": None if target is None else class_name(target),
        "score": _known(found, "original_score"),
        "failed": sum(row["status"] != "ok" for row in found),
    }


def _cells(
    intervals: Mapping[str, Interval], report: Report, judged: int | None = None
) -> list[dict[str, Any]]:
    return [_cell(intervals[column.name], judged) for column in report.columns]


def _row(row: Row, variant: Variant, report: Report) -> dict[str, Any]:
    judged = row["status"] == "ok"
    return {
        "title": title_of(variant),
        "control": variant.control,
        "cells": [row.get(column.name) if judged else None for column in report.columns],
        "seconds": row["seconds"] if judged else None,
        "state": row["map"] if judged else f"failed: {row['reason']} ({row.get('place')})",
    }


def _subtitle(rows: Sequence[Row], class_name: ClassName) -> str:
    target, score = _known(rows, "target"), _known(rows, "original_score")
    parts = [] if target is None else [f"class {class_name(target)}, score {score:.3g}"]
    if rows[0]["label"] is not None:
        parts.append(f"labelled {class_name(rows[0]['label'])}")
    if rows[0]["case"] is not None:
        parts.append(f"case {rows[0]['case']}")
    return "; ".join(parts)


def _known(rows: Sequence[Row], name: str) -> Any:
    return next((row[name] for row in rows if row["status"] == "ok"), None)


def _cell(interval: Interval, judged: int | None) -> dict[str, Any]:
    known = not math.isnan(interval.estimate)
    has_ends = not math.isnan(interval.low)
    return {
        "estimate": interval.estimate if known else None,
        "ends": f"[{interval.low:.2f}, {interval.high:.2f}]" if has_ends else "",
        "n": interval.n if judged is not None and interval.n != judged else None,
        "excludes_zero": excludes_zero(interval),
    }
