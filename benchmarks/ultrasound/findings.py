"""From rows to numbers: what was measured on each network and data set, with intervals.

:func:`gather` reads what ``train`` and ``explain`` left behind into one value that JSON can hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ultrasound.data import DATASETS
from benchmarks.ultrasound.explaining import SETS
from benchmarks.ultrasound.marks import heat_on_marks, map_of
from benchmarks.ultrasound.networks import NETWORKS
from benchmarks.ultrasound.regions import view_of
from benchmarks.ultrasound.splits import Region, folder_of, read_regions
from benchmarks.ultrasound.training import record_of
from captum_clustered.evaluation.measures import METRICS
from captum_clustered.evaluation.records import read_rows
from captum_clustered.evaluation.report import Column, make_report
from captum_clustered.evaluation.rows import Key, Row, Variant, title_of
from captum_clustered.methods import METHODS
from captum_clustered.statistics import mean_interval, paired_difference

__all__ = ["PAIRS", "PAPER", "equal_area_iou", "find", "gather"]

PAPER = {
    ("grad-cam", None): (40.35, 25.52),
    ("egrad-cam", None): (40.35, 25.52),
    ("ablation-cam", None): (36.70, 24.14),
    ("clustered-cam", 16): (36.47, 26.90),
    ("clustered-cam", 32): (38.22, 24.83),
    ("clustered-cam", 64): (34.09, 28.28),
}
"""ADC and PIC of the paper on its 145 images, by method and number of groups."""

PAIRS = (
    (("clustered-cam", 64), ("ablation-cam", None)),
    (("clustered-cam", 64), ("grad-cam", None)),
    (("clustered-cam", 32), ("ablation-cam", None)),
    (("clustered-cam", 16), ("ablation-cam", None)),
    (("clustered-cam", 64), ("clustered-cam", 16)),
    (("ablation-cam", None), ("grad-cam", None)),
)
"""What the paper's table compares."""

_DRAWS = 10_000
_FEWEST = 10  # frames with marks: fewer say nothing
_APART = 16  # pixels of a frame around a lesion: its heat reaches that far
_LOOKED_AT = (("clustered-cam", 64, "auto"), ("ablation-cam", None, None), ("grad-cam", None, None))
_Rows = Mapping[Key, Row]
_OVERLAP = Column("overlap", "IoU at equal area", False)


def gather(out: Path, dataset: str, tests: Sequence[str] = ()) -> dict[str, Any]:
    """All numbers of an experiment.

    Args:
        out (Path): The folder of the experiment.
        dataset (str): The data set of the training.
        tests (sequence of str, optional): The others. Default: none

    Returns:
        *dict*: What the data are, and for each network that was explained its training, its time,
        and for each data set the table of every variant, paired differences, the paper's
        comparisons, and how right and wrong answers differ.

    Raises:
        ValueError: If nothing was explained.
    """
    known = {name: read_regions(out / name) for name in (dataset, *tests)}
    networks = {}
    for network in NETWORKS:
        for masked in (False, True):
            folder = folder_of(out, network, masked)
            if (folder / "explained").is_dir():
                networks[folder.name] = _network(folder, known, dataset)
    if not networks:
        raise ValueError(
            f"`out` must have explained regions; {out} has none. Run python -m "
            "benchmarks.ultrasound explain first."
        )
    return {
        "view": view_of(out / dataset) or "region",
        "dataset": dataset,
        "data": {name: _counted(name, regions) for name, regions in known.items()},
        "networks": networks,
    }


def _counted(name: str, regions: Sequence[Region]) -> dict[str, Any]:
    labels = [region.label for region in regions]
    return {
        "title": DATASETS[name].title,
        "labels": DATASETS[name].labels,
        "regions": len(regions),
        "cases": len({region.case for region in regions}),
        "benign": labels.count(0),
        "malignant": labels.count(1),
        "without_label": labels.count(None),
    }


