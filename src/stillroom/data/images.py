"""Image files to tensors: one mode, one size, eight bits, with a word about every file that needed more than that."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from stillroom.data.batch import UNLABELLED
from stillroom.data.samples import LazySamples, Samples, TensorSamples, as_input
from stillroom.data.stream import ahead

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
    )
)
GREY_MODES = frozenset(("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"))
CLEAR_MODES = frozenset(("RGBA", "RGBa", "LA", "La", "PA"))
DEFAULT_SIZE = 224
PROBED = 1000
BEYOND = 2**15 - 1  # in a table of classes: there is no such class
ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Form:
    """The one shape that all images of a data set are brought to."""

    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)`."""
        return self.channels, self.height, self.width


def decode(image: Image.Image, form: Form) -> Tensor:
    """Turn an image into pixels: upright (EXIF), without transparency, resized on the short side and cropped.

    Transparent pixels show white behind them, 16-bit grey is brought to 8 bits, of an animation the first picture is
    taken. An image that has the form's size already is not resampled; others are (bicubic).

    Returns:
        uint8 `form.shape`.
    """
    image = ImageOps.exif_transpose(image)
    image = _eight_bits(image, grey=form.channels == 1)
    if image.size != (form.width, form.height):
        image = _cover(image, form, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if form.channels == 1 else pixels.permute(2, 0, 1)


def decode_mask(mask: Image.Image, form: Form, table: np.ndarray) -> Tensor:
    """Turn a mask of class numbers into int16 `(height, width)`, resized like its image but by nearest pixel.

    Args:
        mask: one channel of class numbers (a palette is not looked at).
        form: size to bring it to.
        table: `(256,)` what each class number becomes; see `mask_table`.

    Raises:
        ValueError: the mask has several channels, or holds a class that there is not.
    """
    if mask.mode not in ("1", "L", "P"):
        raise ValueError(f"a mask must hold one 8-bit class number per pixel, given mode {mask.mode}")
    if mask.size != (form.width, form.height):
        mask = _cover(mask, form, Image.Resampling.NEAREST)
    numbers = np.array(mask, dtype=np.uint8)
    classes = table[numbers]
    if (classes == BEYOND).any():
        known = int((table[:255] != BEYOND).sum())
        raise ValueError(f"a mask holds class {int(numbers[classes == BEYOND].max())}, but there are {known} classes")
    return torch.from_numpy(classes)


def _cover(image: Image.Image, form: Form, resampling: Image.Resampling) -> Image.Image:
    width, height = image.size
    scale = max(form.width / width, form.height / height)
    wide, high = max(round(width * scale), form.width), max(round(height * scale), form.height)
    left, top = (wide - form.width) // 2, (high - form.height) // 2
    resized = image if (wide, high) == image.size else image.resize((wide, high), resampling)
    return resized.crop((left, top, left + form.width, top + form.height))


def _eight_bits(image: Image.Image, *, grey: bool) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"grey values run from {values.min()} to {values.max()}, expected 0 to 65535")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        if not 0 <= values.min() <= values.max() <= 1:
            raise ValueError(f"grey values run from {values.min():g} to {values.max():g}, expected floats in [0, 1]")
        image = Image.fromarray((values * 255).round().astype(np.uint8))
    if image.mode in CLEAR_MODES or "transparency" in image.info:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    wanted = "L" if grey else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


class Probed(Protocol):
    """A part whose images are looked at before their form is decided."""

    def probe(self) -> tuple[Counter[tuple[int, int]], Counter[bool]]:
        """Count sizes (height, width) and whether images are grey."""


