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


_SHOWN = "when only what the map shows is left"
_LARGEST = "the map's largest values first"

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "adc": Metric(
            "ADC",
            False,
            lambda judged: judged.confidences.average_drop,
            meaning=f"average drop in confidence, how much of the score is lost {_SHOWN}",
        ),
        "pic": Metric(
            "PIC",
            True,
            lambda judged: judged.confidences.increase_in_confidence,
            is_rate=True,
            meaning=f"increase in confidence, how often the score rises {_SHOWN}",
        ),
        "ag": Metric(
            "AG",
            True,
            lambda judged: judged.confidences.average_gain,
            needs_probability=True,
            meaning=f"average gain, how much of its way up to 1 the score rises {_SHOWN}",
        ),
        "complement": Metric(
            "Drop on complement",
            True,
            lambda judged: judged.confidences.drop_on_complement,
            needs_complement=True,
            meaning="how much of the score is lost when what the map shows is hidden",
        ),
        "adcc": Metric(
            "ADCC",
            True,
            _adcc,
            meaning="harmonic mean of coherency, 100 - area and 100 - average drop",
        ),
        "coherency": Metric(
            "Coherency",
            True,
            _coherency,
            meaning="how alike the map and the map of the masked image are",
        ),
        "insertion": Metric(
            "Insertion",
            True,
            _insertion,
            is_curve=True,
            only_order=True,
            meaning=f"mean score while pixels are put into a blurred image, {_LARGEST}",
        ),
        "deletion": Metric(
            "Deletion",
            False,
            _deletion,
            is_curve=True,
            only_order=True,
            meaning=f"mean score while pixels are taken out, {_LARGEST}",
        ),
        "pointing": Metric(
            "Pointing game",
            True,
            _inside(pointing_game),
            is_rate=True,
            needs_object=True,
            only_order=True,
            meaning="how often the map's largest value lies in the object",
        ),
        "energy": Metric(
            "Energy inside",
            True,
            _inside(energy_inside),
            needs_object=True,
            meaning="share of the heat that lies in the object",
        ),
        "iou": Metric(
            "IoU",
            True,
            _inside(iou),
            needs_object=True,
            meaning="intersection over union of the object and the hot part of the map",
        ),
        "area": Metric(
            "Area", None, lambda judged: judged.confidences.area, meaning="mean of the map"
        ),
    }
)
"""All metrics by name; each is in percent. The area is always measured."""
