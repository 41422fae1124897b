"""Small generated data sets for the kinds of task that no installed package brings data for.

Every image is made by formula from a seed, so nothing is downloaded, and a thousand take a fraction of a second. They
show that a method works, not how well it would work on photographs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillroom.data.rows import generator
from stillroom.data.samples import Kind, Splits, TensorSamples

FORMS = ("disc", "square", "cross", "ring")


def shapes(*, train: int = 1000, test: int = 500, size: int = 24, seed: int = 0) -> Splits:
    """Multi-label: which of four forms (disc, square, cross, ring) are in a colour image?

    Each form is there with probability 0.45, anywhere, in any colour, before or behind the others, on a noisy ground.

    Args:
        train: number of images to train on, 1 or more.
        test: number of images to report on, 1 or more.
        size: height and width in pixels, 12 or more.
        seed: makes the images; 0 or more.

    Returns:
        Inputs `(3, size, size)` in [0, 1], labels `(4,)` of 0 and 1.
    """
    count, draw = _check(train, test, size), generator(seed, 1)
    present = torch.rand(count, 4, generator=draw) < 0.45
    radius = size * (0.16 + 0.1 * torch.rand(count, 4, generator=draw))
    masks = torch.stack(
        [_form(form, radius[:, k], _place(radius[:, k], size, draw), size) for k, form in enumerate(FORMS)]
    )
    colours = 0.35 + 0.65 * torch.rand(4, count, 3, 1, 1, generator=draw)
    images = 0.3 * torch.rand(count, 3, size, size, generator=draw)
    order = torch.rand(count, 4, generator=draw).argsort(1)
    everything = torch.arange(count)
    for turn in range(4):
        which = order[:, turn]
        painted = masks[which, everything] & present[everything, which].view(-1, 1, 1)
        images = torch.where(painted.unsqueeze(1), colours[which, everything], images)
    return _split(images, present.float(), train, list(FORMS), "shapes", "multi-label")


def scenes(*, train: int = 1000, test: int = 300, size: int = 24, seed: int = 0) -> Splits:
    """Segmentation: which pixels are ground, disc or square?

    The ground is striped in a random direction; on it lie a checkered disc and a plain square, in any colours. Pixels
    on the outline of a form carry the label -100, as in data sets that were labelled by hand.

    Args:
        train: number of images to train on, 1 or more.
        test: number of images to report on, 1 or more.
        size: height and width in pixels, 12 or more.
        seed: makes the images; 0 or more.

    Returns:
        Inputs `(3, size, size)` in [0, 1], labels `(size, size)` in {0, 1, 2, -100}.
    """
    count, draw = _check(train, test, size), generator(seed, 2)
    rows, columns = _grid(size)
    angle = math.pi * torch.rand(count, 1, 1, generator=draw)
    wave = (0.9 * (columns * angle.cos() + rows * angle.sin()) + 6 * torch.rand(count, 1, 1, generator=draw)).sin()
    tint = 0.25 + 0.3 * torch.rand(count, 3, 1, 1, generator=draw)
    images = tint + 0.15 * wave.unsqueeze(1)
    labels = torch.zeros(count, size, size, dtype=torch.int16)
    checkered = 0.15 * (1 - 2 * ((rows.floor() + columns.floor()) % 2))
    for number, form, grain in ((1, "disc", checkered), (2, "square", torch.zeros(()))):
        radius = size * (0.15 + 0.12 * torch.rand(count, generator=draw))
        place = _place(radius, size, draw)
        inside = _form(form, radius, place, size)
        outline = inside & ~_form(form, radius - 1, place, size)
        colour = 0.5 + 0.4 * torch.rand(count, 3, 1, 1, generator=draw)
        images = torch.where(inside.unsqueeze(1), colour + grain, images)
        labels[inside] = number
        labels[outline] = -100
    images += 0.06 * torch.randn(images.shape, generator=draw)
    return _split(images, labels, train, ["ground", "disc", "square"], "scenes", "segmentation")


def blobs(*, train: int = 1000, test: int = 500, size: int = 16, seed: int = 0) -> Splits:
    """Regression: where is the bright blob in a grey image, and how wide is it?

    Args:
        train: number of images to train on, 1 or more.
        test: number of images to report on, 1 or more.
        size: height and width in pixels, 12 or more.
        seed: makes the images; 0 or more.

    Returns:
        Inputs `(1, size, size)` in [0, 1], labels `(3,)`: column and row of the centre and the standard deviation, each
        brought to [0, 1] over its range (0.15 to 0.85 of the side; 0.06 to 0.18 of the side).
    """
    count, draw = _check(train, test, size), generator(seed, 3)
    labels = torch.rand(count, 3, generator=draw)
    x, y = (size * (0.15 + 0.7 * labels[:, :2])).view(count, 2, 1, 1).unbind(1)
    width = (size * (0.06 + 0.12 * labels[:, 2])).view(count, 1, 1)
    rows, columns = _grid(size)
    blob = (-((columns - x).square() + (rows - y).square()) / (2 * width.square())).exp()
    brightness = 0.6 + 0.3 * torch.rand(count, 1, 1, generator=draw)
    images = (brightness * blob + 0.1 * torch.rand(count, size, size, generator=draw)).unsqueeze(1)
    return _split(images, labels, train, None, "blobs", "regression")


def _check(train: int, test: int, size: int) -> int:
    for name, value, least in (("train", train, 1), ("test", test, 1), ("size", size, 12)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, given {value}")
    return train + test


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Rows `(1, size, 1)` and columns `(1, 1, size)`, at pixel centres."""
    places = torch.arange(size) + 0.5
    return places.view(1, -1, 1), places.view(1, 1, -1)


def _place(radius: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """Draw centres `(N, 2)` so that a form of this radius lies inside the image."""
    return radius.unsqueeze(1) + torch.rand(len(radius), 2, generator=draw) * (size - 2 * radius.unsqueeze(1))


def _form(form: str, radius: Tensor, centre: Tensor, size: int) -> Tensor:
    """Pixels `(N, size, size)` bool that a form covers."""
    rows, columns = _grid(size)
    radius = radius.view(-1, 1, 1)
    down, right = (rows - centre[:, :1, None]).abs(), (columns - centre[:, 1:, None]).abs()
    distance = (down.square() + right.square()).sqrt()
    if form == "disc":
        return distance <= radius
    if form == "square":
        return torch.maximum(down, right) <= 0.85 * radius
    if form == "cross":
        return (torch.maximum(down, right) <= radius) & (torch.minimum(down, right) <= 0.25 * radius)
    return (distance <= radius) & (distance >= 0.55 * radius)


def _split(images: Tensor, labels: Tensor, train: int, classes: list[str] | None, name: str, kind: Kind) -> Splits:
    pixels = images.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    samples = TensorSamples(pixels, labels)
    rows = torch.arange(len(samples))
    return Splits(samples.subset(rows[:train]), samples.subset(rows[train:]), classes=classes, name=name, kind=kind)
