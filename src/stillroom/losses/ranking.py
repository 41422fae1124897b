"""Losses that ask the student for an order of the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_finite,
    check_label_range,
    check_logits,
    check_positive,
    check_same_shape,
    kept_rows,
    outside_autocast,
    reduce,
    spread,
)


@outside_autocast
def pld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    teacher_temperature: float = 1.0,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Plackett-Luce distillation loss: cross-entropy and distillation as one ranking loss.

    Per sample, pi orders the C classes: the label, then the others by falling teacher logit t. With student logits s
    and weights q = softmax(t / tau), loss = sum_k q[pi_k] * (logsumexp(s[pi_k], ..., s[pi_C]) - s[pi_k]).
    tau softens the weights, never the order. The student is not tempered and there is no tau^2 factor.
    A teacher that is certain of the label gives cross-entropy; one that gives the label a small q[label], being wrong,
    mutes the sample's cross-entropy.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`, finite; receives no gradient, even where it requires one.
        labels: `(N,)`, int64 in [0, C), or `ignore_index`.
        teacher_temperature: tau, above 0.
        ignore_index: rows of this label are left out; None for a label in every row.
        reduction: over the samples that are not left out, as in `torch.nn.functional`: "mean", "sum" or "none".

    Returns:
        Nats, summed over classes: a scalar, or `(N,)` for "none", 0 for rows left out.

    Raises:
        ValueError: shapes disagree, the batch is empty or every row is left out, labels are not int64, tau is not above
            0, or (on the CPU) labels lie outside [0, C) or teacher logits are not finite.

    Source: Bassam et al. 2025, arXiv:2506.12542, appendix C.
    """
    check_logits(student_logits, teacher_logits, labels)
    check_positive(teacher_temperature=teacher_temperature)
    kept = None if ignore_index is None else kept_rows(labels, ignore_index)
    if kept is not None:
        student_logits, teacher_logits, labels = student_logits[kept], teacher_logits[kept], labels[kept]
    teacher_logits = at_least_float32(teacher_logits.detach())

    permutation = teacher_optimal_permutation(teacher_logits, labels)
    rank_weights = (teacher_logits / teacher_temperature).softmax(dim=-1).gather(-1, permutation)
    per_sample = plackett_luce_loss(student_logits, permutation, rank_weights, reduction="none")
    return reduce(spread(per_sample, kept) if kept is not None and reduction == "none" else per_sample, reduction)


@outside_autocast
def plackett_luce_loss(
    student_logits: Tensor, permutation: Tensor, rank_weights: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    """Negative log-likelihood of an order of the classes under the student, with a weight for each rank.

    Per sample, loss = sum_k w_k * (logsumexp(s[pi_k], ..., s[pi_C]) - s[pi_k]): the student picks the classes one after
    the other, each time among those that are left. Weights 1 / C give ListMLE divided by C; weights (1, 0, ..., 0) give
    cross-entropy with the first class as label; the teacher's probabilities give `pld_loss`.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        permutation: `(N, C)`, int64: class numbers, best first, each once in a row.
        rank_weights: `(N, C)`, weight of each rank (not class), 0 or more; receives no gradient.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        Nats, summed over ranks: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, the batch is empty, or the permutation is not int64.

    Source: Xia et al. 2008 (ListMLE); Bassam et al. 2025, arXiv:2506.12542, section 3.
    """
    check_logits(student_logits, student_logits)
    check_same_shape(student_logits=student_logits, permutation=permutation)
    check_same_shape(student_logits=student_logits, rank_weights=rank_weights)
    if permutation.dtype != torch.int64:
        raise ValueError(f"permutation must be int64 class numbers, given dtype {permutation.dtype}")
    ranked = at_least_float32(student_logits).gather(-1, permutation)
    log_remaining = ranked.flip(-1).logcumsumexp(dim=-1).flip(-1)
    per_sample = (at_least_float32(rank_weights.detach()) * (log_remaining - ranked)).sum(dim=-1)
    return reduce(per_sample, reduction)


def teacher_optimal_permutation(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Order the classes as the teacher does, the label first wherever the teacher puts it.

    Args:
        teacher_logits: `(N, C)`, finite. Ties keep the order of the class numbers.
        labels: `(N,)`, int64 in [0, C).

    Returns:
        `(N, C)`, int64: class numbers, best first.

    Raises:
        ValueError: shapes disagree, the batch is empty, labels are not int64, or (on the CPU) labels lie outside [0, C)
            or teacher logits are not finite.

    Source: Bassam et al. 2025, arXiv:2506.12542, appendix C.
    """
    check_logits(teacher_logits, teacher_logits, labels)
    check_label_range(labels, teacher_logits.shape[1])
    check_finite(teacher_logits=teacher_logits)
    label_first = teacher_logits.detach().scatter(-1, labels.unsqueeze(-1), torch.inf)
    return label_first.argsort(dim=-1, descending=True, stable=True)
