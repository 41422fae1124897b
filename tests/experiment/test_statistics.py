"""Intervals over seeds: coverage by simulation, numbers by hand, Student's t from SciPy."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from stillroom.experiment.statistics import Interval, mean_interval, paired_interval, student_t_quantile

RUNS = 1500  # the simulated coverage has a standard error of 0.0056


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        pytest.param(lambda rng, n: rng.normal(0.02, 0.01, n), 0.02, id="normal"),
        pytest.param(lambda rng, n: 0.02 + 0.005 * (rng.gamma(8.0, size=n) - 8), 0.02, id="skewness 0.7"),
    ],
)
def test_the_interval_holds_the_true_mean_as_often_as_it_says(n, draw, mean):
    rng = np.random.default_rng(n)
    held = 0
    for _ in range(RUNS):
        seed_effect = rng.normal(0.9, 0.1, n)  # shared by both arms of a seed: it must cancel
        found = paired_interval(seed_effect + draw(rng, n), seed_effect)
        held += found.low <= mean <= found.high
    assert 0.93 <= held / RUNS <= 0.99


def test_without_the_correction_three_seeds_would_not_be_covered():
    """The plain percentile interval of three values is their range, which holds the mean 3 times in 4."""
    rng = np.random.default_rng(0)
    plain = 0
    for _ in range(RUNS):
        values = rng.normal(size=3)
        plain += values.min() <= 0 <= values.max()
    assert plain / RUNS < 0.8


def test_three_values_by_hand():
    # 27 resamples: all three the least value has probability 1/27 > 0.025, so the percentiles are the range
    found = mean_interval([-1.0, 0.0, 1.0])
    half = 4.302652729911275 / 1.959963984540054 * math.sqrt(3 / 2)  # t and z from tables
    assert found.mean == 0
    assert found.low == pytest.approx(-half, rel=1e-9)
    assert found.high == pytest.approx(half, rel=1e-9)


def test_many_values_give_the_normal_interval():
    values = np.random.default_rng(5).normal(3.0, 2.0, 1000)
    found = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(1000)
    assert found.mean == pytest.approx(values.mean())
    assert found.mean - found.low == pytest.approx(half, rel=0.05)
    assert found.high - found.mean == pytest.approx(half, rel=0.05)


def test_the_level_is_kept():
    rng = np.random.default_rng(3)
    held = sum(f.low <= 0 <= f.high for f in (mean_interval(rng.normal(size=6), level=0.8) for _ in range(RUNS)))
    assert 0.77 <= held / RUNS <= 0.83


def test_shift_scale_and_order_of_the_arms():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=5), rng.normal(size=5)
    found, turned = paired_interval(a, b), paired_interval(b, a)
    assert (turned.mean, turned.low, turned.high) == pytest.approx((-found.mean, -found.high, -found.low))
    moved = paired_interval(100 * a + 7, 100 * b + 7)
    assert (moved.low, moved.high) == pytest.approx((100 * found.low, 100 * found.high))


def test_pairs_are_matched_by_seed_and_not_by_place():
    a = {0: 0.5, 1: 0.7, 2: 0.9}
    b = {2: 0.8, 0: 0.4, 1: 0.6}
    assert paired_interval(a, b).low == pytest.approx(0.1)
    assert paired_interval(a, b).high == pytest.approx(0.1)


def test_the_same_values_always_give_the_same_interval():
    values = [0.1, 0.4, 0.3, 0.9]
    first = mean_interval(values)
    np.random.default_rng().normal(size=10)
    assert mean_interval(values) == first
    assert mean_interval(values, seed=1) != first


def test_one_value_has_no_interval():
    assert mean_interval([0.7]) == Interval(0.7, None, None, 0.95, 1)
    assert paired_interval([0.7], [0.5]).low is None


def test_equal_values_give_an_interval_without_width():
    found = paired_interval([0.3, 0.5, 0.7], [0.2, 0.4, 0.6])  # 0.1 each, but for rounding
    assert found.low == found.high == found.mean == pytest.approx(0.1)


def test_rounding_is_no_difference():
    found = paired_interval([0.1 + 0.2] * 3, [0.3] * 3)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


def test_a_mean_of_rounding_errors_is_zero():
    assert paired_interval([0.3, 0.1, 0.2], [0.1, 0.2, 0.3]).mean == 0.0  # 0.2, -0.1 and -0.1 add up to 2.8e-17


def test_as_dict_is_plain():
    assert mean_interval([0.5]).as_dict() == {"mean": 0.5, "low": None, "high": None, "level": 0.95, "n": 1}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], r"a must hold at least one number, given none"),
        ([1.0, 2.0], [1.0], r"a has 2 values and b has 1"),
        ({0: 1.0, 1: 2.0}, {0: 1.0, 2: 2.0}, r"a has seeds \[0, 1\] and b has seeds \[0, 2\]"),
        ({7: 1.0, 9: math.nan}, {7: 1.0, 9: 1.0}, r"a must be finite, given nan for seed 9"),
        ([1.0, 2.0], [1.0, math.inf], r"b must be finite, given inf for seed 1"),
    ],
)
def test_what_cannot_be_paired_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_interval(a, b)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_an_impossible_level_is_refused(level):
    with pytest.raises(ValueError, match=f"level must be between 0 and 1, given {level}"):
        mean_interval([1.0, 2.0], level=level)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 10, 57, 999])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_student_t_quantile_is_scipys(level, degrees):
    assert student_t_quantile(level, degrees) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-8)


def test_statistics_claims_and_reports_load_no_torch():
    modules = ("statistics", "claim", "findings", "wording", "charts", "sections", "report")
    code = ";".join(f"import stillroom.experiment.{name}" for name in modules)
    done = subprocess.run(
        [sys.executable, "-c", f"{code};import sys;print('torch' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


def test_equal_differences_of_few_samples_say_no_more_than_one_sample_could():
    pair = [0.75, 0.75], [0.5, 0.5]
    assert paired_interval(*pair).low == 0.25  # numbers without a step
    found = paired_interval(*pair, resolution=1 / 12)
    half = 12.7062 / 12 / 2**0.5  # Student's t with one degree of freedom
    assert found.mean == 0.25
    assert (found.low, found.high) == (pytest.approx(0.25 - half, abs=1e-4), pytest.approx(0.25 + half, abs=1e-4))
    fine = paired_interval([0.9, 0.95, 0.92], [0.5, 0.6, 0.5])
    assert paired_interval([0.9, 0.95, 0.92], [0.5, 0.6, 0.5], resolution=0.001) == fine
    assert paired_interval([0.5], [0.4], resolution=0.1).low is None


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_few_test_samples_seldom_give_a_verdict_without_a_difference(seeds):
    """Two students of the same quality, measured on 12 samples."""
    rng = np.random.default_rng(0)
    shares = rng.binomial(12, 0.8, size=(2, 1000, seeds)) / 12
    found = [paired_interval(a, b, resolution=1 / 12, resamples=1000) for a, b in zip(*shares, strict=True)]
    assert sum(one.low > 0 or one.high < 0 for one in found) < 70
