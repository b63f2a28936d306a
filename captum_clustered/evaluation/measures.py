"""From heat maps to numbers: the metrics that the command line knows, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_clustered._checks import check_choice
from captum_clustered.fills import Fill
from captum_clustered.metrics.adcc import adcc_score, coherency
from captum_clustered.metrics.confidence import confidences
from captum_clustered.metrics.curves import Curve, deletion, insertion
from captum_clustered.metrics.localization import energy_inside, iou, pointing_game
from captum_clustered.metrics.maps import Status
from captum_clustered.targets import Score, format_target, target_scores

__all__ = [
    "METRICS",
    "POINTS",
    "Batch",
    "Explain",
    "Metric",
    "begin",
    "check_metrics",
    "measure",
]

Explain = Callable[..., Tensor]
"""A method, called as ``explain(images, target=classes)``; gives maps `(N, 1, h, w)`."""

POINTS = 51
"""Points of a curve that a row keeps, from 0 to all pixels."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        title (str): In a table's head.
        higher_is_better (bool or None): None for what is neither good nor bad in itself.
        is_rate (bool): Whether an image has it or not, as 100 or 0.
        needs_object (bool): Whether the data must say where the object is.
    """

    title: str
    higher_is_better: bool | None
    is_rate: bool = False
    needs_object: bool = False

    @property
    def arrow(self) -> str:
        """Where better is."""
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]


METRICS = {
    "adc": Metric("ADC", False),
    "pic": Metric("PIC", True, is_rate=True),
    "ag": Metric("AG", True),
    "complement": Metric("Drop on complement", True),
    "adcc": Metric("ADCC", True),
    "coherency": Metric("Coherency", True),
    "insertion": Metric("Insertion", True),
    "deletion": Metric("Deletion", False),
    "pointing": Metric("Pointing game", True, is_rate=True, needs_object=True),
    "energy": Metric("Energy inside", True, needs_object=True),
    "iou": Metric("IoU", True, needs_object=True),
    "area": Metric("Area", None),
}
"""All metrics by name; each is in percent. The area is always measured."""


def check_metrics(metrics: Sequence[str], score: str, has_objects: bool) -> tuple[str, ...]:
    """Checks the names of metrics.

    Args:
        metrics (sequence of str): Names.
        score (str): What becomes of the logits.
        has_objects (bool): Whether the data say where the objects are.

    Returns:
        *tuple[str, ...]*: The names in the order of :data:`METRICS`, the area among them.

    Raises:
        ValueError: If a metric is unknown, or cannot be had.

    Example::

        >>> check_metrics(["pic", "adc"], "softmax", False)
        ('adc', 'pic', 'area')
    """
    for name in metrics:
        check_choice("metrics", name, tuple(METRICS))
        if METRICS[name].needs_object and not has_objects:
            raise ValueError(
                f"`metrics` must be possible with the data; got {name}, but no image has a mask or "
                "boxes. Give them in a CSV file, or leave the metric out."
            )
        if name == "ag" and score == "identity":
            raise ValueError("`score` must be a probability for the metric ag; got 'identity'.")
    return tuple(name for name in METRICS if name in metrics or name == "area")


@dataclass(frozen=True, eq=False)
class Batch:
    """Images with all that their methods share.

    Attributes:
        model (callable): Gives logits, `(N, classes)`.
        images (Tensor): `(N, C, H, W)`, as the model takes them.
        classes (Tensor): int64 `(N,)`, to judge by.
        original (Tensor): The score of each image's class, `(N,)`.
        objects (Tensor or None): bool `(N, 1, H, W)`.
        judged (str): ``"predicted"`` or ``"given"``, whose classes these are.
        fill (Fill): What replaces what a map hides.
        score (Score): What becomes of the logits.
        step (int): Pixels that change at a time in a curve.
    """

    model: Callable[..., Any]
    images: Tensor
    classes: Tensor
    original: Tensor
    objects: Tensor | None
    judged: str
    fill: Fill
    score: Score
    step: int = 224

    def only(self, i: int) -> Batch:
        """The batch of one of its images."""
        one = slice(i, i + 1)
        return replace(
            self,
            images=self.images[one],
            classes=self.classes[one],
            original=self.original[one],
            objects=None if self.objects is None else self.objects[one],
        )


@torch.no_grad()
def begin(
    model: Callable[..., Any],
    images: Tensor,
    objects: Tensor | None = None,
    classes: Tensor | None = None,
    *,
    fill: Fill = 0.0,
    score: Score = "softmax",
    step: int = 224,
) -> Batch:
    """Runs the model once on what all methods share.

    Args:
        model (callable): Gives logits, `(N, classes)`.
        images (Tensor): `(N, C, H, W)`.
        objects (Tensor, optional): bool `(N, 1, H, W)`. Default: None
        classes (Tensor, optional): int64 `(N,)`. Default: None (those that the model predicts)
        fill (Fill, optional): What replaces what a map hides. Default: 0.0
        score (Score, optional): What becomes of the logits. Default: ``"softmax"``
        step (int, optional): Pixels that change at a time in a curve. Default: 224

    Returns:
        *Batch*: The images, their classes and scores.
    """
    output = model(images)
    judged = "predicted" if classes is None else "given"
    classes = output.argmax(1) if classes is None else classes
    original = target_scores(output, format_target(classes, len(images)), score)
    return Batch(model, images, classes, original, objects, judged, fill, score, step)


def measure(
    metrics: Sequence[str], batch: Batch, heatmaps: Tensor, explain: Explain
) -> list[dict[str, Any]]:
    """Judges the heat maps of a batch.

    Args:
        metrics (sequence of str): From :func:`check_metrics`.
        batch (Batch): `N` images.
        heatmaps (Tensor): Their maps, `(N, 1, h, w)`.
        explain (callable): What made the maps, for the metrics that need it again.

    Returns:
        *list*: For each image a dict with the metrics, the scores behind them, the state of the map
        (``"ok"``, ``"flat"``, ``"not_finite"`` or ``"negative"``), and the conventions. None stands
        for a number that does not exist.
    """
    found = confidences(
        batch.model,
        batch.images,
        heatmaps,
        batch.classes,
        score=batch.score,
        fill=batch.fill,
        complement="complement" in metrics,
        original=batch.original,
    )
    columns: dict[str, Tensor] = {"adc": found.average_drop, "pic": found.increase_in_confidence}
    if "ag" in metrics:
        columns["ag"] = found.average_gain
    if "complement" in metrics:
        columns["complement"] = found.drop_on_complement
    if {"coherency", "adcc"} & set(metrics):
        columns["coherency"] = coherency(
            explain, batch.images, heatmaps, batch.classes, fill=batch.fill
        )
        columns["adcc"] = adcc_score(columns["coherency"], found.area, found.average_drop)
    curves = _curves(metrics, batch, heatmaps)
    columns.update({name: curve.area for name, curve in curves.items()})
    if batch.objects is not None:
        for name, judge in (("pointing", pointing_game), ("energy", energy_inside), ("iou", iou)):
            if name in metrics:
                columns[name] = judge(heatmaps, batch.objects)
    columns["area"] = found.area

    listed = {name: columns[name].tolist() for name in metrics}
    scores = {"original_score": found.original, "masked_score": found.masked}
    if found.complement is not None:
        scores["complement_score"] = found.complement
    listed.update({name: values.tolist() for name, values in scores.items()})
    listed["map"] = [Status(status).name.lower() for status in found.status.tolist()]
    for name, curve in curves.items():
        listed[f"{name}_curve"] = _thinned(curve)
    # the classes were passed on, whoever chose them
    judged = {"target": batch.judged}
    conventions: dict[str, Any] = {**found.conventions.as_dict(), **judged}
    for name, curve in curves.items():
        conventions[name] = {**curve.conventions.as_dict(), **judged}
    return [
        {**{name: values[i] for name, values in listed.items()}, "conventions": conventions}
        for i in range(len(batch.images))
    ]


def _curves(metrics: Sequence[str], batch: Batch, heatmaps: Tensor) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    settings: dict[str, Any] = {"score": batch.score, "step": batch.step}
    if "insertion" in metrics:  # from a blurred image, as it is usual
        curves["insertion"] = insertion(
            batch.model, batch.images, heatmaps, batch.classes, **settings
        )
    if "deletion" in metrics:
        curves["deletion"] = deletion(
            batch.model, batch.images, heatmaps, batch.classes, fill=batch.fill, **settings
        )
    return curves


def _thinned(curve: Curve) -> list[list[float]]:
    """The curves at evenly spaced points, rounded, for pictures."""
    fractions = curve.fractions.cpu().numpy()
    points = np.linspace(0, 1, POINTS)
    scores = torch.atleast_2d(curve.scores).cpu().numpy()
    return [np.interp(points, fractions, row).round(5).tolist() for row in scores]
