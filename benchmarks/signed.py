"""Maps with two signs: the metrics of ``captum-clustered evaluate`` at layers that have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from captum.attr import LayerActivation
from torch import Tensor

from benchmarks.boxes import HALVES, half, read_table
from benchmarks.faithfulness import by_method, conventions, difference, read
from benchmarks.recipes import (
    Recipe,
    by_place,
    from_mean_token,
    masked_with_signs,
    painted_with_signs,
)
from benchmarks.results import Row
from captum_clustered import ClusteredLayerAblation
from captum_clustered._checks import check_choice
from captum_clustered.evaluation import Settings, evaluate
from captum_clustered.evaluation.records import read_rows
from captum_clustered.methods import METHODS, Method
from captum_clustered.models.images import read_picture
from captum_clustered.models.prepared import Prepared, prepare

__all__ = ["BASE", "NETWORKS", "RIVAL", "WORDS", "Network", "Plan", "finish", "measure"]

BASE = "grad-cam"
"""What all methods at a layer are compared with."""

RIVAL = "hires-cam"
"""Where this has a map that is not flat, every method should have one."""

_METRICS = ("adc", "pic", "ag", "insertion", "deletion")
_ON_BOXES = "energy"
_CONTROLS = ("random-groups", "centre-gaussian", "fake-cam")


def _own(name: str, description: str, **settings: Any) -> Method:
    """Clustered-CAM with settings that the name stands for."""
    return Method(name, description, partial(ClusteredLayerAblation, **settings), tuple(settings))


_ADDED: Mapping[str, Any] = MappingProxyType(
    {
        "clustered-cam-map": _own(
            "clustered-cam-map", "Drops are shared equally", weighting="drop_per_map"
        ),
        "clustered-cam-mass": _own(
            "clustered-cam-mass", "Drops are shared by activation", weighting="drop_per_mass"
        ),
        "clustered-cam-whole": _own(
            "clustered-cam-whole",
            "Maps stay whole and are painted by magnitude",
            parts="whole",
            weighting="drop_per_map",
        ),
        "clustered-cam-published": partial(Recipe, make=painted_with_signs),
        "ablation-cam-published": partial(
            Recipe, make=partial(painted_with_signs, clusterer="every-map", weighting="drop")
        ),
        "clustered-score-cam-published": partial(Recipe, make=masked_with_signs),
        "clustered-cam-ablate": _own(
            "clustered-cam-ablate", "The class token is switched off, too", unpainted="ablate"
        ),
        "clustered-cam-mean": partial(Recipe, make=from_mean_token),
        "places": partial(Recipe, make=by_place),
        "places-drop": partial(Recipe, make=partial(by_place, weighting="drop")),
    }
)
"""What is measured beside the registry's methods. A method of the registry comes before these."""

_COMMON = (
    BASE,
    RIVAL,
    "clustered-cam",
    "clustered-cam-map",
    "clustered-cam-mass",
    "clustered-cam-whole",
    "clustered-cam-published",
    "clustered-score-cam",
    "clustered-score-cam-published",
)
_SINGLE = ("ablation-cam", "ablation-cam-published")
_TOKENS = ("clustered-cam-ablate", "clustered-cam-mean", "places", "places-drop")
_KNOWN = (*_COMMON, *_SINGLE, *_TOKENS)

WORDS = (
    "- `clustered-cam` groups the parts of the maps, `ablation-cam` takes each part alone. The "
    "drop of a group is divided by the norm of its parts; `-map` shares it equally, `-mass` by "
    "activation. "
    "`-whole` keeps maps whole and paints their magnitude, with drops that are shared equally.",
    "- `-published` is the published formula on whole maps: the drop times the map with its sign, "
    "with 64 groups and drops per map, or each map alone; of `clustered-score-cam`, 32 groups of "
    "whole maps whose sums with their signs mask the image.",
    "- `hires-cam` is gradient times activation, summed over maps.",
    "- Of tokens: `-ablate` switches the class token off, too, as the `-published` do; all others "
    "keep it. `-mean` (64 groups) replaces a map by its mean over the patches; `places` switches "
    "32 groups of similar tokens off, each replaced by the mean token, and shares the drop among "
    "them (`places-drop` does not share it).",
)
"""What the names of the methods mean."""