class ImagePart:
    """One part of a data set whose images are still encoded.

    Args:
        length: number of images.
        open_image: `open_image(row)` opens an image; only its header needs to be read by then.
        name_of: `name_of(row)` says what to call it in a note.
        labels: `(length, ...)`, or None.
        open_mask: opens the mask of a row, for segmentation.
    """

    def __init__(
        self,
        length: int,
        open_image: Callable[[int], Image.Image],
        name_of: Callable[[int], str],
        labels: Tensor | None = None,
        open_mask: Callable[[int], Image.Image] | None = None,
    ) -> None:
        self.length, self.open_image, self.name_of = length, open_image, name_of
        self.labels, self.open_mask = labels, open_mask
        self.table = mask_table()
        self.numbers: Tensor | None = None

    def __len__(self) -> int:
        return self.length

    def probe(self) -> tuple[Counter[tuple[int, int]], Counter[bool]]:
        """Count sizes (height, width) and whether images are grey, over at most 1,000 evenly spaced images."""
        sizes: Counter[tuple[int, int]] = Counter()
        greys: Counter[bool] = Counter()
        for row in np.unique(np.linspace(0, self.length - 1, min(PROBED, self.length)).astype(int)).tolist():
            try:
                with self.open_image(row) as image:
                    width, height = image.size
                    if image.getexif().get(0x0112) in ROTATED:
                        width, height = height, width
                    sizes[height, width] += 1
                    greys[image.mode in GREY_MODES] += 1
            except UNREADABLE:
                continue
        return sizes, greys

    def load(self, rows: Tensor, form: Form | None, lazy: bool, notes: list[str]) -> Samples:
        """Decode some rows now, or later where `lazy`; what cannot be read is left out and named in `notes`."""
        if form is None:
            raise ValueError("images need a form to be brought to")
        read = _Reader(self, form)
        attempt = self._header if lazy else read.attempt
        kept: list[int] = []
        failures: list[str] = []
        inputs = torch.empty(0 if lazy else len(rows), *form.shape, dtype=torch.uint8)
        masks = torch.empty(0 if self.open_mask is None else len(inputs), *form.shape[1:], dtype=torch.int16)
        large = form.height * form.width >= 128 * 128
        numbers = rows.tolist()
        for row, found in zip(
            numbers, ahead(attempt, numbers, min(8, os.cpu_count() or 1) if large else 0), strict=True
        ):
            if isinstance(found, str):
                failures.append(f"{self.name_of(row)} ({found})")
                continue
            if not lazy:
                inputs[len(kept)] = found[0]
                if self.open_mask is not None:
                    masks[len(kept)] = found[1]
            kept.append(row)
        if failures:
            notes.append(f"{len(failures)} of {len(rows)} files cannot be read and are left out: {listed(failures)}")
        index = torch.tensor(kept, dtype=torch.int64)
        if lazy:
            return LazySamples(read, self.length, self.labels, form.shape).subset(index)
        labels = None if self.labels is None else self.labels[index]
        return TensorSamples(inputs[: len(kept)], labels if self.open_mask is None else masks[: len(kept)], index)

    def _header(self, row: int) -> tuple[Any, ...] | str:
        try:
            with self.open_image(row):
                return ()
        except UNREADABLE as error:
            return _reason(error)


class _Reader:
    """Reads one row of a part: what `LazySamples` fetches with."""

    def __init__(self, part: ImagePart, form: Form) -> None:
        self.part, self.form = part, form

    def __call__(self, row: int) -> tuple[Tensor, Tensor | None]:
        found = self.attempt(row)
        if isinstance(found, str):
            raise OSError(f"{self.part.name_of(row)} cannot be read ({found}): repair or remove it")
        return found

    def attempt(self, row: int) -> tuple[Tensor, Tensor | None] | str:
        part = self.part
        try:
            with part.open_image(row) as image:
                pixels = decode(image, self.form)
                size = image.size
            if part.open_mask is None:
                return pixels, None
            with part.open_mask(row) as mask:
                mask.load()
                if mask.size != size:
                    return f"its mask is {mask.size[0]}x{mask.size[1]}, the image {size[0]}x{size[1]}"
        except UNREADABLE as error:
            return _reason(error)
        return pixels, decode_mask(mask, self.form, part.table)  # a mask of another meaning is no unreadable file


def mask_table(classes: Sequence[str] | None = None) -> np.ndarray:
    """What each of 256 mask values becomes: its class number, or -100 for 255 and for a class called "unlabelled".

    Classes after one that means "no label" move down by one, so that the numbers have no gap.
    """
    table = np.arange(256, dtype=np.int16)
    table[255] = UNLABELLED
    if classes is not None:
        table[: len(classes)] = UNLABELLED
        table[len(classes) : 255] = BEYOND
        kept = [number for number, name in enumerate(classes) if not is_void(name)]
        table[kept] = np.arange(len(kept))
    return table


def is_void(name: str) -> bool:
    """Whether the name of a class says that there is no label."""
    return name.lower() in ("unlabelled", "unlabeled", "void", "ignore", "ignored")


