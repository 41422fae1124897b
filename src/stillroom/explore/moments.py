"""Running means and variances, and the scale of a reward nobody knows beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class RunningMoments:
    """Mean and population variance of everything seen so far, merged batch by batch.

    For a batch `(m_b, v_b, n_b)` into `(m, v, n)`, with `d = m_b - m` and `N = n + n_b`: `m' = m + d n_b / N`,
    `v' = (v n + v_b n_b + d^2 n n_b / N) / N`.

    Args:
        shape: of one value.

    Source: Chan, Golub, LeVeque 1979 (the parallel merge).

    Example:
        >>> moments = RunningMoments(())
        >>> moments.update(np.array([1.0, 2.0]))
        >>> moments.update(np.array([3.0]))
        >>> float(moments.mean), round(float(moments.variance), 4)
        (2.0, 0.6667)
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean: Array = np.zeros(shape)
        self.variance: Array = np.ones(shape)
        self.count = 0

    def update(self, values: Array) -> None:
        """Take a batch `(N, *shape)`."""
        values = np.asarray(values, dtype=np.float64)
        if values.shape[1:] != self.mean.shape:
            raise ValueError(f"values must have shape (N, {self.mean.shape}), given {values.shape}")
        if not len(values):
            return
        total = self.count + len(values)
        apart = values.mean(axis=0) - self.mean
        spread = self.variance * self.count + values.var(axis=0) * len(values)
        self.variance = (spread + apart**2 * self.count * len(values) / total) / total
        self.mean = self.mean + apart * len(values) / total
        self.count = total

    def normalise(self, values: Array, *, clip: float = 5.0, floor: float = 1e-8) -> Array:
        """`(values - mean) / sqrt(variance + floor)`, clipped to [-clip, clip]."""
        return np.clip((values - self.mean) / np.sqrt(self.variance + floor), -clip, clip)

    def state_dict(self) -> dict[str, Any]:
        """All that is remembered."""
        return {"mean": self.mean.copy(), "variance": self.variance.copy(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was remembered."""
        self.mean, self.variance = np.array(state["mean"]), np.array(state["variance"])
        self.count = int(state["count"])


class DiscountedScale:
    """Divides rewards by the running standard deviation of their forward-discounted sum; no mean is subtracted.

    Per environment `R_t = discount * R_{t-1} + r_t`, never set back at the end of an episode; rewards are divided by
    the standard deviation of all R seen so far, those of the same call included.

    Args:
        environments: how many there are.
        discount: in [0, 1).

    Raises:
        ValueError: a discount outside [0, 1).

    Source: Burda et al. 2019, arXiv:1810.12894, section 2.4.
    """

    def __init__(self, environments: int, *, discount: float = 0.99) -> None:
        if not 0 <= discount < 1:
            raise ValueError(f"discount must lie in [0, 1), given {discount}")
        self.discount = discount
        self.sums: Array = np.zeros(environments)
        self.moments = RunningMoments(())

    @property
    def deviation(self) -> float:
        """The standard deviation that rewards are divided by; 1 as long as it is 0."""
        found = float(np.sqrt(self.moments.variance))
        return found if found > 0 else 1.0

    def normalise(self, rewards: Array) -> Array:
        """Take the rewards `(T, E)` of a rollout and return them divided."""
        rewards = np.asarray(rewards, dtype=np.float64)
        if rewards.ndim != 2 or rewards.shape[1] != len(self.sums):
            raise ValueError(f"rewards must be (T, {len(self.sums)}), given {rewards.shape}")
        every = []
        for row in rewards:
            self.sums = self.discount * self.sums + row
            every.append(self.sums)
        self.moments.update(np.concatenate(every) if every else np.zeros(0))
        return rewards / self.deviation
