"""Scenes of handwritten digits whose every pixel has a class; some digits can be annotated wrongly."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.data.embedded import digits
from stillroom.data.rows import generator
from stillroom.data.samples import Samples, Splits, TensorSamples

GROUND = 10
INK = 4 / 16


def digit_masks(
    *, train: int = 400, test: int = 300, size: int = 24, wrong: float = 0.0, seed: int = 0, half: int = 0
) -> Splits:
    """Segmentation: which digit does each pixel belong to?

    A scene holds two or three of scikit-learn's digits, 8x8, at places that do not overlap, on a ground with single
    rows of other digits as clutter. A pixel with more ink than a quarter belongs to its digit's class, all others to
    the ground. Digits are cut before scenes are made: training scenes of either half and test scenes share none.

    Args:
        train: scenes to train on, 1 or more.
        test: scenes to report on, 1 or more.
        size: height and width of a scene in pixels, 24 or more.
        wrong: probability that a training digit is annotated, all of it, as another digit; in [0, 1).
        seed: makes the training scenes; 0 or more. Test scenes are the same for all seeds.
        half: which half of the training digits the training scenes are made of, 0 or 1.

    Returns:
        Inputs `(1, size, size)` in [0, 1], labels `(size, size)` in {0, ..., 10}, 10 for the ground. Training samples
        carry the field "wrong", `(size, size)` bool: pixels whose label is wrong.

    Raises:
        ValueError: a number outside its range.
    """
    for name, value, least in (("train", train, 1), ("test", test, 1), ("size", size, 24)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, given {value}")
    if not 0 <= wrong < 1 or half not in (0, 1):
        raise ValueError(f"wrong is a probability in [0, 1) and half is 0 or 1, given {wrong} and {half}")
    written = digits()
    own = written.train.subset(torch.arange(half, len(written.train), 2))
    return Splits(
        _scenes(own, train, size, wrong, generator(seed, 21, half)),
        _scenes(written.test, test, size, 0.0, generator(0, 22)),
        classes=[*(str(digit) for digit in range(10)), "ground"],
        name="digit-masks",
        kind="segmentation",
    )


def _scenes(written: Samples, count: int, size: int, wrong: float, draw: torch.Generator) -> TensorSamples:
    batch = written.batch(torch.arange(len(written)))
    images, classes = batch.inputs[:, 0], batch.labels
    scenes = torch.zeros(count, size, size)
    labels = torch.full((count, size, size), GROUND, dtype=torch.int16)
    mistaken = torch.zeros(count, size, size, dtype=torch.bool)

    def whole(below: int) -> int:
        return int(torch.randint(below, (), generator=draw))

    for number in range(count):
        for _ in range(4):  # clutter: a row of a digit, drawn dimmer
            row, top, left = whole(8), whole(size), whole(size - 7)
            scenes[number, top, left : left + 8] = 0.6 * images[whole(len(images)), row]
        taken: list[tuple[int, int]] = []
        for _ in range(2 + whole(2)):
            for _ in range(30):
                top, left = whole(size - 7), whole(size - 7)
                if all(abs(top - other) >= 8 or abs(left - beside) >= 8 for other, beside in taken):
                    taken.append((top, left))
                    _paint(scenes[number], labels[number], mistaken[number], images, classes, top, left, wrong, draw)
                    break
    pixels = (scenes * 255).round().to(torch.uint8).unsqueeze(1)
    return TensorSamples(pixels, labels, fields={"wrong": mistaken})


def _paint(
    scene: Tensor, labels: Tensor, mistaken: Tensor, images: Tensor, classes: Tensor | None, top: int, left: int,
    wrong: float, draw: torch.Generator,
) -> None:  # fmt: skip
    chosen = int(torch.randint(len(images), (), generator=draw))
    digit, label = images[chosen], int(classes[chosen]) if classes is not None else 0
    is_wrong = float(torch.rand((), generator=draw)) < wrong
    said = (label + 1 + int(torch.randint(9, (), generator=draw))) % 10 if is_wrong else label
    window = (slice(top, top + 8), slice(left, left + 8))
    scene[window] = digit
    ink = digit > INK
    labels[window] = torch.where(ink, said, GROUND).to(labels.dtype)
    mistaken[window] = ink & is_wrong
