"""Information distillation inside a network: the block that keeps some channels at each step, and its attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.05
"""Of every leaky ReLU here, below 0."""


def contrast(features: Tensor) -> Tensor:
    """Population standard deviation plus mean, per sample and channel.

    sqrt(mean over positions of (y - mean)^2) + mean, without Bessel's correction. A channel that is constant has the
    gradient of a standard deviation of 0, not an infinite one: the variance is held at 1e-12 or more.

    Args:
        features: `(N, C, H, W)`, floats.

    Returns:
        `(N, C, 1, 1)`.

    Source: Hui et al. 2019, arXiv:1909.11856, equation 4.
    """
    return deviation(features) + features.mean(dim=(2, 3), keepdim=True)


def deviation(features: Tensor) -> Tensor:
    """Population standard deviation over positions, `(N, C, H, W)` to `(N, C, 1, 1)`; see `contrast`."""
    centred = features - features.mean(dim=(2, 3), keepdim=True)
    return centred.square().mean(dim=(2, 3), keepdim=True).clamp_min(1e-12).sqrt()


class ContrastAttention(nn.Module):
    """Contrast-aware channel attention: y * sigmoid(W2 relu(W1 contrast(y) + b1) + b2).

    Args:
        channels: K of the features.
        reduction: K // reduction channels between the two 1x1 convolutions; at most K.

    Raises:
        ValueError: reduction is below 1 or above `channels`.

    Source: Hui et al. 2019, arXiv:1909.11856, section 3.3.

    Example:
        >>> ContrastAttention(32, reduction=8)(torch.rand(2, 32, 5, 5)).shape
        torch.Size([2, 32, 5, 5])
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        if not 1 <= reduction <= channels:
            raise ValueError(f"reduction must lie between 1 and the {channels} channels, given {reduction}")
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.expand = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Weigh the channels of `(N, K, H, W)` by their contrast in each image."""
        return features * self.expand(F.relu(self.squeeze(contrast(features)))).sigmoid()


class InformationDistillation(nn.Module):
    """The information multi-distillation block (IMDB): at each of four steps some channels are kept, the rest go on.

    t1 = lrelu(c1(x)); its first C_d channels are kept, the others go through c2, and so on to c4, which gives C_d
    channels without an activation. Output: c5(attention(what was kept)) + x.

    Args:
        channels: C.
        rate: C_d = int(rate C) channels are kept at each step, between 1 and C - 1.
        reduction: of the attention over the 4 C_d kept channels; None for no attention.

    Raises:
        ValueError: the rate keeps no channel or all of them.

    Source: Hui et al. 2019, arXiv:1909.11856, section 3.2.
    """

    def __init__(self, channels: int, *, rate: float = 0.25, reduction: int | None = 16) -> None:
        super().__init__()
        kept = int(rate * channels)
        if not 1 <= kept < channels:
            raise ValueError(
                f"rate {rate} keeps {kept} of {channels} channels at each step, expected between 1 and {channels - 1}"
            )
        self.kept = kept
        self.c1 = conv3x3(channels, channels)
        self.c2 = conv3x3(channels - kept, channels)
        self.c3 = conv3x3(channels - kept, channels)
        self.c4 = conv3x3(channels - kept, kept)
        self.c5 = nn.Conv2d(4 * kept, channels, 1)
        self.attention = nn.Identity() if reduction is None else ContrastAttention(4 * kept, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, C, H, W)` to the same shape."""
        kept = []
        rest = x
        for step in (self.c1, self.c2, self.c3):
            refined = F.leaky_relu(step(rest), SLOPE)
            kept.append(refined[:, : self.kept])
            rest = refined[:, self.kept :]
        kept.append(self.c4(rest))
        return self.c5(self.attention(torch.cat(kept, dim=1))) + x


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution with bias that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)
