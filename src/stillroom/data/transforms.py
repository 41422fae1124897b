"""Transformed copies of images as labels: class x transform, so that one network must also say what was done."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stillroom.data.batch import UNLABELLED

TRANSFORM_TASKS = ("rotations", "flips", "channels")
"""Names that `transform_task` knows."""


class Transform(Protocol):
    """What is done to images, and undone exactly."""

    def __call__(self, images: Tensor) -> Tensor:
        """Change images `(N, C, H, W)`; the shape stays."""

    def undo(self, images: Tensor) -> Tensor:
        """Give back the images that were changed."""


@dataclass(frozen=True)
class Rotate:
    """Turns square images counter-clockwise by quarter turns.

    Args:
        quarters: how many; 0 leaves images as they are.
    """

    quarters: int

    def __call__(self, images: Tensor) -> Tensor:
        """Turn images.

        Raises:
            ValueError: they are not `(N, C, H, W)` with H = W.
        """
        return torch.rot90(_square(images), self.quarters, (-2, -1))

    def undo(self, images: Tensor) -> Tensor:
        """Turn images back."""
        return torch.rot90(_square(images), -self.quarters, (-2, -1))


@dataclass(frozen=True)
class Flip:
    """Mirrors images.

    Args:
        left_right: exchange left and right.
        upside_down: exchange top and bottom.
    """

    left_right: bool = False
    upside_down: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Mirror images `(N, C, H, W)`."""
        axes = [axis for axis, wanted in ((-1, self.left_right), (-2, self.upside_down)) if wanted]
        return _images(images).flip(axes) if axes else _images(images)

    def undo(self, images: Tensor) -> Tensor:
        """Mirror images back: the same once more."""
        return self(images)


@dataclass(frozen=True)
class PermuteChannels:
    """Exchanges the channels of images.

    Args:
        order: which channel stands at each place; a permutation of 0, 1, ..., C - 1.

    Raises:
        ValueError: the order is no permutation.
    """

    order: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"order must hold every channel from 0 to {len(self.order) - 1} once, given {self.order}")

    def __call__(self, images: Tensor) -> Tensor:
        """Exchange the channels of images `(N, C, H, W)`.

        Raises:
            ValueError: the images have another number of channels.
        """
        if _images(images).shape[1] != len(self.order):
            raise ValueError(
                f"images of shape {tuple(images.shape)} have {images.shape[1]} channels, but {len(self.order)} are "
                "exchanged: give the order of their channels"
            )
        return images[:, list(self.order)]

    def undo(self, images: Tensor) -> Tensor:
        """Put the channels back."""
        return PermuteChannels(tuple(self.order.index(channel) for channel in range(len(self.order))))(images)


