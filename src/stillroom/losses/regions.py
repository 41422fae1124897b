"""What two detectors say of the same regions of an image: class scores with a background column, and box deltas.

Logits here have K + 1 columns, the K classes first and the background LAST; `stillroom.blocks.TwoStage` brings those of
other detectors (torchvision's have the background first) to that order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_finite,
    check_not_negative,
    check_positive,
    check_same_shape,
    outside_autocast,
    reduce,
)


@outside_autocast
def lpld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    *,
    scale: float = 0.1,
    background: float = 1e-9,
    reduction: Reduction = "mean",
) -> Tensor:
    """Low-confidence pseudo label distillation: uncertain regions are taught softly, and never as background.

    With q = [softmax(teacher's K class logits), background] and r = softmax(all K + 1 student logits), per region
    loss = scale * weight * sum_k q_k (log q_k - log r_k). The teacher's background logit is not looked at; q is not
    renormalised, so it sums to 1 + `background`.

    Args:
        student_logits: `(R, K + 1)`, background last, any float dtype; computed in float32 or wider.
        teacher_logits: `(R, K + 1)`, background last; receives no gradient.
        weights: `(R,)`, 0 or more; see `lpld_weights`; receives no gradient.
        scale: factor of the whole loss, 0 or more.
        background: what stands for the background's share in q, above 0.
        reduction: over regions: "mean", "sum" or "none"; without a region 0, connected to the graph.

    Returns:
        Nats: a scalar, or `(R,)` for "none".

    Raises:
        ValueError: shapes disagree (a missing background column among them), fewer than two classes, or NaN.

    Source: Yoon et al. 2024, arXiv:2407.13524, and the authors' code (junia3/LPLD).
    """
    check_regions(student_logits, teacher_logits)
    check_not_negative(scale=scale)
    check_positive(background=background)
    if weights.shape != student_logits.shape[:1]:
        raise ValueError(
            f"weights must have one value for each of the {len(student_logits)} regions, given {tuple(weights.shape)}"
        )
    student_logits = at_least_float32(student_logits)
    teacher_logits = at_least_float32(teacher_logits.detach())
    target = F.pad(teacher_logits[:, :-1].softmax(-1), (0, 1), value=background)
    # a class the teacher rules out entirely has q = 0 and q log q = 0
    terms = torch.where(~(target <= 0), target * (target.log() - student_logits.log_softmax(-1)), 0.0)
    return reduce(scale * weights.detach().to(student_logits) * terms.sum(-1), reduction)


def lpld_weights(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """How much the student's feature of a region has moved away from the teacher's: weight = 1 - cosine similarity.

    Args:
        student_features: `(R, C)`, pooled over positions.
        teacher_features: `(R, C)` of the same regions.

    Returns:
        `(R,)` in [0, 2], without gradient: else a student could lower its loss by keeping its features.

    Raises:
        ValueError: shapes disagree.

    Source: Yoon et al. 2024, arXiv:2407.13524.
    """
    check_same_shape(student_features=student_features, teacher_features=teacher_features)
    student, teacher = (
        F.normalize(at_least_float32(features.detach()), dim=-1) for features in (student_features, teacher_features)
    )
    return (1 - (student * teacher).sum(-1)).clamp(0, 2)


@outside_autocast
def region_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Hinton's distillation on regions: T^2 KL(softmax(teacher / T) || softmax(student / T)) over K + 1 columns.

    Args:
        student_logits: `(R, K + 1)`.
        teacher_logits: `(R, K + 1)` of the same regions; receives no gradient.
        temperature: T, above 0.
        reduction: over regions: "mean", "sum" or "none"; without a region 0, connected to the graph.

    Returns:
        Nats: a scalar, or `(R,)` for "none".

    Raises:
        ValueError: shapes disagree, or the temperature is not above 0.

    Source: Hinton et al. 2015, arXiv:1503.02531; on proposals of a detector: Chen et al. 2017 (NeurIPS 30).
    """
    check_regions(student_logits, teacher_logits, min_classes=1)
    check_positive(temperature=temperature)
    student = (at_least_float32(student_logits) / temperature).log_softmax(-1)
    teacher = (at_least_float32(teacher_logits.detach()) / temperature).log_softmax(-1)
    return reduce(temperature**2 * (teacher.exp() * (teacher - student)).sum(-1), reduction)


@outside_autocast
def region_box_loss(
    student_deltas: Tensor,
    teacher_deltas: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 1 / 9,
    reduction: Reduction = "mean",
) -> Tensor:
    """Distil where the teacher moves a region to, as far as it takes it for an object.

    With k the teacher's favourite class and p = 1 - its background probability, per region
    loss = p * sum over the four deltas of smooth_l1(student_k - teacher_k).

    Args:
        student_deltas: `(R, K, 4)` per class, or `(R, 1, 4)` for detectors that have one box for all classes.
        teacher_deltas: the same; receives no gradient.
        teacher_logits: `(R, K + 1)`, background last.
        beta: where smooth L1 turns from a square into a line, above 0.
        reduction: over regions: "mean", "sum" or "none"; without a region 0, connected to the graph.

    Returns:
        A scalar, or `(R,)` for "none".

    Raises:
        ValueError: shapes disagree.

    Source: Chen et al. 2017 (NeurIPS 30), with the teacher's own box as the target.
    """
    check_positive(beta=beta)
    check_finite(teacher_logits=teacher_logits)
    favourite = teacher_logits.detach()[:, :-1].argmax(-1)
    student, teacher = (_of_class(deltas, favourite) for deltas in (student_deltas, teacher_deltas.detach()))
    check_same_shape(student_deltas=student, teacher_deltas=teacher)
    object_share = 1 - at_least_float32(teacher_logits.detach()).softmax(-1)[:, -1]
    distance = F.smooth_l1_loss(at_least_float32(student), at_least_float32(teacher), beta=beta, reduction="none")
    return reduce(object_share * distance.sum(-1), reduction)


def _of_class(deltas: Tensor, classes: Tensor) -> Tensor:
    """`(R, 4)`: the deltas of one class per region."""
    if deltas.ndim != 3 or deltas.shape[-1] != 4 or len(deltas) != len(classes):
        raise ValueError(
            f"deltas must have shape ({len(classes)}, K, 4), or (R, 1, 4) for one box per region, given "
            f"{tuple(deltas.shape)}"
        )
    if deltas.shape[1] == 1:
        return deltas[:, 0]
    return deltas[torch.arange(len(classes), device=deltas.device), classes]


def check_regions(student_logits: Tensor, teacher_logits: Tensor, *, min_classes: int = 2) -> None:
    """Refuse logits of regions that cannot be right.

    Raises:
        ValueError: not `(R, K + 1)`, different shapes, too few classes, or NaN (found on the CPU).
    """
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if logits.ndim != 2:
            raise ValueError(f"{name} must have shape (R, K + 1), a row per region, given {tuple(logits.shape)}")
    if student_logits.shape != teacher_logits.shape:
        without = abs(student_logits.shape[1] - teacher_logits.shape[1]) == 1
        remedy = (
            "one of the two lacks the background column, which must be the last of K + 1"
            if without and len(student_logits) == len(teacher_logits)
            else "both must score the same regions and classes"
        )
        raise ValueError(
            f"student_logits have shape {tuple(student_logits.shape)}, but teacher_logits have shape "
            f"{tuple(teacher_logits.shape)}: {remedy}"
        )
    if student_logits.shape[1] - 1 < min_classes:
        raise ValueError(
            f"this loss needs {min_classes} classes or more beside the background, given {student_logits.shape[1]} "
            "columns: with one class every region that is an object would be a certain one"
        )
    check_finite(student_logits=student_logits, teacher_logits=teacher_logits)
