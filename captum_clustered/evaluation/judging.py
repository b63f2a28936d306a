"""From heat maps to numbers: what a metric is, and what all metrics of a batch share."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_clustered._borrow import lent
from captum_clustered._checks import did_you_mean
from captum_clustered._files import first_line, place_of
from captum_clustered.fills import Fill
from captum_clustered.metrics.confidence import Confidences, confidences
from captum_clustered.metrics.curves import Curve
from captum_clustered.metrics.maps import Status
from captum_clustered.targets import Score, format_target, target_scores

__all__ = [
    "AREA",
    "POINTS",
    "Batch",
    "Explain",
    "Judged",
    "Metric",
    "as_metrics",
    "begin",
    "check_metrics",
    "coarse",
    "measure",
]

Explain = Callable[..., Tensor]
"""A method, called as ``explain(images, target=classes)``; gives maps `(N, 1, *spatial)`."""

AREA = "area"
"""The metric that is always measured."""

_HEAT_SIDE = 32

POINTS = 51
"""Points of a curve that a row keeps, from 0 to all pixels."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images, and what all methods share for them.

    Attributes:
        model (callable): Gives scores, `(N, classes)`.
        images (Tensor): `(N, C, *spatial)`, as the model takes them.
        classes (Tensor): int64 `(N,)`, the classes that are explained and judged.
        original (Tensor): The score of each image's class, `(N,)`.
        objects (Tensor or None): bool `(N, 1, *spatial)`, where the object is.
        judged (str): Which classes these are: ``"predicted"``, ``"given"``, or the one class.
        fill (Fill): What replaces the part that a map hides.
        score (Score): What is done to the model's output.
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
        """The batch that holds one of the images."""
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
    judged: str = "predicted",
    fill: Fill = 0.0,
    score: Score = "softmax",
    step: int = 224,
) -> Batch:
    """Runs the model once, for all methods.

    Args:
        model (callable): Gives scores, `(N, classes)`.
        images (Tensor): `(N, C, *spatial)`.
        objects (Tensor, optional): bool `(N, 1, *spatial)`. Default: None
        classes (Tensor, optional): int64 `(N,)`. Default: None (the predicted ones)
        judged (str, optional): Which classes these are. Default: ``"predicted"``
        fill (Fill, optional): What replaces the part that a map hides. Default: 0.0
        score (Score, optional): What is done to the model's output. Default: ``"softmax"``
        step (int, optional): Pixels that change at a time in a curve. Default: 224

    Returns:
        *Batch*: The images, their classes and scores.
    """
    with lent(model) as lent_model:
        output = lent_model(images)
    classes = output.argmax(1) if classes is None else classes
    original = target_scores(output, format_target(classes, len(images)), score)
    return Batch(model, images, classes, original, objects, judged, fill, score, step)


@dataclass(frozen=True, eq=False)
class Judged:
    """A batch with the heat maps of one method: what a metric measures.

    Attributes:
        batch (Batch): `N` images.
        heatmaps (Tensor): `(N, 1, *spatial)`, in the layer's own resolution.
        explain (callable): What made the maps, for metrics that need it again.
        complement (bool): Whether the model is also shown what the maps hide.
    """

    batch: Batch
    heatmaps: Tensor
    explain: Explain
    complement: bool = False
    _known: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def confidences(self) -> Confidences:
        """What the model says of the images seen through their maps; computed once."""
        return confidences(
            self.batch.model,
            self.batch.images,
            self.heatmaps,
            self.batch.classes,
            score=self.batch.score,
            fill=self.batch.fill,
            complement=self.complement,
            original=self.batch.original,
        )

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What several metrics need, computed by the first of them."""
        if name not in self._known:
            self._known[name] = compute()
        return self._known[name]


# --- metrics --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A metric: how it is measured and how it is shown.

    Attributes:
        title (str): In a table's head.
        higher_is_better (bool or None): None for what is neither good nor bad in itself.
        measure (callable): Takes :class:`Judged`; returns a number for each image, `(N,)`, or a
            :class:`captum_clustered.metrics.Curve`, whose area is then the number.
        is_rate (bool): Whether an image either has it or not, 100 or 0.
        is_curve (bool): Whether it is measured by a curve.
        needs_object (bool): Whether the data must say where the object is.
        needs_probability (bool): Whether the score must be a probability.
        needs_complement (bool): Whether the model must also be shown what the maps hide.
        only_order (bool): Whether only the order of a map's values counts.
        unit (str): ``"%"``, or ``""`` if it is not known.
        meaning (str): What it measures, in words that follow its title.
    """

    title: str
    higher_is_better: bool | None
    measure: Callable[[Judged], Tensor | Curve]
    is_rate: bool = False
    is_curve: bool = False
    needs_object: bool = False
    needs_probability: bool = False
    needs_complement: bool = False
    only_order: bool = False
    unit: str = "%"
    meaning: str = ""

    @property
    def head(self) -> str:
        """The title, with an arrow to where better is."""
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        return f"{self.title}{arrow}"


