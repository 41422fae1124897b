"""Any number of vehicles, each alone on its copy of a floor: state, rewards and observations in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from stillroom.systems.exploration.rnd_agv.motion import Vehicle, cast_rays, step_vehicle, touches
from stillroom.systems.exploration.rnd_agv.scenes import GOAL_RADIUS, Scene

Array = np.ndarray[Any, Any]
GOAL_REWARD, STEP_REWARD, COLLISION_REWARD = 1.0, -0.0005, -0.01


class Fleet:
    """The state of N copies of a floor with a vehicle each.

    Args:
        scene: the floor.
        vehicle: what vehicles can do.
        copies: N.
        observe_goal: whether bearing and distance of the goal are part of an observation.
        terminal_collision: whether a collision ends the episode.

    Raises:
        ValueError: fewer than one copy, or a vehicle larger than the floor was checked for.
    """

    def __init__(
        self,
        scene: Scene,
        vehicle: Vehicle,
        copies: int,
        *,
        observe_goal: bool = True,
        terminal_collision: bool = False,
    ) -> None:
        if copies < 1:
            raise ValueError(f"there must be 1 copy or more, given {copies}")
        if vehicle.radius > scene.radius:
            raise ValueError(
                f"scene {scene.name!r} was checked for vehicles of radius {scene.radius}, given one of "
                f"{vehicle.radius}: make the scene for it"
            )
        self.scene, self.vehicle = scene, vehicle
        self.observe_goal, self.terminal_collision = observe_goal, terminal_collision
        self.pose, self.speed, self.steps = np.zeros((copies, 3)), np.zeros(copies), np.zeros(copies, dtype=np.int64)

    @property
    def width(self) -> int:
        """How many numbers an observation has."""
        return 5 + 3 * self.observe_goal + self.vehicle.rays

    def begin(self, rows: Array, random: np.random.Generator) -> None:
        """Draw start poses for some of the copies."""
        x0, y0, x1, y1 = self.scene.start
        drawn = random.random((len(rows), 3))
        self.pose[rows] = np.stack(
            [x0 + drawn[:, 0] * (x1 - x0), y0 + drawn[:, 1] * (y1 - y0), (2 * drawn[:, 2] - 1) * np.pi], axis=1
        )
        self.speed[rows], self.steps[rows] = 0.0, 0

    def act(self, actions: Array) -> tuple[Array, Array, Array, Array]:
        """Hold an action for `vehicle.repeat` steps: rewards, goal reached, time over, collided; `(N,)` each.

        A vehicle that would overlap something stays where it is, with speed 0, and goes on acting; a vehicle that has
        reached the goal stands still.
        """
        actions = np.asarray(actions, dtype=np.float64).reshape(len(self.pose), 2)
        goal = self.scene.goal_at(self.steps)
        collided, there = np.zeros(len(self.pose), dtype=bool), np.zeros(len(self.pose), dtype=bool)
        for _ in range(self.vehicle.repeat):
            moved, speed = step_vehicle(self.pose, self.speed, actions, vehicle=self.vehicle)
            bumped = touches(moved[:, :2], self.scene.boxes, self.vehicle.radius) & ~there
            moved[bumped, :2], speed[bumped] = self.pose[bumped, :2], 0.0
            self.pose = np.where(there[:, None], self.pose, moved)
            self.speed = np.where(there, 0.0, speed)
            collided |= bumped
            there |= np.hypot(*(self.pose[:, :2] - goal).T) < GOAL_RADIUS
        self.steps = self.steps + 1
        rewards = STEP_REWARD + COLLISION_REWARD * collided + GOAL_REWARD * there
        ended = there | (collided if self.terminal_collision else False)
        return rewards, ended, (self.steps >= self.scene.max_steps) & ~ended, collided

    def observe(self) -> Array:
        """`(N, width)` float32: place, heading, speed, (bearing and distance of the goal,) rays; in [-1, 1]."""
        scene, heading = self.scene, self.pose[:, 2]
        parts = [
            self.pose[:, :2] / [scene.width, scene.height],
            np.stack([np.cos(heading), np.sin(heading), self.speed / self.vehicle.speed], axis=1),
        ]
        if self.observe_goal:
            way = scene.goal_at(self.steps) - self.pose[:, :2]
            bearing = np.arctan2(way[:, 1], way[:, 0]) - heading
            far = np.hypot(way[:, 0], way[:, 1]) / np.hypot(scene.width, scene.height)
            parts.append(np.stack([np.cos(bearing), np.sin(bearing), far], axis=1))
        rays = cast_rays(
            self.pose[:, :2], heading, scene.boxes, rays=self.vehicle.rays, max_range=self.vehicle.ray_range
        )
        return np.concatenate([*parts, rays], axis=1).astype(np.float32)
