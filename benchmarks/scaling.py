"""Time over the number of groups, maps, images and processes, the depth of the layer, and of rows.

All values of an axis take turns within a round, as the methods do in :mod:`benchmarks.runtime`. Two
lines are fitted: a power of the value, and a fixed part with a part for each unit.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import linregress

from benchmarks.cases import NETWORKS, Case, Tiny, build, settle
from benchmarks.floor import flops
from benchmarks.results import Row
from benchmarks.rows import VARIANTS
from benchmarks.timing import quartiles, rounds
from captum_clustered.layers import find_layer

__all__ = ["Plan", "cases", "described", "fits", "measure"]

_ENGINES = ("duckdb", "python")
_MOST_FOR_PYTHON = 10**6
_METHOD = "ClusteredLayerAblation kmeans"


@dataclass(frozen=True)
class Plan:
    """The values along each axis.

    Attributes:
        network (str): The network of all axes except `channels`, which has its own small networks.
        layers (tuple[str, ...]): Its layers by depth, the last one first.
        clusters (tuple[int, ...]): Numbers of groups at the last layer and at the next one.
        channels (tuple[int, ...]): Numbers of maps.
        batch (tuple[int, ...]): Numbers of images.
        processes (tuple[int, ...]): Numbers of processes of one thread each.
        images (int): Images that the processes share.
        rows (tuple[int, ...]): Numbers of rows on disk that become a table, see
            :mod:`benchmarks.rows`.
        rounds (int): The most rounds.
        budget (float): Seconds after which no further round of an axis begins.
    """

    network: str = "resnet50"
    layers: tuple[str, ...] = ("layer4", "layer3", "layer2")
    clusters: tuple[int, ...] = (1, 4, 16, 64, 256)
    channels: tuple[int, ...] = (64, 256, 1024, 2048)
    batch: tuple[int, ...] = (1, 2, 4, 8)
    processes: tuple[int, ...] = (1, 2)
    images: int = 16
    rows: tuple[int, ...] = (10**4, 10**5)
    rounds: int = 7
    budget: float = 25.0

    def full(self) -> Plan:
        """The long run."""
        cores = os.cpu_count() or 1
        return replace(
            self,
            layers=("layer4", "layer3", "layer2", "layer1"),
            clusters=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            channels=(64, 128, 256, 512, 1024, 2048, 4096),
            batch=(1, 2, 4, 8, 16, 32),
            processes=tuple(n for n in (1, 2, 4, 8, 16, 32) if n <= cores),
            images=64,
            rows=(10**4, 10**5, 10**6, 10**7),
            rounds=15,
            budget=240.0,
        )

    def tiny(self) -> Plan:
        """A very short run on the network ``tiny``."""
        return replace(
            self,
            network="tiny",
            layers=NETWORKS["tiny"].layers,
            clusters=(1, 2, 4),
            channels=(8, 16, 32),
            batch=(1, 2),
            processes=(1, 2),
            images=4,
            rows=(100, 1000),
        )


def cases(plan: Plan) -> list[str]:
    """The axes that are measured.

    Example::

        >>> cases(Plan())[:6]
        ['clusters/layer4', 'clusters/layer3', 'channels', 'batch', 'depth', 'processes']
    """
    names = [f"clusters/{layer}" for layer in plan.layers[:2]]
    return [*names, "channels", "batch", "depth", "processes", *(f"rows/{e}" for e in _ENGINES)]


def measure(key: str, plan: Plan) -> list[Row]:
    """Times one axis.

    Args:
        key (str): From :func:`cases`.
        plan (Plan): The values.

    Returns:
        *list*: A row for each value.
    """
    axis, _, layer = key.partition("/")
    if axis == "rows":
        # ten million lines take Python alone a quarter of an hour
        numbers = [n for n in plan.rows if layer == "duckdb" or n <= _MOST_FOR_PYTHON]
        return [_with_rows(number, layer) for number in numbers]
    if axis == "processes":
        return [_with_processes(plan, number) for number in plan.processes]
    points = list(_points(axis, layer, plan))
    runs: dict[str, Callable[[], object]] = {}
    for point in points:
        runs[f"{point.label} forward"] = point.forward
        runs[point.label] = point.explain
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for run in runs.values():
            run()  # warms up
        seconds = rounds(runs, plan.rounds, plan.budget)
    return [
        _row(axis, point, seconds[point.label], seconds[f"{point.label} forward"], plan)
        for point in points
    ]


@dataclass(frozen=True, eq=False)
class _Point:
    """A value on an axis."""

    value: float
    label: str
    layer: str
    groups: int
    case: Case

    @torch.no_grad()
    def forward(self) -> object:
        return self.case.model(self.case.inputs)

    def explain(self) -> object:
        cam = self.case.explainer(n_clusters=self.groups)
        return cam.attribute(self.case.inputs, target=self.case.target)


def _points(axis: str, layer: str, plan: Plan) -> Sequence[_Point]:
    last = plan.layers[0]
    middle = min(16, max(plan.clusters))
    if axis == "clusters":
        case = build(plan.network, layer, 1)
        numbers = sorted({min(number, case.maps) for number in plan.clusters})
        return [_Point(number, f"K={number}", layer, number, case) for number in numbers]
    if axis == "channels":
        return [
            _Point(number, f"C={number}", "body", middle, _wide(number)) for number in plan.channels
        ]
    if axis == "batch":
        whole = build(plan.network, last, max(plan.batch))
        return [
            _Point(
                number, f"N={number}", last, middle, replace(whole, inputs=whole.inputs[:number])
            )
            for number in plan.batch
        ]
    model = build(plan.network, last, 1)
    found = []
    for layer in plan.layers:
        target = find_layer(model.model, layer, model.inputs)
        case = replace(model, found=target)
        operations = flops(case)
        share = operations.behind / operations.forward
        found.append(_Point(share, f"{layer} ({share:.0%} behind)", layer, middle, case))
    return found


def _wide(channels: int) -> Case:
    """A small network whose last layer has that many maps of 8 by 8."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tiny(channels).eval()
        inputs = torch.rand(1, 3, 16, 16)
    settle(model, inputs)
    return Case(model, inputs, 0, find_layer(model, "body", inputs), channels)


