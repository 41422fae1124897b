"""What steps of self-distillation do to a kernel ridge regression, eigenvalue by eigenvalue, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def dual_filter(
    eigenvalues: ArrayLike, ridge: float, label_weight: float | Sequence[float], step: int | float
) -> Array:
    """Factors g(d) with which the fit of a step is `f(x) = k(x)^T V diag(g) V^T y`.

    With `g_1 = 1 / (d + ridge)`, labels' share a and `r = (1 - a) d / (d + ridge)`:
    `g_tau = (a + (1 - a) d g_(tau-1)) / (d + ridge) = g_inf + r^(tau-1) (g_1 - g_inf)` with
    `g_inf = a / (a d + ridge)`, which is ordinary kernel ridge regression with the ridge `ridge / a`. An eigenvalue of
    0 is harmless.

    Args:
        eigenvalues: d of the kernel matrix, `(n,)`, 0 or more.
        ridge: lambda of `K + lambda I`, above 0.
        label_weight: the labels' share at every step from the second on, or one share for each of them.
        step: tau, from 1 (the first fit); `math.inf` for the limit, which one constant share in [0, 1] has.

    Returns:
        `(n,)`, float64.

    Raises:
        ValueError: ridge is not above 0, step is no whole number from 1, there are too few shares, or the limit of
            shares that differ or lie outside [0, 1] is asked for.

    Source: Borup and Andersen 2021, arXiv:2102.13088; the closed form follows from the recursion.
    """
    d = np.asarray(eigenvalues, dtype=np.float64)
    check_ridge(ridge)
    check_step(step)
    constant = np.ndim(label_weight) == 0
    if constant and 0 <= float(label_weight) <= 1:  # type: ignore[arg-type]
        a = float(label_weight)  # type: ignore[arg-type]
        limit = a / (a * d + ridge)
        gap = (1 - a) * ridge / ((d + ridge) * (a * d + ridge))
        if step == math.inf:
            return limit
        return limit + ((1 - a) * d / (d + ridge)) ** (int(step) - 1) * gap
    if step == math.inf:
        raise ValueError(f"the limit belongs to one label weight in [0, 1] for all steps, given {label_weight}")
    count = int(step) - 1
    weights = np.full(count, label_weight, dtype=np.float64) if constant else np.asarray(label_weight, dtype=np.float64)
    if len(weights) < count:
        raise ValueError(
            f"step {step} needs {count} label weights (one per step from the second), given {len(weights)}"
        )
    factors = 1 / (d + ridge)
    for a in weights[:count]:
        factors = (a + (1 - a) * d * factors) / (d + ridge)
    return factors


def spectral_filter(
    eigenvalues: ArrayLike, ridge: float, label_weight: float | Sequence[float], step: int | float
) -> Array:
    """Factors b(d) with which a step's fit at the training points is `V diag(b) V^T y`.

    `b_1 = d / (d + ridge)`, `b_tau = b_1 (a + (1 - a) b_(tau-1))`, `b_inf = a d / (a d + ridge)`: each step shrinks,
    the small eigenvalues most; labels (a above 0) stop it, without them (a = 0) `b_tau = b_1^tau` goes to 0.

    Args:
        eigenvalues: d of the kernel matrix, `(n,)`, 0 or more.
        ridge: lambda, above 0.
        label_weight: the labels' share a; see `dual_filter`.
        step: tau, from 1, or `math.inf`.

    Returns:
        `(n,)`, float64.

    Raises:
        ValueError: as `dual_filter`.

    Example:
        >>> spectral_filter([1.0, 0.0], 1.0, 0.0, 3).tolist()
        [0.125, 0.0]
        >>> spectral_filter([1.0, 0.0], 1.0, 0.5, math.inf).round(3).tolist()
        [0.333, 0.0]
    """
    return np.asarray(eigenvalues, dtype=np.float64) * dual_filter(eigenvalues, ridge, label_weight, step)


def check_ridge(ridge: float) -> None:
    """Refuse a ridge that is not above 0."""
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge must be a number above 0, given {ridge}")


def check_step(step: int | float) -> None:
    """Refuse a step that is neither a whole number from 1 nor infinity."""
    if not step >= 1 or (step != math.inf and step != int(step)):
        raise ValueError(f"steps are counted from 1 (the first fit), math.inf for the limit, given {step}")
