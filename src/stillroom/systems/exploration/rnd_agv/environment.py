"""The floor as a Gymnasium environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from stillroom.extras import require
from stillroom.systems.exploration.rnd_agv.fleet import Fleet
from stillroom.systems.exploration.rnd_agv.motion import Vehicle
from stillroom.systems.exploration.rnd_agv.scenes import GOAL_RADIUS, SCENES, Scene

require("gymnasium")
import gymnasium  # noqa: E402

Array = np.ndarray[Any, Any]
PIXELS_PER_METRE = 50


def spaces_of(fleet: Fleet) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    """Spaces of observations and actions."""
    observations = gymnasium.spaces.Box(-1.0, 1.0, (fleet.width,), np.float32)
    return observations, gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)


def scene_of(scene: str | Scene, max_steps: int | None) -> Scene:
    """A scene by name or as it is, with another time limit where one is given.

    Raises:
        ValueError: no scene of that name.
    """
    if isinstance(scene, str):
        if scene not in SCENES:
            raise ValueError(f"unknown scene {scene!r}; there are {', '.join(SCENES)}, or pass a Scene of your own")
        scene = SCENES[scene]
    return scene if max_steps is None else replace(scene, max_steps=max_steps)


class AGVEnv(gymnasium.Env[Array, Array]):
    """A vehicle on a warehouse floor that is paid when it reaches its goal, and hardly anything on the way.

    Reward: +1 at the goal (the episode terminates), -0.0005 per decision, -0.01 for a decision in which it collided;
    nothing else. Episodes are truncated after the scene's `max_steps` decisions.

    Args:
        scene: a name of `SCENES`, or a `Scene` of your own.
        vehicle: what it can do.
        max_steps: another time limit than the scene's.
        observe_goal: whether bearing and distance of the goal are observed; without them exploration is needed even on
            an open floor.
        terminal_collision: whether a collision ends the episode.
        render_mode: "rgb_array" or None.

    Raises:
        ValueError: an unknown scene, or one that cannot be solved.

    Example:
        >>> floor = Scene("mine", 3.0, 2.0, [(1.4, 0.0, 1.6, 1.2)], (0.3, 0.3, 0.6, 0.6), (2.6, 0.4), max_steps=50)
        >>> env = AGVEnv(floor)
        >>> observation, _ = env.reset(seed=0)
        >>> observation, reward, terminated, truncated, info = env.step(np.array([1.0, 0.2]))
        >>> observation.shape, info["collision"]
        ((24,), False)
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        scene: str | Scene = "simple_static",
        *,
        vehicle: Vehicle | None = None,
        max_steps: int | None = None,
        observe_goal: bool = True,
        terminal_collision: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'render_mode must be None or "rgb_array", given {render_mode!r}')
        self.fleet = Fleet(
            scene_of(scene, max_steps),
            vehicle or Vehicle(),
            1,
            observe_goal=observe_goal,
            terminal_collision=terminal_collision,
        )
        self.observation_space, self.action_space = spaces_of(self.fleet)
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode at a start pose drawn from the environment's own generator."""
        super().reset(seed=seed)
        self.fleet.begin(np.array([0]), self.np_random)
        return self.fleet.observe()[0], {"position": self.fleet.pose[0, :2].copy(), "collision": False}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Hold an action for some steps of the vehicle."""
        rewards, ended, over, collided = self.fleet.act(np.asarray(action)[None])
        info = {"position": self.fleet.pose[0, :2].copy(), "collision": bool(collided[0])}
        return self.fleet.observe()[0], float(rewards[0]), bool(ended[0]), bool(over[0]), info

    def render(self) -> Any:
        """The floor from above, `(H, W, 3)` uint8, y upwards: obstacles grey, goal green, vehicle blue, nose white."""
        if self.render_mode is None:
            return None
        scene, scale = self.fleet.scene, PIXELS_PER_METRE
        xs = (np.arange(round(scene.width * scale)) + 0.5) / scale
        ys = (np.arange(round(scene.height * scale)) + 0.5)[::-1] / scale
        picture = np.full((len(ys), len(xs), 3), 255, dtype=np.uint8)
        for x0, y0, x1, y1 in scene.obstacles:
            picture[np.ix_((ys >= y0) & (ys < y1), (xs >= x0) & (xs < x1))] = 110
        goal, pose = scene.goal_at(self.fleet.steps)[0], self.fleet.pose[0]
        nose = pose[:2] + 0.6 * self.fleet.vehicle.radius * np.array([np.cos(pose[2]), np.sin(pose[2])])
        for centre, radius, colour in (
            (goal, GOAL_RADIUS, (90, 180, 90)),
            (pose[:2], self.fleet.vehicle.radius, (60, 90, 200)),
            (nose, 0.3 * self.fleet.vehicle.radius, (255, 255, 255)),
        ):
            picture[np.hypot(xs[None] - centre[0], ys[:, None] - centre[1]) < radius] = colour
        return picture
