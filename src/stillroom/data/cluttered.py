"""Small scenes of scikit-learn's digits on a cluttered ground, for detectors; and the same under another light."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.data.batch import Ragged
from stillroom.data.embedded import digits
from stillroom.data.rows import generator
from stillroom.data.samples import Samples, Splits, TensorSamples

CLASSES = 5
SMALL_AREA = 60.0
"""Boxes of less than so many square pixels count as small; in the plain domain there are few."""

CONTRAST, NOISE = (0.5, 0.8), 0.04
"""Of the shifted domain, against strokes of 0.75 to 1 and no noise but that of the ground."""


def digit_scenes(
    *, train: int = 400, test: int = 200, size: int = 40, shifted: bool = False, seed: int = 0, test_seed: int = 0
) -> Splits:
    """Detection: where are which of the digits 0 to 4?

    A scene has two to four digits of different handwriting, 10 to 16 pixels high, bright on a darker ground (black to
    a quarter of white) with strokes of other digits and noise. Test scenes are made of digits that no training scene
    holds.

    Shifted, the same kind of scene comes from another domain: contrast falls to 50 to 80 %, everything is blurred and
    noisier, and every other digit is only 6 to 9 pixels high.

    Args:
        train: scenes to train on, 1 or more.
        test: scenes to report on, 1 or more.
        size: height and width of a scene in pixels, 32 or more.
        shifted: the other domain.
        seed: makes the training scenes; 0 or more.
        test_seed: makes the test scenes; 0 or more.

    Returns:
        Inputs `(1, size, size)` in [0, 1]; per image `boxes` `(n, 4)` (x1, y1, x2, y2 in pixels) and `labels` `(n,)`
        from 1 to 5, as torchvision's detectors take them (0 is the background).

    Raises:
        ValueError: a number below its least value.
    """
    for name, value, least in (("train", train, 1), ("test", test, 1), ("size", size, 32)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, given {value}")
    written = digits()
    parts = {
        "train": _scenes(written.train, train, size, shifted, generator(seed, 11, int(shifted))),
        "test": _scenes(written.test, test, size, shifted, generator(test_seed, 12, int(shifted))),
    }
    return Splits(
        parts["train"],
        parts["test"],
        classes=[str(digit) for digit in range(CLASSES)],
        name="digit-scenes-shifted" if shifted else "digit-scenes",
        kind="detection",
    )


def digit_scenes_shifted() -> Splits:
    """The shifted domain of `digit_scenes` at its defaults."""
    return digit_scenes(shifted=True)


def _scenes(written: Samples, count: int, size: int, shifted: bool, draw: torch.Generator) -> TensorSamples:
    batch = written.batch(torch.arange(len(written)))
    images, numbers = batch.inputs[:, 0], batch.labels
    of_class = [images[numbers == digit] for digit in range(10)]

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    def whole(below: int) -> int:
        return int(torch.randint(below, (), generator=draw))

    scenes, labels = torch.empty(count, 1, size, size), Ragged()
    for number in range(count):
        scene = 0.15 * torch.rand(size, size, generator=draw)
        for _ in range(3):  # clutter: quarters of digits that are not looked for, dimmer
            stroke = _drawn(of_class[5 + whole(5)], whole, 10 + whole(5))[:5, :5]
            _paint(scene, 0.5 * stroke, whole(size - 5), whole(size - 5))
        boxes: list[list[float]] = []
        classes: list[int] = []
        for place in range(2 + whole(3)):
            small = shifted and place % 2 == 1
            side = 6 + whole(4) if small else 10 + whole(7)
            digit = whole(CLASSES)
            drawn = _drawn(of_class[digit], whole, side)
            rows, columns = (drawn > 0.25).any(1).nonzero().flatten(), (drawn > 0.25).any(0).nonzero().flatten()
            for _ in range(20):
                top, left = whole(size - side + 1), whole(size - side + 1)
                box = [left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1]
                if all(_apart(box, other) for other in boxes):
                    _paint(scene, uniform(0.75, 1.0) * drawn, top, left)
                    boxes.append([float(edge) for edge in box])
                    classes.append(digit + 1)
                    break
        ground = uniform(0.0, 0.25)
        scene = ground + (1 - ground) * scene
        if shifted:
            scene = ground + uniform(*CONTRAST) * (scene - ground)
            scene = F.avg_pool2d(F.pad(scene[None, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0, 0].lerp(scene, 0.5)
            scene = scene + NOISE * torch.randn(size, size, generator=draw)
        scenes[number, 0] = scene.clamp(0, 1)
        labels.append({"boxes": torch.tensor(boxes), "labels": torch.tensor(classes)})
    return TensorSamples((scenes * 255).round().to(torch.uint8), labels)


def _drawn(images: Tensor, whole: object, side: int) -> Tensor:
    """A random digit of a class, `(side, side)` with strokes up to 1."""
    digit = images[whole(len(images))]  # type: ignore[operator]
    grown = F.interpolate(digit[None, None], size=(side, side), mode="bilinear", align_corners=False)[0, 0]
    return grown / grown.max().clamp(min=1e-6)


def _paint(scene: Tensor, drawn: Tensor, top: int, left: int) -> None:
    window = scene[top : top + drawn.shape[0], left : left + drawn.shape[1]]
    torch.maximum(window, drawn[: window.shape[0], : window.shape[1]], out=window)


def _apart(box: list[int], other: list[float]) -> bool:
    """Whether two boxes do not overlap."""
    return box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
