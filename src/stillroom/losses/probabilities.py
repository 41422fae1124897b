"""Squared differences of probabilities: to a teacher, to the labels, to a mixture of both; and the sum of norms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_label_range,
    check_logits,
    outside_autocast,
    reduce,
    reduce_known,
)


@outside_autocast
def probability_mse_loss(student_logits: Tensor, teacher_logits: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Mean squared difference of the student's and the teacher's probabilities.

    Per sample, `loss = 1/C sum_c (softmax(s)_c - softmax(t)_c)^2`. Unlike a divergence it is bounded, and its gradient
    vanishes where the student is sure of another class.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        reduction: over samples, as in `torch.nn.functional`; "mean" is the mean over all N C numbers.

    Returns:
        In [0, 2/C]: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree.

    Source: Borup and Andersen 2021, arXiv:2102.13088, the network experiments' code.

    Example:
        >>> sure = torch.tensor([[100.0, 0.0]])
        >>> float(probability_mse_loss(sure, torch.zeros(1, 2)))
        0.25
    """
    check_logits(student_logits, teacher_logits)
    difference = _probabilities(student_logits) - _probabilities(teacher_logits.detach())
    return reduce(difference.square().mean(dim=1), reduction)


@outside_autocast
def label_mse_loss(
    logits: Tensor, labels: Tensor, *, ignore_index: int = -100, reduction: Reduction = "mean"
) -> Tensor:
    """Mean squared difference of probabilities and one-hot labels: the Brier score over the number of classes.

    Per sample, `loss = 1/C sum_c (softmax(z)_c - [c = label])^2`.

    Args:
        logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        labels: `(N,)`, int64 in [0, C), or `ignore_index` for none.
        ignore_index: the label that says there is none.
        reduction: over labelled samples; the mean over none is 0 and connected to the graph.

    Returns:
        In [0, 2/C]: a scalar, or `(N,)` for "none", 0 where there is no label.

    Raises:
        ValueError: shapes disagree, there is no sample, labels are not int64, or (on the CPU) lie outside [0, C).

    Source: Borup and Andersen 2021, arXiv:2102.13088, the network experiments' code.
    """
    check_logits(logits, logits, labels)
    known = labels != ignore_index
    classes = torch.where(known, labels, 0)
    check_label_range(classes, logits.shape[1])
    probabilities = _probabilities(logits)
    difference = probabilities - F.one_hot(classes, logits.shape[1]).to(probabilities.dtype)
    return reduce_known(difference.square().mean(dim=1), known, reduction)


@outside_autocast
def mixed_mse_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    label_weight: float = 0.6,
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared differences to the labels and to the teacher, in two shares.

    Per sample, `loss = a * label_mse_loss + (1 - a) * probability_mse_loss` with the labels' share a. Up to a constant
    it is the squared difference to the mixture `a * onehot + (1 - a) * softmax(t)`.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        labels: `(N,)`, int64 in [0, C): every sample has one.
        label_weight: a, the share of the LABELS (not of the teacher), in [0, 1].
        reduction: over samples, as in `torch.nn.functional`; "mean" is the mean over all N C numbers.

    Returns:
        In [0, 2/C]: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, labels are not int64 or out of range, or a share outside [0, 1].

    Source: Borup and Andersen 2021, arXiv:2102.13088, the network experiments' code.
    """
    check_share(label_weight=label_weight)
    check_logits(student_logits, teacher_logits, labels)
    check_label_range(labels, student_logits.shape[1])
    to_labels = label_mse_loss(student_logits, labels, reduction="none")
    to_teacher = probability_mse_loss(student_logits, teacher_logits, reduction="none")
    return reduce(label_weight * to_labels + (1 - label_weight) * to_teacher, reduction)


@outside_autocast
def norm_penalty(first: Tensor, *others: Tensor) -> Tensor:
    """Sum of the Euclidean norms of some parameters, NOT of their squares (so it is no weight decay).

    `penalty = sum_p ||p||_2`, one norm per tensor. It pulls with the same force on a tensor of any size; at a tensor
    that is exactly 0 its gradient is 0.

    Args:
        first: a parameter, any shape.
        *others: further ones.

    Returns:
        A scalar of 0 or more.

    Source: Borup and Andersen 2021, arXiv:2102.13088, the network experiments' code.

    Example:
        >>> float(norm_penalty(torch.tensor([3.0, 4.0]), torch.tensor([[2.0]])))
        7.0
    """
    return torch.stack([torch.linalg.vector_norm(at_least_float32(one)) for one in (first, *others)]).sum()


def check_share(**named: float) -> None:
    """Refuse numbers outside [0, 1], naming them."""
    for name, value in named.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be a share in [0, 1], given {value}")


def _probabilities(logits: Tensor) -> Tensor:
    return at_least_float32(logits).softmax(dim=1)
