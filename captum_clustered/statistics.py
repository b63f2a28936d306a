"""Confidence intervals for tables: of a mean, a paired difference of two methods, a rate.

Images of one case (frames of one patient) are not independent. If `cases` says which images belong
together, the bootstrap draws whole cases instead of images. All draws are seeded: the same numbers
give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from captum_clustered._checks import check_choice, check_int, check_number

__all__ = ["Interval", "mean_interval", "paired_difference", "rate_interval", "win_rate"]

_BATCH = 2**22
"""How many numbers the bootstrap draws at a time."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate (float): The value of the given data.
        low (float): Lower end; NaN if it cannot be estimated, as with a single case.
        high (float): Upper end; NaN if `low` is.
        level (float): The confidence level, such as 0.95.
        n (int): Number of images.
        n_cases (int): Number of independent cases; `n` if each image is a case.
        method (str): ``"percentile"``, ``"bca"``, ``"normal"`` or ``"wilson"``.

    Example::

        >>> print(Interval(34.1, 30.21, 38.0, 0.95, 300, 300, "bca"))
        34.10 [30.21, 38.00]
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int
    n_cases: int
    method: str

    def __str__(self) -> str:
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def mean_interval(
    values: Any,
    *,
    cases: Sequence[Hashable] | None = None,
    level: float = 0.95,
    method: Literal["percentile", "bca", "normal"] = "percentile",
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean over images with a bootstrap interval.

    With `cases`, whole cases are drawn with replacement, and each draw's mean is over the images of
    its cases (a cluster bootstrap). The estimate is the mean over images in both forms.

    Args:
        values (array or Tensor): One number per image, `(n,)`, finite.
        cases (sequence, optional): The case of each image, `(n,)`.
            Default: None (each image is a case)
        level (float, optional): Confidence level, in (0, 1). Default: 0.95
        method (str, optional): ``"percentile"``; ``"bca"``, which corrects for bias and skewness
            (Efron 1987); or ``"normal"``, which draws nothing: the standard error times the
            quantile of the normal distribution, to which the others come close when there are many
            cases. Default: ``"percentile"``
        n_resamples (int, optional): Number of draws. Default: 10000
        seed (int, optional): Seed of the draws. Default: 0

    Returns:
        *Interval*: The interval; NaN at both ends if there are fewer than two cases.

    Raises:
        ValueError: If a value is not finite, or an argument does not fit.

    Example::

        >>> interval = mean_interval([10.0, 20.0, 30.0, 60.0])
        >>> interval.estimate, 10 <= interval.low < 30 < interval.high <= 60
        (30.0, True)
        >>> mean_interval([10.0, 20.0, 90.0], cases=["a", "a", "b"]).n_cases
        2
    """
    numbers = _finite("values", values)
    sums, counts = _by_case(numbers, cases)
    _check(level, n_resamples)
    check_choice("method", method, ("percentile", "bca", "normal"))
    estimate = float(numbers.mean()) if len(numbers) else math.nan
    if method == "normal":
        low, high = normal_ends(sums, counts, level)
    else:
        low, high = _bootstrap(sums, counts, level, method, n_resamples, seed)
    return Interval(estimate, low, high, level, len(numbers), len(sums), method)


def paired_difference(
    first: Any,
    second: Any,
    *,
    cases: Sequence[Hashable] | None = None,
    level: float = 0.95,
    method: Literal["percentile", "bca", "normal"] = "percentile",
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of `first - second` over the same images, with a bootstrap interval.

    An image that is hard for both methods cancels out. So the difference can be clear even if the
    intervals of the two means overlap.

    Args:
        first (array or Tensor): The numbers of one method, `(n,)`, finite.
        second (array or Tensor): The numbers of the other method on the same images, in the same
            order, `(n,)`, finite.
        cases (sequence, optional): As for :func:`mean_interval`, like all that follow.
            Default: None
        level (float, optional): Default: 0.95
        method (str, optional): Default: ``"percentile"``
        n_resamples (int, optional): Default: 10000
        seed (int, optional): Default: 0

    Returns:
        *Interval*: The difference; negative if the first method's numbers are smaller.

    Raises:
        ValueError: If the lengths differ, a value is not finite, or an argument does not fit.

    Example::

        >>> interval = paired_difference([11.0, 52.0, 33.0], [10.0, 50.0, 30.0])
        >>> interval.estimate, 1 <= interval.low < interval.high <= 3
        (2.0, True)
    """
    ours, theirs = _pair(first, second)
    return mean_interval(
        ours - theirs,
        cases=cases,
        level=level,
        method=method,
        n_resamples=n_resamples,
        seed=seed,
    )


def rate_interval(
    hits: Any,
    *,
    cases: Sequence[Hashable] | None = None,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A rate, such as the percentage increase in confidence (PIC), with its interval.

    For independent images this is Wilson's score interval, which has a width even if the rate is 0
    or 100, where a bootstrap has none. With `cases` it is the cluster bootstrap of
    :func:`mean_interval`.

    Args:
        hits (array or Tensor): 0 or 100 for each image, `(n,)`; a number between counts in part.
        cases (sequence, optional): As for :func:`mean_interval`, like all that follow.
            Default: None
        level (float, optional): Default: 0.95
        n_resamples (int, optional): For the cluster bootstrap. Default: 10000
        seed (int, optional): For the cluster bootstrap. Default: 0

    Returns:
        *Interval*: In percent.

    Raises:
        ValueError: If a value lies outside [0, 100], or an argument does not fit.

    Example::

        >>> print(rate_interval([100.0] * 35 + [0.0] * 110))  # 35 of 145
        24.14 [17.90, 31.71]
    """
    numbers = _finite("hits", hits)
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() <= 100):
        raise ValueError(
            f"`hits` must lie in [0, 100]; got values from {numbers.min():g} to {numbers.max():g}. "
            "Use mean_interval for other numbers."
        )
    if cases is not None:
        return mean_interval(numbers, cases=cases, level=level, n_resamples=n_resamples, seed=seed)
    _check(level, n_resamples)
    n = len(numbers)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, level, 0, 0, "wilson")
    rate = float(numbers.mean()) / 100
    z = NormalDist().inv_cdf((1 + level) / 2)  # 1.96 for 95 %
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low, high = (100 * min(max(end, 0.0), 1.0) for end in (centre - half, centre + half))
    return Interval(100 * rate, low, high, level, n, n, "wilson")


def win_rate(
    first: Any,
    second: Any,
    *,
    higher_is_better: bool = False,
    cases: Sequence[Hashable] | None = None,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The percentage of images on which the first method beats the second; a tie is not a win.

    Args:
        first (array or Tensor): The numbers of one method, `(n,)`, finite.
        second (array or Tensor): The numbers of the other method on the same images, in the same
            order, `(n,)`, finite.
        higher_is_better (bool, optional): Whether the larger number wins. Default: False
        cases (sequence, optional): As for :func:`rate_interval`, like all that follow.
            Default: None
        level (float, optional): Default: 0.95
        n_resamples (int, optional): Default: 10000
        seed (int, optional): Default: 0

    Returns:
        *Interval*: In percent, as from :func:`rate_interval`.

    Raises:
        ValueError: If the lengths differ, a value is not finite, or an argument does not fit.

    Example::

        >>> win_rate([1.0, 2.0, 3.0, 9.0], [2.0, 4.0, 3.0, 1.0]).estimate
        50.0
    """
    ours, theirs = _pair(first, second)
    won = ours > theirs if higher_is_better else ours < theirs
    return rate_interval(100.0 * won, cases=cases, level=level, n_resamples=n_resamples, seed=seed)


def normal_ends(sums: Array, counts: Array, level: float) -> tuple[float, float]:
    """The ends of the normal interval of a mean over images.

    The mean is a ratio of two sums over cases, so that its standard error is that of a ratio: from
    what each case has above or below the mean times its images (Cochran, Sampling Techniques,
    section 6.3).

    Args:
        sums (array): Of the numbers of each case, `(n_cases,)`.
        counts (array): Of the images of each case, `(n_cases,)`.
        level (float): Confidence level, in (0, 1).

    Returns:
        *tuple*: The low and the high end; NaN if there are fewer than two cases.

    Example::

        >>> low, high = normal_ends(np.array([1.0, 2.0, 3.0]), np.ones(3), 0.95)
        >>> round(low, 3), round(high, 3)  # 2 -+ 1.96 / sqrt(3)
        (0.868, 3.132)
    """
    n = len(sums)
    if n < 2:
        return math.nan, math.nan
    mean = sums.sum() / counts.sum()
    error = math.sqrt(((sums - mean * counts) ** 2).sum() * n / (n - 1)) / counts.sum()
    half = NormalDist().inv_cdf((1 + level) / 2) * error  # 1.96 for 95 %
    return float(mean - half), float(mean + half)


def _finite(name: str, values: Any) -> Array:
    """The values as float64 `(n,)`; a tensor may be on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(
            f"`{name}` must have shape (n,); got {numbers.shape}. Pass one number per image."
        )
    wrong = int((~np.isfinite(numbers)).sum())
    if wrong:
        raise ValueError(
            f"`{name}` must be finite; got {wrong} of {len(numbers)} that are not. Decide how to "
            "count these images before averaging."
        )
    return numbers


def _pair(first: Any, second: Any) -> tuple[Array, Array]:
    ours, theirs = _finite("first", first), _finite("second", second)
    if len(ours) != len(theirs):
        raise ValueError(
            f"`first` and `second` must be of the same images; got {len(ours)} and {len(theirs)} "
            "numbers. Leave out images that only one method has."
        )
    return ours, theirs


def _check(level: float, n_resamples: int) -> None:
    check_number("level", level, above=0, below=1, remedy="Use 0.95 for 95 %.")
    check_int("n_resamples", n_resamples, 1)


def _by_case(numbers: Array, cases: Sequence[Hashable] | None) -> tuple[Array, Array]:
    """For each case the sum of its images' numbers and the number of its images."""
    if cases is None:
        return numbers, np.ones_like(numbers)
    if len(cases) != len(numbers):
        raise ValueError(
            f"`cases` must name the case of each of the {len(numbers)} images; got {len(cases)} "
            "names. Pass one for each image."
        )
    places: dict[Hashable, int] = {}
    index = [places.setdefault(case, len(places)) for case in cases]
    sums = np.bincount(index, weights=numbers, minlength=len(places)).astype(np.float64)
    return sums, np.bincount(index, minlength=len(places)).astype(np.float64)


def _bootstrap(
    sums: Array, counts: Array, level: float, method: str, n_resamples: int, seed: int
) -> tuple[float, float]:
    if len(sums) < 2:
        return math.nan, math.nan
    means = sums / counts
    if np.all(means == means[0]):  # all draws have the same mean, and BCa divides by their spread
        return float(means[0]), float(means[0])
    from scipy.stats import bootstrap

    def mean(sums: Array, counts: Array, axis: int) -> Array:
        found: Array = sums.sum(axis) / counts.sum(axis)
        return found

    interval = bootstrap(
        (sums, counts),
        mean,
        paired=True,
        vectorized=True,
        confidence_level=level,
        method=method,
        n_resamples=n_resamples,
        batch=max(1, _BATCH // len(sums)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
