"""Every method on regions of patients whom the network did not see, and what the maps cost.

A region is explained by the network of its own fold; one of another data set by the network of the
best fold. The maps are judged by the evaluation of ``captum-clustered evaluate``; a run that was
stopped goes on where it was. The times answer the paper's 3.75 s against 14.19 s: the same two
methods by this package's engine and by Captum's `LayerFeatureAblation`, in turn on the same images.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import torch
from captum.attr import LayerFeatureAblation, LayerGradCam
from torch import Tensor

from benchmarks.files import write_json, write_table
from benchmarks.timing import rounds
from benchmarks.ultrasound.networks import NETWORKS, Network
from benchmarks.ultrasound.splits import HOLDOUT, Region
from benchmarks.ultrasound.training import checkpoint, record_of
from captum_clustered import ClusteredLayerAblation, LayerAblationCam
from captum_clustered.evaluation import Settings, evaluate
from captum_clustered.models import Prepared
from captum_clustered.models.images import read_picture
from captum_clustered.weighting import by_map

__all__ = ["SETS", "Explaining", "Set", "explain", "seen_by_none", "spread"]


@dataclass(frozen=True)
class Set:
    """What is evaluated together.

    Attributes:
        methods (tuple[str, ...]): As for ``captum-clustered evaluate``.
        clusters (tuple[int, ...]): Numbers of groups.
        metrics (tuple[str, ...]): As for ``captum-clustered evaluate``.
        controls (bool): Whether controls are added.
        calibrate (bool): Whether the maps are also judged on a calibrated scale.
        share (float): Share of the regions that are explained.
    """

    methods: tuple[str, ...]
    clusters: tuple[int, ...]
    metrics: tuple[str, ...] = ("adc", "pic", "ag", "energy", "pointing", "iou")
    controls: bool = False
    calibrate: bool = False
    share: float = 1.0


SETS: Mapping[str, Set] = MappingProxyType(
    {
        "main": Set(
            ("clustered-cam", "ablation-cam", "grad-cam", "egrad-cam", "hires-cam"),
            (64,),
            controls=True,
        ),
        "groups": Set(("clustered-cam", "random-groups"), (16, 32)),
        "curves": Set(
            (
                *("clustered-cam", "ablation-cam", "grad-cam", "hires-cam"),
                *("clustered-score-cam", "calibrated-cam"),
            ),
            (32,),
            ("adc", "pic", "ag", "insertion", "deletion", "energy"),
            controls=True,
            calibrate=True,
            share=0.1,
        ),
    }
)
"""The sets by name: the paper's methods with all controls, other numbers of groups, and the metrics
that run the network often, on a part of the regions, before and after calibration."""


@dataclass(frozen=True)
class Explaining:
    """What can be chosen.

    Attributes:
        sets (tuple[str, ...]): Keys of :data:`SETS`.
        weightings (tuple[str, ...]): How drops become weights in the sets without curves; the
            paper's is ``"drop"``.
        clusterer (str): Who groups the maps.
        regions (int or None): The most regions of each data set, spread over it; None for all.
        timed (int): Number of regions that are timed.
        seed (int): Of everything drawn.
    """

    sets: tuple[str, ...] = tuple(SETS)
    weightings: tuple[str, ...] = ("drop", "auto")
    clusterer: str = "kmeans"
    regions: int | None = None
    timed: int = 3
    seed: int = 0


def spread(regions: Sequence[Region], most: int | None) -> list[Region]:
    """That many of the regions, evenly over all."""
    if most is None or most >= len(regions):
        return list(regions)
    return [regions[i * len(regions) // most] for i in range(most)]


def seen_by_none(
    regions: Sequence[Region], record: Mapping[str, Any], most: int | None = None
) -> dict[int, list[Region]]:
    """The regions by the fold whose network explains them: one that did not see their patient.

    Args:
        regions (sequence of Region): All regions of the training's data set.
        record (mapping): As ``training.json`` has it.
        most (int, optional): The most of them, spread over the folds. Default: None (all)

    Returns:
        *dict*: A fold's own part by its number; the best fold has the hold-out as well.
    """
    parts, best = record["parts"], record["best"]
    known = [region for region in regions if region.name in parts]
    found: dict[int, list[Region]] = {}
    for region in spread(known, most):
        part = parts[region.name]
        found.setdefault(best if part == HOLDOUT else part, []).append(region)
    return dict(sorted(found.items()))


def explain(
    regions: Sequence[Region],
    trained: Path,
    settings: Explaining,
    say: Callable[[str], object] = print,
    tests: Mapping[str, Sequence[Region]] = MappingProxyType({}),
) -> None:
    """Explains regions by every method, and times the two of the paper.

    Args:
        regions (sequence of Region): All regions of the training's data set.
        trained (Path): Folder of a finished training; the results go to ``explained/`` in it: a
            folder for each fold and each other data set, with one for each set of methods.
        settings (Explaining): The choices.
        say (callable, optional): Told in a line what goes on. Default: print
        tests (mapping, optional): Regions of other data sets by name. Default: none
    """
    record = record_of(trained)
    network = NETWORKS[record["settings"]["network"]]
    out = trained / "explained"
    chosen = {
        (f"fold{fold}", fold): own
        for fold, own in seen_by_none(regions, record, settings.regions).items()
    }
    for name, known in tests.items():
        labelled = [region for region in known if region.label is not None]
        chosen[name, record["best"]] = spread(labelled, settings.regions)
    for (part, fold), own in chosen.items():
        (out / part).mkdir(parents=True, exist_ok=True)
        for name in settings.sets:
            wanted = SETS[name]
            table = out / part / f"{name}.csv"
            shown = spread(own, max(1, round(wanted.share * len(own))))
            _write_table(shown, table)
            say(f"{trained.name}, {part}, {name}: {len(shown)} regions")
            evaluate(
                Settings(
                    data=table,
                    model=f"benchmarks.ultrasound.networks:{network.spec}",
                    out=out / part / name,
                    methods=wanted.methods,
                    layer=network.layer,
                    clusters=wanted.clusters,
                    clusterer=settings.clusterer,
                    weightings=("auto",) if wanted.calibrate else settings.weightings,
                    metrics=wanted.metrics,
                    controls=wanted.controls,
                    calibrate=wanted.calibrate,
                    checkpoint=checkpoint(trained, fold),
                    mask_fill="black",  # what the metrics put where a map hides the image
                    step=3584,  # 14 steps of a curve
                    device="cpu",
                    seed=settings.seed,
                ),
                say,
            )
    if settings.timed and not (out / "timing.json").exists():
        first = next(iter(chosen.values()))[: settings.timed]
        times = timed(network, checkpoint(trained, record["best"]), first, 64, say)
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
