"""Differentiable augmentation: gradients flow to the images, and one draw can serve real and synthetic ones alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.data.batch import Batch

COLUMNS: dict[str, int | slice] = {
    "color": slice(1, 4),
    "crop": slice(4, 6),
    "cutout": slice(6, 8),
    "flip": 8,
    "scale": slice(9, 11),
    "rotate": 11,
}
"""Which uniform numbers a transform reads, whatever else is applied; the first one makes the choice."""


@dataclass(frozen=True)
class DSA:
    """Differentiable augmentation by color, crop, cutout, flip, scale and rotate, driven by numbers from outside.

    `first` is applied in its order, then one of `choose` (the same for all images of a call), then `last`.
    color: brightness x + b (u - 1/2), saturation around the channels' mean by s u, contrast around the image's mean by
    u + c; crop: a shift by up to the ratio of the side, zeros come in; cutout: a square of zeros; flip: mirrored left
    to right with probability 1/2; scale: each axis between 1 / ratio and ratio; rotate: by up to so many degrees.

    It is a policy for `stillroom.data.Stream` (new numbers per image). For matching call `shared`: one row of numbers
    for all images, which real and synthetic ones are joined for.

    Args:
        first: names that are always applied.
        choose: one of these names is applied, evenly chosen; may be empty.
        last: names that are applied in the end.
        brightness: b, 0 or more.
        saturation: s, 0 or more.
        contrast: c, 0 or more.
        crop: largest shift as a part of the side, in [0, 1].
        cutout: side of the square as a part of the image's, in [0, 1].
        scale: largest ratio, 1 or more.
        rotate: largest angle in degrees.

    Raises:
        ValueError: an unknown name, or a number out of range.

    Source: Zhao and Bilen 2021, arXiv:2102.08259 (differentiable siamese augmentation).

    Example:
        >>> augment = DSA(first=("color",), choose=("crop",), last=("cutout",))
        >>> real, synthetic = torch.rand(5, 3, 8, 8), torch.rand(2, 3, 8, 8)
        >>> augment.shared(torch.cat([real, synthetic])).shape
        torch.Size([7, 3, 8, 8])
    """

    first: tuple[str, ...] = ()
    choose: tuple[str, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")
    last: tuple[str, ...] = ()
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    crop: float = 0.125
    cutout: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0
    draws: int = field(default=12, init=False)

    def __post_init__(self) -> None:
        if unknown := {*self.first, *self.choose, *self.last} - set(_TRANSFORMS):
            raise ValueError(f"transforms are {', '.join(_TRANSFORMS)}, given {', '.join(sorted(unknown))}")
        for name in ("brightness", "saturation", "contrast", "rotate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of 0 or more, given {getattr(self, name)}")
        for name in ("crop", "cutout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a part of the side in [0, 1], given {getattr(self, name)}")
        if not 1 <= self.scale < math.inf:
            raise ValueError(f"scale must be a ratio of 1 or more, given {self.scale}")

    def __call__(self, batch: Batch, uniform: Tensor) -> Batch:
        """Change a batch of N images by `(N, 12)` numbers in [0, 1)."""
        return batch.replace(inputs=self.apply(batch.inputs, uniform))

    def shared(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Change all images by one draw, so that none differs from another by its augmentation.

        Args:
            images: `(N, C, H, W)`.
            generator: of the CPU, for the draw.
        """
        uniform = torch.rand(1, self.draws, generator=generator)
        return self.apply(images, uniform.expand(len(images), -1))

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Change images `(N, C, H, W)` by uniform numbers `(N, 12)`; the choice is the first row's."""
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(f"images must be floats (N, C, H, W), given {tuple(images.shape)} {images.dtype}")
        if uniform.shape != (len(images), self.draws):
            raise ValueError(
                f"uniform must have one row per image, ({len(images)}, {self.draws}), given {tuple(uniform.shape)}"
            )
        if not len(images):
            return images
        chosen: tuple[str, ...] = ()
        if self.choose:
            place = min(int(float(uniform[0, 0]) * len(self.choose)), len(self.choose) - 1)
            chosen = (self.choose[place],)
        uniform = uniform.to(images)
        for name in (*self.first, *chosen, *self.last):
            images = _TRANSFORMS[name](images, uniform[:, COLUMNS[name]], self)
        return images


def _color(images: Tensor, uniform: Tensor, options: DSA) -> Tensor:
    brightness, saturation, contrast = (column.view(-1, 1, 1, 1) for column in uniform.unbind(1))
    images = images + options.brightness * (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (options.saturation * saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + options.contrast) + mean


def _crop(images: Tensor, uniform: Tensor, options: DSA) -> Tensor:
    height, width = images.shape[-2:]
    down, right = (
        ((2 * _most(side, options.crop) + 1) * column).long().clamp(max=2 * _most(side, options.crop))
        - _most(side, options.crop)
        for side, column in zip((height, width), uniform.unbind(1), strict=True)
    )
    rows = torch.arange(height, device=images.device) + down[:, None]
    columns = torch.arange(width, device=images.device) + right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    places = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None]
    places = places.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, places).view_as(images) * inside[:, None]


def _most(side: int, ratio: float) -> int:
    return round(side * ratio)


def _cutout(images: Tensor, uniform: Tensor, options: DSA) -> Tensor:
    masks = []
    for axis, column in zip((2, 3), uniform.unbind(1), strict=True):
        side = images.shape[axis]
        square = round(side * options.cutout)
        begin = ((side + 1 - square % 2) * column).long().clamp(max=side - square % 2) - square // 2
        place = torch.arange(side, device=images.device)
        masks.append((place >= begin[:, None]) & (place < begin[:, None] + square))
    hidden = masks[0][:, :, None] & masks[1][:, None]
    return images * ~hidden[:, None]


def _flip(images: Tensor, uniform: Tensor, options: DSA) -> Tensor:
    return torch.where((uniform < 0.5).view(-1, 1, 1, 1), images.flip(3), images)


def _scale(images: Tensor, uniform: Tensor, options: DSA) -> Tensor:
    ratios = 1 / options.scale + uniform * (options.scale - 1 / options.scale)
    zero = torch.zeros_like(ratios[:, 0])
    return _moved(images, ratios[:, 0], zero, zero, ratios[:, 1])


def _rotate(images: Tensor, uniform: Tensor, options: DSA) -> Tensor:
    angle = (2 * uniform - 1) * math.radians(options.rotate)
    return _moved(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _moved(images: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    zero = torch.zeros_like(a)
    theta = torch.stack([a, b, zero, c, d, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, align_corners=True)


_TRANSFORMS: dict[str, Callable[[Tensor, Tensor, DSA], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