def common_form(parts: Sequence[Probed], image_size: int | None, channels: int | None, notes: list[str]) -> Form:
    """Decide which shape all images are brought to.

    Args:
        parts: all parts of the data set.
        image_size: side of a square; None: the size all images have, or 224 where they differ.
        channels: 1 or 3; None: 1 where all images are grey, else 3.
        notes: gets a sentence where images are resized.

    Raises:
        ValueError: image_size or channels is out of range, or no image can be read.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    greys: Counter[bool] = Counter()
    for part in parts:
        some_sizes, some_greys = part.probe()
        sizes += some_sizes
        greys += some_greys
    if not sizes:
        raise ValueError("no image can be read: check the files")
    found = f"{sizes.most_common(1)[0][0][1]}x{sizes.most_common(1)[0][0][0]}"
    several = len(sizes) > 1
    if image_size is None and several:
        image_size = DEFAULT_SIZE
        notes.append(
            f"images have {len(sizes)} different sizes: all are resized and cropped to {image_size}x{image_size} "
            "(choose another with image_size=)"
        )
    elif image_size is not None and (several or (image_size, image_size) not in sizes):
        was = f"{len(sizes)} different sizes" if several else found
        notes.append(f"images are resized and cropped from {was} to {image_size}x{image_size}")
    height, width = next(iter(sizes)) if image_size is None else (image_size, image_size)
    if channels is None:
        channels = 3 if greys[False] else 1
        if len(greys) > 1:
            notes.append("some images are grey and some in colour: all are taken as colour (choose with channels=)")
    return Form(channels, height, width)


def check_form(image_size: int | None, channels: int | None) -> None:
    """Refuse an image size below 1 and numbers of channels other than 1 and 3."""
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be 1 or more, given {image_size}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), given {channels}")


def check_range(images: Tensor, name: str, notes: list[str]) -> None:
    """Refuse float images that run from 0 to more than 2, and note others that leave [0, 1].

    Args:
        images: `(N, 1 or 3, H, W)` floats; anything else is left alone.
        name: what to call them.
        notes: gets a sentence.

    Raises:
        ValueError: they look like bytes or counts, not like images in [0, 1].
    """
    if images.ndim != 4 or not images.is_floating_point() or images.shape[1] not in (1, 3) or not images.numel():
        return
    low, high = float(images.min()), float(images.max())
    if not math.isfinite(high):  # refused where it is told which rows they are
        return
    if low >= 0 and high > 2:
        raise ValueError(
            f"float images must lie in [0, 1], given {name} up to {high:g}: divide by the largest value there can be "
            "(255 for bytes), or pass uint8"
        )
    if low < 0 or high > 1:
        notes.append(
            f"{name} run from {low:.3g} to {high:.3g}: networks that are loaded by name expect [0, 1] and normalise by "
            "themselves"
        )


def fit_tensor(images: Tensor, form: Form) -> Tensor:
    """Bring images that are tensors already to a form, as `decode` does with files.

    Args:
        images: `(..., C, H, W)` with C of 1 or 3, uint8 in [0, 255] or floats.
        form: the form to bring them to.
    """
    channels, height, width = images.shape[-3:]
    if channels not in (1, 3):
        raise ValueError(f"images have {channels} channels: only 1 and 3 can be brought to {form.channels}")
    dtype = images.dtype
    whole = images.reshape(-1, channels, height, width)
    if channels != form.channels:
        if form.channels == 3:
            whole = whole.expand(-1, 3, -1, -1)
        else:
            weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R 601, as Pillow
            whole = (whole * weights).sum(1, keepdim=True)
    if (height, width) != (form.height, form.width):
        scale = max(form.height / height, form.width / width)
        high, wide = max(round(height * scale), form.height), max(round(width * scale), form.width)
        darkest, brightest = whole.float().amin((1, 2, 3), keepdim=True), whole.float().amax((1, 2, 3), keepdim=True)
        whole = F.interpolate(whole.float(), (high, wide), mode="bicubic", align_corners=False, antialias=True)
        whole = torch.minimum(torch.maximum(whole, darkest), brightest)  # bicubic interpolation overshoots at edges
        top, left = (high - form.height) // 2, (wide - form.width) // 2
        whole = whole[..., top : top + form.height, left : left + form.width]
    whole = whole.round().to(dtype) if dtype == torch.uint8 and whole.dtype != dtype else whole.to(dtype)
    return whole.reshape(*images.shape[:-3], *form.shape)


def to_pixels(image: Image.Image) -> Tensor:
    """Turn an image of any mode into uint8 `(1 or 3, H, W)` of its own size."""
    grey = image.mode in GREY_MODES
    width, height = image.size
    if image.getexif().get(0x0112) in ROTATED:
        width, height = height, width
    return decode(image, Form(1 if grey else 3, height, width))


def to_input(image: Image.Image) -> Tensor:
    """Turn an image of any mode into float32 `(1 or 3, H, W)` in [0, 1]."""
    return as_input(to_pixels(image))


def listed(names: Sequence[str], limit: int = 10) -> str:
    """Name the first few of many things."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120].split(" <_io")[0]
