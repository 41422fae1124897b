"""The task of experiments whose arms measure themselves: reinforcement learning, active learning, mining, search."""

from __future__ import annotations

from stillroom.task.base import Task


class Measured(Task):
    """Names the number that an experiment is about, where arms `(seed, context) -> metrics` do everything themselves.

    Args:
        metric: key of the metrics that the arms return, whose values are compared.
        higher_is_better: whether more of it is better.

    Raises:
        ValueError: the metric has no name.

    Example:
        >>> Measured("coverage").metric
        'coverage'
    """

    name = "measured"
    needs_labels = False

    metric: str  # type: ignore[misc]
    higher_is_better: bool  # type: ignore[misc]

    def __init__(self, metric: str, *, higher_is_better: bool = True) -> None:
        super().__init__()
        if not metric or not isinstance(metric, str):
            raise ValueError(f"metric must name a number that the arms return, given {metric!r}")
        self.metric = metric
        self.higher_is_better = higher_is_better
