"""From rows to what the paper shows, with intervals: tables, and Figure 2.

:func:`gather` reads what ``train`` and ``explain`` left behind into one value that JSON can hold;
:func:`markdown` makes tables of it, for the marks of a page whose words are written by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pages import interval, table
from benchmarks.thyroid.explaining import unseen
from benchmarks.thyroid.networks import CLASSES, NETWORKS
from benchmarks.thyroid.splits import HOLDOUT, Region, read_regions
from benchmarks.thyroid.training import best_of
from captum_clustered.evaluation.measures import METRICS
from captum_clustered.evaluation.records import read_rows
from captum_clustered.evaluation.report import Column, make_report
from captum_clustered.evaluation.rows import Row, Variant, title_of
from captum_clustered.fills import fill_image
from captum_clustered.heatmap import enlarge, normalize
from captum_clustered.methods import METHODS, make
from captum_clustered.models.images import read_picture
from captum_clustered.statistics import mean_interval
from captum_clustered.visualization import overlay

__all__ = ["PAPER", "figure", "gather", "markdown"]

PAPER = {
    "Grad-CAM": (40.35, 25.52),
    "EGrad-CAM": (40.35, 25.52),
    "Ablation-CAM": (36.70, 24.14),
    "Clustered-CAM, K=16": (36.47, 26.90),
    "Clustered-CAM, K=32": (38.22, 24.83),
    "Clustered-CAM, K=64": (34.09, 28.28),
}
"""ADC and PIC of the paper on its 145 images."""

_SHOWN = ("adc", "pic", "ag", "complement", "energy", "pointing", "area")


# --- gathering ------------------------------------------------------------------------------------


def gather(out: Path, name: str) -> dict[str, Any]:
    """All numbers of an experiment.

    Args:
        out (Path): The folder of the experiment.
        name (str): What the data set is called.

    Returns:
        *dict*: For each network that was explained: the training, the table of every variant on the
        hold-out and on all unseen regions, paired differences, the clusterers, times, and heat
        outside the nodule.
    """
    regions = read_regions(out)
    networks = {}
    for network in NETWORKS:
        folder = out / network
        if list((folder / "explained").glob("*/summary.csv")):
            networks[network] = _network(regions, folder)
    if not networks:
        raise ValueError(
            f"`out` must have explained regions; {out} has none. Run python -m benchmarks.thyroid "
            "explain first."
        )
    labels = [region.label for region in regions]
    return {
        "data": name,
        "regions": len(regions),
        "cases": len({region.case for region in regions}),
        "benign": labels.count(0),
        "malignant": labels.count(1),
        "without_label": labels.count(None),
        "networks": networks,
    }


def _network(regions: Sequence[Region], folder: Path) -> dict[str, Any]:
    _, training = best_of(folder)
    explained = folder / "explained"
    rows = {path.parent.name: read_rows(path.parent) for path in explained.glob("*/summary.csv")}
    masking = rows.pop("masking", {})
    main = max(rows, key=lambda name: len(rows[name]))  # the one with all methods and controls
    together = {**rows[main], **masking}
    there = {image for image, *_ in together}
    names = {region.name: f"../../{_relative(region)}" for region in regions}
    chosen = [pair for pair in unseen(regions, training) if names[pair[0].name] in there]
    sets = {
        "holdout": [names[r.name] for r, origin in chosen if origin == "hold-out"],
        "unseen": [names[region.name] for region, _ in chosen],
    }
    timing = explained / "timing.json"
    return {
        "training": {k: training[k] for k in ("pooled", "holdout", "best", "regions", "seconds")},
        "settings": training["settings"],
        "linear_head": NETWORKS[folder.name].linear_head,
        "timing": json.loads(timing.read_text(encoding="utf-8")) if timing.is_file() else None,
        "tables": {name: _table(together, images) for name, images in sets.items()},
        "clusterers": {
            clusterer: _table(rows[clusterer], sets["unseen"], ("clustered-cam",))
            for clusterer in sorted(rows)
        },
        "outside": _outside(together, chosen, names),
    }


def _relative(region: Region) -> str:
    return f"{region.path.parent.name}/{region.path.name}"


def _table(
    rows: Mapping[Any, Row], images: Sequence[str], only: Sequence[str] = ()
) -> dict[str, Any]:
    keys = dict.fromkeys((m, k, w) for _, m, k, w in rows if not only or m in only)
    variants = [Variant(m, k, w, METHODS[m].control) for m, k, w in keys]
    sample = next(iter(rows.values()))
    columns = [
        Column(name, METRICS[name].title, METRICS[name].is_rate)
        for name in _SHOWN
        if name in sample
    ]
    report = make_report(rows, images, variants, columns)

    def numbers(intervals: Mapping[str, Any]) -> dict[str, list[float]]:
        return {n: [round(v, 3) for v in (i.estimate, i.low, i.high)] for n, i in intervals.items()}

    return {
        "images": len({image for image, *_ in rows if image in set(images)}),
        "cases": len({r["case"] for (image, *_), r in rows.items() if image in set(images)}),
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
    }


def _named(variant: Variant) -> dict[str, Any]:
    return {
        "method": variant.method,
        "clusters": variant.clusters,
        "weighting": variant.weighting,
        "title": title_of(variant),
    }


def _outside(
    rows: Mapping[Any, Row], chosen: Sequence[tuple[Region, str]], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Heat outside the nodule, in percent, by what the data say of the frame."""
    from PIL import Image

    groups: dict[str, list[Region]] = {}
    for region, _ in chosen:
        groups.setdefault(" ".join(region.tags) or "no tag", []).append(region)
    found = []
    for tag, members in sorted(groups.items()):
        free = []
        for region in members:
            with Image.open(region.mask) as file:
                free.append(100 - 100 * float((np.asarray(file) > 0).mean()))
        line: dict[str, Any] = {"tag": tag, "regions": len(members), "free": float(np.mean(free))}
        for method, clusters, weighting in (
            ("clustered-cam", 64, "drop_per_map"),
            ("ablation-cam", None, "drop_per_map"),
            ("grad-cam", None, None),
        ):
            values, cases = [], []
            for region in members:
                row = _row(rows, names[region.name], method, clusters, weighting)
                if row is not None and row["status"] == "ok" and row.get("energy") is not None:
                    values.append(100 - row["energy"])
                    cases.append(region.case)
            if len(values) > 1:
                interval = mean_interval(values, cases=cases)
                line[method] = [interval.estimate, interval.low, interval.high]
        found.append(line)
    return found


