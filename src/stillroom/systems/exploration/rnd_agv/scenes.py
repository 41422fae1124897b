"""Floors: walls, obstacles, where a vehicle starts and where it should go; checked when they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stillroom.systems.exploration.rnd_agv.motion import touches

Array = np.ndarray[Any, Any]
GOAL_RADIUS = 0.3
GRID = 0.05
CELL = 0.25
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """A rectangular floor, bounded by walls.

    Attributes:
        name: what it is called.
        width: along x, m.
        height: along y, m.
        obstacles: boxes x0, y0, x1, y1.
        start: box from which the start position is drawn; the heading is drawn too.
        goal: centre of a disc of radius 0.3 m.
        goal_to: where the goal goes to and comes back from; None for a goal that stands still.
        period: decision steps of its way there and back.
        max_steps: decision steps of an episode.
        radius: of the vehicle, for which the floor is checked.

    Raises:
        ValueError: the vehicle would start inside an obstacle, or cannot reach the goal.
    """

    name: str
    width: float
    height: float
    obstacles: Sequence[Box]
    start: Box
    goal: tuple[float, float]
    goal_to: tuple[float, float] | None = None
    period: int = 100
    max_steps: int = 2000
    radius: float = 0.15

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = self.start
        grid = np.linspace(0, 1, 9)
        starts = np.stack(np.meshgrid(x0 + grid * (x1 - x0), y0 + grid * (y1 - y0)), axis=-1).reshape(-1, 2)
        if touches(starts, self.boxes, self.radius).any():
            raise ValueError(
                f"scene {self.name!r}: a vehicle of radius {self.radius} that starts in {self.start} can overlap an "
                "obstacle or a wall: move the start box"
            )
        if self.max_steps < 1 or self.period < 1:
            raise ValueError(f"max_steps and period must be 1 or more, given {self.max_steps} and {self.period}")
        near = np.hypot(self.free_points[:, 0] - self.goal[0], self.free_points[:, 1] - self.goal[1]) < GOAL_RADIUS
        if not near.any():
            raise ValueError(
                f"scene {self.name!r}: the goal {self.goal} cannot be reached from {self.start} by a vehicle of radius "
                f"{self.radius}: open a passage"
            )

    @cached_property
    def boxes(self) -> Array:
        """`(B, 4)` obstacles and the four walls around the floor."""
        w, h = self.width, self.height
        walls = [(-1.0, -1.0, 0.0, h + 1), (w, -1.0, w + 1, h + 1), (-1.0, -1.0, w + 1, 0.0), (-1.0, h, w + 1, h + 1)]
        return np.array([*self.obstacles, *walls], dtype=np.float64)

    @cached_property
    def free_points(self) -> Array:
        """`(P, 2)` points of a fine grid that a vehicle's centre can reach from the start (flood fill)."""
        xs, ys = np.arange(GRID / 2, self.width, GRID), np.arange(GRID / 2, self.height, GRID)
        points = np.stack(np.meshgrid(xs, ys, indexing="ij"), axis=-1)
        free = ~touches(points.reshape(-1, 2), self.boxes, self.radius).reshape(points.shape[:2])
        first = ((self.start[0] + self.start[2]) / 2, (self.start[1] + self.start[3]) / 2)
        reached = np.zeros_like(free)
        todo = [(min(int(first[0] / GRID), len(xs) - 1), min(int(first[1] / GRID), len(ys) - 1))]
        while todo:
            i, j = todo.pop()
            if 0 <= i < len(xs) and 0 <= j < len(ys) and free[i, j] and not reached[i, j]:
                reached[i, j] = True
                todo += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
        return points[reached]

    @cached_property
    def cells(self) -> set[tuple[int, int]]:
        """Cells of 0.25 m that can be reached."""
        return set(map(tuple, cells_of(self.free_points).tolist()))

    def goal_at(self, step: Array) -> Array:
        """`(N, 2)` where the goal is at decision steps `(N,)`."""
        here = np.array(self.goal)
        if self.goal_to is None:
            return np.broadcast_to(here, (len(step), 2))
        share = 0.5 - 0.5 * np.cos(2 * np.pi * step / self.period)
        return here + share[:, None] * (np.array(self.goal_to) - here)


def cells_of(points: Array) -> Array:
    """`(N, 2)` numbers of the 0.25 m cells of positions `(N, 2)`."""
    return np.floor(np.asarray(points) / CELL).astype(np.int64)


_U_SHAPE: tuple[Box, ...] = ((2.2, 0.9, 2.35, 3.1), (1.2, 2.95, 2.2, 3.1), (1.2, 0.9, 2.2, 1.05))
_SHELVES: tuple[Box, ...] = (
    (1.6, 0.0, 1.9, 4.4),  # a shelf from below: pass above
    (3.2, 1.6, 3.5, 6.0),  # one from above: pass below
    (4.8, 0.0, 5.1, 4.4),
    (3.5, 3.0, 4.2, 3.2),  # two dead ends between the shelves
    (5.1, 2.2, 6.2, 2.4),
    (6.2, 1.0, 6.4, 2.4),
)

SCENES: dict[str, Scene] = {
    scene.name: scene
    for scene in (
        Scene("simple_static", 4.0, 4.0, _U_SHAPE, (0.3, 1.7, 0.9, 2.3), (3.5, 2.0), max_steps=2000),
        Scene(
            "simple_dynamic", 4.0, 4.0, _U_SHAPE, (0.3, 1.7, 0.9, 2.3), (3.5, 1.0), goal_to=(3.5, 3.0), max_steps=2000
        ),
        Scene("complex_static", 8.0, 6.0, _SHELVES, (0.3, 0.3, 1.0, 1.0), (7.3, 0.7), max_steps=3000),
        Scene(
            "complex_dynamic", 8.0, 6.0, _SHELVES, (0.3, 0.3, 1.0, 1.0), (7.3, 0.7), goal_to=(7.3, 5.0), max_steps=4000
        ),
    )
}
"""The four floors by name: a wall in the shape of a U, and rows of shelves; goals that stand or move."""
