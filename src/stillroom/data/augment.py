"""Augmentation of whole batches, driven by uniform numbers from outside: the same numbers make the same batch.

A policy is `policy(batch, uniform) -> Batch` with a number `draws`: how many uniform numbers in [0, 1) a sample needs.
Where labels are class masks `(N, H, W)` as large as the images, they move with the images, and pixels that come from
outside get -100. Other labels and fields stay as they are: a policy that moves the image is wrong for labels that name
places in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.data.batch import UNLABELLED, Batch, Ragged


class Augmentation(Protocol):
    """What a stream accepts as `augment`; a function without `draws` is given 8 numbers per sample."""

    def __call__(self, batch: Batch, uniform: Tensor) -> Batch:
        """Change a batch of N samples by `(N, draws)` numbers in [0, 1)."""


@dataclass(frozen=True)
class Unchanged:
    """Leaves every batch as it is."""

    draws: int = 0

    def __call__(self, batch: Batch, uniform: Tensor) -> Batch:
        """Return the batch itself."""
        return batch


@dataclass(frozen=True)
class Shift:
    """Shifts each image by up to `pixels` in both directions; what comes in from outside is black.

    Uniform numbers: vertical shift, horizontal shift (every whole number of pixels is equally probable, 0.5 is none),
    flip (below 0.5).

    Args:
        pixels: the largest shift, 1 or more.
        flip: whether to mirror left to right, after the shift.
    """

    pixels: int = 1
    flip: bool = False

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise ValueError(f"pixels must be 1 or more, given {self.pixels}")

    @property
    def draws(self) -> int:
        """Uniform numbers per sample."""
        return 3 if self.flip else 2

    def __call__(self, batch: Batch, uniform: Tensor) -> Batch:
        """Shift images and masks by `uniform` `(N, draws)`."""
        images = _images(batch, uniform, self.draws)
        masks = _masks(batch, images)
        flip = uniform[:, 2] < 0.5 if self.flip else None
        top, left = (uniform[:, :2] * (2 * self.pixels + 1)).long().clamp_(max=2 * self.pixels).unbind(1)
        changes: dict[str, Any] = {"inputs": _shift(images, top, left, flip, self.pixels, 0)}
        if masks is not None:
            changes["labels"] = _shift(masks[:, None], top, left, flip, self.pixels, UNLABELLED)[:, 0]
        return batch.replace(**changes)


@dataclass(frozen=True)
class ResizedCropFlip:
    """Cuts a random part out of each image, resizes it to the whole image's size and mirrors half of the images.

    The part has `area` of the image and its sides in the ratio `aspect` times the image's own, drawn evenly on the
    logarithmic scale; a part that would be wider or higher than the image is cut to it. Images are interpolated
    bilinearly, masks take the nearest pixel.
    Uniform numbers: area (0: the largest), aspect (0.5: 1), vertical and horizontal place, flip (below 0.5).

    Args:
        smallest_area: in (0, 1].
        largest_aspect: 1 or more; the smallest is its inverse.
        flip: whether to mirror left to right.
    """

    smallest_area: float = 0.08
    largest_aspect: float = 4 / 3
    flip: bool = True
    draws: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.smallest_area <= 1:
            raise ValueError(f"smallest_area must lie in (0, 1], given {self.smallest_area}")
        if self.largest_aspect < 1:
            raise ValueError(f"largest_aspect must be 1 or more, given {self.largest_aspect}")

    def __call__(self, batch: Batch, uniform: Tensor) -> Batch:
        """Crop images and masks by `uniform` `(N, 5)`."""
        images = _images(batch, uniform, self.draws)
        masks = _masks(batch, images)
        area = 1 - uniform[:, 0] * (1 - self.smallest_area)
        aspect = ((2 * uniform[:, 1] - 1) * math.log(self.largest_aspect)).exp()
        height, width = (area / aspect).sqrt().clamp(max=1), (area * aspect).sqrt().clamp(max=1)
        top, left = uniform[:, 2] * (1 - height), uniform[:, 3] * (1 - width)
        mirror = torch.where(uniform[:, 4] < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(width)
        zero = torch.zeros_like(width)
        theta = torch.stack(
            [mirror * width, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], dim=1
        ).view(-1, 2, 3)
        grid = F.affine_grid(theta.to(images), [len(images), 1, *images.shape[-2:]], align_corners=False)
        changes: dict[str, Any] = {
            "inputs": F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        }
        if masks is not None:
            taken = F.grid_sample(
                masks[:, None].to(grid), grid, mode="nearest", padding_mode="border", align_corners=False
            )
            changes["labels"] = taken[:, 0].round().to(masks.dtype)
        return batch.replace(**changes)


@dataclass(frozen=True)
class FlipTranspose:
    """Mirrors square images left to right, upside down and along the diagonal, each with probability a half.

    Labels that are images `(N, C, H, W)` or masks `(N, H, W)` of any square size move with their inputs.
    Uniform numbers: left to right, upside down, transpose (each below 0.5).
    """

    draws: int = 3

    def __call__(self, batch: Batch, uniform: Tensor) -> Batch:
        """Mirror inputs and labels by `uniform` `(N, 3)`."""
        images = _images(batch, uniform, self.draws)
        changes: dict[str, Any] = {"inputs": _mirrored(images, uniform)}
        labels = batch.labels
        if isinstance(labels, Tensor) and labels.ndim in (3, 4):
            changes["labels"] = _mirrored(labels, uniform)
        return batch.replace(**changes)


none = Unchanged()
shift = Shift(1)
crop_flip = Shift(4, flip=True)
resized_crop_flip = ResizedCropFlip()
flip_transpose = FlipTranspose()
AUGMENTATIONS: dict[str, Augmentation] = {
    "none": none,
    "shift": shift,
    "crop_flip": crop_flip,
    "resized_crop_flip": resized_crop_flip,
    "flip_transpose": flip_transpose,
}


def augmentation(name: str) -> Augmentation:
    """Find a policy by name: none, shift (1 pixel), crop_flip (4 pixels, mirror), resized_crop_flip or flip_transpose.

    Raises:
        ValueError: another name.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"augment must be one of {', '.join(AUGMENTATIONS)}, given {name!r}")
    return AUGMENTATIONS[name]