@dataclass(frozen=True)
class Network:
    """A network that is measured.

    Attributes:
        model (str): As for :func:`captum_clustered.models.load`.
        layers (tuple[str, ...]): Its layers, by name or ``"auto"``.
        step (int): Pixels that change at a time in insertion and deletion.
        tokens (bool): Whether the layers give tokens.
        only_right (bool): Whether only images are judged whose class the network predicts.
        single (tuple[str, ...]): The layers at which each part alone is quick enough for every run.
    """

    model: str
    layers: tuple[str, ...]
    step: int
    tokens: bool = False
    only_right: bool = False
    single: tuple[str, ...] = ()


_LITE0 = ("_blocks.10", "_blocks.15", "_bn1", "auto")
_BLOCK = "vision_model.encoder.layers"

NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "lite0": Network("efficientnet-lite0", _LITE0, step=3584, single=_LITE0),  # 14 steps
        # The last block's output has no layer: only its class token is read, so that no map of
        # the patches has any effect. What it reads is the output of the block before.
        "clip": Network(
            "benchmarks.clip:network",
            (
                f"{_BLOCK}.11.layer_norm1",
                f"{_BLOCK}.9.layer_norm1",
                f"{_BLOCK}.6.layer_norm1",
                f"{_BLOCK}.10",
                f"{_BLOCK}.9",
                f"{_BLOCK}.6",
            ),
            step=8363,  # 6 steps
            tokens=True,
            only_right=True,
        ),
    }
)
"""The networks by the names that the tables have."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is evaluated.

    Attributes:
        data (Path): CSV file of images with classes, as for ``captum-clustered evaluate``.
        half (str): One of :data:`benchmarks.boxes.HALVES`.
        networks (tuple[str, ...]): Keys of :data:`NETWORKS`.
        layers (tuple[str, ...]): Only these of their layers; all if empty.
        limit (int or None): Number of images of the half, spread evenly; None for all.
        step (int or None): Pixels that change at a time in a curve; None for the network's own.
        full (bool): Whether each part is switched off alone where that is slow, too.
        only (tuple[str, ...]): Only these methods, and the two that they are compared with; all if
            empty.
    """

    data: Path
    half: str
    networks: tuple[str, ...] = tuple(NETWORKS)
    layers: tuple[str, ...] = ()
    limit: int | None = None
    step: int | None = None
    full: bool = False
    only: tuple[str, ...] = ()
    _tables: dict[str, Path] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_choice("half", self.half, HALVES)
        unknown = [name for name in self.networks if name not in NETWORKS]
        if unknown or not self.networks:
            raise ValueError(
                f"`networks` must be among {', '.join(NETWORKS)}; got "
                f"{', '.join(unknown) or 'none'}."
            )
        known = [layer for name in self.networks for layer in NETWORKS[name].layers]
        unknown = [layer for layer in self.layers if layer not in known]
        if unknown:
            raise ValueError(
                f"`layers` must be among {', '.join(known)}; got {', '.join(unknown)}."
            )

        unknown = [name for name in self.only if name not in _KNOWN]
        if unknown:
            raise ValueError(
                f"`methods` must be among {', '.join(_KNOWN)}; got {', '.join(unknown)}."
            )

    def cases(self) -> list[str]:
        """The keys of the cases, ``network/layer``."""
        return [
            f"{name}/{layer}"
            for name in self.networks
            for layer in NETWORKS[name].layers
            if not self.layers or layer in self.layers
        ]

    def methods(self, network: Network, layer: str) -> tuple[str, ...]:
        """The methods at a layer, in the order of the table."""
        single = _SINGLE if self.full or layer in network.single else ()
        found = (*_COMMON, *single, *(_TOKENS if network.tokens else ()))
        return tuple(name for name in found if not self.only or name in (BASE, RIVAL, *self.only))

    def record(self) -> dict[str, Any]:
        """The settings in the form of the results, without names of folders."""
        return {
            "data": self.data.stem,
            "half": self.half,
            "limit": self.limit,
            "step": self.step,
            "full": self.full,
            "methods": list(self.only),
            "cases": self.cases(),
        }

    def folder(self, case: str, out: Path) -> Path:
        """The folder of a case's evaluation."""
        return out / f"signed-{self.half}-{case.replace('/', '-')}"

    def table(self, name: str, prepared: Prepared, out: Path) -> Path:
        """The images of the half that are judged with a network; made once."""
        if name not in self._tables:
            self._tables[name] = out / f"signed-{self.half}-{name}.csv"
            keep = partial(_is_right, prepared) if NETWORKS[name].only_right else None
            half(self.data, self.half, self._tables[name], keep)
        return self._tables[name]


