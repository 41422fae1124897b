"""Discrepancies between the distributions that two samples of features were drawn from."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_not_negative,
    outside_autocast,
    reduce,
)

PHASE_FLOOR = 1e-12
"""The least phase term: keeps the root's slope finite where both samples agree."""


@outside_autocast
def characteristic_function_discrepancy(
    features: Tensor,
    target_features: Tensor,
    frequencies: Tensor,
    *,
    amplitude_weight: float = 0.5,
    phase_weight: float = 0.5,
    reduction: Reduction = "mean",
) -> Tensor:
    """How far apart the characteristic functions of two samples are, at given frequencies.

    With phi(t) = mean_n exp(i <t, h_n>) of each sample, per frequency t:
    amplitude = (|phi_target| - |phi|)^2, phase = max(|phi_target - phi|^2 - amplitude, 1e-12), which is
    2 |phi_target| |phi| (1 - cos of the angle between them), and d(t) = sqrt(a amplitude + b phase).
    With a = b = 1 it is |phi_target(t) - phi(t)|. Two samples of one distribution give values near 0 at every
    frequency, and no two distributions agree at all of them.

    It works for any two samples: of images' features, of generated and real data, of two domains.

    Args:
        features: `(N, D)`, any float dtype; computed in float32 or wider, also under autocast.
        target_features: `(M, D)`; receives no gradient. M may differ from N.
        frequencies: t, `(K, D)`; receives a gradient, so that they can be learned. Standard normal ones suit rows of
            length 1 (normalise first).
        amplitude_weight: a, 0 or more: how much the spread (diversity) counts.
        phase_weight: b, 0 or more: how much the place (realism) counts; one of the two above 0.
        reduction: over frequencies: "mean", "sum" or "none".

    Returns:
        Between 0 and 2 sqrt(max(a, b)) per frequency: a scalar, or `(K,)` for "none".

    Raises:
        ValueError: shapes disagree, a sample or the frequencies are empty, or a weight is below 0.

    Source: Wang et al. 2025, arXiv:2502.20653, equations 4 to 6.
    """
    _check_samples(features, target_features)
    if frequencies.ndim != 2 or frequencies.shape[1] != features.shape[1] or not len(frequencies):
        raise ValueError(
            f"frequencies must have shape (K, {features.shape[1]}), one column per feature, given "
            f"{tuple(frequencies.shape)}: draw them with the features' width"
        )
    check_not_negative(amplitude_weight=amplitude_weight, phase_weight=phase_weight)
    if amplitude_weight == 0 and phase_weight == 0:
        raise ValueError("amplitude_weight and phase_weight are both 0: nothing would be compared; set one above 0")
    frequencies = at_least_float32(frequencies)
    ours = _characteristic_function(at_least_float32(features), frequencies)
    target = _characteristic_function(at_least_float32(target_features.detach()), frequencies)
    amplitude = (_modulus(target) - _modulus(ours)).square()
    phase = ((target - ours).square().sum(0) - amplitude).clamp(min=PHASE_FLOOR)
    inside = amplitude_weight * amplitude + phase_weight * phase
    positive = ~(inside <= 0)  # at 0 the root has no slope; NaN stays NaN
    return reduce(torch.where(positive, torch.where(positive, inside, 1).sqrt(), 0), reduction)


@outside_autocast
def mean_discrepancy(features: Tensor, target_features: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Squared difference of the means of two samples: the discrepancy of plain distribution matching.

    Per feature: (mean_n h_n - mean_m target_m)^2. The sum over features is the squared distance of the means; two
    distributions with one mean cannot be told apart.

    Args:
        features: `(N, D)`, any float dtype; computed in float32 or wider, also under autocast.
        target_features: `(M, D)`; receives no gradient.
        reduction: over features: "mean", "sum" or "none".

    Returns:
        A scalar, or `(D,)` for "none".

    Raises:
        ValueError: shapes disagree, or a sample is empty.

    Source: Zhao and Bilen 2023, arXiv:2110.04181, equation 4 (with "sum").
    """
    _check_samples(features, target_features)
    difference = at_least_float32(features).mean(0) - at_least_float32(target_features.detach()).mean(0)
    return reduce(difference.square(), reduction)


def _check_samples(features: Tensor, target_features: Tensor) -> None:
    for name, sample in (("features", features), ("target_features", target_features)):
        if sample.ndim != 2:
            raise ValueError(f"{name} must have shape (N, D), given {tuple(sample.shape)}: flatten each sample's first")
        if not len(sample):
            raise ValueError(f"{name} is an empty sample of shape {tuple(sample.shape)}: give at least one row")
    if features.shape[1] != target_features.shape[1]:
        raise ValueError(
            f"features have {features.shape[1]} columns, but target_features have {target_features.shape[1]}: both "
            "must come from the same layer of one network"
        )


def _characteristic_function(features: Tensor, frequencies: Tensor) -> Tensor:
    """`(2, K)`: real and imaginary part of the empirical characteristic function."""
    common = torch.promote_types(frequencies.dtype, features.dtype)
    angles = frequencies.to(common) @ features.T.to(common)
    return torch.stack([angles.cos().mean(1), angles.sin().mean(1)])


def _modulus(values: Tensor) -> Tensor:
    """Length of the columns of `(2, K)`; its gradient at 0 is 0."""
    return torch.linalg.vector_norm(values, dim=0)
