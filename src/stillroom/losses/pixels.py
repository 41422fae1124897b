"""Losses on maps of logits: which positions are easy, which are hard, and cross-entropy over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.losses._shared import at_least_float32, check_same_shape, outside_autocast
from stillroom.losses.supervised import cross_entropy

Selection = Callable[[Tensor, Tensor], Tensor]
"""Student's and teacher's hard positions, both bool -> the selected ones."""


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corners aligned, in float32 or wider: `(N, C, h, w)` -> `(N, C, *size)`; unchanged where it fits."""
    if logits.ndim != 4:
        raise ValueError(f"logits must be maps (N, C, h, w), given shape {tuple(logits.shape)}")
    if tuple(logits.shape[2:]) == tuple(size):
        return at_least_float32(logits)
    return F.interpolate(at_least_float32(logits), size=tuple(size), mode="bilinear", align_corners=True)


@outside_autocast
def head_agreement(
    primary_logits: Tensor,
    auxiliary_logits: Tensor,
    *,
    size: tuple[int, int] | None = None,
    direction: Literal["auxiliary||primary", "primary||auxiliary"] = "auxiliary||primary",
) -> Tensor:
    """How far two heads of a teacher agree at each position: `exp(-KL)`, 1 where they say the same.

    Args:
        primary_logits: `(N, C, h, w)`, computed in float32 or wider; receives no gradient.
        auxiliary_logits: the same shape.
        size: height and width to resize the weights to (bilinear, corners aligned); None for their own.
        direction: KL(auxiliary || primary) as the authors' code has it, or the reverse, as the paper prints it.

    Returns:
        `(N, h, w)`, or `(N, *size)`, in (0, 1].

    Raises:
        ValueError: shapes disagree, or another direction.

    Source: Liang et al. 2024, arXiv:2407.03719, teacher-full evaluated relative difficulty.
    """
    check_same_shape(primary_logits=primary_logits, auxiliary_logits=auxiliary_logits)
    if direction not in ("auxiliary||primary", "primary||auxiliary"):
        raise ValueError(f'direction must be "auxiliary||primary" or "primary||auxiliary", given {direction!r}')
    primary = at_least_float32(primary_logits.detach()).log_softmax(dim=1)
    auxiliary = at_least_float32(auxiliary_logits.detach()).log_softmax(dim=1)
    first, second = (auxiliary, primary) if direction == "auxiliary||primary" else (primary, auxiliary)
    weight = (-(first.exp() * (first - second)).sum(dim=1)).exp()
    return weight if size is None else resize_logits(weight.unsqueeze(1), size).squeeze(1)


@outside_autocast
def weighted_pixel_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    auxiliary_logits: Tensor | None = None,
    auxiliary_weight: float = 0.4,
    ignore_index: int = -100,
) -> Tensor:
    """Cross-entropy with a weight per position: mean over ALL positions, those without a label counting as 0.

    `(1 / NHW) sum R (CE(logits) + auxiliary_weight * CE(auxiliary))`.

    Args:
        logits: `(N, C, h, w)`, resized to the labels.
        labels: `(N, H, W)`, int64 in [0, C), or `ignore_index`.
        weights: R, `(N, H, W)`; receives no gradient.
        auxiliary_logits: of a second head; None for none.
        auxiliary_weight: of its term.
        ignore_index: the label that says there is none.

    Returns:
        Nats, a scalar.

    Raises:
        ValueError: shapes disagree, or labels out of range.

    Source: Liang et al. 2024, arXiv:2407.03719 (TFE), with the reduction of the authors' code.
    """
    if weights.shape != labels.shape:
        raise ValueError(f"weights must have the labels' shape {tuple(labels.shape)}, given {tuple(weights.shape)}")
    size = (int(labels.shape[1]), int(labels.shape[2]))
    each = cross_entropy(resize_logits(logits, size), labels, ignore_index=ignore_index, reduction="none")
    if auxiliary_logits is not None:
        resized = resize_logits(auxiliary_logits, size)
        each = each + auxiliary_weight * cross_entropy(resized, labels, ignore_index=ignore_index, reduction="none")
    return (at_least_float32(weights.detach()) * each).mean()


