"""Learning from what a sample is not: complementary labels and the negative learning loss."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_label_range,
    check_positive,
    outside_autocast,
    reduce,
)


@outside_autocast
def negative_learning_loss(
    logits: Tensor, complementary_labels: Tensor, *, floor: float = 1e-5, reduction: Reduction = "mean"
) -> Tensor:
    """Negative learning: make a class that the sample does not belong to improbable.

    Per sample `-log(clamp(1 - softmax(logits)[c], floor, 1))` with complementary label c. Where the floor holds there
    is no gradient.

    Args:
        logits: `(N, K)`, any float dtype; computed in float32 or wider, also under autocast.
        complementary_labels: `(N,)`, int64 in [0, K).
        floor: smallest value inside the logarithm, in (0, 1).
        reduction: over samples, as in `torch.nn.functional`.

    Returns:
        Nats: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, no samples, labels that are not int64 or out of range, or a floor outside (0, 1).

    Source: Kim et al. 2019, arXiv:1908.07387, equation 2; the clamp as in Zong et al. 2024, arXiv:2402.15198.
    """
    if complementary_labels.dtype != torch.int64:
        raise ValueError(f"complementary_labels must be int64 class numbers, given dtype {complementary_labels.dtype}")
    if not len(logits):
        raise ValueError("logits hold no samples: give a batch of one or more")
    if logits.ndim != 2 or logits.shape[1] < 2 or complementary_labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (N, K) with K of 2 or more and complementary_labels (N,), given {tuple(logits.shape)} and "
            f"{tuple(complementary_labels.shape)}"
        )
    check_positive(floor=floor)
    if floor >= 1:
        raise ValueError(f"floor must lie below 1, given {floor}")
    check_label_range(complementary_labels, logits.shape[1])
    probabilities = at_least_float32(logits).softmax(dim=1)
    named = probabilities.gather(1, complementary_labels.unsqueeze(1)).squeeze(1)
    return reduce(-(1 - named).clamp(floor, 1.0).log(), reduction)


def complementary_labels(labels: Tensor, classes: int, *, offsets: Tensor | None = None) -> Tensor:
    """Draw for every sample a class that it does not belong to: `(label + offset) mod K`.

    The offset is uniform on 1 ... K-1, so that every wrong class is equally likely. A sample without a label (-100)
    first gets a label at random, so that its result is uniform on all K classes.

    Args:
        labels: `(N,)`, int64 in [0, classes), or -100 for none.
        classes: K, 2 or more.
        offsets: `(N,)`, int64 in [1, K-1]; drawn when not given.

    Returns:
        `(N,)`, int64.

    Raises:
        ValueError: fewer than two classes, labels or offsets out of range.

    Source: Zong et al. 2024, arXiv:2402.15198, section 3.2.
    """
    if classes < 2:
        raise ValueError(f"a complementary label needs 2 or more classes, given {classes}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 class numbers, given dtype {labels.dtype}")
    missing = labels == -100
    drawn = torch.where(missing, torch.randint_like(labels, classes), labels)
    check_label_range(drawn, classes)
    if offsets is None:
        offsets = torch.randint(1, classes, labels.shape, device=labels.device)
    elif offsets.shape != labels.shape or (
        len(offsets) and not 1 <= int(offsets.min()) <= int(offsets.max()) < classes
    ):
        raise ValueError(f"offsets must be ({len(labels)},) whole numbers in [1, {classes - 1}]")
    return (drawn + offsets) % classes
