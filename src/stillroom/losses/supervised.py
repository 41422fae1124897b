"""Losses against labels, some of which may be missing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_label_range,
    check_same_shape,
    outside_autocast,
    reduce_known,
)


@outside_autocast
def cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = -100, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy over the rows (or positions) that have a label.

    Per item, loss = logsumexp(logits) - logits[label].

    Args:
        logits: `(N, C)` or, per position, `(N, C, ...)`; any float dtype, computed in float32 or wider.
        labels: `(N,)` or `(N, ...)`, int64 in [0, C), or `ignore_index` for none.
        ignore_index: the label that says there is none.
        reduction: over labelled items: "mean", "sum" or "none". The mean of a batch without any label is 0 and
            connected to the graph.

    Returns:
        Nats: a scalar, or for "none" a tensor of the labels' shape, 0 where there is no label.

    Raises:
        ValueError: shapes disagree, labels are not int64, or (on the CPU) lie outside [0, C).
    """
    if logits.ndim < 2 or labels.shape != (len(logits), *logits.shape[2:]):
        raise ValueError(
            f"labels must have shape (N, ...) for logits (N, C, ...), given labels {tuple(labels.shape)} for logits "
            f"{tuple(logits.shape)}"
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 class numbers, given dtype {labels.dtype}")
    known = labels != ignore_index
    check_label_range(torch.where(known, labels, 0), logits.shape[1])
    values = F.cross_entropy(at_least_float32(logits), labels, ignore_index=ignore_index, reduction="none")
    return reduce_known(values, known, reduction)


@outside_autocast
def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, smallest: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """Binary cross-entropy per class, over the entries that have a label.

    Per entry, loss = -(y log sigmoid(z) + (1 - y) log sigmoid(-z)).

    Args:
        logits: `(N, C)` or any shape, any float dtype; computed in float32 or wider.
        labels: the same shape, in [0, 1], NaN for none.
        smallest: probabilities under the logarithm are raised to this, in [0, 1); where they are, there is no gradient.
        reduction: over labelled entries: "mean", "sum" or "none". The mean of a batch without any label is 0 and
            connected to the graph.

    Returns:
        Nats: a scalar, or for "none" a tensor of the labels' shape, 0 where there is no label.

    Raises:
        ValueError: shapes disagree, or smallest is not in [0, 1).
    """
    check_same_shape(logits=logits, labels=labels)
    if not 0 <= smallest < 1:
        raise ValueError(f"smallest must be a probability in [0, 1), given {smallest}")
    logits, labels = at_least_float32(logits), at_least_float32(labels)
    known = ~labels.isnan()
    target = torch.where(known, labels, 0).to(logits.dtype)
    if smallest:
        yes, no = (F.logsigmoid(signed).clamp(min=math.log(smallest)) for signed in (logits, -logits))
        return reduce_known(-(target * yes + (1 - target) * no), known, reduction)
    return reduce_known(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), known, reduction)


@outside_autocast
def mean_absolute_error(outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Absolute error over the entries that have a label.

    Per entry, loss = |output - label|.

    Args:
        outputs: any shape, any float dtype; computed in float32 or wider.
        labels: the same shape, NaN for none.
        reduction: over labelled entries: "mean", "sum" or "none". The mean of a batch without any label is 0 and
            connected to the graph.

    Returns:
        The labels' unit: a scalar, or for "none" a tensor of the labels' shape, 0 where there is no label.

    Raises:
        ValueError: shapes disagree.

    Example:
        >>> float(mean_absolute_error(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0])))
        2.0
    """
    check_same_shape(outputs=outputs, labels=labels)
    known = ~labels.isnan()
    values = (at_least_float32(outputs) - torch.where(known, at_least_float32(labels), 0)).abs()
    return reduce_known(values, known, reduction)


@outside_autocast
def mean_squared_error(outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Squared error per number, over the entries that have a label.

    Args:
        outputs: `(N, D)` or any shape, any float dtype; computed in float32 or wider.
        labels: the same shape, NaN for none.
        reduction: over labelled entries: "mean", "sum" or "none". The mean of a batch without any label is 0 and
            connected to the graph.

    Returns:
        A scalar, or for "none" a tensor of the labels' shape, 0 where there is no label.

    Raises:
        ValueError: shapes disagree.
    """
    check_same_shape(outputs=outputs, labels=labels)
    outputs, labels = at_least_float32(outputs), at_least_float32(labels)
    known = ~labels.isnan()
    return reduce_known((outputs - torch.where(known, labels, 0)).square(), known, reduction)
