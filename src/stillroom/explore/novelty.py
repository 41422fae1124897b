"""How new a state is: what a network that learns has not learned yet about a network that does not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.explore.moments import RunningMoments
from stillroom.losses import novelty_loss

Array = np.ndarray[Any, Any]


class Novelty(Protocol):
    """What `IntrinsicReward` needs: a bonus for states, and a way to learn from them."""

    def prepare(self, states: Array) -> None:
        """Look at states `(N, S)` of a random policy before anything is learned."""

    def bonus(self, states: Array) -> Array:
        """How new states `(N, S)` are: `(N,)`, 0 or more."""

    def learn(self, states: Array) -> float:
        """Learn from the states `(N, S)` of a rollout; the mean loss."""


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLUs between them, orthogonal weights of gain sqrt(2), no bias at first.

    Args:
        widths: of input, hidden layers and output; two or more.

    Raises:
        ValueError: fewer than two widths.
    """
    if len(widths) < 2:
        raise ValueError(f"a network needs an input and an output width, given {list(widths)}")
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        linear = nn.Linear(before, after)
        nn.init.orthogonal_(linear.weight, 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class RandomNetworkDistillation(nn.Module):
    """Novelty of a state: how far a trained predictor still is from a frozen random network there.

    `bonus(s) = sum_k (g_k(s) - f_k(s))^2` with f frozen and g trained on visited states, both on states that are
    normalised by running moments and clipped to [-5, 5].

    Args:
        states: length S of a state vector.
        features: K, outputs of both networks.
        hidden: widths of the target's hidden layers.
        predictor_hidden: widths of the predictor's; as many layers as the target's, or more.
        lr: of Adam on the predictor.
        batch_size: states per predictor step; one pass over each rollout.
        keep: share of a rollout's states that are learned from, in (0, 1].
        columns: which of the S numbers count; None for all (a pose without flickering sensors, say).
        seed: of both networks and of the order of states; the global random state is left as it was.
        target: a network of your own, (N, S) -> (N, K), instead of the MLP.
        predictor: the same for the predictor.

    Raises:
        ValueError: numbers out of range, or a state with NaN.

    Source: Burda et al. 2019, arXiv:1810.12894, section 2.2 and appendix A.

    Example:
        >>> novelty = RandomNetworkDistillation(4, seed=0)
        >>> here, there = np.zeros((64, 4)), np.full((64, 4), 3.0)
        >>> novelty.prepare(np.random.default_rng(0).normal(size=(200, 4)))
        >>> for _ in range(200):
        ...     loss = novelty.learn(here)
        >>> bool(novelty.bonus(here)[0] < 0.1 * novelty.bonus(there)[0])
        True
    """

    def __init__(
        self,
        states: int,
        *,
        features: int = 64,
        hidden: Sequence[int] = (64, 64),
        predictor_hidden: Sequence[int] = (64, 64, 64),
        lr: float = 1e-3,
        batch_size: int = 256,
        keep: float = 1.0,
        columns: Sequence[int] | None = None,
        seed: int = 0,
        target: nn.Module | None = None,
        predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise ValueError(f"keep is the share of states that are learned from, in (0, 1], given {keep}")
        if columns is not None and any(not 0 <= column < states for column in columns):
            raise ValueError(f"columns must be numbers in [0, {states}), given {list(columns)}")
        if len(predictor_hidden) < len(hidden):
            raise ValueError(
                f"the predictor must be as deep as its target or deeper, given {len(predictor_hidden)} hidden layers "
                f"for {len(hidden)}"
            )
        self.columns = None if columns is None else list(columns)
        width = states if self.columns is None else len(self.columns)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.target = mlp([width, *hidden, features]) if target is None else target
            self.predictor = mlp([width, *predictor_hidden, features]) if predictor is None else predictor
        self.target.requires_grad_(False).eval()
        self.moments = RunningMoments((width,))
        self.optimizer = torch.optim.Adam(self.predictor.parameters(), lr=lr)
        self.batch_size = batch_size
        self.keep = keep
        self.random = np.random.default_rng(seed)

    def train(self, mode: bool = True) -> RandomNetworkDistillation:
        """Set training mode on the predictor; the target stays in eval mode."""
        super().train(mode)
        self.target.eval()
        return self

    def error(self, states: Tensor) -> Tensor:
        """`sum_k (g_k - f_k)^2` of normalised states `(N, S)`: `(N,)`; the target gets no gradient."""
        return novelty_loss(self.predictor(states), self.target(states), reduction="none")

    def prepare(self, states: Array) -> None:
        """Take states of a random policy into the moments."""
        self.moments.update(self._chosen(states))

    @torch.no_grad()
    def bonus(self, states: Array) -> Array:
        """How new states `(N, S)` are: `(N,)`."""
        return self.error(self._normalised(states)).double().numpy()

    def learn(self, states: Array) -> float:
        """Take the states of a rollout into the moments and make one pass over them; the mean loss."""
        self.prepare(states)
        inputs = self._normalised(states)
        kept = max(round(self.keep * len(inputs)), 1)
        order = torch.from_numpy(self.random.permutation(len(inputs))[:kept])
        total = 0.0
        for rows in order.split(self.batch_size):
            loss = novelty_loss(self.predictor(inputs[rows]), self.target(inputs[rows]))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(rows)
        return total / kept

    def _chosen(self, states: Array) -> Array:
        states = np.asarray(states, dtype=np.float64).reshape(len(states), -1)
        found = states if self.columns is None else states[:, self.columns]
        if found.shape[1:] != self.moments.mean.shape:
            raise ValueError(f"states must have {self.moments.mean.shape[0]} numbers, given {found.shape[1]}")
        if not np.isfinite(found).all():
            raise ValueError("a state holds NaN or infinite values: mend the environment's observations first")
        return found

    def _normalised(self, states: Array) -> Tensor:
        return torch.from_numpy(self.moments.normalise(self._chosen(states))).float()
