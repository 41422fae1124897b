"""Novelty as a reward: a wrapper for vectorised environments, and the callback that lets it learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from stillroom.explore.moments import DiscountedScale
from stillroom.explore.novelty import Novelty
from stillroom.extras import require

require("stable_baselines3")
from stable_baselines3.common.callbacks import BaseCallback  # noqa: E402
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper  # noqa: E402

Array = np.ndarray[Any, Any]


class IntrinsicReward(VecEnvWrapper):
    """Adds a bonus for new states to the reward of every step: `r = r_e + strength * r_i / scale`.

    The bonus is that of the state which a step REACHED (at the end of an episode its last state, not the first one of
    the next). It is computed with the novelty as it is during a rollout; `learn` lets it learn from the rollout's
    states afterwards (`LearnNovelty` calls it). Each step's `info` keeps the parts as "extrinsic_reward" and
    "intrinsic_reward"; wrap a `VecMonitor` inside, so that `info["episode"]` counts what the environment pays alone.

    Args:
        venv: a vectorised environment of Stable-Baselines3 whose observations are vectors.
        novelty: says how new states are.
        strength: weight of the bonus, 0 or more; or a function of the steps taken so far.
        discount: of the sum whose deviation scales the bonus.
        change: applied to the scaled bonuses `(E,)` of a step (a control may shuffle them); None for nothing.

    Raises:
        ValueError: a negative strength, or observations that are no vectors.

    Source: Yin et al. 2024, arXiv:2404.12594 (the sum); Burda et al. 2019, arXiv:1810.12894 (the scale).

    Example:
        >>> from stable_baselines3 import PPO
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> from stillroom.explore import RandomNetworkDistillation
        >>> venv = make_vec_env("Pendulum-v1", n_envs=2)
        >>> curious = IntrinsicReward(venv, RandomNetworkDistillation(3, seed=0), strength=0.5)
        >>> model = PPO("MlpPolicy", curious, n_steps=16, batch_size=16, n_epochs=1, device="cpu")
        >>> _ = model.learn(64, callback=LearnNovelty(curious))
        >>> curious.learned
        2
    """

    def __init__(
        self,
        venv: VecEnv,
        novelty: Novelty,
        *,
        strength: float | Callable[[int], float] = 1.0,
        discount: float = 0.99,
        change: Callable[[Array], Array] | None = None,
    ) -> None:
        super().__init__(venv)
        if not callable(strength) and not 0 <= strength < float("inf"):
            raise ValueError(f"strength must be a number of 0 or more, given {strength}")
        shape = getattr(venv.observation_space, "shape", None)
        if shape is None or len(shape) != 1:
            raise ValueError(f"novelty is measured on observations that are vectors, given {venv.observation_space}")
        self.novelty = novelty
        self.strength = strength
        self.scale = DiscountedScale(venv.num_envs, discount=discount)
        self.change = change
        self.steps = 0
        self.learned = 0
        self.last_loss = float("nan")
        self._visited: list[Array] = []

    def prepare(self, steps: int, *, seed: int = 0) -> None:
        """Walk at random for so many steps of all copies together, to know the scale of states and of the bonus.

        Args:
            steps: environment steps, 1 or more.
            seed: of the random actions.
        """
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, given {steps}")
        self.venv.action_space.seed(seed)
        self.venv.reset()
        seen = []
        for _ in range(-(-steps // self.num_envs)):
            actions = np.stack([self.venv.action_space.sample() for _ in range(self.num_envs)])
            states, _, dones, infos = self.venv.step(actions)
            seen.append(self._reached(states, dones, infos))
        self.novelty.prepare(np.concatenate(seen))
        self.scale.normalise(np.stack([self.novelty.bonus(states) for states in seen]))

    def reset(self) -> Any:
        """Begin new episodes."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """Take the environments' step and add the bonus."""
        states, rewards, dones, infos = self.venv.step_wait()
        reached = self._reached(states, dones, infos)
        self._visited.append(reached)
        self.steps += self.num_envs
        bonus = self.scale.normalise(self.novelty.bonus(reached)[None])[0]
        if self.change is not None:
            bonus = self.change(bonus)
        strength = self.strength(self.steps) if callable(self.strength) else self.strength
        for info, extrinsic, intrinsic in zip(infos, rewards, bonus, strict=True):
            info["extrinsic_reward"], info["intrinsic_reward"] = float(extrinsic), float(intrinsic)
        return states, combined_reward(rewards, bonus, strength=strength).astype(np.float32), dones, infos

    def learn(self) -> None:
        """Let the novelty learn from the states visited since the last time."""
        if self._visited:
            self.last_loss = self.novelty.learn(np.concatenate(self._visited))
            self._visited = []
            self.learned += 1

    @staticmethod
    def _reached(states: Any, dones: Array, infos: Any) -> Array:
        found = np.array(states)
        for row in np.flatnonzero(dones):
            found[row] = infos[row]["terminal_observation"]
        return found


def combined_reward(extrinsic: Array, intrinsic: Array, *, strength: float) -> Array:
    """`r = r_e + strength * r_i`; in one sum, as for a critic with one head."""
    return extrinsic + strength * intrinsic


class LearnNovelty(BaseCallback):
    """Lets the novelty of an `IntrinsicReward` learn at the end of every rollout, after its bonuses were paid.

    Args:
        wrapper: whose novelty.
    """

    def __init__(self, wrapper: IntrinsicReward) -> None:
        super().__init__()
        self.wrapper = wrapper

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.wrapper.learn()
        self.logger.record("novelty/loss", self.wrapper.last_loss)
        self.logger.record("novelty/scale", self.wrapper.scale.deviation)