def _row(
    rows: Mapping[Any, Row], image: str, method: str, clusters: int | None, weighting: str | None
) -> Row | None:
    for w in (weighting, None):
        if (image, method, clusters, w) in rows:
            return rows[image, method, clusters, w]
    return None


# --- tables ---------------------------------------------------------------------------------------


def markdown(found: Mapping[str, Any]) -> dict[str, str]:
    """Every table by its name, such as ``"ddti lite0 table-1"``, as Markdown."""
    data = found["data"]
    tables = {}
    for network, numbers in found["networks"].items():
        for name, table_of in _TABLES.items():
            if name == "timing" and numbers["timing"] is None:
                continue
            tables[f"{data} {network} {name}"] = table_of(numbers)
    tables[f"{data} networks"] = _networks(found)
    return tables


def _networks(found: Mapping[str, Any]) -> str:
    head = ["Network", "on", "regions", "accuracy", "TPR", "TNR", "AUC"]
    rows = []
    for network, numbers in found["networks"].items():
        for part, words in (("pooled", "all folds"), ("holdout", "hold-out, best fold")):
            rates = numbers["training"][part]
            cells = [
                _interval([rates[rate][end] for end in ("estimate", "low", "high")], 1)
                for rate in ("accuracy", "tpr", "tnr", "auc")
            ]
            rows.append([network, words, str(rates["accuracy"]["n"]), *cells])
    return table(head, rows)


def _table_1(numbers: Mapping[str, Any]) -> str:
    held = numbers["tables"]["holdout"]
    head = ["Method", "ADC, paper", "ADC", "- Ablation-CAM", "PIC, paper", "PIC"]
    rows = []
    wanted: list[tuple[str, str, int | None, str | None]] = [
        ("Grad-CAM", "grad-cam", None, None),
        ("EGrad-CAM", "egrad-cam", None, None),
        ("Ablation-CAM", "ablation-cam", None, None),
        *(
            (f"Clustered-CAM, K={k}", "clustered-cam", k, weighting)
            for k in _counts(held)
            for weighting in ("drop", "drop_per_map")
        ),
    ]
    for title, method, clusters, weighting in wanted:
        line = _find(held["lines"], method, clusters, weighting)
        if line is None:
            continue
        ours = weighting == "drop_per_map"
        theirs = PAPER.get(title) if not ours else None
        less = _difference(held, method, clusters, weighting, "ablation-cam")
        rows.append(
            [
                title + (", drop per map" if ours else ""),
                f"{theirs[0]:.2f}" if theirs else "",
                _interval(line["adc"]),
                _interval(less["adc"]) if less else "",
                f"{theirs[1]:.2f}" if theirs else "",
                _interval(line["pic"]),
            ]
        )
    return table(head, rows) + f"\n\n{held['images']} regions of {held['cases']} patients."


