"""The metrics of `captum-clustered evaluate`, with the other libraries' maps among the methods."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

from captum.attr import LayerAttribution
from torch import Tensor, nn

from benchmarks.peers import Reshape, output_of_input, pytorch_grad_cam_map, torchcam_map
from benchmarks.results import Row
from captum_clustered import evaluation, methods
from captum_clustered.evaluation import Settings
from captum_clustered.methods import Method

__all__ = [
    "FULL",
    "FULL_METRICS",
    "PEERS",
    "QUICK",
    "QUICK_METRICS",
    "measure",
    "peers_among_the_methods",
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
"""The methods of a full run; the last two take half a minute for an image."""

QUICK_METRICS = ("adc", "pic")
FULL_METRICS = (*QUICK_METRICS, "adcc", "insertion", "deletion")
"""The curves of insertion and deletion take hundreds of forward passes for each map."""


class Peer(LayerAttribution):
    """Another library's method behind Captum's interface.

    Args:
        forward_func (nn.Module): The model.
        layer (nn.Module): The layer.
        explain (callable): ``explain(model, layer, inputs, classes, reshape)``.
        channel_dim (int, optional): Not needed: `reshape_transform` says enough. Default: 1
        reshape_transform (callable, optional): Makes maps of tokens. Default: None
    """

    def __init__(
        self,
        forward_func: nn.Module,
        layer: nn.Module,
        *,
        explain: Callable[..., Tensor],
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if attribute_to_layer_input:
                with output_of_input(model, self.layer) as layer:
                    heat = self.explain(model, layer, inputs, classes, self.reshape)
            else:
                heat = self.explain(model, self.layer, inputs, classes, self.reshape)
        # what autograd keeps in the parameters is not the caller's wish
        model.zero_grad(set_to_none=True)
        return heat.detach().clone().to(inputs.device).relu()


def _peer(
    name: str, description: str, explain: Callable[..., Tensor], gradient: bool = False
) -> Method:
    factory: Any = partial(Peer, explain=explain)
    return Method(name, description, factory, fixed=("explain",), needs_gradient=gradient)


PEERS = MappingProxyType(
    {
        method.name: method
        for method in (
            _peer(
                "torchcam-grad-cam", "GradCAM of torchcam", partial(torchcam_map, "GradCAM"), True
            ),
            _peer("torchcam-score-cam", "ScoreCAM of torchcam", partial(torchcam_map, "ScoreCAM")),
            _peer(
                "pytorch-grad-cam",
                "GradCAM of pytorch-grad-cam",
                partial(pytorch_grad_cam_map, "GradCAM"),
                True,
            ),
            _peer(
                "pytorch-grad-cam-ablation",
                "AblationCAM of pytorch-grad-cam",
                partial(pytorch_grad_cam_map, "AblationCAM"),
            ),
        )
    }
)
"""The other libraries' methods by the name that the table gives them."""


@contextmanager
def peers_among_the_methods() -> Iterator[None]:
    """While it is open, `captum_clustered.methods` knows the other libraries' methods too."""
    more = MappingProxyType({**methods.METHODS, **PEERS})
    with mock.patch.object(methods, "METHODS", more):
        yield


def measure(settings: Settings, say: Callable[[str], object] = print) -> list[Row]:
    """Evaluates the methods on a folder; goes on where an earlier call stopped.

    Args:
        settings (Settings): As for :func:`captum_clustered.evaluation.evaluate`; `methods` may name
            those of :data:`PEERS`.
        say (callable, optional): Told in a line what goes on. Default: print

    Returns:
        *list*: A row for each variant; none in a process other than the first.
    """
    with peers_among_the_methods():
        outcome = evaluation.evaluate(settings, say)
    return [] if outcome is None else read(settings.out, settings.data.name)


def read(folder: Path, data: str) -> list[Row]:
    """The rows that the folder of an evaluation has, in the form of the benchmarks."""
    compared = json.loads((folder / "config.json").read_text(encoding="utf-8"))["compared"]
    names = [*compared["metrics"], "area"]
    rows = []
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        for record in csv.DictReader(file):
            rows.append(
                {
                    "data": data,
                    "model": compared["model"],
                    "layer": compared["layer"],
                    "method": record["method"],
                    "library": _library(record["method"]),
                    "clusters": int(record["clusters"]) if record["clusters"] else None,
                    "weighting": record["weighting"] or None,
                    "control": record["control"] == "1",
                    "images": int(record["images"]),
                    "failed": int(record["failed"]),
                    "flat": int(record["flat"]) if record.get("flat") else None,
                    "seconds": _number(record["seconds_median"]),
                    "metrics": {
                        name: {
                            "mean": _number(record[name]),
                            "low": _number(record[f"{name}_low"]),
                            "high": _number(record[f"{name}_high"]),
                            "n": int(record[f"{name}_n"]),
                        }
                        for name in names
                        if name in record
                    },
                }
            )
    return rows


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
