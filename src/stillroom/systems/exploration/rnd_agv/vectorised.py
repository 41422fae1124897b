"""Many floors at once, as a vectorised environment of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stillroom.extras import require
from stillroom.systems.exploration.rnd_agv.environment import scene_of, spaces_of
from stillroom.systems.exploration.rnd_agv.fleet import Fleet
from stillroom.systems.exploration.rnd_agv.motion import Vehicle
from stillroom.systems.exploration.rnd_agv.scenes import Scene, cells_of

require("stable_baselines3")
from stable_baselines3.common.vec_env import VecEnv  # noqa: E402

Array = np.ndarray[Any, Any]


class AGVVecEnv(VecEnv):
    """Copies of a floor that are stepped together in NumPy; what `AGVEnv` is, many times, in one process.

    Args:
        scene: a name of `SCENES`, or a `Scene` of your own.
        copies: how many.
        vehicle: what it can do.
        max_steps: another time limit than the scene's.
        observe_goal: whether bearing and distance of the goal are observed.
        terminal_collision: whether a collision ends the episode.
        seed: of the start poses.

    Attributes:
        visited: cells of 0.25 m that any copy has been in.
        first_contact: environment steps (of all copies together) until the goal was first reached; None before.
    """

    def __init__(
        self,
        scene: str | Scene = "simple_static",
        copies: int = 32,
        *,
        vehicle: Vehicle | None = None,
        max_steps: int | None = None,
        observe_goal: bool = True,
        terminal_collision: bool = False,
        seed: int = 0,
    ) -> None:
        self.fleet = Fleet(
            scene_of(scene, max_steps),
            vehicle or Vehicle(),
            copies,
            observe_goal=observe_goal,
            terminal_collision=terminal_collision,
        )
        super().__init__(copies, *spaces_of(self.fleet))
        self.random = np.random.default_rng(seed)
        self.visited: set[tuple[int, int]] = set()
        self.first_contact: int | None = None
        self.taken = 0
        self._actions = np.zeros((copies, 2))
        self._paid = np.zeros(copies)

    def reset(self) -> Any:
        """Begin every episode anew."""
        self.fleet.begin(np.arange(self.num_envs), self.random)
        self._paid[:] = 0
        return self.fleet.observe()

    def step_async(self, actions: Array) -> None:
        """Take the actions `(copies, 2)`."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> Any:
        """Act, and begin a new episode wherever one ended."""
        rewards, ended, over, collided = self.fleet.act(self._actions)
        self.taken += self.num_envs
        self._paid += rewards
        self.visited |= set(map(tuple, cells_of(self.fleet.pose[:, :2]).tolist()))
        reached = ended & (rewards > 0.5)
        if self.first_contact is None and reached.any():
            self.first_contact = self.taken
        states, dones = self.fleet.observe(), ended | over
        infos: list[dict[str, Any]] = [
            {"collision": bool(collided[row]), "TimeLimit.truncated": bool(over[row])} for row in range(self.num_envs)
        ]
        if dones.any():
            rows = np.flatnonzero(dones)
            for row in rows:
                infos[row] |= {
                    "terminal_observation": states[row].copy(),
                    "episode": {"r": float(self._paid[row]), "l": int(self.fleet.steps[row])},
                    "is_success": bool(reached[row]),
                }
            self._paid[rows] = 0
            self.fleet.begin(rows, self.random)
            states = self.fleet.observe()
        return states, rewards.astype(np.float32), dones, infos

    @property
    def coverage(self) -> float:
        """Share of the cells that can be reached which were visited."""
        return len(self.visited & self.fleet.scene.cells) / len(self.fleet.scene.cells)

    def close(self) -> None:
        """Nothing is open."""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the start poses of all copies."""
        if seed is not None:
            self.random = np.random.default_rng(seed)
        return [seed] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute, once per copy asked for."""
        return [getattr(self, attr_name, None)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """All copies share their attributes."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method once and give its answer to every copy asked for."""
        answer = getattr(self, method_name)(*method_args, **method_kwargs)
        return [answer] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Nothing wraps a copy."""
        return [False] * len(list(self._get_indices(indices)))