@torch.no_grad()
@outside_autocast
def hard_positions(
    logits: Tensor, labels: Tensor, *, threshold: float = 0.7, min_kept: int = 0, ignore_index: int = -100
) -> Tensor:
    """Positions whose true class has a probability of at most the threshold.

    With `min_kept` above 0 the threshold rises to the `min_kept`-th smallest probability of the batch (positions
    without a label count as 1), so that at least so many are hard; above the number of positions, all that have a label
    are.

    Args:
        logits: `(N, C, h, w)`, resized to the labels.
        labels: `(N, H, W)`, int64 in [0, C), or `ignore_index`.
        threshold: in [0, 1].
        min_kept: positions over the whole batch, 0 or more.
        ignore_index: the label that says there is none; such positions are never hard.

    Returns:
        `(N, H, W)`, bool.

    Raises:
        ValueError: a threshold outside [0, 1], a negative `min_kept`, or shapes that disagree.

    Source: Liang et al. 2024, arXiv:2407.03719 (TSE); Shrivastava et al. 2016, arXiv:1604.03540.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability in [0, 1], given {threshold}")
    if min_kept < 0:
        raise ValueError(f"min_kept is a number of positions of 0 or more, given {min_kept}")
    if logits.ndim != 4 or labels.ndim != 3 or len(labels) != len(logits):
        raise ValueError(
            f"logits must be maps (N, C, h, w) and labels (N, H, W), given {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    valid = labels != ignore_index
    probabilities = resize_logits(logits, (int(labels.shape[1]), int(labels.shape[2]))).softmax(dim=1)
    true = probabilities.gather(1, torch.where(valid, labels, 0).unsqueeze(1)).squeeze(1)
    true = torch.where(valid, true, 1.0)
    if min_kept and true.numel():
        smallest = true.flatten().kthvalue(min(min_kept, true.numel())).values
        return valid & (true <= smallest.clamp(min=threshold))
    return valid & (true <= threshold)


@outside_autocast
def selected_pixel_loss(
    logits: Tensor,
    labels: Tensor,
    selected: Tensor,
    *,
    class_weights: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Cross-entropy averaged over the selected positions only, with the classes' weights where there are any.

    `sum_M v_y CE / sum_M v_y`; 0, connected to the graph, where nothing is selected.

    Args:
        logits: `(N, C, h, w)`, resized to the labels.
        labels: `(N, H, W)`, int64 in [0, C), or `ignore_index`.
        selected: M, `(N, H, W)` bool.
        class_weights: v, `(C,)`; None for ones.
        ignore_index: the label that says there is none; never counted.

    Returns:
        Nats, a scalar.

    Raises:
        ValueError: shapes disagree, or not one weight per class.

    Source: Liang et al. 2024, arXiv:2407.03719 (TSE), with the reduction of the authors' code.
    """
    if class_weights is not None and class_weights.shape != (logits.shape[1],):
        raise ValueError(
            f"class_weights must hold one weight per class, ({logits.shape[1]},), given {tuple(class_weights.shape)}"
        )
    if selected.shape != labels.shape or selected.dtype != torch.bool:
        raise ValueError(
            f"selected must be bool of the labels' shape {tuple(labels.shape)}, given {selected.dtype} of "
            f"{tuple(selected.shape)}"
        )
    size = (int(labels.shape[1]), int(labels.shape[2]))
    each = cross_entropy(resize_logits(logits, size), labels, ignore_index=ignore_index, reduction="none")
    known = labels != ignore_index
    weights = (selected & known).to(each.dtype)
    if class_weights is not None:
        weights = weights * class_weights.to(each)[torch.where(known, labels, 0)]
    total = weights.sum()
    return (weights * each).sum() / torch.where(total > 0, total, 1.0)


def exclusive(student_hard: Tensor, teacher_hard: Tensor) -> Tensor:
    """Positions that are hard for exactly one of the two."""
    return student_hard ^ teacher_hard


def either(student_hard: Tensor, teacher_hard: Tensor) -> Tensor:
    """Positions that are hard for at least one of the two."""
    return student_hard | teacher_hard


def both(student_hard: Tensor, teacher_hard: Tensor) -> Tensor:
    """Positions that are hard for both."""
    return student_hard & teacher_hard


def students(student_hard: Tensor, teacher_hard: Tensor) -> Tensor:
    """Positions that are hard for the student: online hard example mining."""
    return student_hard
