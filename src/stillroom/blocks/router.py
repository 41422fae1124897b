"""Routers: networks that say which of several experts (or teachers) a sample goes to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillroom.losses._shared import at_least_float32


class Router(nn.Module):
    """Probabilities over experts from a vector per sample, or from a map.

    A vector goes through two linear maps (K -> 2K -> M) with no nonlinearity between. A map goes through a 1x1
    convolution K -> 2K, ReLU, a depthwise 3x3 convolution of stride 2 and padding 1, ReLU, the mean over positions, and
    a linear map 2K -> M. The softmax is computed in float32 or wider.

    Args:
        features: K, size of the vector, or channels of the map.
        experts: M, 1 or more.
        dense: whether maps `(N, K, H, W)` come in.

    Raises:
        ValueError: a number below 1.

    Source: Li et al. 2025, arXiv:2507.07015, GateNet of the authors' code (the padding is unconfirmed).

    Example:
        >>> probabilities = Router(10, 4)(torch.randn(5, 10))
        >>> top_picks(probabilities, 1).shape
        torch.Size([5, 1])
    """

    def __init__(self, features: int, experts: int, *, dense: bool = False) -> None:
        super().__init__()
        for name, value in (("features", features), ("experts", experts)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, given {value}")
        self.dense = dense
        wide = 2 * features
        if dense:
            self.first: nn.Module = nn.Sequential(
                nn.Conv2d(features, wide, 1),
                nn.ReLU(),
                nn.Conv2d(wide, wide, 3, stride=2, padding=1, groups=wide),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
        else:
            self.first = nn.Linear(features, wide)
        self.second = nn.Linear(wide, experts)

    def forward(self, features: Tensor) -> Tensor:
        """Probabilities `(N, M)`."""
        return at_least_float32(self.second(self.first(features))).softmax(dim=-1)


def top_picks(probabilities: Tensor, count: int) -> Tensor:
    """Number the most probable experts of each sample, the most probable first; ties go to the lower number.

    Args:
        probabilities: `(N, M)`.
        count: k, in [1, M].

    Returns:
        `(N, k)` int64.

    Raises:
        ValueError: `count` is out of range.
    """
    _check_count(count, probabilities.shape[-1])
    return at_least_float32(probabilities.detach()).argsort(dim=-1, descending=True, stable=True)[..., :count]


def random_picks(probabilities: Tensor, count: int) -> Tensor:
    """Draw different experts for each sample, all equally likely, whatever the router says (a control).

    Args:
        probabilities: `(N, M)`; only the shape and device are used.
        count: k, in [1, M].

    Returns:
        `(N, k)` int64.

    Raises:
        ValueError: `count` is out of range.
    """
    _check_count(count, probabilities.shape[-1])
    return torch.rand(probabilities.shape, device=probabilities.device).argsort(dim=-1)[..., :count]


def routing_shares(picks: Tensor, experts: int) -> Tensor:
    """The part of all picks that goes to each expert: `(M,)`, summing to 1.

    Args:
        picks: `(N, k)` int64 in [0, M).
        experts: M.
    """
    return picks.flatten().bincount(minlength=experts) / max(picks.numel(), 1)


def _check_count(count: int, experts: int) -> None:
    if not 1 <= count <= experts:
        raise ValueError(f"the number of experts picked per sample must lie in [1, {experts}], given {count}")
