"""What a discrepancy can tell apart: two distributions of one mean and covariance and of different shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stillroom.blocks import FrequencySampler, minmax_gradients
from stillroom.data.rows import generator
from stillroom.losses import characteristic_function_discrepancy, mean_discrepancy

POINTS, DIM, FREQUENCIES = 500, 8, 256
PAIR = 37  # what a seed's random numbers are for

Distance = Callable[[Tensor, Tensor, torch.Generator], float]
Tell = Callable[[int], Distance]
"""Seed -> a distance of two samples."""


def normal(numbers: torch.Generator) -> Tensor:
    """500 points of a standard normal distribution in eight dimensions."""
    return torch.randn(POINTS, DIM, generator=numbers)


def laplace(numbers: torch.Generator) -> Tensor:
    """500 points with independent Laplace coordinates of variance 1."""
    magnitudes = -torch.rand(POINTS, DIM, generator=numbers).clamp(min=1e-12).log() / math.sqrt(2)
    return magnitudes * (2 * torch.randint(2, (POINTS, DIM), generator=numbers) - 1)


def tell_by_mean(seed: int) -> Distance:
    """The squared distance of the means."""
    return lambda one, other, numbers: float(mean_discrepancy(one, other, reduction="sum"))


def tell_by_normal(seed: int) -> Distance:
    """The characteristic functions at standard normal frequencies."""

    def distance(one: Tensor, other: Tensor, numbers: torch.Generator) -> float:
        frequencies = torch.randn(FREQUENCIES, DIM, generator=numbers)
        return float(characteristic_function_discrepancy(one, other, frequencies))

    return distance


def tell_by_learned(seed: int, *, steps: int = 200) -> Distance:
    """The characteristic functions at as many frequencies of a sampler that has learned on one pair of its own."""
    numbers = generator(seed, PAIR)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sampler = FrequencySampler(DIM, frequencies=FREQUENCIES)
    optimizer = torch.optim.SGD(sampler.parameters(), lr=1e-3, momentum=0.5)
    one, other = normal(numbers), laplace(numbers)
    for _ in range(steps):
        loss = 300 * characteristic_function_discrepancy(one, other, sampler(generator=numbers))
        minmax_gradients(loss, (), sampler.parameters())
        optimizer.step()

    @torch.no_grad()
    def distance(one: Tensor, other: Tensor, numbers: torch.Generator) -> float:
        return float(characteristic_function_discrepancy(one, other, sampler(generator=numbers)))

    return distance


def measure(tell: Tell, seed: int, *, pairs: int) -> dict[str, float]:
    """How well a distance ranks pairs of different distributions above pairs of one, and how large it finds them.

    Returns:
        `two_sample_auc`: the share of (different, equal) pairs that are ranked rightly; `two_sample_distance`: the mean
        over different pairs.
    """
    distance = tell(seed)
    equal, different = [], []
    for pair in range(pairs):
        numbers = generator(seed, PAIR, pair)
        equal.append(distance(normal(numbers), normal(numbers), numbers))
        different.append(distance(normal(numbers), laplace(numbers), numbers))
    one, other = torch.tensor(different)[:, None], torch.tensor(equal)[None]
    auc = ((one > other).double() + 0.5 * (one == other).double()).mean()
    return {"two_sample_auc": float(auc), "two_sample_distance": sum(different) / pairs}
