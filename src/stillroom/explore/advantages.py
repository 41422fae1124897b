"""Generalised advantage estimates."""

from __future__ import annotations

import torch
from torch import Tensor


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    dones: Tensor,
    *,
    discount: float = 0.99,
    trace: float = 0.95,
    episodic: bool = True,
) -> Tensor:
    """Generalised advantage estimate of a rollout.

    With `delta_t = r_t + discount * c_t * V_{t+1} - V_t`: `A_t = delta_t + discount * trace * c_t * A_{t+1}`, where c_t
    is 0 at the end of an episode and 1 elsewhere; with `episodic=False` it is 1 everywhere, so that what is rewarded
    goes on after the end of an episode (the stream of novelty in a critic with two heads).

    Args:
        rewards: `(T, ...)`, r_t of the step from t to t + 1.
        values: `(T + 1, ...)`, of the states, the one after the last step included.
        dones: `(T, ...)`, 1 where the step ended an episode.
        discount: gamma, in [0, 1].
        trace: lambda, in [0, 1].
        episodic: whether the end of an episode cuts.

    Returns:
        `(T, ...)`.

    Raises:
        ValueError: shapes disagree, or a number outside [0, 1].

    Source: Schulman et al. 2016, arXiv:1506.02438, equation 16; without cuts as in Burda et al. 2019, arXiv:1810.12894.
    """
    if len(values) != len(rewards) + 1 or dones.shape != rewards.shape or values.shape[1:] != rewards.shape[1:]:
        raise ValueError(
            f"a rollout of T steps has T rewards, T dones and T + 1 values, given shapes {tuple(rewards.shape)}, "
            f"{tuple(dones.shape)} and {tuple(values.shape)}"
        )
    for name, number in (("discount", discount), ("trace", trace)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must lie in [0, 1], given {number}")
    going_on = 1 - dones.to(values.dtype) if episodic else torch.ones_like(rewards)
    found = torch.empty_like(rewards)
    after = torch.zeros_like(rewards[0]) if len(rewards) else rewards.new_zeros(())
    for t in reversed(range(len(rewards))):
        error = rewards[t] + discount * going_on[t] * values[t + 1] - values[t]
        after = error + discount * trace * going_on[t] * after
        found[t] = after
    return found