def _row(axis: str, point: _Point, times: list[float], forwards: list[float], plan: Plan) -> Row:
    middle = quartiles(times)
    forward = quartiles(forwards).median
    return {
        "axis": axis,
        "network": f"one with {point.label}" if axis == "channels" else plan.network,
        "layer": point.layer,
        "value": point.value,
        "label": point.label,
        "method": f"{_METHOD} K={point.groups}" if axis != "clusters" else _METHOD,
        "seconds": asdict(middle),
        "rounds": times,
        "floor": flops(point.case).row(point.groups, forward, middle.median),
        "images_per_second": len(point.case.inputs) / middle.median,
    }


def _with_processes(plan: Plan, number: int) -> Row:
    """Several processes of one thread each, each with a share of the images."""
    clusters = min(16, max(plan.clusters))
    repeats = max(3, plan.rounds // 2) if plan.rounds > 2 else plan.rounds
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(number), "-m", "benchmarks.processes"),
        *("--network", plan.network, "--layer", plan.layers[0], "--clusters", str(clusters)),
        *("--images", str(plan.images), "--rounds", str(repeats)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=3600,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"torchrun with {number} processes failed: {last}")
    times: list[float] = json.loads(run.stdout.strip().splitlines()[-1])
    middle = quartiles(times)
    return {
        "axis": "processes",
        "network": plan.network,
        "layer": plan.layers[0],
        "value": number,
        "label": f"{number} x 1 thread",
        "method": f"{_METHOD} K={clusters}",
        "seconds": asdict(middle),
        "rounds": times,
        "floor": None,
        "images_per_second": plan.images / middle.median,
    }


def _with_rows(number: int, engine: str) -> Row:
    """So many rows on disk, in a process of their own, once."""
    command = [sys.executable, "-m", "benchmarks.rows", "--rows", str(number), "--engine", engine]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=7200, cwd=Path(__file__).parents[1]
    )
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"{number} rows with {engine} failed: {last}")
    found = json.loads(run.stdout.strip().splitlines()[-1])
    seconds = sum(clock for name, (clock, _) in found["seconds"].items() if name != "write")
    return {
        "axis": "rows",
        "network": "none",
        "layer": engine,
        "value": number,
        "label": f"{number:,} rows",
        "method": f"look up, merge, read and summarise by {engine}",
        "seconds": asdict(quartiles([seconds])),
        "rounds": [seconds],
        "floor": None,
        "images_per_second": number / len(VARIANTS) / seconds,
        "parts": {name: clock for name, (clock, _) in found["seconds"].items()},
        "peak_bytes": found["peak_bytes"],
    }


def described(fit: Mapping[str, Any]) -> str:
    """A fit in words.

    Example::

        >>> described({"exponent": 0.5, "fixed_seconds": 0.01, "seconds_per_unit": 0.002})
        'power 0.50; 10.0 ms + 2.000 ms per unit'
    """
    fixed, slope = 1e3 * fit["fixed_seconds"], 1e3 * fit["seconds_per_unit"]
    return f"power {fit['exponent']:.2f}; {fixed:.1f} ms + {slope:.3f} ms per unit"


def fits(rows: Sequence[Row]) -> dict[str, Any]:
    """The fits of each axis: the power of the value, and the fixed part and the part per unit.

    Example::

        >>> rows = [
        ...     {"case": "a", "axis": "batch", "network": "n", "method": "m", "value": v,
        ...      "seconds": {"median": 2.0 * v}}
        ...     for v in (1, 2, 4)
        ... ]
        >>> fit = fits(rows)["fits"][0]
        >>> round(fit["exponent"], 3), round(fit["seconds_per_unit"], 3)
        (1.0, 2.0)
    """
    found = []
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        values = [float(row["value"]) for row in own]
        seconds = [float(row["seconds"]["median"]) for row in own]
        if len(set(values)) < 2:
            continue
        slope, intercept, r2 = _line(values, seconds)
        exponent, _, _ = _line([math.log(v) for v in values], [math.log(s) for s in seconds])
        found.append(
            {
                "axis": case,
                "network": own[0]["network"] if own[0]["axis"] != "channels" else "one of our own",
                "method": own[0]["method"],
                "exponent": exponent,
                "fixed_seconds": intercept,
                "seconds_per_unit": slope,
                "r2": r2,
                "points": len(own),
            }
        )
    return {"fits": found}


def _line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float | None]:
    """Slope and intercept of the line of least squares, and the share of the variance it explains.

    The share is None where all `ys` are equal.
    """
    fit = linregress(xs, ys)
    return float(fit.slope), float(fit.intercept), float(fit.rvalue**2) if np.ptp(ys) else None
