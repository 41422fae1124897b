"""Label and teacher weighed against each other, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    check_label_range,
    check_logits,
    check_positive,
    outside_autocast,
    reduce,
)
from stillroom.losses.logits import kd_loss
from stillroom.losses.supervised import cross_entropy


@outside_autocast
def blended_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alphas: Tensor | float,
    *,
    temperature: float = 4.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Distillation and cross-entropy with a share of each per sample.

    Per sample: loss = alpha * T^2 * KL(p_teacher || p_student) + (1 - alpha) * CE(student, label), the divergence of
    the outputs softened by T, the cross-entropy at temperature 1.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        labels: `(N,)`, int64 in [0, C).
        alphas: `(N,)` or a number, the teacher's share, in [0, 1]; constants, no gradient flows through them.
        temperature: T, above 0.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, labels are not int64 or (on the CPU) out of range, or T is not above 0.

    Source: Hu et al. 2024, arXiv:2312.15112, with the cross-entropy taken of logits.
    """
    check_labels(student_logits, teacher_logits, labels)
    check_positive(temperature=temperature)
    if isinstance(alphas, Tensor):
        if alphas.ndim and alphas.shape != labels.shape:
            raise ValueError(
                f"alphas have shape {tuple(alphas.shape)}, but there are {len(labels)} samples: give one for each, or "
                "one number"
            )
        alphas = alphas.detach()
    distill = kd_loss(student_logits, teacher_logits, temperature=temperature, reduction="none")
    label = cross_entropy(student_logits, labels, reduction="none")
    return reduce(alphas * distill + (1 - alphas) * label, reduction)


@outside_autocast
@torch.no_grad()
def relative_alphas(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """The teacher's share of each sample by who fits the label better: 1 - exp(-CE_student / CE_teacher).

    A teacher that is far from the label gets little; one that is closer than the student gets more than 1 - 1/e.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`.
        labels: `(N,)`, int64 in [0, C).

    Returns:
        `(N,)` in [0, 1], without gradient.

    Raises:
        ValueError: shapes disagree, or labels are not int64 or (on the CPU) out of range.

    Source: Zhou et al. 2021, arXiv:2102.00650 (weighted soft labels), as a share.
    """
    check_labels(student_logits, teacher_logits, labels)
    own = cross_entropy(student_logits, labels, reduction="none")
    theirs = cross_entropy(teacher_logits, labels, reduction="none")
    return -torch.expm1(-own / theirs.clamp(min=torch.finfo(theirs.dtype).tiny))


def check_labels(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> None:
    """Refuse logits of different classes, and labels that are no class number for every sample."""
    if labels.is_floating_point():
        raise ValueError(
            f"labels must be int64 class numbers, given {labels.dtype} of shape {tuple(labels.shape)}: soft labels "
            "have no one class to be compared with"
        )
    check_logits(student_logits, teacher_logits, labels)
    check_label_range(labels, student_logits.shape[1])
