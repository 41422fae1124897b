"""Activations inside two networks, one pair of layers at a time: hints, attention maps, generated and pooled maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_maps,
    check_same_shape,
    outside_autocast,
    reduce,
)


@outside_autocast
def hint_loss(student_feature: Tensor, teacher_feature: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """FitNets' hint: the squared difference of two features.

    Per sample, loss = mean over all elements of (student - teacher)^2; the mean over a batch is `mse_loss`.

    Args:
        student_feature: `(N, ...)`, brought to the teacher's shape (by a regressor); computed in float32 or wider.
        teacher_feature: the same shape; receives no gradient.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        A scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree.

    Source: Romero et al. 2015, arXiv:1412.6550, equation 3, with the mean that later code takes.
    """
    return reduce(_squared_difference(student_feature, teacher_feature).mean(dim=1), reduction)


@outside_autocast
def masked_generative_loss(generated: Tensor, teacher_feature: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """MGD's reconstruction error: how far a feature generated from the student's masked one is from the teacher's.

    Per sample, loss = sum over all elements of (generated - teacher)^2: a sum, hence the tiny weight published for it.

    Args:
        generated: `(N, ...)`, what the generator made of the masked student feature; computed in float32 or wider.
        teacher_feature: the same shape; receives no gradient.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        A scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree.

    Source: Yang et al. 2022, arXiv:2205.01529, equation 6.
    """
    return reduce(_squared_difference(generated, teacher_feature).sum(dim=1), reduction)


@outside_autocast
def attention_transfer_loss(
    student_feature: Tensor, teacher_feature: Tensor, *, power: int = 2, reduction: Reduction = "mean"
) -> Tensor:
    """Attention transfer: where in the image two networks are active, whatever their channels mean.

    A(f) is the mean over channels of f^p, flattened and divided by its L2 norm per sample. Per sample, loss = mean over
    positions of (A(student) - A(teacher))^2. The larger of the two maps is averaged to the smaller one's size first.
    Weights of about 1000 belong to this mean over positions.

    Args:
        student_feature: `(N, C, H, W)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_feature: `(N, C', H', W')`; receives no gradient.
        power: p, a whole number of 1 or more. An odd power keeps the sign of each activation, as the usual code does.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        A scalar, or `(N,)` for "none".

    Raises:
        ValueError: a feature is no map, the numbers of samples differ, one map is higher but less wide than the other,
            or p is no whole number of 1 or more.

    Source: Zagoruyko, Komodakis 2017, arXiv:1612.03928, equation 2, with the mean of the authors' code.
    """
    check_maps(student_feature, teacher_feature)
    if power != int(power) or power < 1:
        raise ValueError(f"power must be a whole number of 1 or more, given {power}")
    student, teacher = at_least_float32(student_feature), at_least_float32(teacher_feature.detach())
    size, teacher_size = (student.shape[2], student.shape[3]), (teacher.shape[2], teacher.shape[3])
    if size == teacher_size:  # pooling would copy
        pass
    elif size[0] >= teacher_size[0] and size[1] >= teacher_size[1]:
        student = F.adaptive_avg_pool2d(student, teacher_size)
    elif size[0] <= teacher_size[0] and size[1] <= teacher_size[1]:
        teacher = F.adaptive_avg_pool2d(teacher, size)
    else:
        raise ValueError(
            f"student_feature has a map of {size} and teacher_feature of {teacher_size}: one must be the larger "
            "on both sides"
        )
    return reduce((_attention(student, power) - _attention(teacher, power)).square().mean(dim=1), reduction)


@outside_autocast
def review_context_loss(student_feature: Tensor, teacher_feature: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """ReviewKD's hierarchical context loss of one stage: two maps compared at full size and coarser and coarser.

    Per sample, loss = (D + sum_i D_i / 2^i) / (1 + sum_i 1 / 2^i): D is the mean squared difference of the maps, and
    D_1, D_2, ... those of the maps averaged to 4x4, 2x2 and 1x1, of which only sizes below H are used.

    Args:
        student_feature: `(N, C, H, W)`, after fusion; computed in float32 or wider, also under autocast.
        teacher_feature: the same shape; receives no gradient.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        A scalar, or `(N,)` for "none".

    Raises:
        ValueError: a feature is no map, or shapes disagree.

    Source: Chen et al. 2021, arXiv:2104.09044, section 3.4 and the authors' code.
    """
    check_maps(student_feature, teacher_feature)
    check_same_shape(student_feature=student_feature, teacher_feature=teacher_feature)
    student, teacher = at_least_float32(student_feature), at_least_float32(teacher_feature.detach())
    values = _squared_difference(student, teacher).mean(dim=1)
    weight = weights = 1.0
    for side in (4, 2, 1):
        if side < student.shape[2]:
            weight /= 2
            weights += weight
            coarse = _squared_difference(F.adaptive_avg_pool2d(student, side), F.adaptive_avg_pool2d(teacher, side))
            values = values + weight * coarse.mean(dim=1)
    return reduce(values / weights, reduction)


def _squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """`(N, elements)`; the teacher's side is detached."""
    check_same_shape(student_feature=student, teacher_feature=teacher)
    return (at_least_float32(student) - at_least_float32(teacher.detach())).square().flatten(1)


def _attention(feature: Tensor, power: int) -> Tensor:
    return F.normalize(feature.pow(power).mean(dim=1).flatten(1), dim=1)