def _is_right(prepared: Prepared, path: Path, row: Mapping[str, str]) -> bool:
    """Whether the network predicts the class that the table gives."""
    scores = prepared.scores(prepared.input(read_picture(path)))[0]
    return int(scores.argmax()) == prepared.target(row["class"])


def measure(case: str, plan: Plan, out: Path, say: Callable[[str], object] = print) -> list[Row]:
    """Evaluates the methods at a layer, or goes on where an earlier call stopped.

    Args:
        case (str): Of :meth:`Plan.cases`.
        plan (Plan): What is evaluated.
        out (Path): Folder of the evaluations.
        say (callable, optional): Called with a line that says what goes on. Default: print

    Returns:
        *list*: A row for each method.
    """
    name, layer = case.split("/")
    network = NETWORKS[name]
    out.mkdir(parents=True, exist_ok=True)
    prepared = prepare(network.model, layer=layer)
    table = plan.table(name, prepared, out)
    settings = Settings(
        data=table,
        model=network.model,
        layer=layer,
        out=plan.folder(case, out),
        methods=plan.methods(network, layer),
        metrics=_METRICS if not read_table(table)[0].get("boxes") else (*_METRICS, _ON_BOXES),
        step=plan.step or network.step,
        limit=plan.limit,
    )
    controls = {key: METHODS[key] for key in _CONTROLS}
    wanted = {key: METHODS.get(key, _ADDED.get(key)) for key in settings.methods}
    evaluate(settings, say, methods={**wanted, **controls})
    head = {"network": name, **_described(prepared, table)}
    return _rows(settings.out, head)


@torch.no_grad()
def _described(prepared: Prepared, table: Path) -> dict[str, Any]:
    """The layer, its number of maps and the share of negative values, on the first images."""
    layer = prepared.layer
    values: Tensor = torch.cat(
        [
            LayerActivation(prepared.model, layer.layer).attribute(
                prepared.input(read_picture(Path(row["path"]))),
                attribute_to_layer_input=layer.at_input,
            )
            for row in read_table(table)[:8]
        ]
    )
    return {
        "layer": layer.name,
        "at_input": layer.at_input,
        "maps": values.shape[layer.channel_dim],
        "negative": round(float((values < 0).float().mean()), 3),
    }


def _rows(folder: Path, head: Row) -> list[Row]:
    judged = by_method(read_rows(folder))
    flat = {row["image"] for row in judged[RIVAL] if row["status"] == "ok" and row["map"] == "flat"}
    rows = []
    for known in read(folder, ""):
        own = judged[known["method"]]
        row = {key: known[key] for key in _TAKEN}
        row["flat_alone"] = sum(
            one["status"] == "ok" and one["map"] == "flat" and one["image"] not in flat
            for one in own
        )
        row["less_base"] = (
            None
            if known["method"] == BASE
            else {key: difference(own, judged[BASE], key) for key in known["metrics"]}
        )
        rows.append({**head, **row})
    return rows


_TAKEN = ("method", "clusters", "control", "images", "failed", "flat", "seconds", "metrics")


def finish(plan: Plan, out: Path) -> dict[str, Any]:
    """Further entries of the file of results: how the maps of each case were judged."""
    return {"conventions": {case: conventions(plan.folder(case, out)) for case in plan.cases()}}
