"""How vehicles move, what they bump into and what their rays see: NumPy on any number of vehicles at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Vehicle:
    """What a vehicle can do.

    Attributes:
        dt: seconds of a step.
        speed: highest speed, m/s.
        turn: highest turn rate, rad/s.
        acceleration: m/s^2.
        radius: of its disc, m.
        repeat: steps for which an action is held.
        rays: range sensors, at equal angles counter-clockwise from the heading.
        ray_range: how far they see, m.
    """

    dt: float = 0.1
    speed: float = 1.0
    turn: float = 1.5
    acceleration: float = 2.0
    radius: float = 0.15
    repeat: int = 4
    rays: int = 16
    ray_range: float = 3.0


def step_vehicle(pose: Array, speed: Array, action: Array, *, vehicle: Vehicle | None = None) -> tuple[Array, Array]:
    """Move vehicles by one step, without looking at obstacles.

    Actions are clipped to [-1, 1]; the speed moves towards `a0 * speed` by at most `acceleration * dt`; the heading
    turns by `a1 * turn * dt` and is wrapped to [-pi, pi); then the position moves along the NEW heading.

    Args:
        pose: `(N, 3)`: x, y in metres and heading in radians.
        speed: `(N,)`, m/s.
        action: `(N, 2)`: commanded share of the highest speed and of the highest turn rate.
        vehicle: limits; the default ones when not given.

    Returns:
        Poses `(N, 3)` and speeds `(N,)` after the step.
    """
    vehicle = vehicle or Vehicle()
    action = np.clip(action, -1, 1)
    most = vehicle.acceleration * vehicle.dt
    speed = speed + np.clip(action[:, 0] * vehicle.speed - speed, -most, most)
    heading = wrap(pose[:, 2] + action[:, 1] * vehicle.turn * vehicle.dt)
    way = speed * vehicle.dt
    moved = np.stack([pose[:, 0] + way * np.cos(heading), pose[:, 1] + way * np.sin(heading), heading], axis=1)
    return moved, speed


def wrap(angle: Array) -> Array:
    """Bring angles to [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def touches(points: Array, boxes: Array, radius: float) -> Array:
    """Whether discs overlap any box.

    Args:
        points: `(N, 2)` centres.
        boxes: `(B, 4)`: x0, y0, x1, y1.
        radius: of the discs; touching alone is no overlap.

    Returns:
        `(N,)` bool.
    """
    nearest = np.clip(points[:, None, :], boxes[None, :, :2], boxes[None, :, 2:])
    return (((nearest - points[:, None, :]) ** 2).sum(axis=2) < radius**2).any(axis=1)


def cast_rays(origin: Array, heading: Array, boxes: Array, *, rays: int = 16, max_range: float = 3.0) -> Array:
    """Distances to the nearest box along rays.

    Args:
        origin: `(N, 2)`.
        heading: `(N,)`, of the first ray; the others follow counter-clockwise at equal angles.
        boxes: `(B, 4)`: x0, y0, x1, y1.
        rays: per origin.
        max_range: farther ones count as this.

    Returns:
        `(N, rays)` in [0, 1]: distance over `max_range`; 0 inside a box.
    """
    angle = heading[:, None] + 2 * np.pi * np.arange(rays) / rays
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=2)  # (N, rays, 2)
    direction = np.where(np.abs(direction) < 1e-12, 1e-12, direction)[:, :, None, :]
    start = origin[:, None, None, :]
    one, other = (boxes[:, :2] - start) / direction, (boxes[:, 2:] - start) / direction  # (N, rays, B, 2)
    enter, leave = np.minimum(one, other).max(axis=3), np.maximum(one, other).min(axis=3)
    distance = np.where((leave >= 0) & (leave >= enter), np.maximum(enter, 0), np.inf)
    return np.minimum(distance.min(axis=2), max_range) / max_range
