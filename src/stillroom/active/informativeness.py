"""How sure a classifier is of a sample, from its class probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Informativeness:
    """A way to say how much a classifier does not know about a sample.

    Attributes:
        name: the field's word.
        confidence: probabilities `(N, K)` -> `(N,)`, larger where the classifier is surer; any scale.
        uncertainty: probabilities `(N, K)` -> `(N,)` in [0, 1], larger where it is less sure.
    """

    name: str
    confidence: Callable[[Tensor], Tensor]
    uncertainty: Callable[[Tensor], Tensor]


def _top_two_gap(probabilities: Tensor) -> Tensor:
    top = probabilities.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def _negative_entropy(probabilities: Tensor) -> Tensor:
    return torch.xlogy(probabilities, probabilities).sum(dim=1)


LEAST_CONFIDENT = Informativeness("least_confident", lambda p: p.max(dim=1).values, lambda p: 1 - p.max(dim=1).values)
"""Confidence `max_k p_k`."""

MARGIN = Informativeness("margin", _top_two_gap, lambda p: 1 - _top_two_gap(p))
"""Confidence: the gap between the two largest probabilities."""

ENTROPY = Informativeness("entropy", _negative_entropy, lambda p: -_negative_entropy(p) / math.log(p.shape[1]))
"""Confidence `sum_k p_k log p_k` (nats); uncertainty: entropy over `log K`."""


def min_max(values: Tensor) -> Tensor:
    """Bring values `(N,)` to [0, 1]; equal values all become 0."""
    if not len(values):
        return values
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if bool(high > low) else torch.zeros_like(values)


def check_probabilities(*, total: float | None = 1.0, **named: Tensor) -> None:
    """Refuse what cannot be class probabilities `(N, K)`, naming it.

    Args:
        total: what every row must sum to, within 1e-3; None: any positive number that is the same for all rows (sums
            over several networks or snapshots).
        **named: the probabilities.

    Raises:
        ValueError: another shape, a negative or NaN value, or another sum.
    """
    for name, given in named.items():
        if given.ndim != 2 or given.shape[1] < 2:
            raise ValueError(f"{name} must be probabilities (N, K) of 2 or more classes, given {tuple(given.shape)}")
        if not len(given):
            continue
        sums = given.sum(dim=1)
        expected = float(sums[0]) if total is None else total
        if bool((given < 0).any()) or not bool(((sums - expected).abs() <= 1e-3 * max(expected, 1e-3)).all()):
            worst = float(sums[(sums - expected).abs().nan_to_num(torch.inf).argmax()])
            what = "the same positive number" if total is None else f"{total:g}"
            raise ValueError(
                f"every row of {name} must be 0 or more and sum to {what}, given a row that sums to {worst:g}: "
                "apply softmax first"
            )
