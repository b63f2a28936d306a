"""The metrics that the command line knows, by name. A new metric is one entry in this table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from captum_clustered.evaluation.judging import Judged, Metric
from captum_clustered.metrics.adcc import adcc_score, coherency
from captum_clustered.metrics.curves import Curve, deletion, insertion
from captum_clustered.metrics.localization import energy_inside, iou, pointing_game

__all__ = ["METRICS"]


def _coherency(judged: Judged) -> Tensor:
    batch = judged.batch

    def compute() -> Tensor:
        return coherency(
            judged.explain, batch.images, judged.heatmaps, batch.classes, fill=batch.fill
        )

    found: Tensor = judged.once("coherency", compute)
    return found


def _adcc(judged: Judged) -> Tensor:
    found = judged.confidences
    return adcc_score(_coherency(judged), found.area, found.average_drop)


def _insertion(judged: Judged) -> Curve:
    batch = judged.batch  # insertion begins with a blurred image, as is usual
    return insertion(
        batch.model,
        batch.images,
        judged.heatmaps,
        batch.classes,
        score=batch.score,
        step=batch.step,
    )


def _deletion(judged: Judged) -> Curve:
    batch = judged.batch
    return deletion(
        batch.model,
        batch.images,
        judged.heatmaps,
        batch.classes,
        fill=batch.fill,
        score=batch.score,
        step=batch.step,
    )


def _inside(compare: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Judged], Tensor]:
    def measure(judged: Judged) -> Tensor:
        objects: Any = judged.batch.objects  # there, since the metric needs them
        return compare(judged.heatmaps, objects)

    return measure


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "adc": Metric("ADC", False, lambda judged: judged.confidences.average_drop),
        "pic": Metric(
            "PIC", True, lambda judged: judged.confidences.increase_in_confidence, is_rate=True
        ),
        "ag": Metric(
            "AG", True, lambda judged: judged.confidences.average_gain, needs_probability=True
        ),
        "complement": Metric(
            "Drop on complement",
            True,
            lambda judged: judged.confidences.drop_on_complement,
            needs_complement=True,
        ),
        "adcc": Metric("ADCC", True, _adcc),
        "coherency": Metric("Coherency", True, _coherency),
        "insertion": Metric("Insertion", True, _insertion, is_curve=True, only_order=True),
        "deletion": Metric("Deletion", False, _deletion, is_curve=True, only_order=True),
        "pointing": Metric(
            "Pointing game",
            True,
            _inside(pointing_game),
            is_rate=True,
            needs_object=True,
            only_order=True,
        ),
        "energy": Metric("Energy inside", True, _inside(energy_inside), needs_object=True),
        "iou": Metric("IoU", True, _inside(iou), needs_object=True),
        "area": Metric("Area", None, lambda judged: judged.confidences.area),
    }
)
"""All metrics by name; each is in percent. The area is always measured."""
