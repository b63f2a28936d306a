"""The metrics of `captum-clustered evaluate`, with the other libraries' maps among the methods."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from captum.attr import LayerAttribution
from torch import Tensor, nn

from benchmarks.peers import Reshape, Wanted, output_of_input, pytorch_grad_cam_map, torchcam_map
from benchmarks.results import Row
from captum_clustered.evaluation import Settings, evaluate
from captum_clustered.evaluation.rows import Key
from captum_clustered.evaluation.rows import Row as Judged
from captum_clustered.methods import METHODS
from captum_clustered.statistics import paired_difference

__all__ = [
    "FULL",
    "FULL_METRICS",
    "PEERS",
    "QUICK",
    "QUICK_METRICS",
    "Plan",
    "by_method",
    "conventions",
    "difference",
    "measure",
    "read",
]

QUICK = (
    "clustered-cam",
    "ablation-cam",
    "grad-cam",
    "torchcam-grad-cam",
    "pytorch-grad-cam",
)
"""The methods of a quick run."""

FULL = (
    *QUICK,
    "ablation-cam-norm",
    "egrad-cam",
    "group-cam",
    "clustered-score-cam",
    "pytorch-grad-cam-ablation",
    "torchcam-score-cam",
)
"""The methods of a full run. The last two take half a minute for each image."""

QUICK_METRICS = ("adc", "pic")
FULL_METRICS = (*QUICK_METRICS, "adcc", "insertion", "deletion")
"""The curves of insertion and deletion take hundreds of forward passes for each map."""


class Peer(LayerAttribution):
    """Another library's method behind Captum's interface.

    Args:
        forward_func (nn.Module): The model.
        layer (nn.Module): The layer.
        explain (callable): From a :class:`benchmarks.peers.Wanted` to the map.
        channel_dim (int, optional): The axis of the maps. Default: 1
        reshape_transform (callable, optional): Turns tokens into maps. Default: None
    """

    def __init__(
        self,
        forward_func: nn.Module,
        layer: nn.Module,
        *,
        explain: Callable[[Wanted], Tensor],
        channel_dim: int = 1,
        reshape_transform: Reshape = None,
    ) -> None:
        super().__init__(forward_func, layer)
        self.explain = explain
        self.reshape = reshape_transform
        if reshape_transform is None and channel_dim != 1:
            self.reshape = lambda maps: maps.movedim(channel_dim, 1)

    def attribute(
        self, inputs: Tensor, target: Tensor, *, attribute_to_layer_input: bool = False
    ) -> Tensor:
        """Maps `(N, 1, h, w)`, nowhere negative."""
        classes = [int(index) for index in target]
        model: Any = self.forward_func
        place = output_of_input(model, self.layer) if attribute_to_layer_input else None
        with warnings.catch_warnings(), place or nullcontext(self.layer) as layer:
            warnings.simplefilter("ignore")
            heat = self.explain(Wanted(model, layer, inputs, classes, self.reshape))
        # these libraries leave gradients in the parameters
        model.zero_grad(set_to_none=True)
        return heat.detach().clone().to(inputs.device).relu()


PEERS: Mapping[str, Callable[..., Peer]] = MappingProxyType(
    {
        "torchcam-grad-cam": partial(Peer, explain=partial(torchcam_map, "GradCAM")),
        "torchcam-score-cam": partial(Peer, explain=partial(torchcam_map, "ScoreCAM")),
        "pytorch-grad-cam": partial(Peer, explain=partial(pytorch_grad_cam_map, "GradCAM")),
        "pytorch-grad-cam-ablation": partial(
            Peer, explain=partial(pytorch_grad_cam_map, "AblationCAM")
        ),
    }
)
"""The other libraries' methods by their names in the tables."""


