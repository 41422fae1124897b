"""What two classifiers say about the same samples: KD, DKD, DIST, standardised logits, and the multi-label form."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_label_range,
    check_logits,
    check_not_negative,
    check_positive,
    check_same_shape,
    kept_rows,
    outside_autocast,
    reduce,
    spread,
)
from stillroom.losses.distributions import bernoulli_kl, kl_divergence, kl_of_log_probabilities


@outside_autocast
def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0, reduction: Reduction = "mean"
) -> Tensor:
    """Hinton's distillation loss: softened outputs of the student against those of the teacher.

    Per row, with p = softmax(logits / T): loss = T^2 * sum_c p_teacher[c] * log(p_teacher[c] / p_student[c]).
    T^2 keeps the gradient's size as T grows; for T to infinity the loss tends to half the squared difference of the
    centred logits, divided by C.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        temperature: T, above 0.
        reduction: over rows: "mean", "sum" or "none".

    Returns:
        Nats, summed over classes: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, or T is not above 0.

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2.
    """
    values = kl_divergence(student_logits, teacher_logits, temperature=temperature, reduction="none")
    return reduce(temperature**2 * values, reduction)


@outside_autocast
def bernoulli_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """Distillation of independent yes-or-no outputs (multi-label classification).

    Per entry, with q = sigmoid(logit / T): loss = T^2 * KL of (q, 1 - q), the teacher's against the student's.

    Args:
        student_logits: `(N, C)` or any shape, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: the same shape; receives no gradient.
        temperature: T, above 0.
        reduction: over entries (not rows): "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or for "none" a tensor of the logits' shape.

    Raises:
        ValueError: shapes disagree, or T is not above 0.
    """
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    check_positive(temperature=temperature)
    student = at_least_float32(student_logits) / temperature
    teacher = at_least_float32(teacher_logits.detach()) / temperature
    return reduce(temperature**2 * bernoulli_kl(teacher, student), reduction)


@outside_autocast
def tckd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Target-class part of DKD: how sure each network is of the label against all other classes together.

    Per row, with p = softmax(logits / T) and b = (p[label], 1 - p[label]): loss = T^2 * KL(b_teacher || b_student). It
    is computed from z[label] / T - logsumexp(other z / T), so that no probability is rounded to 0 or 1.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        labels: `(N,)`, int64 in [0, C), or `ignore_index`.
        temperature: T, above 0.
        ignore_index: rows of this label are left out; None for a label in every row.
        reduction: over the rows that are not left out: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(N,)` for "none", 0 for rows left out.

    Raises:
        ValueError: shapes disagree, fewer than 3 classes, labels are not int64 or (on the CPU) out of range, every row
            is left out, or T is not above 0.

    Source: Zhao et al. 2022, arXiv:2203.08679, equation 5.
    """
    target, _ = _decoupled(student_logits, teacher_logits, labels, temperature, ignore_index)
    return _reduce_rows(target, labels, ignore_index, reduction)


@outside_autocast
def nckd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Non-target-class part of DKD: the classes other than the label against each other.

    Per row, with p = softmax(logits / T) over the C - 1 other classes: loss = T^2 * KL(p_teacher || p_student).

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        labels: `(N,)`, int64 in [0, C), or `ignore_index`.
        temperature: T, above 0.
        ignore_index: rows of this label are left out; None for a label in every row.
        reduction: over the rows that are not left out: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(N,)` for "none", 0 for rows left out.

    Raises:
        ValueError: as `tckd_loss`.

    Source: Zhao et al. 2022, arXiv:2203.08679, equation 5.
    """
    _, others = _decoupled(student_logits, teacher_logits, labels, temperature, ignore_index)
    return _reduce_rows(others, labels, ignore_index, reduction)


@outside_autocast
def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Decoupled distillation loss: the two parts of KD with a weight each.

    Per row, loss = alpha * TCKD + beta * NCKD (`tckd_loss`, `nckd_loss`; both with T^2). KD itself is
    TCKD + (1 - p_teacher[label]) * NCKD: it mutes the second part where the teacher is sure.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        labels: `(N,)`, int64 in [0, C), or `ignore_index`.
        alpha: weight of the target term, 0 or more.
        beta: weight of the non-target term, 0 or more.
        temperature: T, above 0.
        ignore_index: rows of this label are left out; None for a label in every row.
        reduction: over the rows that are not left out: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(N,)` for "none", 0 for rows left out.

    Raises:
        ValueError: as `tckd_loss`, or a weight is below 0.

    Source: Zhao et al. 2022, arXiv:2203.08679, equation 7.
    """
    check_not_negative(alpha=alpha, beta=beta)
    target, others = _decoupled(student_logits, teacher_logits, labels, temperature, ignore_index)
    return _reduce_rows(alpha * target + beta * others, labels, ignore_index, reduction)


def _decoupled(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of the rows that are kept, with T^2."""
    check_logits(student_logits, teacher_logits, labels, min_classes=3)
    check_positive(temperature=temperature)
    if ignore_index is not None:
        kept = kept_rows(labels, ignore_index)
        student_logits, teacher_logits, labels = student_logits[kept], teacher_logits[kept], labels[kept]
    classes = student_logits.shape[1]
    check_label_range(labels, classes)
    student = at_least_float32(student_logits) / temperature
    teacher = at_least_float32(teacher_logits.detach()) / temperature

    label = labels.unsqueeze(1)
    position = torch.arange(classes - 1, device=labels.device)
    others = position + (position >= label)  # class numbers without the label's
    student_others, teacher_others = student.gather(1, others), teacher.gather(1, others)
    student_margin = student.gather(1, label).squeeze(1) - student_others.logsumexp(dim=1)
    teacher_margin = teacher.gather(1, label).squeeze(1) - teacher_others.logsumexp(dim=1)
    target = bernoulli_kl(teacher_margin, student_margin)
    non_target = kl_of_log_probabilities(teacher_others.log_softmax(dim=1), student_others.log_softmax(dim=1))
    return temperature**2 * target, temperature**2 * non_target


