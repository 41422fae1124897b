"""Logits divided by their own standard deviation, and losses against soft labels."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_logits,
    check_positive,
    check_same_shape,
    outside_autocast,
    reduce,
)
from stillroom.losses.distributions import kl_of_log_probabilities


@outside_autocast
def unit_deviation_logits(logits: Tensor, *, allow_two_classes: bool = False, eps: float = 1e-7) -> Tensor:
    """Divide each row of logits by its standard deviation over classes: a temperature of its own for every sample.

    z / (sd(z) + eps), with sd unbiased; the mean stays. (`standardize_logits` takes it away.) The result does not
    change when logits are multiplied by a positive number, so a loss of it has a gradient orthogonal to the centred
    logits. No class gets more than exp(sqrt C) / (exp(sqrt C) + C - 1) of the probability: 0.74 for 3 classes, 0.72 for
    10, 0.995 for 100.

    Args:
        logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        allow_two_classes: with C = 2 every sample gets the same two probabilities (0.80 and 0.20), which says nothing
            but the favourite: refused unless this is set.
        eps: in the denominator, above 0, so that constant logits give equal probabilities; the authors' code has none.

    Returns:
        `(N, C)` float32 or wider.

    Raises:
        ValueError: logits that are no rows, fewer than 3 classes, or eps not above 0.

    Source: Choi et al. 2023, arXiv:2211.03946.
    """
    check_logits(logits, logits)
    check_positive(eps=eps)
    if logits.shape[1] < 3 and not allow_two_classes:
        raise ValueError(
            f"dividing by the deviation needs 3 classes or more, given {logits.shape[1]}: two classes would get the "
            "same probabilities for every sample; use a temperature, or allow_two_classes=True"
        )
    logits = at_least_float32(logits)
    centred = logits - logits.mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1)
    flat = variance == 0  # the root has no slope there
    return logits / (torch.where(flat, 1, variance).sqrt() * ~flat + eps)


@outside_autocast
def soft_cross_entropy(logits: Tensor, soft_labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy against shares of several classes.

    Per sample, loss = -sum_c y_c log softmax(z)_c.

    Args:
        logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        soft_labels: `(N, C)`, 0 or more, each row summing to 1; constants.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree.
    """
    check_same_shape(logits=logits, soft_labels=soft_labels)
    check_logits(logits, soft_labels)
    logits = at_least_float32(logits)
    return reduce(-(soft_labels.detach().to(logits) * logits.log_softmax(dim=1)).sum(dim=1), reduction)


@outside_autocast
def unit_deviation_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    allow_two_classes: bool = False,
    eps: float = 1e-7,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL divergence of the student from the teacher, the logits of each divided by their own deviation per sample.

    Per sample, loss = KL(softmax(z_t / sd(z_t)) || softmax(z_s / sd(z_s))); no temperature and no factor T^2. The
    gradient flows through the student's deviation.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        allow_two_classes: see `unit_deviation_logits`.
        eps: see there.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        Nats, summed over classes: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, fewer than 3 classes, or eps not above 0.

    Source: Choi et al. 2023, arXiv:2211.03946, and the authors' code.
    """
    check_logits(student_logits, teacher_logits)
    teacher, student = (
        unit_deviation_logits(logits, allow_two_classes=allow_two_classes, eps=eps).log_softmax(dim=1)
        for logits in (teacher_logits.detach(), student_logits)
    )
    return reduce(kl_of_log_probabilities(teacher, student), reduction)
