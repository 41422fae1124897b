"""Mixup: convex mixtures of the samples of a batch, and of their labels, for teacher and student alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.data.batch import Batch, map_tensors
from stillroom.losses._shared import at_least_float32, check_label_range, check_positive


@dataclass(frozen=True)
class Mixture:
    """Which samples of a batch are mixed, and how: row i is share_i x[first_i] + (1 - share_i) x[second_i].

    Whatever belongs to a sample (its label, its weight, an answer kept under its number) must follow `first` and
    `second`: mixed rows stand in another order than the batch.

    Attributes:
        first: `(N,)` int64 row numbers.
        second: `(N,)` int64 row numbers.
        share: `(N,)` in [0, 1], float64; 1 leaves sample `first` as it is.
    """

    first: Tensor
    second: Tensor
    share: Tensor

    @property
    def mixed(self) -> Tensor:
        """`(N,)` bool: the rows that hold something of a second sample."""
        return self.share < 1

    def apply(self, values: Tensor) -> Tensor:
        """Mix the rows of a float tensor `(N, ...)`; on its device, in its dtype.

        Raises:
            ValueError: values of integers, or of another number of rows.
        """
        if not values.is_floating_point():
            raise ValueError(
                f"only float values can be mixed, given {values.dtype}: turn images into floats, normalise and augment "
                "them first"
            )
        if len(values) != len(self.first):
            raise ValueError(f"the mixture is of {len(self.first)} samples, but there are {len(values)} rows to mix")
        first, second = values[self.first.to(values.device)], values[self.second.to(values.device)]
        share = self.share.to(values).view(-1, *(1,) * (values.ndim - 1))
        return torch.where(share == 1, first, share * first + (1 - share) * second)

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Mix labels.

        Args:
            labels: `(N,)` int64 class numbers in [0, classes), or `(N, classes)` shares that sum to 1.
            classes: C.

        Returns:
            `(N, C)` float32 or wider; every row sums to 1.

        Raises:
            ValueError: a label is out of range or missing, or of another form.
        """
        if labels.is_floating_point() and labels.shape == (len(self.first), classes):
            return self.apply(at_least_float32(labels))
        if labels.dtype != torch.int64 or labels.shape != self.first.shape:
            raise ValueError(
                f"labels must be ({len(self.first)},) int64 class numbers or ({len(self.first)}, {classes}) shares, "
                f"given {tuple(labels.shape)} {labels.dtype}"
            )
        check_label_range(labels, classes)
        return self.apply(F.one_hot(labels, classes).to(torch.get_default_dtype()))

    def mix(self, batch: Batch) -> Batch:
        """Mix the inputs of a batch; labels, index and fields are left out, since they follow another order."""
        return Batch(map_tensors(batch.inputs, self.apply))


def draw_mixture(
    samples: int,
    *,
    beta: float = 1.0,
    mixed_share: float = 1.0,
    official_sampling: bool = False,
    generator: torch.Generator | None = None,
) -> Mixture:
    """Draw two independent permutations of a batch and a share per sample from Beta(beta, beta).

    Exactly round(mixed_share * N) rows are mixed; the others stay clean, with share 1: full mixup at mixed_share 1,
    partial mixup below, a mere permutation at 0.

    Args:
        samples: N, 1 or more.
        beta: both parameters of the Beta distribution, above 0; 1 is the uniform one.
        mixed_share: part of the rows that are mixed, in [0, 1].
        official_sampling: choose the clean rows as the authors' code does, floor((1 - mixed_share) N) times with
            replacement, so that more are mixed than was asked for (about 41 of 100 at 0.1).
        generator: of all draws, on the CPU; None for torch's global one.

    Raises:
        ValueError: a number outside its range.

    Source: Choi et al. 2023, arXiv:2211.03946; Zhang et al. 2018, arXiv:1710.09412 (mixup).

    Example:
        >>> mixture = draw_mixture(64, mixed_share=0.25)
        >>> int(mixture.mixed.sum())
        16
    """
    if samples < 1:
        raise ValueError(f"samples must be 1 or more, given {samples}: the batch is empty")
    check_positive(beta=beta)
    if not 0 <= mixed_share <= 1:
        raise ValueError(f"mixed_share must lie in [0, 1], given {mixed_share}")
    first, second = (torch.randperm(samples, generator=generator) for _ in range(2))
    share = _draw_beta(samples, beta, generator)
    if official_sampling:
        count = math.floor((1 - mixed_share) * samples + 1e-9)
        clean = torch.randint(samples, (count,), generator=generator)
    else:
        clean = torch.randperm(samples, generator=generator)[round(mixed_share * samples) :]
    share[clean] = 1
    return Mixture(first, second, share)


def draw_batch_mixture(samples: int, *, beta: float = 4.0, generator: torch.Generator | None = None) -> Mixture:
    """Draw MixMatch's mixture: every row keeps its place and the larger share, and is mixed with a row at random.

    One share for the whole batch, l = max(b, 1 - b) with b from Beta(beta, beta); row i is l x[i] + (1 - l) x[p[i]]
    with a permutation p.

    Args:
        samples: N, 1 or more.
        beta: both parameters of the Beta distribution, above 0.
        generator: of all draws, on the CPU; None for torch's global one.

    Raises:
        ValueError: a number outside its range.

    Source: Berthelot et al. 2019, arXiv:1905.02249, with one share per batch as in Li et al. 2020, arXiv:2002.07394.

    Example:
        >>> mixture = draw_batch_mixture(8)
        >>> mixture.first.tolist(), float(mixture.share.min()) >= 0.5
        ([0, 1, 2, 3, 4, 5, 6, 7], True)
    """
    if samples < 1:
        raise ValueError(f"samples must be 1 or more, given {samples}: the batch is empty")
    check_positive(beta=beta)
    share = _draw_beta(1, beta, generator)
    partner = torch.randperm(samples, generator=generator)
    return Mixture(torch.arange(samples), partner, torch.maximum(share, 1 - share).expand(samples))


def _draw_beta(samples: int, beta: float, generator: torch.Generator | None) -> Tensor:
    """Shares below 1 from Beta(beta, beta), by logarithms of two Gamma draws: small parameters do not underflow."""
    shapes = torch.full((2, samples), beta + 1.0, dtype=torch.float64)
    uniform = torch.rand(2, samples, dtype=torch.float64, generator=generator).clamp_(min=1e-300)
    logarithms = torch._standard_gamma(shapes, generator=generator).log() + uniform.log() / beta
    return (logarithms[0] - logarithms[1]).sigmoid().clamp_(max=1 - 1e-16)