def _reduce_rows(values: Tensor, labels: Tensor, ignore_index: int | None, reduction: Reduction) -> Tensor:
    if ignore_index is not None and reduction == "none":
        values = spread(values, labels != ignore_index)
    return reduce(values, reduction)


@outside_autocast
def standardize_logits(logits: Tensor) -> Tensor:
    """Logits with mean 0 and standard deviation 1 in each row (LSKD): only their shape is left to be matched.

    Per row, (z - mean(z)) / (1e-7 + std(z)) over the C classes, std with C - 1 in the denominator. Gradients flow
    through mean and standard deviation. What follows is a loss on logits with a base temperature, its T^2 included.

    Args:
        logits: `(N, C)`, C of 3 or more, any float dtype; computed in float32 or wider, also under autocast.

    Returns:
        `(N, C)`, unchanged by z -> a z + b with a > 0.

    Raises:
        ValueError: not two axes, or fewer than 3 classes (two standardised logits are always +-0.71).

    Source: Sun et al. 2024, arXiv:2403.01427, algorithm 1.
    """
    if logits.ndim != 2 or logits.shape[1] < 3:
        raise ValueError(
            f"logits must have shape (N, C) with 3 or more classes to be standardised, given {tuple(logits.shape)}"
        )
    logits = at_least_float32(logits)
    return (logits - logits.mean(dim=1, keepdim=True)) / (1e-7 + logits.std(dim=1, keepdim=True))


@outside_autocast
def dist_inter_class_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0, reduction: Reduction = "mean"
) -> Tensor:
    """First part of DIST: one minus the correlation between what both networks say of a sample.

    With Y = softmax(logits / T), per row, loss = T^2 * (1 - Pearson(Y_student[n], Y_teacher[n])), over classes.

    Args:
        student_logits: `(N, C)`, C of 3 or more, N of 2 or more; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        temperature: T, above 0.
        reduction: over rows: "mean", "sum" or "none".

    Returns:
        A scalar, or `(N,)` for "none", in [0, 2 T^2].

    Raises:
        ValueError: shapes disagree, C below 3, N below 2, or T is not above 0.

    Source: Huang et al. 2022, arXiv:2205.10536, equation 8.
    """
    student, teacher = _softened(student_logits, teacher_logits, temperature)
    return reduce(temperature**2 * (1 - _pearson(student, teacher)), reduction)


@outside_autocast
def dist_intra_class_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0, reduction: Reduction = "mean"
) -> Tensor:
    """Second part of DIST: one minus the correlation between how both networks rank the batch within a class.

    With Y = softmax(logits / T), per class c, loss = T^2 * (1 - Pearson(Y_student[:, c], Y_teacher[:, c])), over rows.

    Args:
        student_logits: `(N, C)`, C of 3 or more, N of 2 or more; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        temperature: T, above 0.
        reduction: over classes (not rows): "mean", "sum" or "none".

    Returns:
        A scalar, or `(C,)` for "none", in [0, 2 T^2].

    Raises:
        ValueError: shapes disagree, C below 3, N below 2, or T is not above 0.

    Source: Huang et al. 2022, arXiv:2205.10536, equation 9.
    """
    student, teacher = _softened(student_logits, teacher_logits, temperature)
    return reduce(temperature**2 * (1 - _pearson(student.T, teacher.T)), reduction)


@outside_autocast
def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 2.0,
    temperature: float = 4.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """DIST: match the correlations within rows and within columns instead of the probabilities themselves.

    Per row, loss = beta * `dist_inter_class_loss` of the row + gamma * the mean of `dist_intra_class_loss` over
    classes. The second part belongs to the batch and is the same in every row, so the loss of a batch is not the mean
    of the losses of its halves.

    Args:
        student_logits: `(N, C)`, C of 3 or more, N of 2 or more; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        beta: weight of the correlations within a sample, 0 or more.
        gamma: weight of the correlations within a class, 0 or more.
        temperature: T, above 0.
        reduction: over rows: "mean", "sum" or "none".

    Returns:
        A scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, C below 3, N below 2, T is not above 0, or a weight is below 0.

    Source: Huang et al. 2022, arXiv:2205.10536, equation 10.
    """
    check_not_negative(beta=beta, gamma=gamma)
    inter = dist_inter_class_loss(student_logits, teacher_logits, temperature=temperature, reduction="none")
    intra = dist_intra_class_loss(student_logits, teacher_logits, temperature=temperature)
    return reduce(beta * inter + gamma * intra, reduction)


def _softened(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    check_logits(student_logits, teacher_logits, min_classes=3, min_samples=2)
    check_positive(temperature=temperature)
    student = (at_least_float32(student_logits) / temperature).softmax(dim=1)
    return student, (at_least_float32(teacher_logits.detach()) / temperature).softmax(dim=1)


def _pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of corresponding rows, with 1e-8 added to the denominator as published."""
    first = first - first.mean(dim=1, keepdim=True)
    second = second - second.mean(dim=1, keepdim=True)
    return (first * second).sum(dim=1) / (first.norm(dim=1) * second.norm(dim=1) + 1e-8)
