"""Stages of one network that teach each other, and what their joint labels (class x transform) say of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_positive,
    outside_autocast,
    reduce,
)
from stillroom.losses.distributions import kl_of_log_probabilities
from stillroom.losses.features import hint_loss
from stillroom.losses.logits import kd_loss

TeacherStage = Literal["next", "last"]


def teacher_stages(stages: int, teacher_stage: TeacherStage = "next") -> list[tuple[int, int]]:
    """Who learns from whom.

    Args:
        stages: L, 1 or more.
        teacher_stage: "next" pairs every stage with the one behind it, "last" with the deepest.

    Returns:
        `(student, teacher)` numbers of stages, L - 1 pairs.

    Raises:
        ValueError: there is no stage, or another word.
    """
    if stages < 1:
        raise ValueError(f"there must be one stage or more, given {stages}")
    if teacher_stage not in ("next", "last"):
        raise ValueError(f'teacher_stage must be "next" or "last", given {teacher_stage!r}')
    return [(row, row + 1 if teacher_stage == "next" else stages - 1) for row in range(stages - 1)]


def layered_kd_loss(
    stage_logits: Sequence[Tensor],
    *,
    teacher_stage: TeacherStage = "next",
    temperature: float = 3.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Softened outputs of every stage's head against those of a deeper one.

    loss = sum over stages l < L of T^2 KL(softmax(a_t / T) || softmax(a_l / T)), t = l + 1 or L; the deeper stage's
    side is detached.

    Args:
        stage_logits: L tensors `(N, K)`, from the first stage to the last; any float dtype, computed in float32 or
            wider. K may be classes, or classes times transforms.
        teacher_stage: "next" or "last".
        temperature: T, above 0.
        reduction: over rows: "mean", "sum" or "none".

    Returns:
        Nats, summed over classes and stages: a scalar, or `(N,)` for "none". One stage alone gives 0, connected to the
        graph.

    Raises:
        ValueError: there is no stage, shapes disagree, or T is not above 0.

    Source: Dahri et al. 2025, arXiv:2506.07055 (direction and stages unconfirmed); Yang et al. 2021, arXiv:2107.13715.
    """
    check_positive(temperature=temperature)
    pairs = teacher_stages(len(stage_logits), teacher_stage)
    values = [
        kd_loss(stage_logits[own], stage_logits[deeper], temperature=temperature, reduction="none")
        for own, deeper in pairs
    ]
    return reduce(torch.stack(values).sum(dim=0) if values else 0 * stage_logits[0].sum(dim=1), reduction)


def layered_feature_loss(
    embeddings: Sequence[Tensor], *, teacher_stage: TeacherStage = "next", reduction: Reduction = "mean"
) -> Tensor:
    """Squared difference between every stage's embedding and that of a deeper one.

    loss = sum over stages l < L of mean over elements of (e_l - e_t)^2, t = l + 1 or L; the deeper one is detached.

    Args:
        embeddings: L tensors `(N, D)`, from the first stage to the last; computed in float32 or wider.
        teacher_stage: "next" or "last".
        reduction: over rows: "mean", "sum" or "none".

    Returns:
        A scalar, or `(N,)` for "none". One stage alone gives 0, connected to the graph.

    Raises:
        ValueError: there is no stage, or the stages differ in width.

    Source: Dahri et al. 2025, arXiv:2506.07055 (layer and reduction unconfirmed).
    """
    pairs = teacher_stages(len(embeddings), teacher_stage)
    check_same_width(embeddings)
    values = [hint_loss(embeddings[own], embeddings[deeper], reduction="none") for own, deeper in pairs]
    return reduce(torch.stack(values).sum(dim=0) if values else 0 * embeddings[0].flatten(1).sum(dim=1), reduction)


def check_same_width(embeddings: Sequence[Tensor]) -> None:
    """Refuse embeddings of different widths."""
    widths = [embedding.shape[-1] for embedding in embeddings]
    if len(set(widths)) > 1:
        raise ValueError(
            f"the embeddings of the stages have widths {', '.join(map(str, widths))}, and they must be equal to be "
            "compared: let each head project to one width, or set the weight of the feature term to 0"
        )


@outside_autocast
def marginal_kd_loss(
    logits: Tensor, joint_logits: Tensor, *, temperature: float = 3.0, reduction: Reduction = "mean"
) -> Tensor:
    """What a joint head says of the classes, as a teacher of the plain classifier.

    Per row, loss = T^2 KL(q || softmax(z / T)) with q = the sum over transforms of softmax(a / T), detached.

    Args:
        logits: z, `(N, C)`; computed in float32 or wider.
        joint_logits: a, `(N, C M)`, entry `M * class + transform`; receives no gradient.
        temperature: T, above 0.
        reduction: over rows: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, or T is not above 0.
    """
    check_positive(temperature=temperature)
    if logits.ndim != 2 or joint_logits.ndim != 2 or len(logits) != len(joint_logits):
        raise ValueError(
            f"logits must be (N, C) and joint_logits (N, C M) of the same rows, given {tuple(logits.shape)} and "
            f"{tuple(joint_logits.shape)}"
        )
    transforms, rest = divmod(joint_logits.shape[1], max(logits.shape[1], 1))
    if rest or not transforms:
        raise ValueError(
            f"joint_logits must have a multiple of the {logits.shape[1]} classes, given {joint_logits.shape[1]} columns"
        )
    joint = (at_least_float32(joint_logits.detach()) / temperature).log_softmax(dim=1)
    teacher = joint.unflatten(1, (-1, transforms)).logsumexp(dim=2)
    student = (at_least_float32(logits) / temperature).log_softmax(dim=1)
    return reduce(temperature**2 * kl_of_log_probabilities(teacher, student), reduction)


@outside_autocast
def class_scores(joint_logits: Tensor, transforms: int) -> Tensor:
    """Class scores of a joint head: the sum of the logits of a class over its transforms.

    Args:
        joint_logits: `(N, C M)`, entry `M * class + transform`; computed in float32 or wider.
        transforms: M.

    Returns:
        `(N, C)`.

    Raises:
        ValueError: the columns are no multiple of M.

    Source: the evaluation in the code of Yang et al. 2021, arXiv:2107.13715.
    """
    return _by_class(at_least_float32(joint_logits), transforms).sum(dim=2)


@outside_autocast
def class_probabilities(joint_logits: Tensor, transforms: int) -> Tensor:
    """Class probabilities of a joint head: softmax over all C M, summed over the transforms of each class.

    Args:
        joint_logits: `(N, C M)`, entry `M * class + transform`; computed in float32 or wider.
        transforms: M.

    Returns:
        `(N, C)`; rows sum to 1.

    Raises:
        ValueError: the columns are no multiple of M.
    """
    return _by_class(at_least_float32(joint_logits).softmax(dim=1), transforms).sum(dim=2)


def _by_class(joint: Tensor, transforms: int) -> Tensor:
    if joint.ndim != 2 or transforms < 1 or joint.shape[1] % transforms:
        raise ValueError(
            f"joint logits must be (N, C M) with M = {transforms} transforms per class, given {tuple(joint.shape)}"
        )
    return joint.unflatten(1, (-1, transforms))
