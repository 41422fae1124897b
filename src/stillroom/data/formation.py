"""Several pictures in one: an image that stores a grid of small tiles and is decoded to as many whole images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

PADDING = 0.5
"""What stands right and below of an image whose side is no multiple of the factor."""


def decode_formation(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Cut stored images into factor x factor tiles and enlarge each tile to a whole image.

    Padded on the right and below with 0.5 to a multiple of the factor, cut row by row, enlarged bilinearly. Gradients
    flow back to the stored images. All images at the first place of the grid come first, then all at the second, ...

    Args:
        images: `(N, C, H, W)`, floats.
        labels: `(N, ...)`, one row per stored image.
        factor: tiles per side, 1 or more; 1 changes nothing.

    Returns:
        Images `(factor^2 N, C, H, W)`, labels `(factor^2 N, ...)`.

    Raises:
        ValueError: the factor is below 1 or above a side, or images and labels differ in number.

    Source: Kim et al. 2022, arXiv:2205.14959 (multi-formation), single scale.
    """
    if images.ndim != 4:
        raise ValueError(f"images must have shape (N, C, H, W), given {tuple(images.shape)}")
    if len(labels) != len(images):
        raise ValueError(f"labels has {len(labels)} rows, but there are {len(images)} images: give one row each")
    tile_height, tile_width = tile_size(images, factor)
    if factor == 1:
        return images, labels
    height, width = images.shape[-2:]
    below, right = factor * tile_height - height, factor * tile_width - width
    padded = F.pad(images, (0, right, 0, below), value=PADDING)
    tiles = padded.unflatten(2, (factor, tile_height)).unflatten(4, (factor, tile_width))  # N, C, row, h, column, w
    tiles = tiles.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)
    decoded = F.interpolate(tiles, size=(height, width), mode="bilinear", align_corners=False)
    return decoded, labels.repeat(factor**2, *[1] * (labels.ndim - 1))


def encode_formation(images: Tensor, factor: int) -> Tensor:
    """Arrange whole images as tiles of stored ones: image `place * N + n` becomes tile `place` of stored image n.

    Decoding gives the images back in their order, at the tiles' resolution. Tiles take the nearest pixel.

    Args:
        images: `(factor^2 N, C, H, W)`.
        factor: tiles per side, 1 or more.

    Returns:
        `(N, C, H, W)`.

    Raises:
        ValueError: the number of images is no multiple of factor^2, or the factor is out of range.
    """
    tile_height, tile_width = tile_size(images, factor)
    if len(images) % factor**2:
        raise ValueError(
            f"{len(images)} images do not fill grids of {factor} x {factor}: give a multiple of {factor**2}"
        )
    height, width = images.shape[-2:]
    tiles = F.interpolate(images, size=(tile_height, tile_width), mode="nearest")
    grid = tiles.unflatten(0, (factor, factor, -1)).permute(2, 3, 0, 4, 1, 5)  # N, C, row, h, column, w
    return grid.flatten(4, 5).flatten(2, 3)[..., :height, :width].contiguous()


def tile_size(images: Tensor, factor: int) -> tuple[int, int]:
    """Height and width of a tile, rounded up.

    Raises:
        ValueError: the factor is below 1 or larger than a side of the image.
    """
    height, width = images.shape[-2:]
    if not 1 <= factor <= min(height, width):
        raise ValueError(
            f"factor (tiles per side) must lie in [1, {min(height, width)}], the side of the images, given {factor}"
        )
    return -(-height // factor), -(-width // factor)
