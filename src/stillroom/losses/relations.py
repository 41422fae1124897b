"""How samples of a batch, or of a memory, lie to each other in two networks' feature spaces."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_not_negative,
    check_positive,
    check_same_batch,
    outside_autocast,
    reduce,
)


@outside_autocast
def rkd_distance_loss(
    student_feature: Tensor,
    teacher_feature: Tensor,
    *,
    squared: bool = False,
    beta: float = 1.0,
    eps: float = 1e-12,
    reduction: Reduction = "mean",
) -> Tensor:
    """Distance part of RKD: who is far from whom, in units of the batch's mean distance.

    D[i, j] = ||e_i - e_j||, divided by the mean over all i != j. Per sample i, loss = mean over all N samples j of
    smooth_l1(D_student[i, j] - D_teacher[i, j]) with its kink at beta; i = j counts as 0.

    Args:
        student_feature: `(N, ...)`, flattened to vectors; computed in float32 or wider, also under autocast.
        teacher_feature: `(N, ...)`, of any width; receives no gradient.
        squared: compare squared distances.
        beta: where smooth L1 turns from a square to a line, above 0.
        eps: squared distances are raised to this, so that equal samples have a gradient (of 0); above 0.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        A scalar, or `(N,)` for "none". Unchanged by rotation, translation and scale of either feature.

    Raises:
        ValueError: the numbers of samples differ or are below 2, or beta or eps is not above 0.

    Source: Park et al. 2019, arXiv:1904.05068, equations 6 to 8.
    """
    student, teacher = _vectors(student_feature, teacher_feature)
    check_positive(beta=beta, eps=eps)
    own, theirs = (relative_distances(vectors, squared=squared, eps=eps) for vectors in (student, teacher))
    return reduce(huber(own - theirs, beta).mean(dim=1), reduction)


@outside_autocast
def rkd_angle_loss(student_feature: Tensor, teacher_feature: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Angle part of RKD: the angles of all triangles that the samples of a batch form.

    A[i, j, k] is the cosine of the angle at sample i between the directions to j and k. Per sample i, loss = mean over
    all N^2 pairs (j, k) of smooth_l1(A_student[i, j, k] - A_teacher[i, j, k]) with its kink at 1. A sample has no
    direction to itself or to its equal: that angle counts as 0, without gradient.

    It takes N^2 D + N^3 numbers of memory: 64 samples are fine, 512 are not.

    Args:
        student_feature: `(N, ...)`, flattened to vectors; computed in float32 or wider, also under autocast.
        teacher_feature: `(N, ...)`, of any width; receives no gradient.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        A scalar, or `(N,)` for "none". Unchanged by rotation, translation and scale of either feature.

    Raises:
        ValueError: the numbers of samples differ or are below 2.

    Source: Park et al. 2019, arXiv:1904.05068, equations 9 and 10.
    """
    student, teacher = _vectors(student_feature, teacher_feature)
    difference = _angles(student) - _angles(teacher)
    return reduce(huber(difference).mean(dim=(1, 2)), reduction)


@outside_autocast
def rkd_loss(
    student_feature: Tensor,
    teacher_feature: Tensor,
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    squared: bool = False,
    eps: float = 1e-12,
    reduction: Reduction = "mean",
) -> Tensor:
    """Relational distillation: distances and angles between the samples of a batch, instead of the features themselves.

    Loss = distance_weight * `rkd_distance_loss` + angle_weight * `rkd_angle_loss`. A part of weight 0 is not computed.

    Args:
        student_feature: `(N, ...)`, flattened to vectors; computed in float32 or wider, also under autocast.
        teacher_feature: `(N, ...)`, of any width; receives no gradient.
        distance_weight: 0 or more.
        angle_weight: 0 or more.
        squared: compare squared distances.
        eps: squared distances are raised to this, above 0.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        A scalar, or `(N,)` for "none".

    Raises:
        ValueError: the numbers of samples differ or are below 2, a weight is below 0, or eps is not above 0.

    Source: Park et al. 2019, arXiv:1904.05068; the weights are those of the CIFAR-100 tables of the field.
    """
    check_not_negative(distance_weight=distance_weight, angle_weight=angle_weight)
    values = 0 * _vectors(student_feature, teacher_feature)[0].sum(dim=1)
    if distance_weight:
        part = rkd_distance_loss(student_feature, teacher_feature, squared=squared, eps=eps, reduction="none")
        values = values + distance_weight * part
    if angle_weight:
        values = values + angle_weight * rkd_angle_loss(student_feature, teacher_feature, reduction="none")
    return reduce(values, reduction)


