"""The fair comparison: every method and control on its own scale and on a calibrated one.

Average drop, increase and gain read the values of a map, insertion and deletion the order of its
pixels. So a method can win the first three by its scale alone. Here all get the same calibration;
what then remains between them is what they found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from benchmarks.boxes import HALVES, half, read_table
from benchmarks.faithfulness import Peer, by_method, conventions, difference, read
from benchmarks.peers import torchcam_map
from benchmarks.results import Row
from captum_clustered import ClusteredLayerAblation, LayerCalibratedCam
from captum_clustered._checks import check_choice
from captum_clustered.evaluation import Settings, evaluate
from captum_clustered.evaluation.judging import Judged, Metric
from captum_clustered.evaluation.measures import METRICS
from captum_clustered.evaluation.records import read_rows
from captum_clustered.methods import METHODS, Method
from captum_clustered.metrics import infidelity, sensitivity_max

__all__ = ["BASE", "CASES", "WORDS", "Case", "Plan", "finish", "measure"]

BASE = "grad-cam"
"""What all methods are compared with."""

RECIPE = "calibrated-cam"
"""The recipe; `refined-cam` is its map before calibration."""

_BY_GROUPS = (
    ClusteredLayerAblation,
    partial(ClusteredLayerAblation, n_clusters=16, weighting="drop_per_mass"),
)

_FRONTIER: Mapping[str, Any] = MappingProxyType(
    {
        f"{setting}-{value:g}": Method(
            f"{setting}-{value:g}",
            f"The recipe with `{setting}={value:g}`",
            partial(LayerCalibratedCam, **{setting: value}),
        )
        for setting, values in (
            ("finer_layers", (0, 1, 3)),
            ("floor", (0.1, 1, 3)),
            ("area_weight", (0, 2, 8)),
            ("n_steps", (5,)),
        )
        for value in values
    }
)
"""The recipe with other settings: the first two move its order, the others its values."""

_ADDED: Mapping[str, Any] = MappingProxyType(
    {
        "refined-cam": Method(
            "refined-cam", "Three layers, as they are", partial(LayerCalibratedCam, curves=())
        ),
        "calibrated-groups": Method(
            "calibrated-groups",
            "The recipe without gradients",
            partial(LayerCalibratedCam, explainers=_BY_GROUPS),
        ),
        "torchcam-layer-cam": partial(Peer, explain=partial(torchcam_map, "LayerCAM")),
        "torchcam-grad-cam++": partial(Peer, explain=partial(torchcam_map, "GradCAMpp")),
        **_FRONTIER,
    }
)
"""What is measured beside the registry's methods."""

_CONTROLS = ("random-groups", "centre-gaussian", "fake-cam", "random-map", "sum-of-maps")
_METHODS = (
    RECIPE,
    "refined-cam",
    "calibrated-groups",
    BASE,
    "hires-cam",
    "ablation-cam",
    "clustered-cam",
    "clustered-score-cam",
    "clustered-opti-cam",
    "torchcam-layer-cam",
    "torchcam-grad-cam++",
)
_METRICS = ("adc", "pic", "ag", "insertion", "deletion", "energy")

WORDS = (
    "- `calibrated-cam` is the recipe: Grad-CAM, refined by HiResCAM at two finer layers, and "
    "calibrated. `refined-cam` is its map before calibration; `calibrated-groups` has "
    "Clustered-CAM at all layers, with 16 groups at the finer ones, and needs no gradient.",
    "- `floor-1` is the recipe with `floor=1`, and so on: the larger the floor, the less the finer "
    "layers count. `area_weight` is the price of the area when a curve is chosen, `n_steps` the "
    "number of gradient steps that bend it further.",
    "- *Calibrated* is the same map of the same method on another scale of values, chosen image by "
    "image. It leaves the order of the pixels, and so insertion and deletion, as they are.",
)
"""What the names mean."""


def _sensitivity(judged: Judged) -> Tensor:
    batch = judged.batch
    found: Tensor = sensitivity_max(
        judged.explain, batch.images, target=batch.classes, n_perturb_samples=4
    )
    return 100 * found


def _infidelity(judged: Judged) -> Tensor:
    batch = judged.batch
    return infidelity(batch.model, batch.images, judged.heatmaps, batch.classes)


_MEASURES: Mapping[str, Metric] = MappingProxyType(
    {
        **METRICS,
        "sensitivity": Metric("Sensitivity", False, _sensitivity),
        "infidelity": Metric("Infidelity", False, _infidelity, unit=""),
    }
)


@dataclass(frozen=True)
class Case:
    """What is measured at a layer.

    Attributes:
        layer (str): Its name, or ``"auto"``.
        methods (tuple[str, ...]): The methods.
        metrics (tuple[str, ...]): What is measured, before and after calibration.
        controls (tuple[str, ...]): The controls.
        limit (int or None): Number of images; None for all of the half.
        model (str): As for :func:`captum_clustered.models.load`.
        step (int): Pixels that change at a time in a curve.
        calibrate (bool): Whether the maps are judged on a calibrated scale as well.
    """

    layer: str
    methods: tuple[str, ...] = _METHODS
    metrics: tuple[str, ...] = _METRICS
    controls: tuple[str, ...] = _CONTROLS
    limit: int | None = None
    model: str = "efficientnet-lite0"
    step: int = 3584  # 14 steps of an image of 224 x 224
    calibrate: bool = True


