"""A residual network that holds all its narrower and shallower versions, and how probable each of them is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.blocks.search.choices import channel_interpolate, depth_choices, ragged_add, sample_two_choices
from stillroom.blocks.search.derived import ResNetShape
from stillroom.blocks.search.searched import SearchedConvolution

Draw = tuple[list[list[int]], Tensor]


class SearchableBlock(nn.Module):
    """Two searched 3x3 convolutions and a shortcut; one of stride 2 has a searched 1x1 convolution after a pool."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = SearchedConvolution(inputs, width, stride=stride)
        self.conv2 = SearchedConvolution(width, width, relu=False)
        self.shortcut = SearchedConvolution(inputs, width, 1, relu=False) if stride == 2 else None

    def forward(self, inputs: Tensor, first: tuple[list[int], Tensor], second: tuple[list[int], Tensor]) -> Tensor:
        """Run the block with the draws of its two convolutions; the shortcut shares the second's."""
        inner = self.conv2(self.conv1(inputs, *first), *second)
        beside = inputs if self.shortcut is None else self.shortcut(F.avg_pool2d(inputs, 2, ceil_mode=True), *second)
        return F.relu(ragged_add(beside, inner))


class SearchableResNet(nn.Module):
    """A residual network with basic blocks whose widths and depths are searched.

    In training mode every call draws two widths per convolution (for the whole batch) and mixes the depths; in eval
    mode it is the network that would be derived now, with the shared weights. Logits of the architecture,
    `width_logits` (a row per convolution) and `depth_logits` (a row per stage), are parameters of their own.

    Args:
        widths: channels per stage, each with two candidate widths or more.
        blocks: per stage, two or more.
        in_channels: of the images.
        classes: outputs.
        side: height and width of the images, for the cost.

    Attributes:
        temperature: of the draws, above 0.

    Raises:
        ValueError: too few blocks or channels.

    Source: Dong and Yang 2019, arXiv:1905.09717, sections 3.1 and 3.2.
    """

    def __init__(
        self, widths: Sequence[int] = (16, 32, 64), blocks: int = 9, *, in_channels: int = 3, classes: int = 10,
        side: int = 32,
    ) -> None:  # fmt: skip
        super().__init__()
        self.widths, self.count, self.side = list(widths), blocks, side
        self.in_channels, self.classes = in_channels, classes
        self.depths = depth_choices(blocks)
        self.stem = SearchedConvolution(in_channels, widths[0])
        self.blocks = nn.ModuleList()
        before = widths[0]
        for number, width in enumerate(widths):
            for place in range(blocks):
                self.blocks.append(SearchableBlock(before, width, 2 if number and not place else 1))
                before = width
        self.head = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        every = self.convolutions()
        most = max(len(layer.choices) for layer in every)
        self.width_logits = nn.Parameter(0.01 * torch.randn(len(every), most))
        self.depth_logits = nn.Parameter(0.01 * torch.randn(len(widths), len(self.depths)))
        exists = torch.tensor([[place < len(layer.choices) for place in range(most)] for layer in every])
        self.register_buffer("exists", exists, persistent=False)
        self.temperature = 5.0

    def convolutions(self) -> list[SearchedConvolution]:
        """The convolutions that have a row of `width_logits`, in its order."""
        found = [self.stem]
        for block in self.blocks:
            found += [block.conv1, block.conv2]  # type: ignore[list-item]
        return found

    def architecture(self) -> list[nn.Parameter]:
        """The logits of the architecture."""
        return [self.width_logits, self.depth_logits]

    def weights(self) -> list[nn.Parameter]:
        """Everything else."""
        own = {id(parameter) for parameter in self.architecture()}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images `(N, in_channels, H, W)` to logits `(N, classes)`."""
        if self.training:
            picked, pair, _ = sample_two_choices(
                self.width_logits,
                temperature=self.temperature,
                allowed=self.exists,  # type: ignore[arg-type]
            )
            draws = list(zip(picked.tolist(), pair, strict=True))
            noise = torch.empty_like(self.depth_logits).exponential_().clamp(min=1e-20).log()
            depth = ((self.depth_logits.log_softmax(dim=1) - noise) / self.temperature).softmax(dim=1)
            return self._run(inputs, draws, list(depth))
        one = self.width_logits.new_ones(1)
        return self._run(inputs, [([choice], one) for choice in self._favourites()], self._favourite_depths())

    def _run(self, inputs: Tensor, draws: Sequence[tuple[list[int], Tensor]], depths: Sequence[Tensor]) -> Tensor:
        maps = self.stem(inputs, *draws[0])
        for stage, weights in enumerate(depths):
            ends: list[tuple[Tensor, Tensor]] = []
            for place in range(self.count):
                number = stage * self.count + place
                if not self.training and place + 1 > self._kept(weights):
                    break
                maps = self.blocks[number](maps, draws[1 + 2 * number], draws[2 + 2 * number])
                if place + 1 in self.depths:
                    ends.append((maps, weights[self.depths.index(place + 1)]))
            if self.training:
                widest = max(end.shape[1] for end, _ in ends)
                maps = torch.stack([weight * channel_interpolate(end, widest) for end, weight in ends]).sum(dim=0)
        pooled = maps.mean(dim=(2, 3))
        return F.linear(pooled, self.head.weight[:, : pooled.shape[1]], self.head.bias)

    def _kept(self, weights: Tensor) -> int:
        return self.depths[int(weights.argmax())]

    def _favourites(self) -> list[int]:
        exists: Tensor = self.exists  # type: ignore[assignment]
        return self.width_logits.detach().masked_fill(~exists, -torch.inf).argmax(dim=1).tolist()

    def _favourite_depths(self) -> list[Tensor]:
        return list(F.one_hot(self.depth_logits.detach().argmax(dim=1), len(self.depths)).to(self.depth_logits.dtype))

    def derived_shape(self) -> ResNetShape:
        """The shape that is most probable now: the favourite width of each convolution and depth of each stage."""
        chosen = [layer.choices[c] for layer, c in zip(self.convolutions(), self._favourites(), strict=True)]
        stages = []
        for stage, weights in enumerate(self._favourite_depths()):
            first = 1 + 2 * stage * self.count
            stages.append(
                tuple(
                    (chosen[first + 2 * place], chosen[first + 2 * place + 1]) for place in range(self._kept(weights))
                )
            )
        return ResNetShape(chosen[0], tuple(stages), self.in_channels, self.classes)

    def expected_cost(self) -> Tensor:
        """Expected multiply-accumulates, in millions, under the plain softmax of the logits; differentiable.

        A block counts with the probability that its stage is deep enough; a shortcut that is needed only where two
        widths differ counts with the probability that they do. With one-hot probabilities it is the derived network's
        cost.
        """
        exists: Tensor = self.exists  # type: ignore[assignment]
        shares = self.width_logits.masked_fill(~exists, -torch.inf).softmax(dim=1)
        layers = self.convolutions()
        rows = [row[: len(layer.choices)] for row, layer in zip(shares, layers, strict=True)]
        values = [row.new_tensor(layer.choices) for row, layer in zip(rows, layers, strict=True)]
        means = [(row * value).sum() for row, value in zip(rows, values, strict=True)]
        side = self.side
        total = layers[0].cost(self.in_channels, means[0], side)
        before, before_value = rows[0], values[0]
        for stage, depth in enumerate(self.depth_logits.softmax(dim=1)):
            left = torch.zeros_like(before)
            for place in range(self.count):
                number = stage * self.count + place
                block, first = self.blocks[number], 1 + 2 * number
                halved = block.shortcut is not None
                side = -(-side // 2) if halved else side
                inner = layers[first].cost((before * before_value).sum(), means[first], side)
                inner = inner + layers[first + 1].cost(means[first], means[first + 1], side)
                joint = before[:, None] * rows[first + 1] * before_value[:, None] * values[first + 1]
                if not halved:  # equal widths need no convolution
                    joint = joint * (before_value[:, None] != values[first + 1])
                reached = sum(share for share, kept in zip(depth, self.depths, strict=True) if kept > place)
                total = total + reached * (inner + side * side * joint.sum() / 1e6)
                before, before_value = rows[first + 1], values[first + 1]
                if place == 0:
                    left = torch.zeros_like(before)
                if place + 1 in self.depths:
                    left = left + depth[self.depths.index(place + 1)] * before
            before = left
        return total + (before * before_value).sum() * self.classes / 1e6
