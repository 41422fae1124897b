"""Residual networks of any widths and depths: their shape as data, the network, and what it costs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.blocks.search.choices import depth_choices, width_choices


@dataclass(frozen=True)
class ResNetShape:
    """Widths of all convolutions of a residual network with basic blocks.

    Attributes:
        stem: width of the first convolution.
        stages: per stage, per kept block, the widths of its two convolutions.
        in_channels: of the images.
        classes: outputs.
    """

    stem: int
    stages: tuple[tuple[tuple[int, int], ...], ...]
    in_channels: int
    classes: int

    def __post_init__(self) -> None:
        widths = [self.stem, *(width for stage in self.stages for block in stage for width in block)]
        if min(widths) < 1 or not all(self.stages):
            raise ValueError(f"every width must be 1 or more and every stage hold a block, given {self.stages}")


class ShapedBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: nothing, a 1x1 convolution with batch norm where widths differ, or a 2x2
    average pool and a 1x1 convolution where the stride is 2."""

    def __init__(self, inputs: int, widths: tuple[int, int], stride: int) -> None:
        super().__init__()
        middle, outputs = widths
        self.conv1 = nn.Conv2d(inputs, middle, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(inputs, outputs, 1, bias=False))
        elif inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(N, C, H, W)` to `(N, C', H / stride, W / stride)`."""
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(inputs)))))
        return F.relu(self.shortcut(inputs) + inner)


class ShapedResNet(nn.Module):
    """A residual network of a given shape, freshly initialised; the second and later stages halve the image.

    Args:
        shape: all widths.

    Source: He et al. 2016, arXiv:1512.03385; shortcuts as in Dong and Yang 2019, arXiv:1905.09717.

    Example:
        >>> shape = ResNetShape(stem=4, stages=(((4, 4),), ((6, 8), (5, 8))), in_channels=1, classes=10)
        >>> ShapedResNet(shape)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, shape: ResNetShape) -> None:
        super().__init__()
        self.shape = shape
        self.stem = nn.Sequential(
            nn.Conv2d(shape.in_channels, shape.stem, 3, 1, 1, bias=False), nn.BatchNorm2d(shape.stem), nn.ReLU()
        )
        width, blocks = shape.stem, []
        for number, stage in enumerate(shape.stages):
            for place, widths in enumerate(stage):
                blocks.append(ShapedBlock(width, widths, 2 if number and not place else 1))
                width = widths[1]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, shape.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images `(N, in_channels, H, W)` to logits `(N, classes)`."""
        return self.head(self.blocks(self.stem(inputs)).mean(dim=(2, 3)))


def full_shape(widths: Sequence[int], blocks: int, *, in_channels: int, classes: int) -> ResNetShape:
    """The unpruned network: a width per stage, as many blocks in each."""
    stages = tuple(((width, width),) * blocks for width in widths)
    return ResNetShape(widths[0], stages, in_channels, classes)


def shape_cost(shape: ResNetShape, side: int) -> float:
    """Multiply-accumulates, in millions, of convolutions (shortcuts too) and the head on square images.

    Args:
        shape: of the network.
        side: height and width of the images.

    Returns:
        What is called FLOPs in the field; batch norms, activations and pooling are not counted.
    """
    total, width = 9 * side * side * shape.in_channels * shape.stem, shape.stem
    for number, stage in enumerate(shape.stages):
        for place, (middle, outputs) in enumerate(stage):
            halved = bool(number) and not place
            side = -(-side // 2) if halved else side
            total += 9 * side * side * (width * middle + middle * outputs)
            if halved or width != outputs:
                total += side * side * width * outputs
            width = outputs
    return (total + width * shape.classes) / 1e6


def multiply_accumulates(network: nn.Module, inputs: Tensor) -> float:
    """Count the multiply-accumulates of convolutions and linear maps of one sample, in millions, by running it."""
    total = 0

    def count(module: Any, given: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            per = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            total += per * output[0].numel()
        else:
            total += module.in_features * output[0].numel()

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(inputs[:1])
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return total / 1e6


def uniform_shape(full: ResNetShape, cost: float, side: int) -> ResNetShape:
    """The same share of every width and all blocks, with a cost as near to `cost` as can be.

    Widths are whole numbers: within one channel per stage they are the same share.

    Args:
        full: the unpruned network.
        cost: wanted, in millions of multiply-accumulates.
        side: height and width of the images.
    """
    best: tuple[float, ResNetShape] | None = None
    for percent in range(5, 101):
        for more in itertools.product((0, 1), repeat=len(full.stages)):
            stages = tuple(
                tuple((_share(middle, percent, extra), _share(outputs, percent, extra)) for middle, outputs in stage)
                for stage, extra in zip(full.stages, more, strict=True)
            )
            shape = ResNetShape(_share(full.stem, percent, more[0]), stages, full.in_channels, full.classes)
            apart = abs(shape_cost(shape, side) - cost)
            if best is None or apart < best[0]:
                best = apart, shape
    if best is None:
        raise ValueError("the full network has no stage")
    return best[1]


def _share(width: int, percent: int, extra: int) -> int:
    return min(max(width * percent // 100 + extra, 1), width)


def random_shape(full: ResNetShape, cost: float, side: int, *, seed: int, within: float = 0.03) -> ResNetShape:
    """Random choices of width and depth whose cost is within a share of `cost`.

    Args:
        full: the unpruned network.
        cost: wanted, in millions of multiply-accumulates.
        side: height and width of the images.
        seed: of the draws.
        within: largest relative difference.

    Raises:
        ValueError: nothing was found in 20,000 draws.
    """
    draw = random.Random(seed)
    for _ in range(20_000):
        shape = _scaled(
            full, lambda width: draw.choice(width_choices(width)), lambda count: draw.choice(depth_choices(count))
        )
        if abs(shape_cost(shape, side) - cost) <= within * cost:
            return shape
    raise ValueError(f"no random network costs {cost:.3g} million multiply-accumulates within {within:.0%}")


def _scaled(full: ResNetShape, width: Callable[[int], int], depth: Callable[[int], int]) -> ResNetShape:
    stages = tuple(
        tuple((width(middle), width(outputs)) for middle, outputs in stage[: depth(len(stage))])
        for stage in full.stages
    )
    return ResNetShape(width(full.stem), stages, full.in_channels, full.classes)
