"""Every method on the regions that a trained network did not see, and what the maps cost.

The maps are judged by the evaluation of ``captum-clustered evaluate``; a run that was stopped goes
on where it was. The times answer the paper's 3.75 s against 14.19 s: the same two methods by this
package's engine and by Captum's `LayerFeatureAblation`, in turn on the same images.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from captum.attr import LayerFeatureAblation, LayerGradCam
from torch import Tensor

from benchmarks.thyroid.networks import LAYER, NETWORKS
from benchmarks.thyroid.splits import HOLDOUT, Region
from benchmarks.thyroid.training import best_of
from benchmarks.timing import rounds
from captum_clustered import ClusteredLayerAblation, LayerAblationCam
from captum_clustered._files import whole
from captum_clustered.evaluation import Settings, evaluate
from captum_clustered.explainers.results import ClusteredAttribution
from captum_clustered.models import load
from captum_clustered.weighting import by_map

__all__ = ["MASKING", "METHODS", "Explaining", "explain", "unseen"]

METHODS = ("clustered-cam", "ablation-cam", "ablation-cam-norm", "grad-cam", "egrad-cam")
"""What runs in the network, so that each number of groups can be afforded."""

MASKING = ("group-cam", "clustered-score-cam", "clustered-opti-cam")
"""What masks the image, a forward pass for each group, and is evaluated for one number of groups.
Score-CAM, with a forward pass for each of the maps, has to be asked for."""


@dataclass(frozen=True)
class Explaining:
    """What can be chosen.

    Attributes:
        methods (tuple[str, ...]): As for ``captum-clustered evaluate``; with the controls.
        masking (tuple[str, ...]): Likewise, with the middle one of the numbers of groups, and in a
            folder of their own, ``masking``.
        clusters (tuple[int, ...]): Numbers of groups.
        weightings (tuple[str, ...]): How drops become weights; the paper's is ``"drop"``.
        clusterers (tuple[str, ...]): The first with all methods and controls, the others with
            Clustered-CAM alone.
        metrics (tuple[str, ...]): As for ``captum-clustered evaluate``.
        others (int or None): The most unseen regions beside the hold-out, spread over them.
        timed (int): Number of regions that are timed.
        seed (int): Of everything drawn.
    """

    methods: tuple[str, ...] = METHODS
    masking: tuple[str, ...] = MASKING
    clusters: tuple[int, ...] = (16, 32, 64)
    weightings: tuple[str, ...] = ("drop", "drop_per_map", "drop_per_mass")
    clusterers: tuple[str, ...] = ("kmeans", "agglomerative", "cosine")
    metrics: tuple[str, ...] = ("adc", "pic", "ag", "complement", "pointing", "energy")
    others: int | None = 100
    timed: int = 3
    seed: int = 0


def unseen(
    regions: Sequence[Region], training: dict[str, Any], others: int | None = None
) -> list[tuple[Region, str]]:
    """The regions of patients that the best fold's network did not learn or stop from.

    Args:
        regions (sequence of Region): All regions.
        training (dict): As ``training.json`` has it.
        others (int, optional): The most of them beside the hold-out, spread over all.
            Default: None (all)

    Returns:
        *list*: Each region with where it is from: ``"hold-out"``, ``"own fold"`` (which tested the
        network) or ``"no label"``.
    """
    parts, best = training["parts"], training["best"]
    apart = {HOLDOUT: "hold-out", best: "own fold"}
    known = {r.case for r in regions if r.name in parts and parts[r.name] not in apart}
    found = [
        (region, apart[parts[region.name]] if region.name in parts else "no label")
        for region in regions
        if region.case not in known
    ]
    beside = [number for number, (_, origin) in enumerate(found) if origin != "hold-out"]
    if others is not None and others < len(beside):
        kept = {beside[i * len(beside) // others] for i in range(others)}
        found = [pair for i, pair in enumerate(found) if i not in beside or i in kept]
    return found


def explain(
    regions: Sequence[Region],
    trained: Path,
    out: Path,
    settings: Explaining,
    say: Callable[[str], object] = print,
) -> None:
    """Explains the unseen regions by every method, and times the two of the paper.

    Args:
        regions (sequence of Region): All regions.
        trained (Path): Folder of a finished training.
        out (Path): Folder of the results: ``regions.csv``, one folder for each clusterer, and
            ``timing.json``.
        settings (Explaining): The choices.
        say (callable, optional): Told in a line what goes on. Default: print
    """
    checkpoint, training = best_of(trained)
    network = NETWORKS[training["settings"]["network"]]
    chosen = unseen(regions, training, settings.others)
    out.mkdir(parents=True, exist_ok=True)
    table = out / "regions.csv"
    _write_table([region for region, _ in chosen], table)
    middle = settings.clusters[len(settings.clusters) // 2]
    for number, clusterer in enumerate(settings.clusterers):
        runs = [(clusterer, settings.methods if number == 0 else ("clustered-cam",))]
        if number == 0 and settings.masking:
            runs.append(("masking", settings.masking))
        for folder, methods in runs:
            say(f"{network.name}, {folder}: {len(chosen)} regions")
            evaluate(
                Settings(
                    data=table,
                    model=f"benchmarks.thyroid.networks:{network.spec}",
                    out=out / folder,
                    methods=methods,
                    layer=LAYER,
                    clusters=(middle,) if folder == "masking" else settings.clusters,
                    clusterer=clusterer,
                    weightings=settings.weightings,
                    metrics=settings.metrics,
                    controls=number == 0 and folder != "masking",
                    checkpoint=checkpoint,
                    seed=settings.seed,
                ),
                say,
            )
    if settings.timed and not (out / "timing.json").exists():
        held = [region for region, origin in chosen if origin == "hold-out"]
        times = timed(network.spec, checkpoint, held[: settings.timed], max(settings.clusters), say)
        with whole(out / "timing.json") as part:
            part.write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")


def timed(
    spec: str,
    checkpoint: Path,
    regions: Sequence[Region],
    clusters: int,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Times Clustered-CAM and Ablation-CAM by this package and by Captum, on the same regions.

    Ours and Grad-CAM take turns for five rounds; Captum's ablation, which takes minutes, runs once.

    Args:
        spec (str): Function of :mod:`benchmarks.thyroid.networks`.
        checkpoint (Path): The network's weights.
        regions (sequence of Region): Which are explained, one at a time.
        clusters (int): Number of groups.
        say (callable, optional): Told in a line what goes on. Default: print

    Returns:
        *dict*: For each method the median of seconds per image, and all of them; beside it the
        largest difference between the drops of both engines, relative to the largest drop.
    """
    from PIL import Image

    loaded = load(f"benchmarks.thyroid.networks:{spec}", checkpoint)
    model, layer = loaded.model, getattr(loaded.model, LAYER)
    clustered = ClusteredLayerAblation(model, layer, n_clusters=clusters)
    exact = LayerAblationCam(model, layer)
    captum, grad = LayerFeatureAblation(model, layer), LayerGradCam(model, layer)
    seconds: dict[str, list[float]] = {}
    differences: dict[str, list[float]] = {"groups": [], "single maps": []}
    for number, region in enumerate(regions):
        say(f"{spec}: times of region {number + 1} of {len(regions)}")
        with Image.open(region.path) as file:
            x = loaded.transform(file.convert("RGB")).unsqueeze(0)
        with torch.no_grad():
            target = int(model(x).argmax())
        methods: dict[str, Callable[[], object]] = {
            "Grad-CAM, Captum": partial(grad.attribute, x, target),
            "Clustered-CAM, ours": partial(clustered.attribute, x, target),
            "Ablation-CAM, ours": partial(exact.attribute, x, target),
        }
        for method in methods.values():
            method()  # warms up
        for name, taken in rounds(methods, 5, math.inf).items():
            seconds.setdefault(name, []).append(median(taken))
        result = clustered.explain(x, target)
        alive = result.labels[0] >= 0
        # maps in no group are zero everywhere: whom they join does not matter
        for name, title, labels, ours in (
            ("groups", "Clustered-CAM", result.labels.clamp(min=0), result),
            (
                "single maps",
                "Ablation-CAM",
                torch.arange(len(alive))[None],
                exact.explain(x, target),
            ),
        ):
            begin = time.perf_counter()
            theirs = captum.attribute(
                x, target=target, layer_mask=labels[..., None, None], perturbations_per_eval=16
            )
            seconds.setdefault(f"{title}, Captum", []).append(time.perf_counter() - begin)
            drops = theirs[0, :, 0, 0]
            error = (_drops(ours) - drops)[alive].abs().max() / drops.abs().max()
            differences[name].append(float(error))
    return {
        "clusters": clusters,
        "maps": len(alive),
        "regions": len(regions),
        "threads": torch.get_num_threads(),
        "seconds": {name: median(taken) for name, taken in seconds.items()},
        "all": seconds,
        "differences": {name: max(found) for name, found in differences.items()},
    }


def _drops(result: ClusteredAttribution) -> Tensor:
    """For each map how far its group lets the score fall, `(C,)`."""
    drops = result.scores[:, None] - result.ablated_scores
    return by_map(drops.nan_to_num(), result.labels)[0]


def _write_table(regions: Sequence[Region], path: Path) -> None:
    with whole(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "class", "case", "mask"])
        for region in regions:
            picture, mask = (os.path.relpath(p, path.parent) for p in (region.path, region.mask))
            label = "" if region.label is None else region.label
            writer.writerow([Path(picture).as_posix(), label, region.case, Path(mask).as_posix()])
