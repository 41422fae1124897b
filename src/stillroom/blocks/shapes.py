"""Shapes of features: conv maps, tokens and vectors, told apart and turned into each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Kind = Literal["map", "tokens", "vector"]
Shape = tuple[int, ...]


def kind_of(shape: Sequence[int]) -> Kind:
    """Name the kind of a feature by its shape per sample (without the batch).

    Args:
        shape: `(C, H, W)` is a "map", `(T, C)` are "tokens", `(C,)` is a "vector"; all sizes 1 or more.

    Raises:
        ValueError: another number of axes, or an empty one.
    """
    kinds: dict[int, Kind] = {3: "map", 2: "tokens", 1: "vector"}
    if len(shape) not in kinds or min(shape) < 1:
        raise ValueError(
            f"a feature must be a map (C, H, W), tokens (T, C) or a vector (C,) per sample, given {tuple(shape)}: "
            "tap another module, or reshape what this one returns"
        )
    return kinds[len(shape)]


def grid_of(tokens: int, prefix_tokens: int | None = None) -> tuple[int, int]:
    """Split a number of tokens into those before the patches and the side of the square of patches.

    Args:
        tokens: T, of all tokens.
        prefix_tokens: class and register tokens in front; None decides: 0 when T is a square, 1 when T is a square + 1.

    Returns:
        `(prefix_tokens, side)`.

    Raises:
        ValueError: what remains is no square.
    """
    tried = [0, 1] if prefix_tokens is None else [prefix_tokens]
    for prefix in tried:
        patches = tokens - prefix
        if prefix >= 0 and patches >= 1 and math.isqrt(patches) ** 2 == patches:
            return prefix, math.isqrt(patches)
    raise ValueError(
        f"{tokens} tokens do not form a square of patches behind {' or '.join(map(str, tried))} prefix tokens: "
        "give the number of class and register tokens as prefix_tokens, or tap a module with a square of patches"
    )


def as_map(feature: Tensor, *, prefix_tokens: int | None = None) -> Tensor:
    """View a feature as a conv map.

    Args:
        feature: `(N, C, H, W)`, kept; `(N, T, C)`, whose prefix tokens are dropped and whose patches, row by row,
            become a square; or `(N, C)`, which becomes a map of one position.
        prefix_tokens: as in `grid_of`.

    Returns:
        `(N, C, H, W)`.

    Raises:
        ValueError: the tokens form no square, or the feature is of no known kind.
    """
    kind = kind_of(feature.shape[1:])
    if kind == "map":
        return feature
    if kind == "vector":
        return feature[:, :, None, None]
    prefix, side = grid_of(feature.shape[1], prefix_tokens)
    return feature[:, prefix:].transpose(1, 2).unflatten(2, (side, side))


def as_tokens(feature: Tensor) -> Tensor:
    """View a feature as tokens: a map row by row, a vector as one token; tokens are kept.

    Args:
        feature: `(N, C, H, W)`, `(N, T, C)` or `(N, C)`.

    Returns:
        `(N, T, C)`.

    Raises:
        ValueError: the feature is of no known kind.
    """
    kind = kind_of(feature.shape[1:])
    if kind == "map":
        return feature.flatten(2).transpose(1, 2)
    return feature if kind == "tokens" else feature.unsqueeze(1)


def pooled(feature: Tensor, *, prefix_tokens: int = 0) -> Tensor:
    """Mean of a feature over its positions or tokens; a vector is kept.

    Args:
        feature: `(N, C, H, W)`, `(N, T, C)` or `(N, C)`.
        prefix_tokens: class and register tokens to leave out of the mean; by default they count as any other.

    Returns:
        `(N, C)`.

    Raises:
        ValueError: the feature is of no known kind, or has no token behind the prefix.
    """
    kind = kind_of(feature.shape[1:])
    if kind == "map":
        return feature.mean((2, 3))
    if kind == "vector":
        return feature
    if not 0 <= prefix_tokens < feature.shape[1]:
        raise ValueError(f"prefix_tokens must be in [0, {feature.shape[1]}), given {prefix_tokens}")
    return feature[:, prefix_tokens:].mean(1)


def resize(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a map `(N, C, H, W)` to a size: averaged where it shrinks on both sides, else bilinear."""
    if feature.shape[2:] == size:
        return feature
    if size[0] <= feature.shape[2] and size[1] <= feature.shape[3]:
        return F.adaptive_avg_pool2d(feature, size)
    return F.interpolate(feature, size=size, mode="bilinear", align_corners=False)


def shown(shape: Sequence[int]) -> str:
    """A feature's kind and shape in words: "map 64x8x8"."""
    return f"{kind_of(shape)} {'x'.join(map(str, shape))}"