_TAKEN = frozenset(
    {
        *("image", "case", "label", "method", "clusters", "weighting", "status", "reason", "place"),
        *("target", "original_score", "masked_score", "map", "heat", "object", "conventions"),
        "seconds",
    }
)
"""What else a row has."""


def as_metrics(metrics: Mapping[str, Any]) -> dict[str, Metric]:
    """Brings metrics into one form.

    Args:
        metrics (mapping): From a name to a :class:`Metric`, or to a callable
            ``(model, images, heatmaps, target)`` that returns a number for each image, `(N,)`. The
            callable may have an attribute `higher_is_better`, True or False.

    Returns:
        *dict*: From the same names to metrics.

    Raises:
        TypeError: If one is neither.
        ValueError: If a name is that of something else in a row.
    """
    found: dict[str, Metric] = {}
    for name, value in metrics.items():
        if name in _TAKEN:
            raise ValueError(
                f"`metrics` must not be called {', '.join(sorted(_TAKEN))}; got {name!r}. Name it "
                "otherwise."
            )
        if isinstance(value, Metric):
            found[name] = value
        elif callable(value):
            better = getattr(value, "higher_is_better", None)
            found[name] = Metric(name, better, partial(_from_outside, name, value), unit="")
        else:
            raise TypeError(
                f"`metrics` must hold metrics or callables; {name} is {type(value).__name__}. "
                "Pass a callable (model, images, heatmaps, target) that returns (N,)."
            )
    return found


def _from_outside(name: str, function: Callable[..., Any], judged: Judged) -> Tensor:
    batch = judged.batch
    try:
        values = function(batch.model, batch.images, judged.heatmaps, batch.classes)
        values = torch.as_tensor(values).detach().double().cpu()
    except Exception as error:  # the user's code may raise anything
        words = f"{first_line(error)}; {place_of(error)}"
        raise ValueError(f"`metric` {name} failed ({words}).") from error
    if values.shape != (len(batch.images),):
        raise ValueError(
            f"`metric` {name} must return one number for each of the {len(batch.images)} images; "
            f"got shape {tuple(values.shape)}."
        )
    return values


def check_metrics(
    names: Sequence[str], metrics: Mapping[str, Metric], score: str, has_objects: bool
) -> dict[str, Metric]:
    """Picks the metrics that are wanted.

    Args:
        names (sequence of str): Which.
        metrics (mapping): All metrics by name.
        score (str): What is done to the model's output.
        has_objects (bool): Whether the data say where the objects are.

    Returns:
        *dict[str, Metric]*: Those that are wanted and the area, in the order of `metrics`.

    Raises:
        ValueError: If a metric is unknown, or cannot be measured on these data.

    Example::

        >>> from captum_clustered.evaluation.measures import METRICS
        >>> list(check_metrics(["pic", "adc"], METRICS, "softmax", False))
        ['adc', 'pic', 'area']
    """
    for name in names:
        if name not in metrics:
            raise ValueError(
                f"`metrics` must be among {', '.join(metrics)}, or module:callable; got {name}."
                f"{did_you_mean(name, metrics)}"
            )
        if metrics[name].needs_object and not has_objects:
            raise ValueError(
                f"`metrics` must be possible with the data; got {name}, but no image has a mask or "
                "boxes. Give them in a CSV file, or leave the metric out."
            )
        if metrics[name].needs_probability and score == "identity":
            raise ValueError(
                f"`score` must be a probability for the metric {name}; got 'identity', and the "
                "model does not return probabilities. Take softmax, sigmoid or probabilities."
            )
    return {name: metric for name, metric in metrics.items() if name in names or name == AREA}


