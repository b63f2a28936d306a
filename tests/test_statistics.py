"""Intervals against SciPy, against a simulation, and against what is known beforehand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from captum_clustered.statistics import (
    Interval,
    mean_interval,
    paired_difference,
    rate_interval,
    win_rate,
)

FEW = {"n_resamples": 2000}


@pytest.fixture
def values():
    return np.random.default_rng(1).gamma(2.0, 10.0, 60)


# --- the mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_is_scipys(values, method, level):
    found = mean_interval(values, level=level, method=method, seed=3)
    expected = stats.bootstrap(
        (values,), np.mean, confidence_level=level, method=method, n_resamples=10_000,
        rng=np.random.default_rng(8),
    ).confidence_interval  # fmt: skip
    assert found.estimate == pytest.approx(values.mean())
    # other draws: the ends agree to their own noise
    spread = values.std() / math.sqrt(len(values))
    assert found.low == pytest.approx(expected.low, abs=spread / 10)
    assert found.high == pytest.approx(expected.high, abs=spread / 10)
    assert (found.level, found.method, found.n, found.n_cases) == (level, method, 60, 60)


def test_bca_leans_to_the_long_tail():
    skewed = np.random.default_rng(1).lognormal(0, 1.5, 40)
    plain, corrected = (mean_interval(skewed, method=m, **FEW) for m in ("percentile", "bca"))
    assert corrected.low > plain.low
    assert corrected.high > plain.high


def test_the_normal_interval_is_that_of_the_standard_error(values):
    found = mean_interval(values, method="normal", level=0.9)
    low, high = stats.norm.interval(0.9, values.mean(), stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.method, found.n_cases) == ("normal", 60)


def test_of_many_cases_the_normal_interval_is_the_bootstraps():
    rng = np.random.default_rng(0)
    cases = rng.integers(0, 4000, 10_000).tolist()  # cases differ in their number of images
    values = rng.gamma(2.0, 10.0, 10_000) + 10 * rng.random(4000)[cases]
    drawn, normal = (mean_interval(values, cases=cases, method=m) for m in ("percentile", "normal"))
    width = drawn.high - drawn.low
    assert normal.low == pytest.approx(drawn.low, abs=width / 50)
    assert normal.high == pytest.approx(drawn.high, abs=width / 50)


def test_the_same_seed_gives_the_same_interval(values):
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    found = [mean_interval(values, seed=seed, **FEW) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.get_rng_state().equal(before[1])


def test_lots_change_nothing(values, monkeypatch):
    expected = mean_interval(values, **FEW)
    monkeypatch.setattr("captum_clustered.statistics._BATCH", 7 * 60)
    found = mean_interval(values, **FEW)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("make", [list, tuple, np.asarray, torch.tensor])
def test_forms_of_numbers(make, values):
    assert mean_interval(make(values), **FEW) == mean_interval(values, **FEW)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_small_numbers(method):
    kept = {"method": method, **FEW}
    none, one = mean_interval([], **kept), mean_interval([3.0], **kept)
    assert math.isnan(none.estimate)
    assert one.estimate == 3
    for interval in (none, one):
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
    two = mean_interval([1.0, 3.0], **kept)
    assert 1 <= two.low <= 2 <= two.high <= 3
    same = mean_interval([4.0] * 5, **kept)
    assert (same.low, same.estimate, same.high) == (4, 4, 4)


# --- cases ---------------------------------------------------------------------------------------


def test_a_case_for_each_image_changes_nothing(values):
    names = [f"case {i}" for i in range(60)]
    assert mean_interval(values, cases=names, **FEW) == mean_interval(values, **FEW)


def test_copies_of_an_image_are_no_news(values):
    found = mean_interval(np.repeat(values, 5), cases=np.repeat(np.arange(60), 5), **FEW)
    expected = mean_interval(values, **FEW)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.n, found.n_cases) == (300, 60)
    naive = mean_interval(np.repeat(values, 5), **FEW)
    assert naive.high - naive.low < 0.6 * (found.high - found.low)


def test_the_estimate_is_the_mean_over_images():
    found = mean_interval([0.0, 0.0, 0.0, 8.0], cases=["a", "a", "a", "b"], **FEW)
    assert found.estimate == 2
    # only a, both, or only b
    assert (found.low, found.high) == (0, 8)


def test_images_of_a_case_need_not_stand_together(values):
    cases = np.tile(np.arange(20), 3)
    order = cases.argsort(kind="stable")
    found = mean_interval(values[order], cases=cases[order], **FEW)
    expected = mean_interval(values, cases=cases, **FEW)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_case_says_nothing(values):
    found = mean_interval(values, cases=["only"] * 60, **FEW)
    assert found.n_cases == 1
    assert math.isnan(found.low)


def test_intervals_cover_what_they_promise():
    """Where images of a case are alike, 90 % intervals hold the truth by case, but not by image."""
    generator = np.random.default_rng(0)
    cases = np.repeat(np.arange(30), 4)
    hits = {True: 0, False: 0}
    for trial in range(200):
        sample = generator.normal(0, 1, 30)[cases] + generator.normal(0, 0.3, 120)
        for by_case in hits:
            interval = mean_interval(
                sample, cases=cases if by_case else None, level=0.9, n_resamples=300, seed=trial
            )
            hits[by_case] += interval.low <= 0 <= interval.high
    assert 0.83 * 200 <= hits[True] <= 0.95 * 200
    assert hits[False] < 0.7 * 200


# --- differences ---------------------------------------------------------------------------------


def test_pairing_takes_out_what_both_share(values):
    better = values - 1 + np.random.default_rng(2).normal(0, 0.5, 60)
    found = paired_difference(better, values, **FEW)
    assert found == mean_interval(better - values, **FEW)
    assert found.high < 0
    single = mean_interval(values, **FEW)
    assert found.high - found.low < (single.high - single.low) / 10


def test_differences_take_cases(values):
    cases = [i // 3 for i in range(60)]
    found = paired_difference(values, values[::-1], cases=cases, method="bca", **FEW)
    assert found == mean_interval(values - values[::-1], cases=cases, method="bca", **FEW)
    assert found.n_cases == 20


# --- rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 3), (35, 145), (10, 10)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_rate_is_scipys_wilson(hits, n, level):
    found = rate_interval([100.0] * hits + [0.0] * (n - hits), level=level)
    expected = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    assert found.estimate == pytest.approx(100 * hits / n)
    assert found.low == pytest.approx(100 * expected.low, abs=1e-9)
    assert found.high == pytest.approx(100 * expected.high)
    assert found.method == "wilson"


def test_rate_by_case_is_the_bootstrap(values):
    hits, cases = 100.0 * (values > 20), [i // 3 for i in range(60)]
    assert rate_interval(hits, cases=cases, **FEW) == mean_interval(hits, cases=cases, **FEW)


def test_small_rates():
    assert math.isnan(rate_interval([]).low)
    one = rate_interval([100.0])
    assert one.low < 50
    assert one.high == 100


def test_win_rate_by_hand():
    first, second = [1.0, 2.0, 3.0, 9.0], [2.0, 4.0, 3.0, 1.0]
    assert win_rate(first, second).estimate == 50
    assert win_rate(first, second, higher_is_better=True).estimate == 25
    assert win_rate(first, second) == rate_interval([100.0, 100.0, 0.0, 0.0])
    by_case = win_rate(first, second, cases=[0, 0, 1, 1], **FEW)
    assert (by_case.low, by_case.high, by_case.n_cases) == (0, 100, 2)


# --- doors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [mean_interval, rate_interval])
@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0, math.nan, math.inf], {}, "must be finite; got 2 of 3 that are not"),
        ([[1.0]], {}, r"must have shape \(n,\); got \(1, 1\)"),
        ([1.0, 2.0], {"level": 95}, "`level` must be a number > 0 and < 1; got 95"),
        ([1.0, 2.0], {"n_resamples": 0}, "`n_resamples` must be an int >= 1; got 0"),
        ([1.0, 2.0], {"cases": ["a"]}, "the case of each of the 2 images; got 1"),
    ],
)
def test_wrong_arguments(function, values, options, message):
    with pytest.raises(ValueError, match=message):
        function(values, **options)


def test_more_wrong_arguments():
    with pytest.raises(ValueError, match=r"`method` must be one of .*'normal'; got 'basic'"):
        mean_interval([1.0, 2.0], method="basic")
    with pytest.raises(ValueError, match="of the same images; got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"`hits` must lie in \[0, 100\]; got values from -1 to 3"):
        rate_interval([-1.0, 3.0])


def test_an_interval_reads_well():
    assert str(Interval(34.0871, 30.2, 38.0, 0.95, 5, 5, "bca")) == "34.09 [30.20, 38.00]"