CASES: Mapping[str, Case] = MappingProxyType(
    {
        "lite0": Case("auto"),
        # what costs more, on some of the images
        "lite0, frontier": Case(
            "auto", (RECIPE, *_FRONTIER, BASE), controls=(), limit=50, calibrate=False
        ),
        # what lies behind this block is no linear head: a convolution, a norm, an activation
        "lite0, inner": Case("_blocks.15", limit=75),
        "lite0, robustness": Case(
            "auto",
            (
                *(RECIPE, "finer_layers-1", "finer_layers-0", "refined-cam", BASE),
                *("clustered-cam", "clustered-score-cam"),
            ),
            ("adcc", "sensitivity", "infidelity"),
            limit=30,
        ),
        "lite0, Score-CAM": Case("auto", (RECIPE, BASE, "score-cam"), limit=8, controls=()),
    }
)
"""The cases by the names that the tables have."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is evaluated.

    Attributes:
        data (Path): CSV file of images with classes, as for ``captum-clustered evaluate``.
        half (str): One of :data:`benchmarks.boxes.HALVES`.
        cases (tuple[str, ...]): Keys of :data:`CASES`.
        limit (int or None): Number of images of the half, spread evenly, where a case has no
            smaller one; None for all.
    """

    data: Path
    half: str
    cases: tuple[str, ...] = tuple(CASES)
    limit: int | None = None
    _tables: dict[str, Path] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_choice("half", self.half, HALVES)
        unknown = [name for name in self.cases if name not in CASES]
        if unknown or not self.cases:
            raise ValueError(
                f"`cases` must be among {'; '.join(CASES)}; got {'; '.join(unknown) or 'none'}."
            )

    def record(self) -> dict[str, Any]:
        """The settings in the form of the results, without names of folders."""
        return {
            "data": self.data.stem,
            "half": self.half,
            "limit": self.limit,
            "full": self.limit is None,
            "cases": list(self.cases),
        }

    def folder(self, case: str, out: Path) -> Path:
        """The folder of a case's evaluation."""
        return out / f"fair-{self.half}-{case.replace(', ', '-')}"

    def settings(self, case: str, out: Path) -> Settings:
        """The evaluation of a case; writes the table of its images."""
        chosen = CASES[case]
        table = out / f"fair-{self.half}.csv"
        half(self.data, self.half, table)
        has_boxes = bool(read_table(table)[0].get("boxes"))
        limits = [limit for limit in (self.limit, chosen.limit) if limit is not None]
        return Settings(
            data=table,
            model=chosen.model,
            layer=chosen.layer,
            out=self.folder(case, out),
            methods=chosen.methods,
            metrics=tuple(name for name in chosen.metrics if name != "energy" or has_boxes),
            controls=True,
            calibrate=chosen.calibrate,
            mask_fill="black",  # what the metrics put where a map hides the image
            step=chosen.step,
            limit=min(limits, default=None),
        )


def measure(case: str, plan: Plan, out: Path, say: Callable[[str], object] = print) -> list[Row]:
    """Evaluates the methods of a case, or goes on where an earlier call stopped.

    Args:
        case (str): One of `plan.cases`.
        plan (Plan): What is evaluated.
        out (Path): Folder of the evaluations.
        say (callable, optional): Called with a line that says what goes on. Default: print

    Returns:
        *list*: A row for each method.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = plan.settings(case, out)
    names = (*settings.methods, *CASES[case].controls)
    wanted = {name: METHODS.get(name, _ADDED.get(name)) for name in names}
    evaluate(settings, say, methods=wanted, metrics=_MEASURES)
    return _rows(settings.out)


_TAKEN = ("method", "clusters", "control", "images", "failed", "flat", "seconds", "metrics")


def _rows(folder: Path) -> list[Row]:
    judged = by_method(read_rows(folder))
    known = read(folder, "")
    rows = []
    for row in known:
        own = judged[row["method"]]
        best = {name: _best(name, row["method"], known) for name in row["metrics"]}
        rows.append(
            {
                **{key: row[key] for key in ("layer", *_TAKEN)},
                "less_base": {name: difference(own, judged[BASE], name) for name in row["metrics"]},
                "less_best": {
                    name: {"method": other, **difference(own, judged[other], name)}
                    for name, other in best.items()
                    if other is not None
                },
            }
        )
    return rows


def _best(name: str, method: str, rows: list[Row]) -> str | None:
    """The best of the other methods by a metric; controls and the recipe's parts do not count."""
    better = _MEASURES[name.removesuffix("_calibrated")].higher_is_better
    if better is None:
        return None
    others = {
        row["method"]: row["metrics"][name]["mean"]
        for row in rows
        if not row["control"]
        and row["method"] not in (method, RECIPE, "refined-cam", "calibrated-groups", *_FRONTIER)
        and row["metrics"][name]["mean"] is not None
    }
    return (max if better else min)(others, key=others.__getitem__, default=None)


def finish(plan: Plan, out: Path) -> dict[str, Any]:
    """Further entries of the file of results: how the maps of each case were judged."""
    return {"conventions": {case: conventions(plan.folder(case, out)) for case in plan.cases}}
