"""The rounds of active learning: query, ask, learn, and a log of all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stillroom.active.oracle import UNKNOWN, Oracle
from stillroom.active.query import PoolQuery


@dataclass(frozen=True)
class Round:
    """What one round bought.

    Attributes:
        queried: row numbers, the most wanted first.
        labels: what the oracle said of them.
        bought: labels bought so far, the initial ones included.
        measured: what `measure` said after the round; empty without it.
    """

    queried: list[int]
    labels: list[int]
    bought: int
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def known_share(self) -> float:
        """Share of the bought samples that belong to a wanted class."""
        return float(np.mean([label != UNKNOWN for label in self.labels]))


def learn_actively(
    strategy: PoolQuery,
    X: Any,
    oracle: Oracle,
    initial: Sequence[int] | np.ndarray[Any, Any],
    *,
    rounds: int,
    batch_size: int,
    measure: Callable[[PoolQuery, Any, np.ndarray[Any, Any]], dict[str, float]] | None = None,
) -> tuple[np.ndarray[Any, Any], list[Round]]:
    """Buy labels for some rounds.

    Args:
        strategy: chooses.
        X: `(N, ...)` the whole pool.
        oracle: knows its labels.
        initial: row numbers whose labels are bought before the first round.
        rounds: how often to query, 1 or more.
        batch_size: labels per round.
        measure: `(strategy, X, y) -> numbers`, called after each round with all labels bought so far.

    Returns:
        `(N,)` labels, NaN where none was bought; and the rounds.

    Raises:
        ValueError: the pool is smaller than what the rounds buy, or pool and oracle disagree.
    """
    if len(X) != len(oracle):
        raise ValueError(f"the pool has {len(X)} samples, but the oracle knows {len(oracle)}: they must be the same")
    if rounds < 1 or len(initial) + rounds * batch_size > len(oracle):
        raise ValueError(
            f"{rounds} rounds of {batch_size} after {len(initial)} initial labels do not fit a pool of {len(oracle)}"
        )
    y = np.full(len(oracle), np.nan)
    y[np.asarray(initial, dtype=np.int64)] = oracle.ask(initial)
    history = []
    for _ in range(rounds):
        rows = np.asarray(strategy.query(X, y, batch_size=batch_size))
        answers = oracle.ask(rows)
        y[rows] = answers
        measured = {} if measure is None else measure(strategy, X, y)
        history.append(Round(rows.tolist(), answers.tolist(), oracle.accesses, measured))
    return y, history
