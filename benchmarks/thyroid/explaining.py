"""Every method on the regions that a trained network did not see, and what the maps cost.

The maps are judged by the evaluation of ``captum-clustered evaluate``; a run that was stopped goes
on where it was. The times answer the paper's 3.75 s against 14.19 s: the same two methods by this
package's engine and by Captum's `LayerFeatureAblation`, in turn on the same images.
"""

from __future__ import annotations

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

from benchmarks.files import write_json, write_table
from benchmarks.thyroid.networks import LAYER, NETWORKS, Network
from benchmarks.thyroid.splits import HOLDOUT, Region
from benchmarks.thyroid.training import best_of
from benchmarks.timing import rounds
from captum_clustered import ClusteredLayerAblation, LayerAblationCam
from captum_clustered.evaluation import Settings, evaluate
from captum_clustered.models import Prepared
from captum_clustered.models.images import read_picture
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
        times = timed(network, checkpoint, held[: settings.timed], max(settings.clusters), say)
        write_json(out / "timing.json", times)


def timed(
    network: Network,
    checkpoint: Path,
    regions: Sequence[Region],
    clusters: int,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Times Clustered-CAM and Ablation-CAM by this package and by Captum, on the same regions.

    Ours and Grad-CAM take turns for five rounds; Captum's ablation, which takes minutes, runs once.

    Args:
        network (Network): The network.
        checkpoint (Path): The network's weights.
        regions (sequence of Region): Which are explained, one at a time.
        clusters (int): Number of groups.
        say (callable, optional): Told in a line what goes on. Default: print

    Returns:
        *dict*: For each method the median of seconds per image, and all of them; beside it the
        largest difference between the drops of both engines, relative to the largest drop.
    """
    prepared = network.prepared(checkpoint)
    clustered = prepared.explainer(ClusteredLayerAblation, n_clusters=clusters)
    exact = prepared.explainer(LayerAblationCam)
    grad = LayerGradCam(prepared.model, prepared.layer.layer)
    seconds: dict[str, list[float]] = {}
    differences: dict[str, list[float]] = {"groups": [], "single maps": []}
    maps = 0
    for number, region in enumerate(regions):
        say(f"{network.spec}: times of region {number + 1} of {len(regions)}")
        x = prepared.input(read_picture(region.path))
        target = prepared.target("predicted", prepared.scores(x)[0])
        methods: dict[str, Callable[[], object]] = {
            "Grad-CAM, Captum": partial(grad.attribute, x, target),
            "Clustered-CAM, ours": partial(clustered.attribute, x, target),
            "Ablation-CAM, ours": partial(exact.attribute, x, target),
        }
        for method in methods.values():
            method()  # warms up
        for name, taken in rounds(methods, 5, math.inf).items():
            seconds.setdefault(name, []).append(median(taken))
        groups, single = clustered.explain(x, target), exact.explain(x, target)
        maps = groups.labels.shape[1]
        # maps in no group are zero everywhere: whom they join does not matter
        for kind, title, labels, ours in (
            ("groups", "Clustered-CAM", groups.labels.clamp(min=0), groups),
            ("single maps", "Ablation-CAM", torch.arange(maps)[None], single),
        ):
            time_taken, drops = _by_captum(prepared, x, target, labels)
            seconds.setdefault(f"{title}, Captum", []).append(time_taken)
            alive = groups.labels[0] >= 0
            error = (by_map(ours.drops, ours.labels)[0] - drops)[alive].abs().max()
            differences[kind].append(float(error / drops.abs().max()))
    return {
        "clusters": clusters,
        "maps": maps,
        "regions": len(regions),
        "threads": torch.get_num_threads(),
        "seconds": {name: median(taken) for name, taken in seconds.items()},
        "all": seconds,
        "differences": {name: max(found) for name, found in differences.items()},
    }


def _by_captum(prepared: Prepared, x: Tensor, target: int, labels: Tensor) -> tuple[float, Tensor]:
    """Seconds of Captum's ablation of these groups, and the drop of each map's group, `(C,)`."""
    method = LayerFeatureAblation(prepared.model, prepared.layer.layer)
    mask = labels[..., None, None]  # (1, C, 1, 1)
    begin = time.perf_counter()
    drops = method.attribute(x, target=target, layer_mask=mask, perturbations_per_eval=16)
    return time.perf_counter() - begin, drops[0, :, 0, 0]


def _write_table(regions: Sequence[Region], path: Path) -> None:
    def beside(file: Path) -> str:
        return Path(os.path.relpath(file, path.parent)).as_posix()

    rows = [
        {
            "path": beside(region.path),
            "class": "" if region.label is None else region.label,
            "case": region.case,
            "mask": beside(region.mask),
        }
        for region in regions
    ]
    write_table(path, ["path", "class", "case", "mask"], rows)
