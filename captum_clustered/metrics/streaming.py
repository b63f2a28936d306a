"""The metrics for streams of batches and for several processes, as `torchmetrics.Metric`.

Each class is the stateful form of a function of :mod:`captum_clustered.metrics`: it adds up its
results and does not run the model. `update` takes what
:func:`~captum_clustered.metrics.confidences`, :func:`~captum_clustered.metrics.insertion` and the
others return, so a collection of metrics needs one run of the model. `compute` returns the mean
over all images of all processes, in percent. The sums are float64; on a device without it (MPS)
leave the metric on the CPU.

Example::

    >>> from torchmetrics import MetricCollection
    >>> from captum_clustered.metrics import confidences
    >>> def logits(x):
    ...     return torch.stack([x.sum((1, 2, 3)), torch.zeros(len(x))], 1)
    >>> metrics = MetricCollection([AverageDrop(), IncreaseInConfidence(), MeanArea()])
    >>> for images in torch.tensor([[[[[1.0, 1.0]]]], [[[[1.0, -1.0]]]]]):
    ...     heat = torch.tensor([[[1.0, 0.0]]])
    ...     metrics.update(confidences(logits, images, heat, target=0))
    >>> metrics.compute()["IncreaseInConfidence"]
    tensor(50., dtype=torch.float64)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from captum_clustered._checks import check_choice
from captum_clustered.metrics.adcc import AdccParts, adcc_score
from captum_clustered.metrics.confidence import Confidences, wins
from captum_clustered.metrics.curves import Curve
from captum_clustered.metrics.localization import energy_inside, iou, pointing_game
from captum_clustered.metrics.maps import Interpolation, Status
from captum_clustered.metrics.scoring import Conventions

__all__ = [
    "Adcc",
    "AverageDrop",
    "AverageGain",
    "Deletion",
    "DropOnComplement",
    "EnergyInside",
    "IncreaseInConfidence",
    "Insertion",
    "Iou",
    "MeanArea",
    "PointingGame",
    "StatusCounts",
    "WinRate",
]


class _Sums(Metric):
    """One float64 vector of sums, from which `compute` makes a number.

    The name of this state has the class and its settings in it: a `MetricCollection` merges two
    metrics whose states have equal names and happen to be equal after the first batch.
    """

    full_state_update = False
    is_differentiable = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 100.0

    def __init__(self, length: int, *, _settings: tuple[object, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        words = (type(self).__name__, *(str(setting) for setting in _settings), "sums")
        self._key = "_".join("".join(c if c.isalnum() else "_" for c in word) for word in words)
        self.add_state(self._key, torch.zeros(length, dtype=torch.float64), dist_reduce_fx="sum")
        self.conventions: Conventions | None = None

    @property
    def _sums(self) -> Tensor:
        sums: Tensor = getattr(self, self._key)
        return sums

    def _add(self, *columns: Tensor) -> None:
        """Adds the sum of each column `(N,)`, and the number of images to the last sum."""
        rows = torch.stack([column.detach().to(self._sums) for column in columns])  # (columns, N)
        count = rows.new_tensor([rows.shape[1]])
        setattr(self, self._key, self._sums + torch.cat([rows.sum(1), count]))

    def _note(self, conventions: Conventions) -> None:
        """Refuses numbers of other conventions: their mean has no meaning, also after `reset`."""
        if self.conventions is None:
            self.conventions = conventions
        elif self.conventions != conventions:
            raise ValueError(
                f"`update` must get results of the same conventions; got {conventions} after "
                f"{self.conventions}. Use one metric for each."
            )


class _Mean(_Sums):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(2, **kwargs)

    def compute(self) -> Tensor:
        """Returns the mean over all images so far, in percent; NaN if there are none."""
        return self._sums[0] / self._sums[1]


class _OfConfidences(_Mean):
    """The mean of one metric of :class:`~captum_clustered.metrics.Confidences`."""

    _metric: str  # the name of the attribute

    def update(self, found: Confidences) -> None:
        """Adds a batch, as :func:`~captum_clustered.metrics.confidences` returns it."""
        self._note(found.conventions)
        self._add(getattr(found, self._metric))


class AverageDrop(_OfConfidences):
    """Stateful form of :func:`~captum_clustered.metrics.average_drop` (ADC).

    Args:
        **kwargs (Any): For `torchmetrics.Metric`.

    Example::

        >>> from captum_clustered.metrics import confidences
        >>> def logits(x):
        ...     return torch.stack([x.sum((1, 2, 3)), torch.zeros(len(x))], 1)
        >>> metric = AverageDrop()
        >>> heat = torch.tensor([[[1.0, 0.0]]])
        >>> metric.update(confidences(logits, torch.ones(1, 1, 1, 2), heat, target=0))
        >>> metric.compute()
        tensor(17.0003, dtype=torch.float64)
        >>> metric.conventions.score
        'softmax'
    """

    higher_is_better = False
    _metric = "average_drop"


class IncreaseInConfidence(_OfConfidences):
    """Stateful form of :func:`~captum_clustered.metrics.increase_in_confidence` (PIC).

    Args:
        **kwargs (Any): For `torchmetrics.Metric`.
    """

    higher_is_better = True
    _metric = "increase_in_confidence"


class AverageGain(_OfConfidences):
    """Stateful form of :func:`~captum_clustered.metrics.average_gain` (AG).

    Args:
        **kwargs (Any): For `torchmetrics.Metric`.
    """

    higher_is_better = True
    _metric = "average_gain"


class DropOnComplement(_OfConfidences):
    """Stateful form of :func:`~captum_clustered.metrics.drop_on_complement` (ADD).

    `update` needs the result of ``confidences(..., complement=True)``, which is the default.

    Args:
        **kwargs (Any): For `torchmetrics.Metric`.
    """

    higher_is_better = True
    plot_lower_bound = None  # negative where the model is surer of what the map hides
    _metric = "drop_on_complement"


class MeanArea(_OfConfidences):
    """Stateful form of :func:`~captum_clustered.metrics.mean_area`, the complexity in ADCC.

    Args:
        **kwargs (Any): For `torchmetrics.Metric`.
    """

    higher_is_better = False
    _metric = "area"


class StatusCounts(_Sums):
    """How many maps have each :class:`~captum_clustered.metrics.Status`: OK, FLAT and so on.

    `compute` returns int64 `(4,)`, one count per status.

    Args:
        **kwargs (Any): For `torchmetrics.Metric`.

    Example::

        >>> from captum_clustered.metrics import prepare
        >>> counts = StatusCounts()
        >>> counts.update(prepare(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), size=(2,)))
        >>> counts.compute()
        tensor([1, 1, 0, 0])
    """

    higher_is_better = None
    plot_upper_bound = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(len(Status) + 1, **kwargs)

    def update(self, found: Any) -> None:
        """Adds a batch: any result with a `status`."""
        self._add(*(found.status == status for status in Status))

    def compute(self) -> Tensor:
        """Returns the counts in the order of :class:`~captum_clustered.metrics.Status`."""
        return self._sums[:-1].long()


class WinRate(_Mean):
    """Stateful form of :func:`~captum_clustered.metrics.wins`: how often one method beats another.

    Args:
        larger_wins (bool, optional): Whether the larger number wins. Default: False (as for drops)
        **kwargs (Any): For `torchmetrics.Metric`.

    Example::

        >>> metric = WinRate()
        >>> metric.update(torch.tensor([10.0, 30.0]), torch.tensor([20.0, 20.0]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, larger_wins: bool = False, **kwargs: Any) -> None:
        super().__init__(_settings=(larger_wins,), **kwargs)
        self.larger_wins = larger_wins

    def update(self, first: Tensor, second: Tensor) -> None:
        """Adds a batch: both methods' numbers `(N,)` on the same images."""
        self._add(wins(first, second, higher_is_better=self.larger_wins))


class Adcc(_Sums):
    """Stateful form of :func:`~captum_clustered.metrics.adcc`.

    Args:
        aggregate (str, optional): ``"per_image"``, the mean of each image's ADCC, or
            ``"of_means"``, the ADCC of the parts' means. Papers use both, with different results.
            Default: ``"per_image"``
        **kwargs (Any): For `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(
        self, aggregate: Literal["per_image", "of_means"] = "per_image", **kwargs: Any
    ) -> None:
        check_choice("aggregate", aggregate, ("per_image", "of_means"))
        super().__init__(5, **kwargs)
        self.aggregate = aggregate

    def update(self, found: AdccParts) -> None:
        """Adds a batch, as :func:`~captum_clustered.metrics.adcc` returns it."""
        self._note(found.conventions)
        self._add(found.coherency, found.complexity, found.average_drop, found.per_image)

    def compute(self) -> Tensor:
        """Returns the aggregate over all images so far, in percent."""
        means = self._sums[:-1] / self._sums[-1]
        coherency, complexity, average_drop, per_image = means.unbind()
        if self.aggregate == "of_means":
            return adcc_score(coherency, complexity, average_drop)
        return per_image


class _Area(_Mean):
    """The mean area under the curves of one kind."""

    _kind: str

    def update(self, curve: Curve) -> None:
        """Adds the curves of a batch."""
        if curve.kind != self._kind:
            raise ValueError(
                f"`curve` must be of kind {self._kind!r}; got {curve.kind!r}. Use the metric "
                "with the name of the curve."
            )
        self._note(curve.conventions)
        self._add(curve.area)


class Insertion(_Area):
    """Stateful form of the area of :func:`~captum_clustered.metrics.insertion`.

    Args:
        **kwargs (Any): For `torchmetrics.Metric`.
    """

    higher_is_better = True
    _kind = "insertion"


class Deletion(_Area):
    """Stateful form of the area of :func:`~captum_clustered.metrics.deletion`.

    Args:
        **kwargs (Any): For `torchmetrics.Metric`.
    """

    higher_is_better = False
    _kind = "deletion"


class _Localization(_Mean):
    """The mean of a metric of maps and masks over the images that have an object."""

    higher_is_better = True

    def __init__(self, measure: Callable[..., Tensor], settings: dict[str, Any], **kwargs: Any):
        super().__init__(_settings=tuple(settings.values()), **kwargs)
        self._measure = partial(measure, **settings)

    def update(self, heatmaps: Any, masks: Tensor) -> None:
        """Adds a batch of heat maps and masks."""
        values = self._measure(heatmaps, masks)  # (N,)
        known = ~values.isnan()
        total = torch.where(known, values, 0)
        sums = torch.stack([total.sum(dtype=self._sums.dtype), known.sum()])
        setattr(self, self._key, self._sums + sums.to(self._sums))


class PointingGame(_Localization):
    """Stateful form of :func:`~captum_clustered.metrics.pointing_game`.

    Images whose mask is empty are not counted.

    Args:
        tolerance (float, optional): Distance in pixels of the mask. Default: 15
        interpolation (str or None, optional): How a map is resized. Default: ``"bilinear"``
        **kwargs (Any): For `torchmetrics.Metric`.

    Example::

        >>> metric = PointingGame(tolerance=0)
        >>> metric.update(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[0, 1]]]))
        >>> metric.compute()
        tensor(100., dtype=torch.float64)
    """

    def __init__(
        self, tolerance: float = 15, interpolation: Interpolation = "bilinear", **kwargs: Any
    ) -> None:
        settings = {"tolerance": tolerance, "interpolation": interpolation}
        super().__init__(pointing_game, settings, **kwargs)


class EnergyInside(_Localization):
    """Stateful form of :func:`~captum_clustered.metrics.energy_inside`.

    Images whose mask is empty are not counted.

    Args:
        interpolation (str or None, optional): How a map is resized. Default: ``"bilinear"``
        **kwargs (Any): For `torchmetrics.Metric`.
    """

    def __init__(self, interpolation: Interpolation = "bilinear", **kwargs: Any) -> None:
        super().__init__(energy_inside, {"interpolation": interpolation}, **kwargs)


class Iou(_Localization):
    """Stateful form of :func:`~captum_clustered.metrics.iou`.

    Images whose mask is empty are not counted.

    Args:
        threshold (float, optional): In (0, 1]. Default: 0.5
        interpolation (str or None, optional): How a map is resized. Default: ``"bilinear"``
        **kwargs (Any): For `torchmetrics.Metric`.
    """

    def __init__(
        self, threshold: float = 0.5, interpolation: Interpolation = "bilinear", **kwargs: Any
    ) -> None:
        settings = {"threshold": threshold, "interpolation": interpolation}
        super().__init__(iou, settings, **kwargs)
