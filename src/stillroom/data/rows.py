"""Which rows: generators that depend on named numbers only, and subsets that keep the shares of the classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stillroom.data.batch import UNLABELLED


def generator(*numbers: int) -> torch.Generator:
    """Make a random generator that depends on these numbers (of 0 or more) and on nothing else."""
    if any(number < 0 for number in numbers):
        raise ValueError(f"a seed must be a whole number of 0 or more, given {min(numbers)}")
    state = int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


def choose(length: int, size: int, seed: int, labels: Tensor | None = None) -> Tensor:
    """Choose rows by a seed, keeping the shares of the classes as nearly as whole numbers allow.

    Every class keeps at least one row where `size` is at least the number of classes. With the same seed, a larger
    choice holds the smaller one's rows of every class whose share did not fall.

    Args:
        length: number of rows to choose from.
        size: how many to choose, in [0, length].
        seed: 0 or more.
        labels: `(length,)` integers to keep the shares of; anything else (None, floats, masks) is chosen from evenly.

    Returns:
        `(size,)` int64 row numbers, rising.

    Raises:
        ValueError: size is not in [0, length].
    """
    if not 0 <= size <= length:
        raise ValueError(f"cannot choose {size} of {length} samples: give a number from 0 to {length}")
    order = torch.randperm(length, generator=generator(seed, 0))
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        return order[:size].sort().values
    classes, members = labels.unique(return_inverse=True)
    counts = torch.bincount(members, minlength=len(classes))
    exact = counts.double() * size / max(length, 1)
    quota = exact.floor().long()
    if size >= len(classes):
        quota.clamp_(min=1)
    while quota.sum() != size:  # the class furthest from its share gives or takes one
        missing = exact - quota
        if quota.sum() < size:
            quota[torch.where(quota < counts, missing, -torch.inf).argmax()] += 1
        else:
            quota[torch.where(quota > 1, missing, torch.inf).argmin()] -= 1
    shuffled = members[order]
    chosen = [order[shuffled == number][:take] for number, take in enumerate(quota.tolist())]
    return torch.cat(chosen).sort().values


def hold_out(length: int, size: int, seed: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cut rows in two, by a seed and stratified by integer labels.

    Returns:
        `(length - size,)` rows that stay and `(size,)` rows that are held out, both int64 and rising.
    """
    held = choose(length, size, seed, labels)
    stays = torch.ones(length, dtype=torch.bool)
    stays[held] = False
    return stays.nonzero().flatten(), held


def is_known(labels: Tensor) -> Tensor:
    """`(N,)` bool: the rows whose label says something (not -100 or NaN everywhere)."""
    known = ~labels.isnan() if labels.is_floating_point() else labels != UNLABELLED
    return known.flatten(1).any(1) if known.ndim > 1 else known
