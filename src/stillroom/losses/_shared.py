"""What every loss shares: the reducer, the float32 rule and the checks of shapes and numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, ParamSpec

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]
P = ParamSpec("P")


def reduce(values: Tensor, reduction: Reduction) -> Tensor:
    """Reduce per-item values as `torch.nn.functional` does.

    The mean over no items at all is 0 and still connected to the graph, so that a batch in which everything is ignored
    contributes nothing instead of NaN.

    Args:
        values: one value per item, any shape.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or `values` for "none".

    Raises:
        ValueError: `reduction` is another word.
    """
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        return values.sum() / max(values.numel(), 1)
    raise ValueError(f'reduction must be "mean", "sum" or "none", given {reduction!r}')


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 where it is narrower (half, bfloat16), and unchanged where it is not."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else tensor


def outside_autocast(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a loss with autocast switched off, so that its own products and sums keep float32."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        device_type = first.device.type if first is not None else "cpu"
        if not torch.is_autocast_enabled(device_type):
            return function(*args, **kwargs)
        with torch.autocast(device_type, enabled=False):
            return function(*args, **kwargs)

    return run


def check_positive(**named: float) -> None:
    """Refuse numbers that are not above 0 (or not finite), naming them."""
    for name, value in named.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a number above 0, given {value}")


def check_not_negative(**named: float) -> None:
    """Refuse numbers below 0 (or not finite), naming them."""
    for name, value in named.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a number of 0 or more, given {value}")


def check_same_shape(**named: Tensor) -> None:
    """Refuse two tensors of different shapes, naming both with their shapes."""
    (first_name, first), (second_name, second) = named.items()
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} has shape {tuple(first.shape)}, but {second_name} has shape {tuple(second.shape)}: "
            "they must be equal"
        )


def check_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    min_classes: int = 2,
    min_samples: int = 1,
) -> None:
    """Refuse logits (and labels) whose shapes or dtypes cannot be right.

    Args:
        student_logits: must be `(N, C)`.
        teacher_logits: must be `(N, C)` too.
        labels: must be `(N,)`, int64, where given.
        min_classes: the smallest C the loss is defined for.
        min_samples: the smallest N the loss is defined for.

    Raises:
        ValueError: one sentence with the shapes given and the remedy.
    """
    if student_logits.ndim != 2:
        raise ValueError(
            f"student_logits must have shape (N, C), given {tuple(student_logits.shape)}: "
            "flatten positions to rows first (stillroom.losses.flatten_positions)"
        )
    if student_logits.shape != teacher_logits.shape:
        remedy = (
            "teacher and student must have the same classes"
            if student_logits.shape[:1] == teacher_logits.shape[:1]
            else "both networks must see the same batch"
        )
        raise ValueError(
            f"student_logits have shape {tuple(student_logits.shape)}, but teacher_logits have shape "
            f"{tuple(teacher_logits.shape)}: {remedy}"
        )
    samples, classes = student_logits.shape
    if classes < min_classes:
        raise ValueError(f"this loss needs at least {min_classes} classes, given logits of {classes}")
    if samples < min_samples:
        raise ValueError(f"this loss needs at least {min_samples} samples in a batch, given {samples}")
    if labels is not None:
        if labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64 class numbers, given dtype {labels.dtype}")
        if labels.shape != (samples,):
            raise ValueError(f"labels must have shape ({samples},) as the logits' rows, given {tuple(labels.shape)}")


def flatten_positions(logits: Tensor) -> Tensor:
    """Turn logits `(N, C, ...)` of dense predictions into rows `(N * ..., C)`; `(N, C)` stays as it is."""
    return logits if logits.ndim == 2 else logits.movedim(1, -1).reshape(-1, logits.shape[1])


def check_label_range(labels: Tensor, classes: int) -> None:
    """Refuse class numbers outside [0, classes), on the CPU.

    On an accelerator reading the values would stall it in every step; there the task checks them on the first batch.
    """
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or not labels.numel():
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        raise ValueError(
            f"labels must lie in [0, {classes}), given labels from {lowest} to {highest}: number the classes from 0, "
            "and leave rows without a label out (ignore_index, where the loss has one)"
        )


def check_finite(**named: Tensor) -> None:
    """Refuse NaN and infinite values, on the CPU (on an accelerator the check on the first batch finds them)."""
    for name, tensor in named.items():
        if tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite, given NaN or infinite values: check the network that made them")


def check_maps(student_feature: Tensor, teacher_feature: Tensor) -> None:
    """Refuse features that are not two maps `(N, C, H, W)` of the same batch."""
    for name, feature in (("student_feature", student_feature), ("teacher_feature", teacher_feature)):
        if feature.ndim != 4:
            raise ValueError(
                f"{name} must be a map (N, C, H, W), given shape {tuple(feature.shape)}: turn tokens into a map first "
                "(stillroom.blocks.as_map)"
            )
    check_same_batch(student_feature, teacher_feature)


def check_same_batch(student_feature: Tensor, teacher_feature: Tensor, *, min_samples: int = 1) -> None:
    """Refuse features of different numbers of samples, or of too few."""
    if len(student_feature) != len(teacher_feature):
        raise ValueError(
            f"student_feature has {len(student_feature)} samples, but teacher_feature has {len(teacher_feature)}: "
            "both networks must see the same batch"
        )
    if len(student_feature) < min_samples:
        raise ValueError(f"this loss needs at least {min_samples} samples in a batch, given {len(student_feature)}")


def kept_rows(labels: Tensor, ignore_index: int) -> Tensor:
    """Return which rows count, `(N,)` bool.

    Raises:
        ValueError: no row is left.
    """
    kept = labels != ignore_index
    if not bool(kept.any()):
        raise ValueError(
            f"all {labels.numel()} labels are the ignored {ignore_index}: this loss needs at least one labelled row"
        )
    return kept


def reduce_known(values: Tensor, known: Tensor, reduction: Reduction) -> Tensor:
    """Reduce per-item values of which only some count; the others are 0 for "none".

    Args:
        values: one value per item, any shape; what stands at an item that does not count must be finite.
        known: bool, the same shape: which items count.
        reduction: "mean" (over the items that count; 0 and connected to the graph where there are none), "sum" or
            "none".
    """
    counted = torch.where(known, values, 0)
    if reduction != "mean":
        return reduce(counted, reduction)
    return counted.sum() / known.sum().clamp(min=1)


def spread(values: Tensor, kept: Tensor) -> Tensor:
    """Put the values of the kept rows back to their places; 0 elsewhere."""
    return values.new_zeros(kept.shape).masked_scatter(kept, values)


def labelled_rows(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, ignore_index: int = -100
) -> tuple[Tensor, Tensor, Tensor]:
    """Bring logits and labels to rows: samples as they are, positions of dense predictions without the ignored ones.

    A sample without a label stays, so that a loss that needs one refuses it; a position without one (the rim of an
    object, padding) is left out. No row may be left.

    Args:
        student_logits: `(N, C)` or, per position, `(N, C, ...)`.
        teacher_logits: the same shape.
        labels: `(N,)` or `(N, ...)`, int64.
        ignore_index: the label of positions that do not count.

    Returns:
        Student's and teacher's logits `(M, C)`, labels `(M,)`.

    Raises:
        ValueError: dense logits and labels disagree in shape.
    """
    if student_logits.ndim == 2:
        return student_logits, teacher_logits, labels
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits have shape {tuple(student_logits.shape)}, but teacher_logits have shape "
            f"{tuple(teacher_logits.shape)}: dense predictions need the same classes and positions"
        )
    if labels.shape != (len(student_logits), *student_logits.shape[2:]):
        raise ValueError(
            f"labels must have shape (N, ...) for logits (N, C, ...), given labels {tuple(labels.shape)} for logits "
            f"{tuple(student_logits.shape)}"
        )
    kept = labels.flatten() != ignore_index
    return flatten_positions(student_logits)[kept], flatten_positions(teacher_logits)[kept], labels.flatten()[kept]
