"""Whoever knows the labels: answers one question after the other and counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

UNKNOWN = -1
"""The label of a sample that belongs to none of the wanted classes."""


class Oracle:
    """Knows the labels of a pool and gives them away only when asked.

    Args:
        labels: `(N,)` integers; `UNKNOWN` where a sample belongs to none of the wanted classes.

    Raises:
        ValueError: labels that are no vector of integers.

    Example:
        >>> oracle = Oracle([0, 1, -1])
        >>> oracle.ask([2, 0])
        array([-1,  0])
        >>> oracle.accesses
        2
    """

    def __init__(self, labels: Sequence[int] | Any) -> None:
        self._labels = np.asarray(labels)
        if self._labels.ndim != 1 or self._labels.dtype.kind not in "iu":
            raise ValueError(
                f"an oracle's labels must be a vector of integers, given shape {self._labels.shape} of "
                f"{self._labels.dtype}"
            )
        self.log: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def accesses(self) -> int:
        """How many labels were given away."""
        return sum(map(len, self.log))

    def ask(self, rows: Sequence[int] | Any) -> np.ndarray[Any, Any]:
        """Give the labels of some samples, each at most once in its life.

        Args:
            rows: `(B,)` sample numbers in [0, N), none twice.

        Raises:
            IndexError: a number outside the pool.
            ValueError: a sample is asked for a second time.
        """
        wanted = [int(row) for row in np.asarray(rows).reshape(-1)]
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(self):
            raise IndexError(f"the oracle knows samples 0 to {len(self) - 1}, asked for {min(wanted)} to {max(wanted)}")
        known = {row for asked in self.log for row in asked}
        again = sorted({row for row in wanted if row in known or wanted.count(row) > 1})
        if again:
            raise ValueError(f"samples {again[:5]} were asked for already: a label is bought once")
        self.log.append(wanted)
        return self._labels[wanted]


def open_set_labels(labels: Sequence[int] | Any, known_classes: Sequence[int]) -> np.ndarray[Any, Any]:
    """Number the wanted classes from 0 in the order given; every other class becomes `UNKNOWN`.

    Args:
        labels: `(N,)` class numbers.
        known_classes: the wanted ones, at least two, none twice.

    Raises:
        ValueError: fewer than two wanted classes, or one twice.
    """
    wanted = list(known_classes)
    if len(wanted) < 2 or len(set(wanted)) != len(wanted):
        raise ValueError(f"known_classes must name two or more different classes, given {wanted}")
    given = np.asarray(labels)
    found = np.full(given.shape, UNKNOWN, dtype=np.int64)
    for number, name in enumerate(wanted):
        found[given == name] = number
    return found