@outside_autocast
def crd_loss(
    positive_log_scores: Tensor, negative_log_scores: Tensor, *, dataset_size: int, reduction: Reduction = "mean"
) -> Tensor:
    """Noise-contrastive loss of CRD: tell the pair of one sample from K pairs of different samples.

    With scores h = exp(u . v / tau) / Z, M samples and c = K / M, per sample,
    loss = -[log(h_+ / (h_+ + c)) + sum_k log(c / (h_k + c))]. It is computed from log h, so that no score overflows.

    Args:
        positive_log_scores: `(N,)`, log h of a sample's own pair: u . v / tau - log Z; computed in float32 or wider.
        negative_log_scores: `(N, K)`, log h of the pairs with other samples.
        dataset_size: M, above 0.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        Nats, summed over pairs: a scalar, or `(N,)` for "none". One direction; CRD adds the loss of the other.

    Raises:
        ValueError: the shapes are not `(N,)` and `(N, K)`, or M is not above 0.

    Source: Tian et al. 2020, arXiv:1910.10699, equations 10 to 19.
    """
    if negative_log_scores.ndim != 2 or positive_log_scores.shape != negative_log_scores.shape[:1]:
        raise ValueError(
            "scores must have shapes (N,) and (N, K), given positive_log_scores "
            f"{tuple(positive_log_scores.shape)} and negative_log_scores {tuple(negative_log_scores.shape)}"
        )
    check_positive(dataset_size=dataset_size, negatives=negative_log_scores.shape[1])
    log_noise = math.log(negative_log_scores.shape[1] / dataset_size)
    positive = F.logsigmoid(at_least_float32(positive_log_scores) - log_noise)
    negative = F.logsigmoid(log_noise - at_least_float32(negative_log_scores))
    return reduce(-(positive + negative.sum(dim=1)), reduction)


def _vectors(student_feature: Tensor, teacher_feature: Tensor) -> tuple[Tensor, Tensor]:
    check_same_batch(student_feature, teacher_feature, min_samples=2)
    student, teacher = at_least_float32(student_feature), at_least_float32(teacher_feature.detach())
    return student.flatten(1), teacher.flatten(1)


def pair_distances(vectors: Tensor, *, squared: bool = False, eps: float = 1e-12) -> Tensor:
    """Euclidean distances `(..., N, N)` between vectors `(..., N, D)`: squares raised to eps, 0 on the diagonal."""
    centred = vectors - vectors.mean(dim=-2, keepdim=True)  # distances stay, the products below lose less precision
    length = centred.square().sum(dim=-1)
    distance = (length.unsqueeze(-1) + length.unsqueeze(-2) - 2 * centred @ centred.mT).clamp(min=eps)
    if not squared:
        distance = distance.sqrt()
    return distance * (1 - torch.eye(vectors.shape[-2], dtype=vectors.dtype, device=vectors.device))


def relative_distances(
    vectors: Tensor, *, squared: bool = False, eps: float = 1e-12, member: Tensor | None = None
) -> Tensor:
    """Distances `(..., N, N)`, divided by their mean over different vectors; 0 on the diagonal.

    Args:
        vectors: `(..., N, D)`.
        squared: of squared distances.
        eps: squares are raised to this, above 0.
        member: `(..., N)` bool: which vectors there are, the others being padding, whose distances are 0; None for all.
    """
    distance = pair_distances(vectors, squared=squared, eps=eps)
    count: Tensor | int = vectors.shape[-2]
    if member is not None:
        distance = torch.where(member.unsqueeze(-1) & member.unsqueeze(-2), distance, 0)
        count = member.sum(-1)[..., None, None]
    total = distance.sum(dim=(-2, -1), keepdim=True)
    return distance * (count * (count - 1)) / torch.where(total > 0, total, 1)


def _angles(vectors: Tensor) -> Tensor:
    """`(N, N, N)` cosines at the first sample between the directions to the second and the third."""
    step = vectors.unsqueeze(0) - vectors.unsqueeze(1)
    length_squared = step.square().sum(dim=2, keepdim=True)
    apart = ~(length_squared <= 1e-24)  # NaN stays NaN
    length = torch.where(apart, length_squared, 1).sqrt()
    direction = torch.where(apart, step / length, 0)
    return direction @ direction.transpose(1, 2)


def huber(difference: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth L1 of each difference: `u^2 / (2 beta)` below beta, `|u| - beta / 2` above."""
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=beta)
