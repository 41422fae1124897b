"""What can be chosen, how two choices are drawn with a gradient, and how maps of different widths meet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LEAST_CHANCE = 1e-7


def width_choices(channels: int, ratios: Sequence[float] = RATIOS) -> list[int]:
    """Candidate widths of a layer: the different values of `floor(channels * ratio)`, rising.

    Args:
        channels: of the full layer.
        ratios: in (0, 1], rising, the last one 1.

    Raises:
        ValueError: fewer than two widths of 1 or more come out.

    Source: Dong and Yang 2019, arXiv:1905.09717, section 4.1.

    Example:
        >>> width_choices(16)
        [4, 6, 8, 9, 11, 12, 14, 16]
    """
    found = sorted({int(channels * ratio) for ratio in ratios})
    if found[0] < 1 or len(found) < 2:
        raise ValueError(
            f"a searched layer needs two candidate widths of 1 or more, but {channels} channels give {found}: take a "
            "wider layer"
        )
    return found


def depth_choices(blocks: int) -> list[int]:
    """Candidate numbers of kept blocks of a stage: 1, 3, 5, ... and all; 1 and 2 of two.

    Raises:
        ValueError: fewer than two blocks.

    Source: Dong and Yang 2019, arXiv:1905.09717, the authors' search space for CIFAR.

    Example:
        >>> depth_choices(3), depth_choices(6)
        ([1, 2, 3], [1, 3, 5, 6])
    """
    if blocks < 2:
        raise ValueError(f"the depth of a stage is searched among two blocks or more, given {blocks}")
    if blocks <= 3:
        return list(range(1, blocks + 1))
    return sorted({*range(1, blocks + 1, 2), blocks})


def temperature_at(progress: float, *, highest: float = 5.0, lowest: float = 0.1) -> float:
    """Temperature of the draws: `lowest + (highest - lowest) (1 + cos(pi progress)) / 2`, progress in [0, 1]."""
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * progress)) / 2


def sample_two_choices(
    logits: Tensor,
    *,
    temperature: float,
    allowed: Tensor | None = None,
    exponential_noise: Tensor | None = None,
    picked: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw two different choices per row, with weights that carry a gradient.

    `l = (log_softmax(logits) + G) / temperature` with Gumbel noise `G = -log E`; two different choices are drawn
    without replacement from softmax(l), and their weights are the softmax of their two l alone.

    Args:
        logits: `(R, C)`, one row per layer.
        temperature: above 0.
        allowed: `(R, C)` bool, choices that exist; None for all. Two per row at least.
        exponential_noise: `(R, C)` draws of Exp(1); drawn when not given.
        picked: `(R, 2)` int64 draws; drawn when not given. The draw itself carries no gradient.

    Returns:
        The choices `(R, 2)`, their weights `(R, 2)`, and softmax(l) `(R, C)`.

    Raises:
        ValueError: a temperature that is not above 0, or fewer than two choices in a row.

    Source: Dong and Yang 2019, arXiv:1905.09717, equations 2 to 4.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, given {temperature}")
    exists = torch.ones_like(logits, dtype=torch.bool) if allowed is None else allowed
    if logits.ndim != 2 or int(exists.sum(dim=1).min()) < 2:
        raise ValueError(f"two choices are drawn per row of logits (R, C), given {tuple(logits.shape)} with fewer")
    if exponential_noise is None:
        exponential_noise = torch.empty_like(logits).exponential_()
        while bool((exponential_noise == 0).any()):  # its Gumbel noise would be infinite
            exponential_noise = torch.empty_like(logits).exponential_()
    own = logits.masked_fill(~exists, -torch.inf).log_softmax(dim=1)
    perturbed = (own - exponential_noise.log()) / temperature
    chances = perturbed.softmax(dim=1)
    if picked is None:
        with torch.no_grad():
            picked = torch.multinomial((chances + LEAST_CHANCE) * exists, 2)
    return picked, perturbed.gather(1, picked).softmax(dim=1), chances


def channel_interpolate(maps: Tensor, channels: int) -> Tensor:
    """Resample the channels of maps: output t is the mean of input channels `floor(tC/C')` to `ceil((t+1)C/C') - 1`.

    Args:
        maps: `(N, C, H, W)`.
        channels: C', 1 or more, fewer than C or more.

    Returns:
        `(N, C', H, W)`; the same tensor where the widths are equal.

    Raises:
        ValueError: fewer than one channel.

    Source: Dong and Yang 2019, arXiv:1905.09717, channel-wise interpolation.
    """
    if channels < 1:
        raise ValueError(f"channels must be 1 or more, given {channels}")
    if maps.shape[1] == channels:
        return maps
    rows = maps.flatten(2).transpose(1, 2)  # (N, HW, C)
    return F.adaptive_avg_pool1d(rows, channels).transpose(1, 2).reshape(len(maps), channels, *maps.shape[2:])


def ragged_add(first: Tensor, second: Tensor) -> Tensor:
    """Add maps `(N, C, H, W)` of different widths: on the leading common channels; the wider one's others stay."""
    narrow, wide = (first, second) if first.shape[1] <= second.shape[1] else (second, first)
    common = narrow.shape[1]
    return wide + narrow if wide.shape[1] == common else torch.cat([wide[:, :common] + narrow, wide[:, common:]], dim=1)


def cost_loss(expected_cost: Tensor, derived_cost: float, *, target: float, tolerance: float) -> Tensor:
    """Push the expected cost to where the derived network's cost should be.

    `+log E` where the derived network costs more than the target, `-log E` where it costs less than `target -
    tolerance`, 0 (connected to the graph) between.

    Args:
        expected_cost: E, a scalar above 0.
        derived_cost: of the network that would be derived now, in the same unit.
        target: above 0.
        tolerance: 0 or more.

    Raises:
        ValueError: a target that is not above 0, or a negative tolerance.

    Source: Dong and Yang 2019, arXiv:1905.09717, equation 6.
    """
    if not target > 0 or tolerance < 0:
        raise ValueError(f"target must be above 0 and tolerance 0 or more, given {target} and {tolerance}")
    if derived_cost > target:
        return expected_cost.log()
    return -expected_cost.log() if derived_cost < target - tolerance else 0 * expected_cost
