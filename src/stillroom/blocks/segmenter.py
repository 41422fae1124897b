"""Small fully convolutional networks that give every position a class, with or without an auxiliary head."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FCN(nn.Module):
    """3x3 convolutions, batch norm and ReLU at half the image's size, a 1x1 classifier, logits resized to the image.

    The second stage has stride 2; from the third on convolutions are dilated by 2, 4, ... instead. `classifier` gives
    the logits at half size; `aux_classifier`, where there is one, those of the stage before the last, to be tapped.

    Args:
        widths: channels of the stages, two or more.
        classes: logits per position.
        in_channels: of the image.
        auxiliary: whether there is a head on the stage before the last.

    Raises:
        ValueError: fewer than two stages.

    Example:
        >>> import torch
        >>> FCN([8, 16], classes=3)(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 3, 24, 24])
    """

    def __init__(self, widths: Sequence[int], *, classes: int, in_channels: int = 1, auxiliary: bool = False) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"a segmenter has two stages or more, given widths {list(widths)}")
        stages = []
        for place, (before, after) in enumerate(zip([in_channels, *widths[:-1]], widths, strict=True)):
            dilation = 1 if place < 2 else 2 ** (place - 1)
            convolution = nn.Conv2d(before, after, 3, 2 if place == 1 else 1, dilation, dilation, bias=False)
            stages.append(nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU()))
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Conv2d(widths[-1], classes, 1)
        self.aux_classifier = nn.Conv2d(widths[-2], classes, 1) if auxiliary else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images `(N, in_channels, H, W)` to logits `(N, classes, H, W)`."""
        maps = inputs
        for place, stage in enumerate(self.stages):
            if place == len(self.stages) - 1 and self.aux_classifier is not None:
                self.aux_classifier(maps)  # for whoever taps it; nobody else pays more than a 1x1 convolution
            maps = stage(maps)
        return F.interpolate(self.classifier(maps), size=inputs.shape[2:], mode="bilinear", align_corners=True)