@dataclass(frozen=True)
class Plan:
    """What is evaluated.

    Attributes:
        data (sequence of Path): Folders or CSV files, all of different names.
        model (str): As for ``captum-clustered evaluate``, like all that follows.
        layer (str): Dotted name, or ``"auto"``.
        methods (tuple[str, ...]): Names, also from :data:`PEERS`.
        clusters (tuple[int, ...]): Numbers of groups. All methods with groups have k-means, so that
            they differ in nothing else.
        metrics (tuple[str, ...]): Names.
        weights (str): ``"default"`` or ``"none"``.
        checkpoint (Path or None): State dict of the model.
        limit (int or None): Number of images; None for all.
        full (bool): Whether it is the long run.
    """

    data: Sequence[Path]
    model: str
    layer: str = "auto"
    methods: tuple[str, ...] = QUICK
    clusters: tuple[int, ...] = (16, 64)
    metrics: tuple[str, ...] = QUICK_METRICS
    weights: str = "default"
    checkpoint: Path | None = None
    limit: int | None = None
    full: bool = False

    def __post_init__(self) -> None:
        names = [folder.name for folder in self.data]
        if len(set(names)) < len(names):
            raise ValueError(
                f"`data` must be folders of different names; got {', '.join(names)}. Rename one."
            )

    def cases(self, out: Path) -> dict[str, Settings]:
        """The evaluations by the keys of the cases, ``data/model``.

        Args:
            out (Path): Folder of the results.
        """
        return {key: self._settings(key, folder, out) for key, folder in self._keys().items()}

    def _keys(self) -> dict[str, Path]:
        return {f"{folder.name}/{self.model}": folder for folder in self.data}

    def _settings(self, key: str, folder: Path, out: Path) -> Settings:
        return Settings(
            data=folder,
            model=self.model,
            out=out / "evaluations" / key.replace("/", "-").replace(":", "-"),
            methods=self.methods,
            layer=self.layer,
            clusters=self.clusters,
            clusterer="kmeans",
            weightings=("drop_per_map",),
            metrics=self.metrics,
            limit=self.limit,
            weights=self.weights,
            checkpoint=self.checkpoint,
        )

    def record(self) -> dict[str, Any]:
        """The settings in the form of the results, without names of folders."""
        known = asdict(self)
        del known["data"]
        checkpoint = None if self.checkpoint is None else self.checkpoint.name
        return {**known, "checkpoint": checkpoint, "cases": list(self._keys())}


def measure(settings: Settings, say: Callable[[str], object] = print) -> list[Row]:
    """Evaluates the methods on a folder, or goes on where an earlier call stopped.

    Args:
        settings (Settings): As for :func:`captum_clustered.evaluation.evaluate`; `methods` may name
            those of :data:`PEERS`.
        say (callable, optional): Called with a line that says what goes on. Default: print

    Returns:
        *list*: A row for each variant; none in a process other than the first.
    """
    outcome = evaluate(settings, say, methods={**METHODS, **PEERS})
    return [] if outcome is None else read(settings.out, settings.data.name)


def read(folder: Path, data: str) -> list[Row]:
    """The table of an evaluation in the form of the results."""
    compared = json.loads((folder / "config.json").read_text(encoding="utf-8"))["compared"]
    head = {"data": data, "model": compared["model"], "layer": compared["layer"]}
    names = [*compared["metrics"], "area"]
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        return [{**head, **_row(record, names)} for record in csv.DictReader(file)]


def _row(record: Mapping[str, str], names: Sequence[str]) -> Row:
    return {
        "method": record["method"],
        "library": _library(record["method"]),
        "clusters": int(record["clusters"]) if record["clusters"] else None,
        "weighting": record["weighting"] or None,
        "control": record["control"] == "1",
        "images": int(record["images"]),
        "failed": int(record["failed"]),
        "flat": int(record["flat"]) if record.get("flat") else None,
        "seconds": _number(record["seconds_median"]),
        "metrics": {name: _metric(record, name) for name in names if name in record},
    }


def _metric(record: Mapping[str, str], name: str) -> Row:
    return {
        "mean": _number(record[name]),
        "low": _number(record[f"{name}_low"]),
        "high": _number(record[f"{name}_high"]),
        "n": int(record[f"{name}_n"]),
    }


def by_method(rows: Mapping[Key, Judged]) -> dict[str, list[Judged]]:
    """The rows of an evaluation by the name of their method."""
    found: dict[str, list[Judged]] = {}
    for row in rows.values():
        found.setdefault(row["method"], []).append(row)
    return found


def difference(ours: Sequence[Judged], theirs: Sequence[Judged], name: str) -> Row:
    """The mean of ours less theirs over the images that both have, with its 95 % interval."""
    known, others = (
        {row["image"]: row[name] for row in rows if row["status"] == "ok" and row[name] is not None}
        for rows in (ours, theirs)
    )
    pairs = [(value, others[image]) for image, value in known.items() if image in others]
    found = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    return {"mean": found.estimate, "low": found.low, "high": found.high, "n": found.n}


def conventions(folder: Path) -> dict[str, Any]:
    """How the maps were judged."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = config["conventions"]
    return {**found, "weights": config["compared"]["weights"]}


def _library(method: str) -> str:
    if method in PEERS:
        return "torchcam" if method.startswith("torchcam") else "pytorch-grad-cam"
    return "captum" if method == "grad-cam" else "captum_clustered"


def _number(text: str) -> float | None:
    return float(text) if text else None
