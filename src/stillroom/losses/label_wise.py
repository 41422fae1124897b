"""What two multi-label taggers say of each label, and how their label-wise embeddings lie to each other: L2D."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_logits,
    check_not_negative,
    check_positive,
    outside_autocast,
    reduce,
    reduce_known,
)
from stillroom.losses.relations import huber, relative_distances

INFORMATIVE = 3
"""Two rows have one distance, which is the mean of itself: the fewest rows that say anything are three."""


@outside_autocast
def mld_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, eps: float = 1e-8, reduction: Reduction = "mean"
) -> Tensor:
    """Multi-label logits distillation: every label is a yes-or-no question of its own.

    With p = sigmoid(student), q = sigmoid(teacher), both kept within [eps, 1 - eps], per row
    loss = sum_c q log(q / p) + (1 - q) log((1 - q) / (1 - p)). There is no temperature.
    Where p is kept back (at eps = 1e-8 beyond |logit| of 18.4) the gradient is 0: a student that is certain and wrong
    is not corrected. With eps = 0 the gradient of a row is p - q everywhere.

    Args:
        student_logits: `(N, C)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: `(N, C)`; receives no gradient.
        eps: in [0, 0.5).
        reduction: over rows: "mean", "sum" or "none".

    Returns:
        Nats, summed over labels: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, or eps is out of range.

    Source: Yang et al. 2023, arXiv:2308.06453.

    Example:
        >>> logits = torch.tensor([[2.0, -1.0, 0.5]])
        >>> float(mld_loss(logits, logits))
        0.0
    """
    check_logits(student_logits, teacher_logits, min_classes=1)
    if not 0 <= eps < 0.5:
        raise ValueError(f"eps must be a probability in [0, 0.5), given {eps}")
    student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits.detach())

    def log_probability(logits: Tensor) -> Tensor:
        logs = F.logsigmoid(logits)
        return logs.clamp(math.log(eps), math.log1p(-eps)) if eps else logs

    yes, no = log_probability(teacher), log_probability(-teacher)
    values = yes.exp() * (yes - log_probability(student)) + no.exp() * (no - log_probability(-student))
    return reduce(values.sum(dim=1), reduction)


@outside_autocast
def led_class_aware_loss(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    targets: Tensor,
    *,
    beta: float = 1.0,
    eps: float = 1e-12,
    reduction: Reduction = "sum",
) -> Tensor:
    """How the images that carry a label lie to each other in that label's embeddings, label by label.

    For each label, over the m images that carry it, D[i, j] = ||e_i - e_j||, divided by the mean over all i != j;
    loss = (1 / m) * sum_ij smooth_l1(D_student[i, j] - D_teacher[i, j]). Two images have one distance, which is its own
    mean: a label with fewer than three carriers in the batch gives 0.

    Args:
        student_embeddings: `(N, C, D)`, one per image and label; computed in float32 or wider, also under autocast.
        teacher_embeddings: `(N, C, any width)`; receives no gradient.
        targets: `(N, C)` of 0 and 1; NaN, for unknown, is no carrier.
        beta: where smooth L1 turns from a square to a line, above 0.
        eps: squared distances are raised to this, above 0.
        reduction: over labels: "sum" (the paper's, so that it grows with the number of labels that a batch shows),
            "mean" over the labels with three carriers or more, or "none".

    Returns:
        A scalar, or `(C,)` for "none"; 0 and connected to the graph where no label has three carriers. Embeddings of
        labels that an image does not carry get no gradient.

    Raises:
        ValueError: shapes disagree, beta or eps is not above 0, or (on the CPU) targets other than 0 and 1.

    Source: Yang et al. 2023, arXiv:2308.06453.
    """
    student, teacher, carried = _checked(student_embeddings, teacher_embeddings, targets)
    check_positive(beta=beta, eps=eps)
    return _by_group(student.transpose(0, 1), teacher.transpose(0, 1), carried.T, beta, eps, reduction)


@outside_autocast
def led_instance_aware_loss(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    targets: Tensor,
    *,
    beta: float = 1.0,
    eps: float = 1e-12,
    reduction: Reduction = "sum",
) -> Tensor:
    """How the embeddings of an image's own labels lie to each other, image by image.

    For each image, over the embeddings of the m labels it carries, the loss of `led_class_aware_loss`. An image with
    fewer than three labels gives 0.

    Args:
        student_embeddings: `(N, C, D)`, one per image and label; computed in float32 or wider, also under autocast.
        teacher_embeddings: `(N, C, any width)`; receives no gradient.
        targets: `(N, C)` of 0 and 1; NaN, for unknown, is not carried.
        beta: where smooth L1 turns from a square to a line, above 0.
        eps: squared distances are raised to this, above 0.
        reduction: over images: "sum" (the paper's, so that it grows with the batch), "mean" over the images with three
            labels or more, or "none".

    Returns:
        A scalar, or `(N,)` for "none"; 0 and connected to the graph where no image has three labels.

    Raises:
        ValueError: as `led_class_aware_loss`.

    Source: Yang et al. 2023, arXiv:2308.06453.
    """
    student, teacher, carried = _checked(student_embeddings, teacher_embeddings, targets)
    check_positive(beta=beta, eps=eps)
    return _by_group(student, teacher, carried, beta, eps, reduction)


def led_loss(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    targets: Tensor,
    *,
    class_aware_weight: float = 100.0,
    instance_aware_weight: float = 1000.0,
    beta: float = 1.0,
    eps: float = 1e-12,
) -> Tensor:
    """Label-wise embedding distillation: how embeddings lie to each other within labels and within images.

    loss = class_aware_weight * `led_class_aware_loss` + instance_aware_weight * `led_instance_aware_loss`, both as
    sums. The weights go with batches of 64 images; with others, divide.

    Args:
        student_embeddings: `(N, C, D)`, one per image and label.
        teacher_embeddings: `(N, C, any width)`; receives no gradient.
        targets: `(N, C)` of 0 and 1, NaN for unknown.
        class_aware_weight: 0 or more.
        instance_aware_weight: 0 or more.
        beta: where smooth L1 turns from a square to a line, above 0.
        eps: squared distances are raised to this, above 0.

    Returns:
        A scalar.

    Raises:
        ValueError: a weight is below 0, or as `led_class_aware_loss`.

    Source: Yang et al. 2023, arXiv:2308.06453.
    """
    check_not_negative(class_aware_weight=class_aware_weight, instance_aware_weight=instance_aware_weight)
    within_labels = led_class_aware_loss(student_embeddings, teacher_embeddings, targets, beta=beta, eps=eps)
    within_images = led_instance_aware_loss(student_embeddings, teacher_embeddings, targets, beta=beta, eps=eps)
    return class_aware_weight * within_labels + instance_aware_weight * within_images


def _by_group(
    student: Tensor, teacher: Tensor, member: Tensor, beta: float, eps: float, reduction: Reduction
) -> Tensor:
    """The relational loss of every group at once.

    Args:
        student: `(G, M, D)`.
        teacher: `(G, M, any width)`.
        member: `(G, M)` bool: which of the rows belong to the group.
        beta: of smooth L1.
        eps: under the squared distances.
        reduction: over groups.
    """
    count = member.sum(dim=1)
    order = member.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : max(int(count.max()), 1)]
    kept = member.gather(1, order)

    def relations(rows: Tensor) -> Tensor:
        taken = rows.gather(1, order.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
        return relative_distances(torch.where(kept.unsqueeze(-1), taken, 0), eps=eps, member=kept)

    values = huber(relations(student) - relations(teacher), beta).sum(dim=(1, 2)) / count.clamp(min=1)
    return reduce_known(values, count >= INFORMATIVE, reduction)


def _checked(student_embeddings: Tensor, teacher_embeddings: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both sides in float32 or wider, and which image carries which label, `(N, C)` bool."""
    for name, embeddings in (("student_embeddings", student_embeddings), ("teacher_embeddings", teacher_embeddings)):
        if embeddings.ndim != 3 or not embeddings.numel():
            raise ValueError(
                f"{name} must be label-wise embeddings (N, C, D), one per image and label, given "
                f"{tuple(embeddings.shape)}: take them from a query per label (stillroom.blocks.LabelQueries)"
            )
        if targets.shape != embeddings.shape[:2]:
            raise ValueError(
                f"targets have shape {tuple(targets.shape)}, but {name} are {tuple(embeddings.shape)}: both need one "
                "row per image and one column per label"
            )
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        known = targets[~targets.isnan()] if targets.is_floating_point() else targets
        if wrong := known[(known != 0) & (known != 1)].tolist():
            raise ValueError(
                f"targets must be 0 or 1, given {wrong[0]:g}: label-wise embeddings are compared where a label is "
                "there, so that soft targets must be decided first (targets > 0.5)"
            )
    return at_least_float32(student_embeddings), at_least_float32(teacher_embeddings.detach()), targets == 1
