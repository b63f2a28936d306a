r"""Gives a heat map another scale of values, and leaves the order of its pixels alone.

Insertion, deletion and the pointing game read only the order of a map's pixels. Average drop,
increase in confidence and average gain read the values: they show the model the image through the
map. A map with a good order can have a poor scale, and methods that mask the image win much of
what they win by a better one. :func:`calibrate` gives any map its own best scale, for a few passes.

Of a few rising curves :math:`g` it takes, for each image, the one with the largest

.. math:: \log\frac{p(x \odot g(M))}{1 - p(x \odot g(M))} - \lambda \, \overline{g(M)}

the log-odds of the class behind the map, less a price for each unit of the map's area. The map as
it was is always among the choices, so that by this measure no map gets worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clustered._borrow import lent_to
from captum_clustered._checks import check_int, check_number
from captum_clustered._copies import Parted
from captum_clustered._gradients import gradients_reach
from captum_clustered.fills import Fill, fill_image, masked
from captum_clustered.metrics.maps import Interpolation, Maps, Status, prepare
from captum_clustered.metrics.scoring import ImageModel, Mixed, as_labels, at_a_time, resolve_target
from captum_clustered.targets import Score, Target, target_scores

__all__ = ["POWERS", "SIGMOIDS", "Calibration", "Knots", "Power", "Sigmoid", "calibrate"]

Rising = Callable[[Tensor], Tensor]
"""A curve: from values in [0, 1] to values that rise with them."""

# --- curves ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sigmoid:
    r"""The curve :math:`1 / (1 + e^{-(v - t) / s})`: it lifts what is above a threshold.

    Args:
        threshold (float): :math:`t`, where the curve is steepest.
        width (float): :math:`s`, above 0: the smaller, the steeper.

    Raises:
        ValueError: If one is not a finite number, or the width is not above 0.

    Example::

        >>> Sigmoid(0.5, 0.1)(torch.tensor([0.4, 0.5, 0.6]))
        tensor([0.2689, 0.5000, 0.7311])
    """

    threshold: float
    width: float

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold)
        check_number("width", self.width, above=0)

    def __call__(self, values: Tensor) -> Tensor:
        """The values on the curve, in the same shape."""
        return torch.sigmoid((values - self.threshold) / self.width)


@dataclass(frozen=True)
class Power:
    r"""The curve :math:`v^\gamma`.

    Args:
        exponent (float): :math:`\gamma`, above 0: below 1 the map grows, above 1 it shrinks.

    Raises:
        ValueError: If the exponent is not a finite number above 0.

    Example::

        >>> Power(0.5)(torch.tensor([0.0, 0.25, 1.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """

    exponent: float

    def __post_init__(self) -> None:
        check_number("exponent", self.exponent, above=0)

    def __call__(self, values: Tensor) -> Tensor:
        """The values on the curve, in the same shape."""
        return torch.pow(values, self.exponent)


@dataclass(frozen=True)
class Knots:
    """Straight lines from knot to knot; the knots divide [0, 1] evenly.

    Args:
        heights (tuple[float, ...]): The curve's values at the knots, from that at 0 to that at 1.

    Raises:
        ValueError: If there are fewer than two, or they fall.

    Example::

        >>> Knots((0.0, 0.8, 1.0))(torch.tensor([0.25, 0.5, 0.75]))
        tensor([0.4000, 0.8000, 0.9000])
    """

    heights: tuple[float, ...]

    def __post_init__(self) -> None:
        rises = [high - low for low, high in pairwise(self.heights)]
        if not rises or not all(rise >= 0 for rise in rises):
            raise ValueError(
                f"`heights` must be two or more numbers that do not fall; got {self.heights!r}."
            )

    def __call__(self, values: Tensor) -> Tensor:
        """The values on the curve, in the same shape."""
        heights = values.new_tensor(self.heights)
        return _between(heights.unsqueeze(0), values.reshape(1, -1)).view_as(values)


def _between(heights: Tensor, values: Tensor) -> Tensor:
    """Values `(N, D)` in [0, 1], each row on the lines through its heights `(N, K + 1)`."""
    scaled = values * (heights.shape[1] - 1)
    left = scaled.detach().floor().clamp(0, heights.shape[1] - 2).nan_to_num().long()  # (N, D)
    low, high = heights.gather(1, left), heights.gather(1, left + 1)
    return low + (scaled - left) * (high - low)


SIGMOIDS = tuple(Sigmoid(threshold, 0.03) for threshold in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5))
"""The curves that :func:`calibrate` tries by default."""

POWERS = tuple(Power(exponent) for exponent in (0.25, 0.35, 0.5, 0.7, 1.4, 2.0))
"""Curves of one parameter; the smaller the exponent, the larger the map."""

_STRAIGHT = Power(1.0)

_N_LINES = 8
"""Between the knots of a curve that is fitted."""

_LEAST_RISE = 0.01
"""Of a line before the first step; where a curve is level, there is no gradient to move it."""

_LEARNING_RATE = 0.5


@dataclass(frozen=True, eq=False)
class Order:
    """The order of the pixels of each map, which a curve must not change.

    A curve that is nearly level sends different numbers to the same one, up to rounding. That would
    make ties where there were none, and ties are broken by their place in the image.

    Attributes:
        pixels (Tensor): int64 `(N, D)`: the pixels of each map from its smallest value on.
        places (Tensor): int64 `(N, D)`: the place of each of these pixels among the map's different
            values, from 0.

    Example::

        >>> order = Order.of(torch.tensor([[3.0, 4.0, 3.0]]))
        >>> moved = order.keep(torch.tensor([[1.0, 1.0, 1.0]]))
        >>> moved[0, 0] < moved[0, 1], moved[0, 0] == moved[0, 2], moved
        (tensor(True), tensor(True), tensor([[1.0000, 1.0000, 1.0000]]))
    """

    pixels: Tensor
    places: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Order:
        """Sorts values `(N, D)`."""
        ranked, pixels = values.sort(dim=1, stable=True)
        larger = torch.zeros_like(pixels)
        larger[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
        return cls(pixels, larger.cumsum(1))

    def keep(self, values: Tensor) -> Tensor:
        """Moves values to the nearest floating point numbers that have this order.

        Args:
            values (Tensor): `(N, D)`, float32 or float64 in [0, 1]; equal where the map is.

        Returns:
            *Tensor*: `(N, D)`, in [0, 1].
        """
        whole = torch.int64 if values.dtype == torch.float64 else torch.int32
        # floating point numbers that are not negative rise with the integers that their bits are
        bits = values.gather(1, self.pixels).view(whole).to(torch.int64)
        one = torch.ones((), dtype=values.dtype, device=values.device).view(whole).to(torch.int64)
        bits = (bits - self.places).cummax(1).values + self.places  # each above the one before
        bits = bits.minimum(one - (self.places[:, -1:] - self.places))  # and all up to 1
        moved = bits.to(whole).view(values.dtype)
        return torch.empty_like(values).scatter_(1, self.pixels, moved)


# --- calibration ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Calibration:
    """Heat maps on a scale of their own, and how it was chosen.

    `N` is the number of images, `T` that of curves; one more if curves were fitted.

    Attributes:
        heatmaps (Tensor): `(N, 1, *spatial)`, in [0, 1], as large as the images. A flat map is as
            it was, clamped to [0, 1]; one with a NaN or an infinity is NaN.
        curves (tuple[callable, ...]): What was tried; the first leaves a map as it is.
        fitted (tuple[Knots, ...]): The curve that was fitted to each image; empty without steps.
        chosen (Tensor): int64 `(N,)`: the curve of each image, among those that were tried and the
            one that was fitted.
        objectives (Tensor): `(N, T)`: the score behind the map less the price of its area.
        scores (Tensor): `(N, T)`: the score of the class of each image, seen through each map.
        areas (Tensor): `(N, T)`: the mean of each map.
        status (Tensor): int8 `(N,)`, a :class:`~captum_clustered.metrics.Status` of each map before
            it was calibrated.
        target (Tensor or None): int64 `(N,)`: the classes; None if the model gives one score per
            image.
        passes (int): How many versions of each image the model saw: the image, one behind each
            curve, and one for each step and after the last. Passes that check whether images may
            share a batch are not counted.

    Example::

        >>> zeros = torch.zeros(1, 1)
        >>> found = Calibration(
        ...     heatmaps=torch.ones(1, 1, 2, 2), curves=(Power(1.0),), fitted=(),
        ...     chosen=torch.tensor([0]), objectives=zeros, scores=zeros, areas=zeros,
        ...     status=torch.zeros(1), target=None, passes=1,
        ... )
        >>> found.names
        ['Power(exponent=1.0)']
    """

    heatmaps: Tensor
    curves: tuple[Rising, ...]
    fitted: tuple[Knots, ...]
    chosen: Tensor
    objectives: Tensor
    scores: Tensor
    areas: Tensor
    status: Tensor
    target: Tensor | None
    passes: int

    @property
    def names(self) -> list[str]:
        """The curve of each image, in words."""
        return [
            repr((*self.curves, *self.fitted[image : image + 1])[index])
            for image, index in enumerate(self.chosen.tolist())
        ]


@torch.no_grad()
def calibrate(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    heatmaps: Any,
    target: Target = None,
    *,
    additional_forward_args: Any = None,
    curves: Sequence[Rising] = SIGMOIDS,
    n_steps: int = 0,
    area_weight: float = 0.5,
    score: Score = "log_odds",
    interpolation: Interpolation = "bilinear",
    fill: Fill = 0.0,
    max_examples_per_batch: int | None = None,
) -> Calibration:
    """Chooses a scale for each heat map by what the model says of the image behind it.

    The order of the pixels stays: whatever is larger stays larger, and equal pixels stay equal. So
    insertion, deletion and the pointing game give the same numbers before and after. Without
    `n_steps` no gradient is needed. Put the model into evaluation mode first.

    Args:
        forward_func (callable): The model, or a function that returns its logits.
        inputs (Tensor or tuple[Tensor, ...]): The model's inputs. The first one is the images,
            `(N, C, *spatial)`, as the model takes them; only the images are masked.
        heatmaps (Tensor or array): `(N, 1, *spatial)` or `(N, *spatial)`, floating point, of any
            library, range and resolution.
        target (int, tuple, Tensor or list, optional): The class that the maps explain, as in
            Captum. Default: None (the class that the model predicts)
        additional_forward_args (Any, optional): Further arguments of `forward_func`, one or a
            tuple. Default: None
        curves (sequence of callables, optional): What is tried beside the map as it is: callables
            from values in [0, 1] to values that rise with them, such as :class:`Sigmoid` and
            :class:`Power`. Each is scaled so that 0 and 1 stay. Default: :data:`SIGMOIDS`
        n_steps (int, optional): After that, each image's curve is bent to its own, straight lines
            between nine knots, in so many steps of gradient ascent; it is taken where it is better.
            The score must have a gradient. Default: 0
        area_weight (float, optional): The price of a map that is 1 everywhere, in units of the
            score. With 0.0 nothing keeps a map from growing. Default: 0.5
        score (str or callable, optional): What becomes of the logits; see
            :func:`captum_clustered.targets.target_scores`. Default: ``"log_odds"``
        interpolation (str or None, optional): How a map of another size is resized:
            ``"bilinear"``, ``"nearest"``, or None to raise an error. Default: ``"bilinear"``
        fill (float, sequence, Tensor, Black, Blur or str, optional): What replaces the hidden part,
            as for :func:`~captum_clustered.metrics.confidences`. Default: 0.0
        max_examples_per_batch (int, optional): Images in one forward pass; changes memory and time,
            never the result. Default: None (as many as fit a budget)

    Returns:
        *Calibration*: The maps `(N, 1, *spatial)` in [0, 1], the curve of each, and the objectives
        of all curves.

    Raises:
        TypeError: If an argument, or what the model returns, has a wrong type.
        ValueError: If a shape or a value does not fit, a curve does not rise, or the score has no
            gradient where steps are asked for.

    Example::

        >>> def logits(x):  # the class is at the left; the right speaks against it
        ...     return torch.stack([x[..., :2].sum((1, 2, 3)), x[..., 2:].sum((1, 2, 3))], 1)
        >>> heat = torch.tensor([[[[1.0, 0.6, 0.4, 0.0]]]])
        >>> found = calibrate(logits, torch.ones(1, 1, 1, 4), heat, target=0)
        >>> found.heatmaps.round(decimals=2)
        tensor([[[[1.0000, 0.9700, 0.0300, 0.0000]]]])
        >>> found.names, found.passes
        (['Sigmoid(threshold=0.5, width=0.03)'], 8)
    """
    check_int("n_steps", n_steps, 0)
    check_number("area_weight", area_weight, at_least=0)
    tried: tuple[Rising, ...] = (_STRAIGHT, *_checked(curves))
    model = ImageModel.of(forward_func, inputs, additional_forward_args)
    image = model.image  # (N, C, *spatial)
    n, size, at_once = len(image), image.shape[2:], at_a_time(image, max_examples_per_batch)
    maps = prepare(heatmaps, size, n_examples=n, device=image.device, interpolation=interpolation)
    with lent_to(model) as model:
        output = model(image)
        look = _Look(model, output, resolve_target(output, target), fill_image(fill, image), score)

        found: list[_Judged] = []
        fitted: list[Knots] = []
        start, width = 0, max(1, at_once // len(tried))
        while start < n or not found:
            rows = torch.arange(start, min(start + width, n), device=image.device)  # (r,)
            part = Maps(maps.values[rows], maps.status[rows])
            judge = partial(_judge, look, rows=rows, area_weight=area_weight, at_once=at_once)
            judged = judge(_bend(tried, part))
            knots: list[Knots] = []
            if judged is not None and n_steps and n:
                judged, knots = _fit(judge, judged, tried, part, n_steps, area_weight)
            if judged is None:  # all over again
                start, width, at_once = 0, n, n
                found.clear()
                fitted.clear()
                continue
            found.append(judged)
            fitted += knots
            start += width
    best, chosen = map(torch.cat, zip(*(judged.best() for judged in found), strict=True))
    unknown = (maps.status == Status.NOT_FINITE).view(-1, *[1] * (best.ndim - 1))
    return Calibration(
        heatmaps=torch.where(unknown, torch.nan, best),
        curves=tried,
        fitted=tuple(fitted),
        chosen=chosen,
        objectives=torch.cat([judged.objectives for judged in found]),
        scores=torch.cat([judged.scores for judged in found]),
        areas=torch.cat([judged.areas for judged in found]),
        status=maps.status,
        target=as_labels(look.classes),
        passes=len(tried) + 1 + (n_steps + 1 if n_steps else 0),
    )


def _checked(curves: Sequence[Rising]) -> tuple[Rising, ...]:
    """The curves, each of which must rise from 0 to 1."""
    if not isinstance(curves, Sequence) or not all(map(callable, curves)):
        raise TypeError(
            f"`curves` must be a sequence of callables; got {curves!r}. Pass, for example, "
            "`[Power(0.5), Sigmoid(0.3, 0.06)]`."
        )
    grid = torch.linspace(0, 1, 257, dtype=torch.float64)
    for curve in curves:
        values = curve(grid)
        if not isinstance(values, Tensor) or values.shape != grid.shape:
            raise TypeError(
                f"`curves` must return a tensor of the shape that they are given; {curve!r} "
                f"returned {type(values).__name__}. Apply it value by value."
            )
        steps = values.diff()
        low, high = curve(torch.tensor([0.0, 1.0]))  # in float32, as most maps are
        if not (values.isfinite().all() and (steps >= 0).all() and high > low):
            raise ValueError(
                f"`curves` must rise from 0 to 1 and be finite there; got {curve!r}, which does "
                "not. A curve that falls would change the order of the pixels."
            )
    return tuple(curves)


class _Look:
    """What the model says of its images behind masks; it learns whether examples may be mixed."""

    def __init__(
        self,
        model: ImageModel,
        output: Tensor,
        classes: Tensor | None,
        background: Tensor,
        score: Score,
    ) -> None:
        self.model = model
        self.output = output
        self.classes = classes
        self.background = background.expand_as(model.image)
        self.score = score
        self.mixed: Mixed | None = None

    def __call__(self, masks: Tensor, rows: Tensor, at_once: int) -> Tensor | None:
        """The scores `(M,)` behind masks `(M, 1, *spatial)` of the examples `rows`, `(M,)`.

        None where it turns out that a pass must have one image of each example.
        """
        scores = [masks.new_zeros(0, dtype=torch.float64)]
        if self.mixed is None and len(rows):
            first = max(1, at_once - 3)  # three images go along
            images = self._images(masks[:first], rows[:first])
            self.mixed, output = self.model.mixed(images, rows[:first], self.output)
            if output is None:
                return None
            scores.append(self._scores(output, rows[:first]))
            masks, rows = masks[first:], rows[first:]
        if self.mixed is not None and len(rows):
            for some, at in zip(masks.split(at_once), rows.split(at_once), strict=True):
                try:
                    output = self.mixed(self._images(some, at), at)
                except Parted as parted:
                    self.mixed = self.model.parted(parted)
                    return None
                scores.append(self._scores(output, at))
        return torch.cat([part.to(scores[-1]) for part in scores])

    def _images(self, masks: Tensor, rows: Tensor) -> Tensor:
        return masked(self.model.image[rows], masks, self.background[rows])

    def _scores(self, output: Tensor, rows: Tensor) -> Tensor:
        return target_scores(
            output, None if self.classes is None else self.classes[rows], self.score
        )


@dataclass(frozen=True, eq=False)
class _Judged:
    """The maps of `r` images on `T` curves, and what the model says of the images behind them.

    Attributes:
        heatmaps (Tensor): `(T, r, 1, *spatial)`.
        scores (Tensor): `(r, T)`.
        areas (Tensor): `(r, T)`.
        objectives (Tensor): `(r, T)`: the scores less the price of the areas.
    """

    heatmaps: Tensor
    scores: Tensor
    areas: Tensor
    objectives: Tensor

    def best(self) -> tuple[Tensor, Tensor]:
        """The best map of each image, `(r, 1, *spatial)`, and the number of its curve, `(r,)`."""
        # the first of equals, which is the map as it is
        known = torch.where(self.objectives.isnan(), -torch.inf, self.objectives)
        chosen = known.argmax(1)
        return self.heatmaps[chosen, torch.arange(len(chosen), device=chosen.device)], chosen

    def or_better(self, other: _Judged) -> _Judged:
        """The better of one map and one other for each image; both have `T` = 1."""
        better = other.objectives > self.objectives  # (r, 1)
        wide = better.view(1, -1, *[1] * (self.heatmaps.ndim - 2))
        return _Judged(
            torch.where(wide, other.heatmaps, self.heatmaps),
            torch.where(better, other.scores, self.scores),
            torch.where(better, other.areas, self.areas),
            torch.where(better, other.objectives, self.objectives),
        )

    def joined(self, other: _Judged) -> _Judged:
        """With the curves of another for the same images."""
        return _Judged(
            torch.cat([self.heatmaps, other.heatmaps]),
            torch.cat([self.scores, other.scores], 1),
            torch.cat([self.areas, other.areas], 1),
            torch.cat([self.objectives, other.objectives], 1),
        )

    def detach(self) -> _Judged:
        """Without the graph of the gradients."""
        return _Judged(*(value.detach() for value in vars(self).values()))


def _judge(
    look: _Look, heatmaps: Tensor, rows: Tensor, area_weight: float, at_once: int
) -> _Judged | None:
    """What comes of maps `(T, r, 1, *spatial)` of the examples `rows`; None as for `look`."""
    seen = look(heatmaps.flatten(0, 1), rows.repeat(len(heatmaps)), at_once)
    if seen is None:
        return None
    scores = seen.view(len(heatmaps), len(rows)).T  # (r, T)
    areas = heatmaps.flatten(2).mean(2).T.to(scores)  # (r, T)
    return _Judged(heatmaps, scores, areas, scores - area_weight * areas)


def _bend(curves: Sequence[Rising], maps: Maps) -> Tensor:
    """The maps of some examples on all curves, `(T, r, 1, *spatial)`; the first is the map."""
    flat = maps.values.flatten(1)  # (r, D)
    order, flawed = Order.of(flat), _flawed(maps)
    bent = [flat]
    for curve in curves[1:]:
        bent.append(torch.where(flawed, flat, order.keep(_scaled(curve, flat))))
    return torch.stack(bent).view(len(curves), *maps.values.shape)


def _scaled(curve: Rising, values: Tensor) -> Tensor:
    """Values on a curve, which is scaled so that 0 and 1 stay."""
    low, high = curve(values.new_tensor([0.0, 1.0]))
    scaled: Tensor = (curve(values) - low) / (high - low)
    return scaled.clamp(0, 1).abs()  # without -0.0


def _flawed(maps: Maps) -> Tensor:
    """The maps that no curve can improve, `(r, 1)`."""
    return ((maps.status == Status.FLAT) | (maps.status == Status.NOT_FINITE)).unsqueeze(1)


_Judge = Callable[[Tensor], "_Judged | None"]


def _fit(
    judge: _Judge,
    judged: _Judged,
    tried: Sequence[Rising],
    maps: Maps,
    n_steps: int,
    area_weight: float,
) -> tuple[_Judged | None, list[Knots]]:
    """Bends the best curve of each image further, by gradient steps on the heights of its knots.

    Returns:
        *tuple*: What was judged, with the best of the bent curves as one more; None as for `judge`.
        And these curves.
    """
    flat = maps.values.flatten(1)  # (r, D)
    order, flawed = Order.of(flat), _flawed(maps)
    grid = torch.linspace(0, 1, _N_LINES + 1, dtype=flat.dtype, device=flat.device)
    chosen = judged.best()[1].tolist()
    begin = torch.stack([_scaled(tried[index], grid) for index in chosen])  # (r, K + 1)
    course: list[tuple[Tensor, _Judged]] = []
    with torch.enable_grad(), gradients_reach(_NO_GRADIENT):
        free = begin.diff(dim=1).clamp(min=_LEAST_RISE).log().requires_grad_()
        adam = torch.optim.Adam([free], lr=_LEARNING_RATE)
        while True:
            heights = F.pad(free.softmax(1).cumsum(1), (1, 0))  # (r, K + 1)
            values = _between(heights, flat)
            # what is judged has the order of the map; the gradient is that of the lines
            kept = order.keep(values.detach().clamp(0, 1)) + (values - values.detach())
            bent = torch.where(flawed, flat, kept)  # (r, D)
            now = judge(bent.view_as(maps.values).unsqueeze(0))
            if now is None:
                return None, []
            course.append((heights.detach(), now.detach()))
            if len(course) > n_steps:
                break
            (slope,) = torch.autograd.grad(now.scores.sum(), bent, allow_unused=True)
            if slope is None:  # the score has a gradient, but not for the image
                raise ValueError(_NO_GRADIENT)
            slope = slope - area_weight / bent.shape[1]
            (free.grad,) = torch.autograd.grad(bent, free, -slope)
            adam.step()
    heights, best = course[0]
    for other, now in course[1:]:
        heights = torch.where(now.objectives > best.objectives, other, heights)
        best = best.or_better(now)
    return judged.joined(best), [Knots(tuple(row)) for row in heights.tolist()]


_NO_GRADIENT = (
    "`n_steps` must be 0 where the score has no gradient with respect to the inputs; it has none. "
    "Leave out what cuts it off (`.item()`, `.detach()`, argmax, `torch.no_grad`, "
    "`torch.inference_mode`), or try more `curves` instead."
)
