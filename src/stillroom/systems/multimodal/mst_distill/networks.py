"""Small networks for two modalities: one branch each, and a teacher that joins two branches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stillroom.blocks import Sees

Shape = tuple[int, ...]
MANY = 400
"""Numbers of a map above which it is halved in height and width first (a spectrogram)."""


@dataclass(frozen=True)
class Trio:
    """The three networks of a system, each given its modalities."""

    student: Sees
    teacher: Sees
    auxiliary: Sees


class Joined(nn.Module):
    """A late fusion: two branches' features side by side (`joined`), then layers to the logits.

    Args:
        first: modality -> features `(N, F)`.
        second: other modality -> features `(N, G)`.
        head: `(N, F + G)` -> logits.
    """

    def __init__(self, first: nn.Module, second: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.joined, self.head = first, second, nn.Identity(), head

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits of both modalities."""
        return self.head(self.joined(torch.cat([self.first(first), self.second(second)], dim=1)))


def layers(*widths: int) -> nn.Sequential:
    """Linear maps with ReLU between them, called fc1, fc2, ...; flattens what comes in."""
    found = nn.Sequential()
    found.add_module("flat", nn.Flatten())
    for number in range(1, len(widths)):
        found.add_module(f"fc{number}", nn.Linear(widths[number - 1], widths[number]))
        if number < len(widths) - 1:
            found.add_module(f"relu{number}", nn.ReLU())
    return found


def convolutions(shape: Shape, *channels: int, pool_to: int = 2) -> nn.Sequential:
    """3x3 convolutions (conv1, conv2, ...), each followed by ReLU and 2x2 pooling, then a mean over a small grid."""
    found, before = nn.Sequential(), shape[0]
    for number, width in enumerate(channels, 1):
        found.add_module(f"conv{number}", nn.Conv2d(before, width, 3, padding=1))
        found.add_module(f"relu{number}", nn.ReLU())
        found.add_module(f"pool{number}", nn.MaxPool2d(2) if number < len(channels) else nn.AdaptiveAvgPool2d(pool_to))
        before = width
    found.add_module("flat", nn.Flatten())
    return found


def small_networks(shapes: Mapping[str, Shape], student: str, auxiliary: str, classes: int) -> Trio:
    """Networks of a few thousand weights: layers 48-24 over all numbers of a sample, maps of many halved before.

    Args:
        shapes: modality -> shape of one sample, `(F,)` or `(C, H, W)`.
        student: the modality that the student sees.
        auxiliary: the other one.
        classes: number of classes.
    """

    def flat(shape: Shape) -> tuple[nn.Sequential, int]:
        if len(shape) < 3 or math.prod(shape) <= MANY:
            return nn.Sequential(nn.Flatten()), math.prod(shape)
        channels, height, width = shape
        return nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), channels * (height // 2) * (width // 2)

    def alone(shape: Shape) -> nn.Sequential:
        front, width = flat(shape)
        return nn.Sequential(front, layers(width, 48, 24, classes))

    (first, one), (second, other) = flat(shapes[student]), flat(shapes[auxiliary])
    return Trio(
        Sees(alone(shapes[student]), student),
        Sees(Joined(first, second, layers(one + other, 48, 24, classes)), student, auxiliary),
        Sees(alone(shapes[auxiliary]), auxiliary),
    )


def paper_networks(shapes: Mapping[str, Shape], student: str, auxiliary: str, classes: int) -> Trio:
    """Networks with the tapped widths of the paper's AV-MNIST: LeNet features 84, audio features 512, joined 596, 298.

    Args:
        shapes: modality -> shape of one sample, all `(C, H, W)`.
        student: the modality that the student sees, an image (LeNet).
        auxiliary: the other one, a spectrogram (convolutions 32, 64, 128).
        classes: number of classes.
    """

    def image() -> nn.Sequential:
        front = convolutions(shapes[student], 6, 16, 120, pool_to=1)
        return nn.Sequential(front, layers(120, 84), nn.ReLU())

    def sound() -> nn.Sequential:
        return convolutions(shapes[auxiliary], 32, 64, 128)

    return Trio(
        Sees(nn.Sequential(image(), layers(84, classes)), student),
        Sees(Joined(image(), sound(), layers(596, 298, classes)), student, auxiliary),
        Sees(nn.Sequential(sound(), layers(512, classes)), auxiliary),
    )


Build = Callable[[Mapping[str, Shape], str, str, int], Trio]
