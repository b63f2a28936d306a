"""From numbers to what the paper shows: tables with intervals, and Figure 2.

:func:`markdown` makes tables for the marks of a page whose words are written by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pages import interval, table
from benchmarks.ultrasound.data import DATASETS
from benchmarks.ultrasound.findings import PAPER, find
from benchmarks.ultrasound.networks import CLASSES, NETWORKS
from benchmarks.ultrasound.splits import HOLDOUT, Region, read_regions
from benchmarks.ultrasound.training import checkpoint, record_of
from captum_clustered.evaluation.measures import METRICS
from captum_clustered.fills import fill_image
from captum_clustered.heatmap import enlarge, normalize
from captum_clustered.methods import make
from captum_clustered.models.images import read_picture
from captum_clustered.visualization import overlay

__all__ = ["figure", "markdown"]

_RATES = ("accuracy", "tpr", "tnr", "auc")


def markdown(found: Mapping[str, Any]) -> dict[str, str]:
    """Every table by its name, such as ``"lite0 busi table-1"``, as Markdown.

    The names of another view than regions start with it.
    """
    before = "" if found["view"] == "region" else f"{found['view']} "
    tables = {"networks": _networks(found), "answers": _answers(found)}
    if any(own["marks"] for n in found["networks"].values() for own in n["data"].values()):
        tables["marks"] = _marks(found)
    for network, numbers in found["networks"].items():
        if numbers["timing"]:
            tables[f"{network} timing"] = _timing(numbers["timing"])
        for data, own in numbers["data"].items():
            for name, table_of in _TABLES.items():
                if name != "curves" or "curves" in own:
                    tables[f"{network} {data} {name}"] = table_of(own)
        tables[f"{network} comparisons"] = _comparisons(found, numbers)
    for network in found["networks"]:
        if f"{network}-masked" in found["networks"]:
            tables[f"{network} masked"] = _order(found, network)
    return {f"{before}{name}": text for name, text in tables.items()}


def _networks(found: Mapping[str, Any]) -> str:
    head = ["Network", "on", "regions", "accuracy", "TPR", "TNR", "AUC"]
    rows = []
    for network, numbers in found["networks"].items():
        training = numbers["training"]
        title = found["data"][found["dataset"]]["title"]
        parts = {f"{title}, the fold that it did not see": training["pooled"]}
        if training["holdout"]:
            parts[f"{title}, hold-out"] = training["holdout"]
        for name, test in training["tests"].items():
            parts[f"{DATASETS[name].title}, best fold"] = test["rates"]
            parts[f"{DATASETS[name].title}, mean of the folds"] = test["mean_of_folds"]
        for words, rates in parts.items():
            cells = [
                _interval([rates[rate][end] for end in ("estimate", "low", "high")], 1)
                for rate in _RATES
            ]
            rows.append([network, words, str(rates["accuracy"]["n"]), *cells])
    return table(head, rows, left=2)


def _table_1(own: Mapping[str, Any]) -> str:
    maps = own["maps"]
    head = ["Method", "ADC, paper", "ADC", "- Ablation-CAM", "PIC, paper", "PIC"]
    head += ["Energy inside", "Pointing game", "IoU at equal area"]
    rows = []
    for weighting in ("drop", "auto"):
        for (method, clusters), theirs in PAPER.items():
            grouped = clusters is not None
            line = find(maps["lines"], method, clusters, weighting)
            if line is None or (weighting == "auto" and not grouped):
                continue
            less = _difference(maps, method, clusters, weighting, "ablation-cam")
            ours = weighting == "auto"
            rows.append(
                [
                    line["title"] if grouped else line["title"].removesuffix(", drop"),
                    "" if ours else f"{theirs[0]:.2f}",
                    _interval(line["adc"], 1),
                    _interval(less["adc"], 1, True) if less else "",
                    "" if ours else f"{theirs[1]:.2f}",
                    *(
                        _interval(line[name], 1)
                        for name in ("pic", "energy", "pointing", "overlap")
                    ),
                ]
            )
    return table(head, rows) + f"\n\n{_sizes(maps)} Bold: the interval excludes 0."


def _all(own: Mapping[str, Any]) -> str:
    return _lines(own["maps"], ("adc", "pic", "ag", "energy", "pointing", "overlap"))


def _curves(own: Mapping[str, Any]) -> str:
    names = ("adc", "adc_calibrated", "ag", "ag_calibrated", "insertion", "deletion", "energy")
    return _lines(own["curves"], names)


def _lines(numbers: Mapping[str, Any], names: Sequence[str]) -> str:
    def title(name: str) -> str:
        if name == "overlap":
            return "IoU at equal area"
        plain = METRICS[name.removesuffix("_calibrated")].title
        return f"{plain}, calibrated" if name.endswith("_calibrated") else plain

    rows = []
    for line in numbers["lines"]:
        words = f"*{line['title']}*" if line["control"] else line["title"]
        rows.append([words, *(_interval(line[name], 1) for name in names)])
    text = table(["Method", *map(title, names)], rows)
    return f"{text}\n\n{_sizes(numbers)} Controls are in italics."


def _sizes(numbers: Mapping[str, Any]) -> str:
    return f"{numbers['images']} regions of {numbers['cases']} patients."


def _comparisons(found: Mapping[str, Any], numbers: Mapping[str, Any]) -> str:
    head = ["Compared", "Metric", "Paper"]
    for data in numbers["data"]:
        head += [found["data"][data]["title"], ""]
    rows = []
    sides = [own["comparisons"] for own in numbers["data"].values()]
    for same in zip(*sides, strict=True):
        titles = [same[0][side]["title"].removesuffix(", drop") for side in ("first", "second")]
        for metric in ("adc", "pic"):
            cells = []
            for one in same:
                cells += [_interval(one[metric]["here"], 1), one[metric]["verdict"]]
            paper = f"{same[0][metric]['paper']:+.2f}"
            rows.append([" less ".join(titles), metric.upper(), paper, *cells])
    return table(head, rows, left=2)


def _answers(found: Mapping[str, Any]) -> str:
    head = ["Network", "Data", "Method", "right", "wrong", "regions", "right - wrong"]
    rows = []
    for network, numbers in found["networks"].items():
        for data, own in numbers["data"].items():
            for line in own["answers"]:
                right, wrong = line["n"]
                rows.append(
                    [
                        network,
                        found["data"][data]["title"],
                        line["title"].removesuffix(", drop"),
                        _interval(line["right"], 1),
                        _interval(line["wrong"], 1),
                        f"{right} + {wrong}",
                        _interval(line["difference"], 1, True),
                    ]
                )
    return table(head, rows, left=3)


def _marks(found: Mapping[str, Any]) -> str:
    head = ["Network", "Data", "Method", "with marks", "more heat on marks"]
    rows = [
        [
            network,
            found["data"][data]["title"],
            line["title"].removesuffix(", drop"),
            str(line["n"]),
            _interval(line["more"], 2, True),
        ]
        for network, numbers in found["networks"].items()
        for data, own in numbers["data"].items()
        for line in own["marks"]
    ]
    return table(head, rows, left=3)


def _order(found: Mapping[str, Any], network: str) -> str:
    """Whether training with masks changes which method is better, by each metric."""
    from scipy.stats import kendalltau

    head = ["Data", "Metric", "best, plain", "best, masked", "rank correlation", "methods"]
    rows = []
    plain, masked = (found["networks"][n]["data"] for n in (network, f"{network}-masked"))
    for data in plain:
        for part, names in (
            ("maps", ("adc", "ag", "energy")),
            ("curves", ("adc_calibrated", "insertion", "deletion")),
        ):
            if part not in plain[data] or part not in masked.get(data, {}):
                continue
            for name in names:
                sides = [
                    {li["title"]: li[name][0] for li in side[data][part]["lines"]}
                    for side in (plain, masked)
                ]
                both = [title for title in sides[0] if title in sides[1]]
                metric = METRICS[name.removesuffix("_calibrated")]
                choose = max if metric.higher_is_better else min
                best = [choose(both, key=side.__getitem__) for side in sides]
                tau = kendalltau(*([side[title] for title in both] for side in sides)).statistic
                words = metric.title + (", calibrated" if name.endswith("_calibrated") else "")
                rows.append(
                    [found["data"][data]["title"], words, *best, f"{tau:.2f}", str(len(both))]
                )
    return table(head, rows, left=4) + "\n\nRank correlation: Kendall's tau over all lines."


def _timing(timing: Mapping[str, Any]) -> str:
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


_TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "table-1": _table_1,
    "all": _all,
    "curves": _curves,
}


def _difference(
    numbers: Mapping[str, Any], method: str, clusters: int | None, weighting: str | None, minus: str
) -> dict[str, Any] | None:
    found = [d for d in numbers["differences"] if d["minus"]["method"] == minus]
    return find(found, method, clusters, weighting)


def _interval(values: Sequence[float | None], digits: int = 2, bold: bool = False) -> str:
    estimate, low, high = (math.nan if value is None else value for value in values)
    if math.isnan(estimate):
        return ""
    text = interval(estimate, low, high, digits)
    return f"**{text}**" if bold and (low > 0 or high < 0) else text


# --- figure ---------------------------------------------------------------------------------------


def figure(out: Path, network: str, dataset: str, clusters: int = 64) -> Any:
    """The paper's Figure 2: two correct cases of each class, with contour and scores.

    Of the regions that the network of their own fold classifies as labelled, those of each class
    are sorted by the probability of their class; the ones at a third and at two thirds of the list
    are shown, each explained by the network of its fold.

    Args:
        out (Path): The folder of the experiment.
        network (str): Folder of the network, such as ``"lite0"``.
        dataset (str): Where the regions are from. Of another data set than that of the training,
            the answers of the best fold count.
        clusters (int, optional): Number of groups. Default: 64

    Returns:
        *Figure*: Regions in rows, methods in columns.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    record = record_of(out / network)
    prepared: dict[int, tuple[Any, dict[str, Any]]] = {}
    shown = _typical(read_regions(out / dataset), record, dataset)

    def explainers(fold: int) -> tuple[Any, dict[str, Any]]:
        if fold not in prepared:
            kind = NETWORKS[record["settings"]["network"]]
            ready = kind.prepared(checkpoint(out / network, fold))

            def made(method: str, **settings: Any) -> Any:
                return ready.explainer(partial(make, method), **settings)

            prepared[fold] = (
                ready,
                {
                    "Grad-CAM": made("grad-cam"),
                    "EGrad-CAM": made("egrad-cam"),
                    "Ablation-CAM": made("ablation-cam"),
                    f"Clustered-CAM, K={clusters}": made("clustered-cam", n_clusters=clusters),
                },
            )
        return prepared[fold]

    drawn = Figure(figsize=(2.3 * 5, 2.55 * len(shown)), layout="constrained")
    grid = drawn.subplots(len(shown), 5, squeeze=False)
    for axes, (region, probability) in zip(grid, shown, strict=True):
        ready, names = explainers(_fold_of(region, record))
        picture = read_picture(region.path)
        with Image.open(region.mask) as file:
            contour = np.asarray(file.convert("L").resize((224, 224))) > 0
        x = ready.input(picture)
        assert region.label is not None
        image = ready.display(picture)
        axes[0].imshow(image)
        axes[0].set_title(f"{CLASSES[region.label]}, {probability:.2f}", fontsize="small")
        for ax, (name, explainer) in zip(axes[1:], names.items(), strict=True):
            heat = explainer.attribute(x, target=region.label)
            heat = normalize(enlarge(heat.detach().float(), x.shape[2:]))
            hidden = torch.lerp(fill_image(ready.fill("black"), x), x, heat)
            after, _ = ready.probability(ready.scores(hidden)[0], region.label)
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


def _typical(
    regions: Sequence[Region], record: Mapping[str, Any], dataset: str
) -> list[tuple[Region, float]]:
    tests = record["tests"]
    malignant = tests[dataset]["malignant"] if dataset in tests else record["malignant"]
    shown = []
    for label in (0, 1):
        right = sorted(
            (p if label else 1 - p, region.name, region)
            for region in regions
            if region.label == label and region.name in malignant
            for p in [malignant[region.name]]
            if (p >= 0.5) == bool(label)
        )
        picked = dict.fromkeys((len(right) // 3, 2 * len(right) // 3)) if right else {}
        shown += [(right[i][2], right[i][0]) for i in picked]
    return shown


def _fold_of(region: Region, record: Mapping[str, Any]) -> int:
    part: int = record["parts"].get(region.name, HOLDOUT)
    best: int = record["best"]
    return best if part == HOLDOUT else part
