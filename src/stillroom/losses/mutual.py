"""Networks that learn from each other: both sides of every comparison receive gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_logits,
    check_positive,
    flatten_positions,
    outside_autocast,
    reduce,
)
from stillroom.losses.distributions import kl_of_log_probabilities


@outside_autocast
def mutual_kd_loss(
    logits: Tensor, target_logits: Tensor, *, temperature: float = 4.0, reduction: Reduction = "mean"
) -> Tensor:
    """Hinton's distillation loss between two networks that both learn: nothing is detached.

    Per row, with p = softmax(logits / T): loss = T^2 * sum_c p_target[c] * log(p_target[c] / p[c]). It has the value of
    `kd_loss`, whose target is fixed.

    Args:
        logits: `(N, C)`, or `(N, C, ...)` per position; computed in float32 or wider, also under autocast.
        target_logits: the same shape; receives gradient too.
        temperature: T, above 0.
        reduction: over rows (samples, or samples and positions): "mean", "sum" or "none".

    Returns:
        Nats, summed over classes: a scalar, or `(N,)`, or `(N * ...,)`, for "none".

    Raises:
        ValueError: shapes disagree, or T is not above 0.

    Source: Zhang et al. 2018, arXiv:1706.00384 (mutual learning), with the temperature of Li et al. 2025,
        arXiv:2507.07015.
    """
    check_positive(temperature=temperature)
    if logits.ndim > 2 and logits.shape != target_logits.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, but target_logits have shape {tuple(target_logits.shape)}: both "
            "networks need the same classes and positions"
        )
    learner, target = flatten_positions(logits), flatten_positions(target_logits)
    check_logits(learner, target)
    learner = (at_least_float32(learner) / temperature).log_softmax(dim=-1)
    target = (at_least_float32(target) / temperature).log_softmax(dim=-1)
    return reduce(temperature**2 * kl_of_log_probabilities(target, learner), reduction)


def all_pairs_kd_loss(
    logits: Mapping[str, Tensor], *, temperature: float = 4.0, reduction: Reduction = "mean"
) -> Tensor:
    """Sum of `mutual_kd_loss` over all ordered pairs of several networks.

    loss = sum over m != n of T^2 * KL(softmax(z_n / T) || softmax(z_m / T)); every network receives gradient from both
    sides of its pairs.

    Args:
        logits: name -> `(N, C)` or `(N, C, ...)`, of two networks or more, all of one shape.
        temperature: T, above 0.
        reduction: over rows.

    Returns:
        As `mutual_kd_loss`.

    Raises:
        ValueError: there are fewer than two networks, shapes disagree, or T is not above 0.

    Source: Li et al. 2025, arXiv:2507.07015, the first stage of the authors' code.
    """
    if len(logits) < 2:
        raise ValueError(f"networks learn from each other in pairs, given {len(logits)}: give two or more")
    first, *others = logits
    for name in others:
        if logits[name].shape != logits[first].shape:
            raise ValueError(
                f"{first} gives logits of shape {tuple(logits[first].shape)}, but {name} of shape "
                f"{tuple(logits[name].shape)}: all networks must have the same classes and see the same batch"
            )
    pairs = [(learner, target) for learner in logits for target in logits if learner != target]
    values = [
        mutual_kd_loss(logits[learner], logits[target], temperature=temperature, reduction=reduction)
        for learner, target in pairs
    ]
    return torch.stack(values).sum(dim=0)