def _network(folder: Path, known: Mapping[str, Sequence[Region]], dataset: str) -> dict[str, Any]:
    record = record_of(folder)
    explained = folder / "explained"
    timing = explained / "timing.json"
    found = {}
    for name, regions in known.items():
        parts = sorted(explained.glob("fold*")) if name == dataset else [explained / name]
        rows = {part: _rows(parts, part) for part in SETS}
        maps = _with_overlap({**rows["main"], **rows["groups"]}, regions)
        if maps:
            found[name] = {
                "maps": _table(maps, (*SETS["main"].metrics[:-1], _OVERLAP.name)),
                "comparisons": [_comparison(maps, *pair) for pair in PAIRS],
                "answers": _answers(maps, regions),
                "marks": _marks(maps, regions),
            }
            if rows["curves"]:
                found[name]["curves"] = _table(rows["curves"], _curve_metrics())
    tests = {
        name: {part: test[part] for part in ("rates", "mean_of_folds")}
        for name, test in record["tests"].items()
    }
    return {
        "training": {
            **{k: record[k] for k in ("pooled", "holdout", "best", "regions", "seconds")},
            "tests": tests,
        },
        "settings": record["settings"],
        "linear_head": NETWORKS[record["settings"]["network"]].linear_head,
        "timing": json.loads(timing.read_text(encoding="utf-8")) if timing.is_file() else None,
        "data": found,
    }


def _rows(parts: Iterable[Path], name: str) -> dict[Key, Row]:
    found: dict[Key, Row] = {}
    for part in parts:
        if (part / name).is_dir():
            found.update(read_rows(part / name))
    return found


def _curve_metrics() -> tuple[str, ...]:
    again = ("adc", "pic", "ag", "energy")
    return (*SETS["curves"].metrics, *(f"{name}_calibrated" for name in again))


def equal_area_iou(heat: np.ndarray, lesion: np.ndarray) -> float:
    """IoU in percent of a lesion and as many of the hottest pixels as it has; ties share.

    It reads the order of the pixels alone, so that no method wins by the scale of its values.

    Example::

        >>> equal_area_iou(np.array([[0.9, 0.5, 0.1]]), np.array([[True, False, True]]))
        33.33333333333333
        >>> equal_area_iou(np.ones((1, 4)), np.array([[True, True, False, False]]))
        33.33333333333333
    """
    number = int(lesion.sum())
    if not number:
        return math.nan
    least = np.partition(heat.ravel(), heat.size - number)[heat.size - number]
    above, tied = heat > least, heat == least
    share = (number - above.sum()) / tied.sum()
    both = float((above & lesion).sum() + share * (tied & lesion).sum())
    return 100 * both / (2 * number - both)


def _with_overlap(rows: _Rows, regions: Sequence[Region]) -> dict[Key, Row]:
    """The rows, each with the IoU at equal area of the map that it keeps."""
    from PIL import Image

    lesions: dict[str, np.ndarray] = {}
    of = {region.name: region for region in regions}
    found = {}
    for key, row in rows.items():
        value = None
        if row["status"] == "ok" and "heat" in row:
            name = Path(row["image"]).stem
            if name not in lesions:
                with Image.open(of[name].mask) as file:
                    lesions[name] = np.asarray(file.convert("L")) > 0
            value = equal_area_iou(map_of(row, lesions[name].shape[0]), lesions[name])
        found[key] = {**row, _OVERLAP.name: value}
    return found


