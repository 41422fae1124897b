"""Where synthetic images begin: from real ones, from tiles of real ones, from noise.

Each is a function `(real, count, factor, generator) -> images`, given one class's real images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stillroom.data.formation import encode_formation

Initialise = Callable[[Tensor, int, int, torch.Generator], Tensor]
"""`(real images (M, C, H, W) of one class, how many, tiles per side, generator) -> (how many, C, H, W) in [0, 1]`."""


def from_mixed(real: Tensor, count: int, factor: int, generator: torch.Generator) -> Tensor:
    """Fill the grids of `count` images with the class's first factor^2 * count real ones, shrunk to tiles.

    Source: Wang et al. 2025, arXiv:2502.20653 ("mix").
    """
    wanted = count * factor**2
    _check(real, wanted, "images per class or a smaller factor")
    return encode_formation(real[:wanted], factor)


def from_real(real: Tensor, count: int, factor: int, generator: torch.Generator) -> Tensor:
    """Take `count` whole real images by chance; a factor above 1 will read each as a grid of its own quarters."""
    _check(real, count, "images per class")
    return real[torch.randperm(len(real), generator=generator)[:count]].clone()


def from_noise(real: Tensor, count: int, factor: int, generator: torch.Generator) -> Tensor:
    """Draw every value evenly from [0, 1]; of the real images only the shape is used."""
    return torch.rand(count, *real.shape[1:], generator=generator).to(real)


def _check(real: Tensor, wanted: int, remedy: str) -> None:
    if len(real) < wanted:
        raise ValueError(
            f"{wanted} real images of a class are needed to begin with, given {len(real)}: ask for fewer {remedy}"
        )
