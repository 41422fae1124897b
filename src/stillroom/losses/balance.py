"""Both directions of the divergence between two networks, weighed per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_logits,
    check_not_negative,
    check_positive,
    outside_autocast,
    reduce,
)
from stillroom.losses.distributions import kl_divergence, reverse_kl_divergence


@outside_autocast
@torch.no_grad()
def entropy_gap(student_logits: Tensor, teacher_logits: Tensor, *, entropy_temperature: float = 1.0) -> Tensor:
    """How much less certain the student is than the teacher, per sample.

    With p = softmax(logits / T_e): gap = H(p_student) - H(p_teacher). Above 0 the student is the less certain one.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`.
        entropy_temperature: T_e, above 0; 1 compares the predictions as they are deployed.

    Returns:
        `(N,)` in nats, without gradient.

    Raises:
        ValueError: shapes disagree, or T_e is not above 0.

    Source: Amara et al. 2022, arXiv:2212.12965.
    """
    check_logits(student_logits, teacher_logits)
    check_positive(entropy_temperature=entropy_temperature)
    entropies = []
    for logits in (student_logits, teacher_logits):
        log_probabilities = (at_least_float32(logits) / entropy_temperature).log_softmax(dim=-1)
        entropies.append(-(log_probabilities.exp() * log_probabilities).sum(dim=-1))
    return entropies[0] - entropies[1]


def balance_weights(gap: Tensor, *, boost: float = 2.0, softness: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weights of the two directions of the divergence, from how much less certain the student is.

    A student that is less certain (gap > 0) is sharpened: weights (1, b) stress the reverse, mode-seeking direction.
    Otherwise (gap <= 0) it is spread: weights (b, 1) stress the forward, mass-covering one. With softness s above 0
    the step becomes a slope: with g = sigmoid(gap / s), the weights are (1 + (b - 1)(1 - g), 1 + (b - 1) g).

    Args:
        gap: any shape, as `entropy_gap` gives it.
        boost: b, 1 or more; 1 weighs both directions the same for every sample.
        softness: s, 0 or more.

    Returns:
        Forward and reverse weights, of the shape of `gap`, without gradient.

    Raises:
        ValueError: boost below 1, or softness below 0.

    Source: Amara et al. 2022, arXiv:2212.12965, for what the weights depend on; their size and form are this library's.
    """
    check_boost(boost)
    check_not_negative(softness=softness)
    gap = gap.detach()
    share = (gap > 0).to(gap.dtype) if softness == 0 else (gap / softness).sigmoid()
    return 1 + (boost - 1) * (1 - share), 1 + (boost - 1) * share


@outside_autocast
def two_way_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    forward_weights: Tensor | float = 1.0,
    reverse_weights: Tensor | float = 1.0,
    *,
    temperature: float = 3.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Distillation by both directions of the divergence, with a weight per sample for each.

    Per sample, with p = softmax(logits / T):
    loss = T^2 (w_f KL(p_teacher || p_student) + w_r KL(p_student || p_teacher)).
    Weights (1, 0) are Hinton's loss, (1, 1) the symmetric (Jeffreys) divergence.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        forward_weights: w_f, `(N,)` or a number, 0 or more; constants, no gradient flows through them.
        reverse_weights: w_r, likewise.
        temperature: T, above 0.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        Nats, summed over classes: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, or T is not above 0.

    Source: Amara et al. 2022, arXiv:2212.12965.
    """
    check_logits(student_logits, teacher_logits)
    for name, weights in (("forward_weights", forward_weights), ("reverse_weights", reverse_weights)):
        if isinstance(weights, Tensor) and weights.ndim and weights.shape != student_logits.shape[:1]:
            raise ValueError(
                f"{name} have shape {tuple(weights.shape)}, but there are {len(student_logits)} samples: give a weight "
                "for each, or one number"
            )
    forward = kl_divergence(student_logits, teacher_logits, temperature=temperature, reduction="none")
    reverse = reverse_kl_divergence(student_logits, teacher_logits, temperature=temperature, reduction="none")
    weighted = _constant(forward_weights) * forward + _constant(reverse_weights) * reverse
    return reduce(temperature**2 * weighted, reduction)


def check_boost(boost: float) -> None:
    """Refuse a boost that is not a finite number of 1 or more."""
    if not 1 <= boost < float("inf"):
        raise ValueError(f"boost must be a number of 1 or more, given {boost}: 1 weighs both directions the same")


def _constant(weights: Tensor | float) -> Tensor | float:
    return weights.detach() if isinstance(weights, Tensor) else weights