def _table(rows: _Rows, metrics: Sequence[str]) -> dict[str, Any]:
    keys = dict.fromkeys((m, k, w) for _, m, k, w in rows)
    variants = [Variant(m, k, w, METHODS[m].control) for m, k, w in keys]
    variants.sort(key=lambda variant: variant.control)
    images = list(dict.fromkeys(image for image, *_ in rows))
    columns = [
        _OVERLAP
        if name == _OVERLAP.name
        else Column(name, METRICS[plain].title, METRICS[plain].is_rate)
        for name in metrics
        for plain in [name.removesuffix("_calibrated")]
    ]
    report = make_report(rows, images, variants, columns)

    def numbers(intervals: Mapping[str, Any]) -> dict[str, list[float]]:
        return {n: [round(v, 3) for v in (i.estimate, i.low, i.high)] for n, i in intervals.items()}

    return {
        "images": len(images),
        "cases": len({row["case"] for row in rows.values()}),
        "lines": [
            {
                **_named(line.variant),
                "control": line.variant.control,
                "flat": line.faults["flat"],
                "failed": line.failed,
                "seconds": line.seconds,
                **numbers(line.intervals),
            }
            for line in report.lines
        ],
        "differences": [
            {**_named(d.first), "minus": _named(d.second), **numbers(d.intervals)}
            for d in report.differences
        ],
        "less_grad_cam": [
            {
                **_named(variant),
                **{
                    column.name: _less(rows, variant, Variant("grad-cam"), column.name)
                    for column in columns
                },
            }
            for variant in variants
            if variant.method != "grad-cam"
        ],
    }


def _named(variant: Variant) -> dict[str, Any]:
    return {
        "method": variant.method,
        "clusters": variant.clusters,
        "weighting": variant.weighting,
        "title": title_of(variant),
    }


def find(
    lines: Iterable[dict[str, Any]], method: str, clusters: int | None, weighting: str | None
) -> dict[str, Any] | None:
    """The line of a variant; a method that takes no weighting is found by any."""
    own = [li for li in lines if li["method"] == method and li["clusters"] == clusters]
    same = [line for line in own if line["weighting"] == weighting]
    return (same or own or [None])[0]


def _kept(rows: _Rows, variant: Variant) -> Variant | None:
    """The variant as the rows have it: a method may take no weighting."""
    there = {key[1:] for key in rows}
    for weighting in (variant.weighting, None):
        if (variant.method, variant.clusters, weighting) in there:
            return Variant(variant.method, variant.clusters, weighting)
    return None


def _judged(rows: _Rows, variant: Variant) -> dict[str, Row]:
    """The rows of a variant that did not fail, by image; none where it was not evaluated."""
    kept = _kept(rows, variant)
    if kept is None:
        return {}
    key = (kept.method, kept.clusters, kept.weighting)
    return {k[0]: row for k, row in rows.items() if k[1:] == key and row["status"] == "ok"}


def _less(rows: _Rows, first: Variant, second: Variant, metric: str) -> list[float]:
    """The paired difference of two variants with its interval by patient."""
    ours, theirs = _judged(rows, first), _judged(rows, second)
    pairs = [
        (row[metric], theirs[image][metric], row["case"])
        for image, row in ours.items()
        if image in theirs and None not in (row.get(metric), theirs[image].get(metric))
    ]
    if len(pairs) < 2:
        return [math.nan] * 3
    a, b, cases = zip(*pairs, strict=True)
    found = paired_difference(a, b, cases=cases)
    return [round(value, 3) for value in (found.estimate, found.low, found.high)]


def _comparison(
    rows: _Rows, first: tuple[str, int | None], second: tuple[str, int | None]
) -> dict[str, Any]:
    """What the paper found between two lines of its table, and what is found here."""
    one, other = (Variant(m, k, "drop") for m, k in (first, second))
    found: dict[str, Any] = {"first": _named(one), "second": _named(other)}
    for number, metric in enumerate(("adc", "pic")):
        paper = PAPER[first][number] - PAPER[second][number]
        here = _less(rows, one, other, metric)
        found[metric] = {"paper": round(paper, 2), "here": here, "verdict": _verdict(paper, here)}
    return found


def _verdict(paper: float, here: Sequence[float]) -> str:
    """Found, reversed, or not found: by the interval's side; nothing where there is none.

    Example::

        >>> _verdict(-2.6, [-1.0, -2.0, -0.1]), _verdict(-2.6, [1.0, 0.1, 2.0])
        ('found', 'reversed')
        >>> _verdict(-2.6, [-1.0, -3.0, 1.0])
        'not found'
    """
    _, low, high = here
    if math.isnan(low):
        return ""
    if not (low > 0 or high < 0):
        return "not found"
    return "found" if (low > 0) == (paper > 0) else "reversed"