def draws_of(augment: Augmentation) -> int:
    """How many uniform numbers per sample a policy asks for; 8 where it does not say."""
    return int(getattr(augment, "draws", 8))


def _mirrored(images: Tensor, uniform: Tensor) -> Tensor:
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"flip_transpose needs square images, given {tuple(images.shape)}: cut square patches")
    left_right, upside_down, transposed = (
        (uniform[:, number] < 0.5).view(-1, *(1,) * (images.ndim - 1)).to(images.device) for number in range(3)
    )
    images = torch.where(left_right, images.flip(-1), images)
    images = torch.where(upside_down, images.flip(-2), images)
    return torch.where(transposed, images.transpose(-1, -2), images)


def _images(batch: Batch, uniform: Tensor, draws: int) -> Tensor:
    images = batch.inputs
    if isinstance(batch.labels, Ragged):
        raise ValueError(
            'image augmentation would move images away from their boxes: use augment "none", and let the data set '
            "itself change image and boxes together (torchvision.transforms.v2)"
        )
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        given = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f'image augmentation needs float inputs (N, C, H, W), given {given}: use augment "none"')
    if uniform.ndim != 2 or len(uniform) != len(images) or uniform.shape[1] < draws:
        raise ValueError(f"uniform must have shape ({len(images)}, {draws}), given {tuple(uniform.shape)}")
    return images


def _masks(batch: Batch, images: Tensor) -> Tensor | None:
    labels = batch.labels
    if labels is None or labels.is_floating_point() or labels.shape[1:] != images.shape[-2:]:
        return None
    return labels


def _shift(images: Tensor, top: Tensor, left: Tensor, flip: Tensor | None, pixels: int, outside: float) -> Tensor:
    """Take the window that begins at (top, left) of each image, padded by `pixels`; `flip` mirrors that window."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (pixels, pixels, pixels, pixels), value=outside)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, -1)
    if flip is not None:
        columns = torch.where(flip[:, None], width - 1 - columns, columns)
    columns = left[:, None] + columns
    wide = width + 2 * pixels
    places = (rows[:, :, None] * wide + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, places).view(count, channels, height, width)