@dataclass(frozen=True)
class TransformTask:
    """M transforms of every image, and labels that say class and transform: `M * class + transform`.

    Transformed images stand image by image: rows `M n`, ..., `M n + M - 1` are those of image n. The first transform
    leaves images as they are, so that rows `0::M` are the originals. Square images have to be cut and augmented before.

    Args:
        transforms: one or more, the first of them without effect; one makes everything as it is without.

    Raises:
        ValueError: there is none.

    Example:
        >>> task = rotations()
        >>> task.apply(torch.rand(2, 3, 8, 8)).shape, task.labels(torch.tensor([1, 0])).tolist()
        (torch.Size([8, 3, 8, 8]), [4, 5, 6, 7, 0, 1, 2, 3])
    """

    transforms: Sequence[Transform]

    def __post_init__(self) -> None:
        if not len(self.transforms):
            raise ValueError("a transform task needs at least one transform, given none: give Flip() for the image")

    def __len__(self) -> int:
        return len(self.transforms)

    def apply(self, images: Tensor) -> Tensor:
        """Transform images `(N, C, H, W)`.

        Returns:
            `(N M, C, H, W)`, image by image.

        Raises:
            ValueError: a transform changed the shape, or cannot be applied to such images.
        """
        changed = [transform(images) for transform in self.transforms]
        for transform, result in zip(self.transforms, changed, strict=True):
            if result.shape != images.shape:
                raise ValueError(
                    f"{transform} turned images of shape {tuple(images.shape)} into {tuple(result.shape)}: a transform "
                    "must keep the shape"
                )
        return torch.stack(changed, dim=1).flatten(0, 1)

    def undo(self, images: Tensor) -> Tensor:
        """Undo the transforms of `(N M, C, H, W)`; every image then stands there M times.

        Raises:
            ValueError: the rows are no multiple of M.
        """
        self._check_rows(images)
        parts = [transform.undo(images[row :: len(self)]) for row, transform in enumerate(self.transforms)]
        return torch.stack(parts, dim=1).flatten(0, 1)

    def originals(self, values: Tensor) -> Tensor:
        """Rows `0::M`, what belongs to the images as they are.

        Raises:
            ValueError: the rows are no multiple of M.
        """
        self._check_rows(values)
        return values[:: len(self)]

    def labels(self, labels: Tensor) -> Tensor:
        """Joint labels of the transformed images.

        Args:
            labels: `(N,)` int64 in [0, C), or -100 for none.

        Returns:
            `(N M,)` int64 in [0, C M): `M * label + transform`, or -100.

        Raises:
            ValueError: labels of another form.
        """
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise ValueError(
                f"labels must be (N,) int64 class numbers, given {tuple(labels.shape)} {labels.dtype}: one per image"
            )
        joint = len(self) * labels[:, None] + torch.arange(len(self), device=labels.device)
        return torch.where(labels[:, None] == UNLABELLED, UNLABELLED, joint).flatten()

    def repeat(self, labels: Tensor) -> Tensor:
        """The plain label of every transformed image, `(N M, ...)`: transforms as mere augmentation."""
        return labels.repeat_interleave(len(self), dim=0)

    def _check_rows(self, values: Tensor) -> None:
        if len(values) % len(self):
            raise ValueError(f"rows of {len(self)} transforms come in multiples of it, given {len(values)} rows")


def rotations() -> TransformTask:
    """The image turned by 0, 90, 180 and 270 degrees, counter-clockwise; images must be square."""
    return TransformTask(tuple(Rotate(quarters) for quarters in range(4)))


def flips() -> TransformTask:
    """The image, mirrored left to right, upside down, and both."""
    return TransformTask((Flip(), Flip(True), Flip(False, True), Flip(True, True)))


def channel_permutations(channels: int = 3) -> TransformTask:
    """All orders of the channels, the own one first: 6 for colour images.

    Args:
        channels: of the images, in [1, 4] (there are 24 orders of 4).

    Raises:
        ValueError: out of range.
    """
    if not 1 <= channels <= 4:
        raise ValueError(f"channels must lie in [1, 4], given {channels}: name some orders in a TransformTask")
    return TransformTask(tuple(map(PermuteChannels, itertools.permutations(range(channels)))))


def transform_task(name: str) -> TransformTask:
    """Find a set of transforms by name: "rotations", "flips", or "channels" (all orders of three).

    Raises:
        ValueError: another name.
    """
    known = {"rotations": rotations, "flips": flips, "channels": channel_permutations}
    if name not in known:
        raise ValueError(f"transforms must be one of {', '.join(TRANSFORM_TASKS)}, or a TransformTask, given {name!r}")
    return known[name]()


def _images(images: Tensor) -> Tensor:
    if not isinstance(images, Tensor) or images.ndim != 4:
        given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"transforms take images (N, C, H, W), given {given}")
    return images


def _square(images: Tensor) -> Tensor:
    if _images(images).shape[-1] != images.shape[-2]:
        raise ValueError(
            f"images must be square to be turned, given {tuple(images.shape)}: cut square ones, or take flips"
        )
    return images
