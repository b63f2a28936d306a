"""The same calibration for every method: each metric that reads values, before and after it.

A method may win average drop and gain by the scale of its values alone. So with ``--calibrate``
every map, of methods and controls alike, gets the scale that shows the model most of the class
(:func:`captum_clustered.calibration.calibrate`), and is judged a second time. What reads only the
order of the pixels would give the same number twice, and stands once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from captum_clustered.calibration import calibrate
from captum_clustered.evaluation.judging import Batch, Judged, Metric
from captum_clustered.targets import Score

__all__ = ["AFTER", "calibrated", "with_calibration"]

AFTER = "_calibrated"
"""What is put behind the name of a metric."""


def with_calibration(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Adds the metrics of calibrated maps.

    Args:
        metrics (mapping): What is measured.

    Returns:
        *dict[str, Metric]*: The same; behind each that reads values, the same of calibrated maps.

    Example::

        >>> from captum_clustered.evaluation.measures import METRICS
        >>> list(with_calibration({name: METRICS[name] for name in ("adc", "deletion", "area")}))
        ['adc', 'adc_calibrated', 'deletion', 'area', 'area_calibrated']
    """
    found: dict[str, Metric] = {}
    for name, metric in metrics.items():
        found[name] = metric
        if not metric.only_order:
            found[f"{name}{AFTER}"] = _after(metric)
    return found


def _after(metric: Metric) -> Metric:
    def measure(judged: Judged) -> Tensor:
        found: Tensor = metric.measure(calibrated(judged))  # type: ignore[assignment]
        return found

    return replace(metric, title=f"{metric.title}, calibrated", measure=measure)


def calibrated(judged: Judged) -> Judged:
    """The same images with the calibrated maps of the same method; computed once."""
    batch = judged.batch

    def scale(images: Tensor, heatmaps: Tensor, target: Tensor) -> Tensor:
        return calibrate(
            batch.model, images, heatmaps, target, score=_sureness(batch), fill=batch.fill
        ).heatmaps

    def explain(images: Tensor, target: Tensor) -> Tensor:
        return scale(images, judged.explain(images, target=target), target)

    def compute() -> Judged:
        maps = scale(batch.images, judged.heatmaps, batch.classes)
        return Judged(batch, maps, explain, judged.complement)

    found: Judged = judged.once("calibrated", compute)
    return found


def _sureness(batch: Batch) -> Score:
    """What the model's output says of a class on a scale without ends, if its scale is known."""
    return "log_odds" if batch.score == "softmax" else "identity"
