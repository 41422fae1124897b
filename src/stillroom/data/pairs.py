"""Pairs of a small and a large image of the same scene: whole ones to measure on, aligned patches to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stillroom.data.degrade import crop_to_multiple, shrink
from stillroom.data.samples import Samples


class Pairs(Samples):
    """Base of both: the label of a row is its large image, read with the small one."""

    labelled = True

    @property
    def has_labels(self) -> bool:
        """Whether rows come with their large image."""
        return self.labelled

    def _drop_labels(self) -> None:
        super()._drop_labels()
        self.labelled = False


class ImagePairs(Pairs):
    """Whole images of any sizes: the small one is the input, the large one the label; one pair a batch.

    Args:
        low: uint8 `(3, h, w)` each.
        high: uint8 `(3, scale h, scale w)` each.
        scale: 1 or more.
        first: number of the first pair in `index`.

    Raises:
        ValueError: the lists differ in length, or a pair in size.
    """

    largest_batch = 1

    def __init__(self, low: Sequence[Tensor], high: Sequence[Tensor], *, scale: int, first: int = 0) -> None:
        check_pairs(low, high, scale)
        shape = low[0].shape if low else (3, 0, 0)
        super().__init__(len(low), shape, index=torch.arange(first, first + len(low)))
        self.low, self.high, self.scale = list(low), list(high), scale

    def _read(self, rows: Tensor) -> tuple[Any, Tensor | None, Mapping[str, Tensor]]:
        sizes = {self.low[row].shape for row in rows.tolist()}
        if len(sizes) > 1:
            raise ValueError(f"images of {len(sizes)} sizes do not fit into one batch: read one row at a time")
        low, high = ([images[row] for row in rows.tolist()] for images in (self.low, self.high))
        return _floats(low), _floats(high) if self.labelled else None, {}


class PatchPairs(Pairs):
    """Patches of pairs: as many rows for an image as would cover it, each cut at random when it is trained on.

    Positions are drawn on the grid of the small image, so that both patches show the same part of the scene. Outside of
    a training stream, a row is the patch in the middle of its image.

    Args:
        low: uint8 `(3, h, w)` each.
        high: uint8 `(3, scale h, scale w)` each.
        scale: 1 or more.
        patch_size: side of a patch of the small image.
        first: number of the first row in `index`.

    Raises:
        ValueError: the lists differ in length, or a pair in size, or an image is smaller than a patch.

    Example:
        >>> low, high = torch.zeros(3, 20, 30, dtype=torch.uint8), torch.zeros(3, 40, 60, dtype=torch.uint8)
        >>> batch = PatchPairs([low], [high], scale=2, patch_size=8).batch([0, 1])
        >>> batch.inputs.shape, batch.labels.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2, 3, 16, 16]))
    """

    draws = 2

    def __init__(
        self, low: Sequence[Tensor], high: Sequence[Tensor], *, scale: int, patch_size: int, first: int = 0
    ) -> None:
        check_pairs(low, high, scale)
        if patch_size < 1:
            raise ValueError(f"patch_size must be 1 or more, given {patch_size}")
        for number, image in enumerate(low):
            if min(image.shape[-2:]) < patch_size:
                raise ValueError(
                    f"training image {number} has {image.shape[-2]}x{image.shape[-1]} pixels when it is small, and no "
                    f"patch of {patch_size}: leave it out, or take smaller patches (image_size)"
                )
        each = [max(image.shape[-2] * image.shape[-1] // patch_size**2, 1) for image in low]
        self.image_of = torch.repeat_interleave(torch.arange(len(low)), torch.tensor(each, dtype=torch.int64))
        count = len(self.image_of)
        super().__init__(count, (3, patch_size, patch_size), index=torch.arange(first, first + count))
        self.low, self.high, self.scale, self.patch_size = list(low), list(high), scale, patch_size

    def places(self, rows: Tensor, uniform: Tensor) -> list[tuple[int, int, int]]:
        """Where patches lie: number of the image, top and left in the small image.

        Args:
            rows: `(N,)` row numbers of the whole data set.
            uniform: `(N, 2)` numbers in [0, 1), down and across; every position is equally probable.
        """
        found = []
        for row, (down, across) in zip(rows.tolist(), uniform.tolist(), strict=True):
            image = int(self.image_of[row])
            height, width = (side - self.patch_size + 1 for side in self.low[image].shape[-2:])
            found.append((image, min(int(down * height), height - 1), min(int(across * width), width - 1)))
        return found

    def _read(self, rows: Tensor) -> tuple[Any, Tensor | None, Mapping[str, Tensor]]:
        return self._read_drawn(rows, torch.full((len(rows), 2), 0.5))

    def _read_drawn(self, rows: Tensor, uniform: Tensor) -> tuple[Any, Tensor | None, Mapping[str, Tensor]]:
        low, high = [], []
        for image, top, left in self.places(rows, uniform):
            low.append(self.low[image][:, top : top + self.patch_size, left : left + self.patch_size])
            above, before, side = (self.scale * number for number in (top, left, self.patch_size))
            high.append(self.high[image][:, above : above + side, before : before + side])
        return _floats(low), _floats(high) if self.labelled else None, {}


def make_pairs(images: Sequence[Tensor], scale: int) -> tuple[list[Tensor], list[Tensor]]:
    """Make small images of large ones: cut to multiples of the scale and shrunk (`stillroom.data.degrade.shrink`).

    Args:
        images: uint8 `(3, H, W)` each.
        scale: 1 or more.

    Returns:
        The small images and the large ones they were made from.
    """
    high = [crop_to_multiple(image, scale) for image in images]
    return [shrink(image, scale) for image in high], high


def check_pairs(low: Sequence[Tensor], high: Sequence[Tensor], scale: int) -> None:
    """Refuse lists of different lengths, and pairs of which one is not `scale` times the other."""
    if scale < 1:
        raise ValueError(f"scale must be 1 or more, given {scale}")
    if len(low) != len(high):
        raise ValueError(f"there are {len(low)} small and {len(high)} large images: give one of each per pair")
    for number, (small, large) in enumerate(zip(low, high, strict=True)):
        for image in (small, large):
            if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
                raise ValueError(f"images must be uint8 (3, H, W), given {tuple(image.shape)} {image.dtype}")
        expected = tuple(scale * side for side in small.shape[-2:])
        if tuple(large.shape[-2:]) != expected:
            raise ValueError(
                f"pair {number} has a small image of {tuple(small.shape[-2:])} and a large one of "
                f"{tuple(large.shape[-2:])}, expected {expected} for scale {scale}: name the right scale"
            )


def _floats(images: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(images)).float().div_(255) if images else torch.zeros(0, 3, 1, 1)
