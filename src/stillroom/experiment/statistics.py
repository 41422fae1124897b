"""Means over seeds with intervals that stay honest for three to ten seeds.

The interval is a percentile bootstrap of the mean, widened as few values need it. With the mean m of n values and a
quantile q of the resampled means,

    limit = m + c * (q - m),    c = t / z * sqrt(n / (n - 1)),

where t and z are the two-sided quantiles of Student's t with n - 1 degrees of freedom and of the normal distribution.
sqrt(n / (n - 1)) makes up for the bootstrap's variance being too small by that factor, t / z for not knowing the
variance (as between the t interval and the normal one). c goes to 1 with n: for many seeds this is the plain percentile
interval, and unlike the t interval it keeps the skew of the values.

Simulated coverage of a 95% interval: 94% to 95% for normal values and n of 3 to 20, 93% to 94% for a skewness of 1 (a
gamma distribution of shape 4), 92% for a skewness of 1.75 (log-normal, sigma 0.5), 88% for exponential values at n = 3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = Mapping[int, float] | Iterable[float]
"""One number per seed: `{seed: number}`, or the numbers in the order of the seeds."""

_ROUNDING = 1e-12  # relative: what float64 arithmetic may add to equal numbers, far below what a metric can resolve


@dataclass(frozen=True)
class Interval:
    """A mean and where the true mean plausibly lies.

    Attributes:
        mean: the plain mean.
        low: lower limit; None for one value, from which no interval can be estimated.
        high: upper limit; None for one value.
        level: how often such an interval holds the true mean, in (0, 1).
        n: how many values (or pairs) it rests on.
    """

    mean: float
    low: float | None
    high: float | None
    level: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def mean_interval(values: Values, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Estimate an arm's mean over seeds.

    Args:
        values: one finite number per seed, at least one.
        level: wanted coverage, in (0, 1).
        resamples: bootstrap resamples.
        seed: of the resampling's own generator; the same values always give the same interval.

    Returns:
        The interval. Without limits for one value; of width 0 when all values are equal, because equal values say
        nothing about how far they might have differed.

    Raises:
        ValueError: no values, a value that is not finite, or `level` outside (0, 1).
    """
    return _interval(np.array(list(_by_seed(values, "values").values())), level, resamples, seed)


def paired_interval(
    a: Values, b: Values, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0, resolution: float = 0.0
) -> Interval:
    """Estimate the mean of a - b over seeds that both arms ran.

    Pairs are resampled, so what a seed does to both arms alike (its split, its initial student) cancels. Differences
    within rounding error (1e-12 of the values) count as 0.

    Args:
        a: one finite number per seed.
        b: the same seeds' numbers of the other arm.
        level: wanted coverage, in (0, 1).
        resamples: bootstrap resamples.
        seed: of the resampling's own generator; the same values always give the same interval.
        resolution: the smallest step of the numbers, 0 or more: 1 / n for a share of n samples. Differences that lie
            closer together than that (equal ones, of few samples) are taken to have a standard deviation of one step,
            and the interval is Student's.

    Returns:
        The interval of the mean difference, as in `mean_interval`.

    Raises:
        ValueError: no values, a value that is not finite, other seeds in `a` than in `b`, or `level` outside (0, 1).
    """
    first, second = _by_seed(a, "a"), _by_seed(b, "b")
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} values and b has {len(second)}: paired arms need one of each per seed")
    if first.keys() != second.keys():
        raise ValueError(f"a has seeds {list(first)} and b has seeds {list(second)}: paired arms need the same seeds")
    left = np.array(list(first.values()))
    right = np.array([second[key] for key in first])
    differences = left - right
    differences[np.abs(differences) <= _ROUNDING * np.maximum(np.abs(left), np.abs(right))] = 0.0
    if len(differences) > 1 and 0 < level < 1 and differences.std(ddof=1) < resolution:
        mean, n = float(differences.mean()), len(differences)
        half = student_t_quantile(level, n - 1) * resolution / math.sqrt(n)
        return Interval(mean, mean - half, mean + half, level, n)
    return _interval(differences, level, resamples, seed)


def _by_seed(values: Values, name: str) -> dict[int, float]:
    """Name every number by its seed (its place, counted from 0, where no seeds are given) and refuse odd ones."""
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
    numbers = {key: float(value) for key, value in pairs}
    if not numbers:
        raise ValueError(f"{name} must hold at least one number, given none: run at least one seed")
    for key, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, given {value} for seed {key}: find out why that run failed")
    return numbers


def _interval(values: NDArray[np.float64], level: float, resamples: int, seed: int) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, given {level}: 0.95 is usual")
    n = len(values)
    mean = float(values.mean())
    if abs(mean) <= _ROUNDING * np.abs(values).max():
        mean = 0.0
    if n == 1:
        return Interval(mean, None, None, level, n)
    if np.ptp(values) <= _ROUNDING * np.abs(values).max():
        return Interval(mean, mean, mean, level, n)
    means = values[_resampled_rows(n, resamples, seed)].mean(axis=1)
    limits = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    normal = NormalDist().inv_cdf((1 + level) / 2)
    correction = student_t_quantile(level, n - 1) / normal * math.sqrt(n / (n - 1))
    low, high = mean + correction * (limits - mean)
    return Interval(mean, float(low), float(high), level, n)


@functools.lru_cache(maxsize=2)
def _resampled_rows(n: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """`(resamples, n)` row numbers; the same for all arms, so that their intervals share the resampling's noise."""
    return np.random.default_rng(seed).integers(n, size=(resamples, n))


def student_t_quantile(level: float, degrees: int) -> float:
    """Find t so that a Student's t variable lies in [-t, t] with probability `level`.

    With t = sqrt(degrees) * tan(angle) the probability is a finite sum of powers of cos(angle); it grows with the
    angle, which is found by bisection.

    Args:
        level: probability, in (0, 1).
        degrees: degrees of freedom, at least 1.

    Source: Abramowitz and Stegun 1964, 26.7.3 (odd degrees) and 26.7.4 (even degrees).
    """
    odd = degrees % 2
    steps = np.arange(2 if odd else 1, degrees - 1, 2)
    factors = np.concatenate(([1.0], np.cumprod(steps / (steps + 1.0))))
    powers = 2 * np.arange(len(factors)) + odd

    def probability(angle: float) -> float:
        total = math.sin(angle) * float((factors * math.cos(angle) ** powers).sum())
        if not odd:
            return total
        return 2 / math.pi * (angle + total if degrees > 1 else angle)

    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < level else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)