def _all(numbers: Mapping[str, Any]) -> str:
    unseen_table = numbers["tables"]["unseen"]
    names = [name for name in _SHOWN if name in unseen_table["lines"][0]]
    head = ["Method", *(METRICS[name].title for name in names)]
    rows = []
    for line in unseen_table["lines"]:
        if line["weighting"] in (None, "drop_per_map") or line["method"] == "clustered-cam":
            title = f"*{line['title']}*" if line["control"] else line["title"]
            rows.append([title, *(_interval(line[name], 1) for name in names)])
    return (
        f"{table(head, rows)}\n\n{unseen_table['images']} regions of {unseen_table['cases']} "
        "patients. Controls are in italics."
    )


def _sweep(numbers: Mapping[str, Any]) -> str:
    unseen_table = numbers["tables"]["unseen"]
    head = ["K", "weighting", "ADC", "AG"]
    head += ["ADC - Ablation-CAM", "ADC - random groups", "AG - random groups"]
    rows = []
    for clusters in _counts(unseen_table):
        for line in unseen_table["lines"]:
            if line["method"] == "clustered-cam" and line["clusters"] == clusters:
                key = "clustered-cam", clusters, line["weighting"]
                exact = _difference(unseen_table, *key, "ablation-cam")
                random = _difference(unseen_table, *key, "random-groups")
                rows.append(
                    [
                        str(clusters),
                        line["weighting"].replace("_", " "),
                        _interval(line["adc"], 1),
                        _interval(line["ag"], 1) if "ag" in line else "",
                        _interval(exact["adc"], 1, True) if exact else "",
                        _interval(random["adc"], 1, True) if random else "",
                        _interval(random["ag"], 1, True) if random and "ag" in random else "",
                    ]
                )
    return table(head, rows) + "\n\nBold: the interval excludes 0."


def _clusterers(numbers: Mapping[str, Any]) -> str:
    head = ["Clusterer", "K", "ADC", "PIC", "energy inside"]
    rows = []
    for clusterer, found in numbers["clusterers"].items():
        for line in found["lines"]:
            if line["weighting"] == "drop_per_map":
                cells = [_interval(line[name], 1) for name in ("adc", "pic", "energy")]
                rows.append([clusterer, str(line["clusters"]), *cells])
    return table(head, rows)


def _timing(numbers: Mapping[str, Any]) -> str:
    timing = numbers["timing"]
    seconds = timing["seconds"]
    head = ["", "this package", "Captum's LayerFeatureAblation", "ratio"]
    rows = []
    for title, method in (
        (f"Clustered-CAM, {timing['clusters']} groups", "Clustered-CAM"),
        (f"Ablation-CAM, {timing['maps']} maps", "Ablation-CAM"),
    ):
        ours, theirs = seconds[f"{method}, ours"], seconds[f"{method}, Captum"]
        rows.append([title, f"{ours:.3f} s", f"{theirs:.2f} s", f"{theirs / ours:.0f}"])
    ratios = [
        f"{seconds[f'Ablation-CAM, {by}'] / seconds[f'Clustered-CAM, {by}']:.1f}"
        for by in ("ours", "Captum")
    ]
    rows.append(["Ablation-CAM / Clustered-CAM (paper: 3.8)", *ratios, ""])
    largest = max(timing["differences"].values())
    return table(head, rows) + (
        f"\n\nMedians over {timing['regions']} regions, {timing['threads']} threads. Captum's "
        f"Grad-CAM takes {seconds['Grad-CAM, Captum']:.3f} s. Both engines' drops differ by at "
        f"most {largest:.0e} of the largest."
    )


def _outside_table(numbers: Mapping[str, Any]) -> str:
    methods = ("clustered-cam", "ablation-cam", "grad-cam")
    head = ["Frames", "regions", "area outside", *(title_of(Variant(m)) for m in methods)]
    rows = []
    for line in numbers["outside"]:
        cells = [_interval(line[m], 1) if m in line else "" for m in methods]
        rows.append([line["tag"], str(line["regions"]), f"{line['free']:.1f}", *cells])
    return table(head, rows)


_TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "table-1": _table_1,
    "all": _all,
    "sweep": _sweep,
    "clusterers": _clusterers,
    "timing": _timing,
    "outside": _outside_table,
}


def _counts(found: Mapping[str, Any]) -> list[int]:
    return sorted({li["clusters"] for li in found["lines"] if li["method"] == "clustered-cam"})


def _find(
    lines: Iterable[dict[str, Any]], method: str, clusters: int | None, weighting: str | None
) -> dict[str, Any] | None:
    own = [li for li in lines if li["method"] == method and li["clusters"] == clusters]
    same = [line for line in own if line["weighting"] == weighting]
    return (same or own or [None])[0]


def _difference(
    numbers: Mapping[str, Any], method: str, clusters: int | None, weighting: str | None, minus: str
) -> dict[str, Any] | None:
    found = [d for d in numbers["differences"] if d["minus"]["method"] == minus]
    return _find(found, method, clusters, weighting)


def _interval(values: Sequence[float | None], digits: int = 2, bold: bool = False) -> str:
    estimate, low, high = (math.nan if value is None else value for value in values)
    text = interval(estimate, low, high, digits)
    return f"**{text}**" if bold and (low > 0 or high < 0) else text


# --- figure ---------------------------------------------------------------------------------------


def figure(out: Path, network: str, clusters: int = 64) -> Any:
    """The paper's Figure 2: two correct cases of each class, with contour and scores.

    Of the held-out regions that the network classifies as labelled, those of each class are sorted
    by the probability of their class; the ones at a third and at two thirds of the list are shown.

    Args:
        out (Path): The folder of the experiment.
        network (str): Which network.
        clusters (int, optional): Number of groups. Default: 64

    Returns:
        *Figure*: Regions in rows, methods in columns.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    checkpoint, training = best_of(out / network)
    prepared = NETWORKS[network].prepared(checkpoint)
    fill = prepared.fill("black")
    shown = _typical(read_regions(out), training)

    def made(method: str, **settings: Any) -> Any:
        return prepared.explainer(partial(make, method), **settings)

    names = {
        "Grad-CAM": made("grad-cam"),
        "EGrad-CAM": made("egrad-cam"),
        "Ablation-CAM": made("ablation-cam"),
        f"Clustered-CAM, K={clusters}": made("clustered-cam", n_clusters=clusters),
    }
    drawn = Figure(figsize=(2.3 * (1 + len(names)), 2.55 * len(shown)), layout="constrained")
    grid = drawn.subplots(len(shown), 1 + len(names), squeeze=False)
    for axes, (region, probability) in zip(grid, shown, strict=True):
        picture = read_picture(region.path)
        with Image.open(region.mask) as file:
            contour = np.asarray(file.convert("L").resize((224, 224))) > 0
        x = prepared.input(picture)
        assert region.label is not None
        image = prepared.display(picture)
        axes[0].imshow(image)
        axes[0].set_title(f"{CLASSES[region.label]}, {probability:.2f}", fontsize="small")
        for ax, (name, explainer) in zip(axes[1:], names.items(), strict=True):
            heat = explainer.attribute(x, target=region.label)
            heat = normalize(enlarge(heat.detach().float(), x.shape[2:]))
            hidden = torch.lerp(fill_image(fill, x), x, heat)
            after, _ = prepared.probability(prepared.scores(hidden)[0], region.label)
            ax.imshow(overlay(image, heat[0, 0].numpy()))
            ax.set_title(f"{name}: {after:.2f}", fontsize="small")
        for ax in axes:
            ax.contour(contour, [0.5], colors="white", linewidths=0.8)
            ax.set_axis_off()
    drawn.supxlabel(
        "probability of the class: of the region, and of what each map leaves of it",
        fontsize="small",
    )
    return drawn


def _typical(regions: Sequence[Region], training: Mapping[str, Any]) -> list[tuple[Region, float]]:
    held = [r for r in regions if training["parts"].get(r.name) == HOLDOUT]
    malignant = training["malignant"]
    shown = []
    for label in (0, 1):
        right = sorted(
            (p if label else 1 - p, region.name, region)
            for region in held
            for p in [malignant[region.name]]
            if region.label == label and (p >= 0.5) == bool(label)
        )
        picked = dict.fromkeys((len(right) // 3, 2 * len(right) // 3)) if right else {}
        shown += [(right[i][2], right[i][0]) for i in picked]
    return shown