def measure(
    metrics: Mapping[str, Metric], batch: Batch, heatmaps: Tensor, explain: Explain
) -> list[dict[str, Any]]:
    """Judges the heat maps of a batch.

    Args:
        metrics (mapping): From :func:`check_metrics`.
        batch (Batch): `N` images.
        heatmaps (Tensor): Their maps, `(N, 1, *spatial)`.
        explain (callable): What made the maps, for the metrics that need it again.

    Returns:
        *list*: For each image a dict with the metrics, the scores behind them, the state of the map
        (``"ok"``, ``"flat"``, ``"not_finite"`` or ``"negative"``), the map itself in bytes, coarse
        enough for a picture, and the conventions.
    """
    complement = any(metric.needs_complement for metric in metrics.values())
    judged = Judged(batch, heatmaps, explain, complement)
    measured = {name: metric.measure(judged) for name, metric in metrics.items()}
    curves = {name: value for name, value in measured.items() if isinstance(value, Curve)}
    found = judged.confidences
    columns: dict[str, list[Any]] = {
        name: (value.area if isinstance(value, Curve) else value).tolist()
        for name, value in measured.items()
    }
    columns |= {"original_score": found.original.tolist(), "masked_score": found.masked.tolist()}
    if found.complement is not None:
        columns["complement_score"] = found.complement.tolist()
    columns["map"] = [Status(status).name.lower() for status in found.status.tolist()]
    columns["heat"] = [coarse(heatmap[0]) for heatmap in heatmaps]
    columns |= {f"{name}_curve": _thinned(curve) for name, curve in curves.items()}
    # the metrics were given the classes, whoever chose them
    words = {"target": batch.judged}
    conventions: dict[str, Any] = {**found.conventions.as_dict(), **words}
    for name, curve in curves.items():
        conventions[name] = {**curve.conventions.as_dict(), **words}
    return [
        {**{name: values[i] for name, values in columns.items()}, "conventions": conventions}
        for i in range(len(batch.images))
    ]


def _thinned(curve: Curve) -> list[list[float]]:
    """The curves at evenly spaced points, rounded, for pictures."""
    fractions = curve.fractions.cpu().numpy()
    points = np.linspace(0, 1, POINTS)
    scores = torch.atleast_2d(curve.scores).cpu().numpy()  # (N, steps)
    return [np.interp(points, fractions, row).round(5).tolist() for row in scores]


def coarse(heatmap: Tensor) -> dict[str, Any]:
    """A map for pictures: at most 32 values to a side, from 0 to 255.

    Args:
        heatmap (Tensor): `(H, W)`, or `(D, H, W)`, of which the middle slice is taken.

    Returns:
        *dict*: Its shape, and its bytes in base64.

    Example::

        >>> coarse(torch.tensor([[0.0, 2.0], [4.0, 8.0]]))
        {'shape': [2, 2], 'bytes': 'AECA/w=='}
    """
    grid = heatmap if heatmap.ndim == 2 else heatmap[len(heatmap) // 2]
    grid = grid.detach().float().nan_to_num().cpu()  # (H, W)
    if max(grid.shape) > _HEAT_SIDE:
        size = min(len(grid), _HEAT_SIDE), min(grid.shape[1], _HEAT_SIDE)
        grid = torch.nn.functional.adaptive_avg_pool2d(grid[None, None], size)[0, 0]
    low, high = float(grid.min()), float(grid.max())
    values = ((grid - low) * (255 / ((high - low) or 1))).round().to(torch.uint8)
    text = base64.b64encode(values.numpy().tobytes()).decode()
    return {"shape": list(grid.shape), "bytes": text}