def _answers(rows: _Rows, regions: Sequence[Region]) -> list[dict[str, Any]]:
    """Heat on the lesion beyond the lesion's share of the picture, for right and wrong answers."""
    share = {region.name: _share(region) for region in regions}
    found = []
    for method, clusters, weighting in _LOOKED_AT:
        variant = Variant(method, clusters, weighting)
        own = [row for row in _judged(rows, variant).values() if row.get("energy") is not None]
        if not own:
            continue
        beyond = np.array([row["energy"] - share[Path(row["image"]).stem] for row in own])
        right = np.array([row["target"] == row["label"] for row in own])
        found.append(
            {
                **_named(variant),
                "right": _mean(beyond[right], [r["case"] for r in _where(own, right)]),
                "wrong": _mean(beyond[~right], [r["case"] for r in _where(own, ~right)]),
                "n": [int(right.sum()), int((~right).sum())],
                "difference": _apart(beyond, right, [row["case"] for row in own]),
            }
        )
    return found


def _marks(rows: _Rows, regions: Sequence[Region]) -> list[dict[str, Any]]:
    """How much more heat lies on calipers and text than elsewhere."""
    from PIL import Image

    of = {region.name: region for region in regions}
    found = []
    for method, clusters, weighting in _LOOKED_AT:
        variant = Variant(method, clusters, weighting)
        own = [row for row in _judged(rows, variant).values() if "heat" in row]
        if not own:
            continue
        pictures, lesions = [], []
        for row in own:
            region = of[Path(row["image"]).stem]
            for kept, path in ((pictures, region.path), (lesions, region.mask)):
                with Image.open(path) as file:
                    kept.append(np.asarray(file.convert("L")))
        maps = np.stack([map_of(row, pictures[0].shape[0]) for row in own])
        apart = _APART if view_of(regions[0].path.parents[1]) == "frame" else 0
        more = heat_on_marks(maps, pictures, [lesion > 0 for lesion in lesions], apart)
        there = ~np.isnan(more)
        if there.sum() < _FEWEST:
            continue
        cases = [row["case"] for row in _where(own, there)]
        found.append({**_named(variant), "n": int(there.sum()), "more": _mean(more[there], cases)})
    return found


def _where(rows: Sequence[Row], chosen: np.ndarray) -> list[Row]:
    return [row for row, kept in zip(rows, chosen, strict=True) if kept]


def _share(region: Region) -> float:
    from PIL import Image

    with Image.open(region.mask) as file:
        return 100 * float((np.asarray(file) > 0).mean())


def _mean(values: np.ndarray, cases: Sequence[str]) -> list[float]:
    found = mean_interval(values, cases=cases)
    return [round(value, 3) for value in (found.estimate, found.low, found.high)]


def _apart(values: np.ndarray, chosen: np.ndarray, cases: Sequence[str]) -> list[float]:
    """The mean of the chosen values less that of the others, with an interval drawn over cases."""
    if chosen.all() or not chosen.any():
        return [math.nan] * 3
    _, case = np.unique(cases, return_inverse=True)
    number = case.max() + 1
    draws = np.random.default_rng(0).multinomial(number, [1 / number] * number, size=_DRAWS)

    def mean(where: np.ndarray, weights: np.ndarray) -> np.ndarray:
        sums = np.bincount(case[where], values[where], minlength=number)
        counts = np.bincount(case[where], minlength=number)
        with np.errstate(invalid="ignore"):
            means: np.ndarray = (weights @ sums) / (weights @ counts)
        return means

    once = np.ones((1, number))
    estimate = float((mean(chosen, once) - mean(~chosen, once))[0])
    low, high = np.nanquantile(mean(chosen, draws) - mean(~chosen, draws), [0.025, 0.975])
    return [round(float(v), 3) for v in (estimate, low, high)]
