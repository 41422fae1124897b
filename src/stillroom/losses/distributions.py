"""Divergences between the distributions that two rows of logits stand for."""

from __future__ import annotations

import math

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


@outside_autocast
def kl_divergence(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """Kullback-Leibler divergence of the student from the teacher: the forward KL.

    Per row, with p = softmax(logits / T): KL = sum_c p_teacher[c] * log(p_teacher[c] / p_student[c]). There is no
    factor T^2 (`kd_loss` has one). It is 0 where both say the same, and the student pays for what it leaves out.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        temperature: T, above 0.
        reduction: over rows: "mean", "sum" or "none".

    Returns:
        Nats, summed over classes: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, or T is not above 0.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    return reduce(kl_of_log_probabilities(teacher, student), reduction)


@outside_autocast
def reverse_kl_divergence(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """Kullback-Leibler divergence of the teacher from the student: the reverse KL.

    Per row, with p = softmax(logits / T): KL = sum_c p_student[c] * log(p_student[c] / p_teacher[c]). There is no
    factor T^2. The student pays for what it says and the teacher does not, so it keeps to the teacher's main modes.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        temperature: T, above 0.
        reduction: over rows: "mean", "sum" or "none".

    Returns:
        Nats, summed over classes: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, or T is not above 0.

    Source: Gu et al. 2024, arXiv:2306.08543 (its use in distillation).
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    return reduce(kl_of_log_probabilities(student, teacher), reduction)


@outside_autocast
def symmetric_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    eps: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Half of both Kullback-Leibler divergences between student and teacher (half of Jeffreys' divergence).

    Per row, with p = softmax(logits / T) and e = eps:
    loss = 1/2 sum_c (p_teacher[c] - p_student[c]) * log((p_teacher[c] + e) / (p_student[c] + e)).
    There is no factor T^2. It has no upper bound, unlike the Jensen-Shannon divergence
    (`generalized_jensen_shannon`), of which it is four times where both sides are close.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        temperature: T, above 0.
        eps: e, 0 or more; 0 takes differences of log-probabilities, which lose nothing. Above 0 it caps what a
            probability near 0 costs; the authors' code has 1e-12, its first release 1e-10.
        reduction: over rows: "mean", "sum" or "none".

    Returns:
        Nats, summed over classes: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, T is not above 0, or eps is below 0.

    Source: Cui et al. 2021, arXiv:2103.05959, as in their code (the text speaks of a Jensen-Shannon divergence).
    """
    check_not_negative(eps=eps)
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    ratio = teacher - student
    if eps > 0:
        ratio = (teacher.exp() + eps).log() - (student.exp() + eps).log()
    return reduce(0.5 * ((teacher.exp() - student.exp()) * ratio).sum(dim=-1), reduction)


@outside_autocast
def generalized_jensen_shannon(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    teacher_share: float = 0.5,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Generalised Jensen-Shannon divergence: both networks against a mixture of them.

    Per row, with p = softmax(logits / T), b the teacher's share and m = b p_teacher + (1 - b) p_student:
    JSD = b KL(p_teacher || m) + (1 - b) KL(p_student || m). It is at most the entropy of (b, 1 - b). Divided by b it
    tends to the forward KL as b tends to 0, and divided by 1 - b to the reverse KL as b tends to 1.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        teacher_share: b, in (0, 1); 0.5 is the usual Jensen-Shannon divergence.
        temperature: T, above 0.
        reduction: over rows: "mean", "sum" or "none".

    Returns:
        Nats, summed over classes: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, T is not above 0, or the share is not inside (0, 1).

    Source: Agarwal et al. 2024, arXiv:2306.13649, equation 1.
    """
    if not 0 < teacher_share < 1:
        raise ValueError(
            f"teacher_share must lie inside (0, 1), given {teacher_share}: at its ends use kl_divergence or "
            "reverse_kl_divergence"
        )
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    mixture = torch.logaddexp(teacher + math.log(teacher_share), student + math.log1p(-teacher_share))
    from_teacher = kl_of_log_probabilities(teacher, mixture)
    from_student = kl_of_log_probabilities(student, mixture)
    return reduce(teacher_share * from_teacher + (1 - teacher_share) * from_student, reduction)


def kl_of_log_probabilities(of: Tensor, against: Tensor) -> Tensor:
    """KL(of || against) from log-probabilities `(..., C)`, summed over the last axis, in nats."""
    return (of.exp() * (of - against)).sum(dim=-1)


def bernoulli_kl(of: Tensor, against: Tensor) -> Tensor:
    """KL(of || against) of yes-or-no distributions with logits of any shape, per element, in nats.

    Both log-probabilities come from log-sigmoid, so that logits of any size stay finite and keep their gradient.
    """
    logsigmoid = torch.nn.functional.logsigmoid
    yes = of.sigmoid() * (logsigmoid(of) - logsigmoid(against))
    no = (-of).sigmoid() * (logsigmoid(-of) - logsigmoid(-against))
    return yes + no


def _log_probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    check_logits(student_logits, teacher_logits)
    check_positive(temperature=temperature)
    student = (at_least_float32(student_logits) / temperature).log_softmax(dim=-1)
    teacher = (at_least_float32(teacher_logits.detach()) / temperature).log_softmax(dim=-1)
    return student, teacher
