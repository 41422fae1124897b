"""Two critics for two streams of reward: what the environment pays, by episodes, and novelty, which has no end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.explore.advantages import generalised_advantages
from stillroom.explore.novelty import mlp
from stillroom.explore.wrapper import IntrinsicReward, LearnNovelty


class TwoHeads(LearnNovelty):
    """Gives novelty a critic and a discount of its own, for on-policy algorithms of Stable-Baselines3 (PPO, A2C).

    The policy's own critic learns the environment's reward alone; a second one learns the bonus, whose stream goes on
    over the ends of episodes. Advantages become `extrinsic_weight * A_e + intrinsic_weight * A_i`.

    Args:
        wrapper: with `strength=0`, so that the bonus is not paid twice.
        extrinsic_weight: of the environment's advantages, 0 or more.
        intrinsic_weight: of the bonus's advantages, 0 or more.
        discount: of the bonus; the algorithm's own gamma is that of the environment's reward (0.999 in the reference).
        trace: lambda of the bonus's advantages.
        hidden: widths of the second critic.
        lr: of its Adam.
        epochs: passes over a rollout.
        batch_size: states per step.
        seed: of the second critic; the global random state is left as it was.

    Raises:
        ValueError: the wrapper pays the bonus itself, or a negative weight.

    Source: Burda et al. 2019, arXiv:1810.12894, section 2.3 and table of settings.
    """

    def __init__(
        self,
        wrapper: IntrinsicReward,
        *,
        extrinsic_weight: float = 2.0,
        intrinsic_weight: float = 1.0,
        discount: float = 0.99,
        trace: float = 0.95,
        hidden: Sequence[int] = (64, 64),
        lr: float = 1e-3,
        epochs: int = 10,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(wrapper)
        if callable(wrapper.strength) or wrapper.strength != 0:
            raise ValueError(f"with two heads the wrapper must have strength=0, given {wrapper.strength}")
        if extrinsic_weight < 0 or intrinsic_weight < 0:
            raise ValueError(f"weights must be 0 or more, given {extrinsic_weight} and {intrinsic_weight}")
        self.extrinsic_weight, self.intrinsic_weight = extrinsic_weight, intrinsic_weight
        self.discount, self.trace = discount, trace
        self.epochs, self.batch_size = epochs, batch_size
        width = int((wrapper.observation_space.shape or (0,))[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.critic = mlp([width, *hidden, 1])
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=lr)
        self.random = np.random.default_rng(seed)
        self._paid: list[list[float]] = []

    def _on_step(self) -> bool:
        self._paid.append([info["intrinsic_reward"] for info in self.locals["infos"]])
        return True

    def _on_rollout_end(self) -> None:
        buffer: Any = self.locals["rollout_buffer"]
        states = torch.as_tensor(buffer.observations).float()
        after = torch.as_tensor(np.asarray(self.locals["new_obs"])).float().unsqueeze(0)
        rewards, self._paid = torch.tensor(self._paid), []
        with torch.no_grad():
            values = self.value(torch.cat([states, after]))
        novelty = generalised_advantages(
            rewards, values, torch.zeros_like(rewards), discount=self.discount, trace=self.trace, episodic=False
        )
        joined = self.extrinsic_weight * buffer.advantages + self.intrinsic_weight * novelty.numpy()
        buffer.advantages = joined.astype(buffer.advantages.dtype)
        self._learn(states.flatten(0, 1), (novelty + values[:-1]).flatten())
        super()._on_rollout_end()

    def value(self, states: Tensor) -> Tensor:
        """What the second critic expects of the bonus: `(..., S)` -> `(...)`."""
        return self.critic(states).squeeze(-1)

    def _learn(self, states: Tensor, returns: Tensor) -> None:
        for _ in range(self.epochs):
            for rows in torch.from_numpy(self.random.permutation(len(states))).split(self.batch_size):
                loss = (self.value(states[rows]) - returns[rows]).square().mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
