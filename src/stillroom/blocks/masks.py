"""Gates per channel that a small attention network reads off a layer's own output."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def mask_width(channels: int, *, heads: int = 3, shrink: int = 2) -> int:
    """How wide a token of `ChannelMask` is: `heads * floor(channels / (shrink * heads))`.

    Args:
        channels: F, 1 or more.
        heads: of the attention, 1 or more.
        shrink: q, 1 or more; larger makes the mask network smaller.

    Raises:
        ValueError: a number below 1, or channels below `shrink * heads`, which would give width 0.
    """
    for name, value in (("channels", channels), ("heads", heads), ("shrink", shrink)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, given {value}")
    width = heads * (channels // (shrink * heads))
    if width < 1:
        raise ValueError(
            f"a mask over {channels} channels needs at least shrink * heads = {shrink * heads} of them: tap a wider "
            "layer, or use fewer heads"
        )
    return width


def mask_parameters(channels: int, width: int, *, is_map: bool = False) -> int:
    """How many parameters a mask network has: about `channels^2 * width`, so mind wide layers."""
    own = channels * width * (channels + 1) + 4 * width * (width + 1) + width + 1
    return own + (channels * 9 + channels * channels + 2 * channels) * is_map


class ChannelMask(nn.Module):
    """One gate in (0, 1) per feature of a vector, from attention among the features.

    gate = sigmoid(linear(attention(reshape(linear(f))))): linear F -> F * H, reshaped to F tokens of width H;
    multi-head self-attention among them (biases, no residual, norm or dropout); linear H -> 1 per token.

    Args:
        channels: F.
        heads: of the attention; H is a multiple of it.
        shrink: q of `mask_width`, which gives H where `width` does not.
        width: H, above 0; None for `mask_width(channels, heads, shrink)`.

    Raises:
        ValueError: H would be 0, or is no multiple of heads.

    Source: Li et al. 2025, arXiv:2507.07015, MaskNet_1d of the authors' code.

    Example:
        >>> ChannelMask(12)(torch.randn(5, 12)).shape
        torch.Size([5, 12])
    """

    def __init__(self, channels: int, *, heads: int = 3, shrink: int = 2, width: int | None = None) -> None:
        super().__init__()
        width = mask_width(channels, heads=heads, shrink=shrink) if width is None else width
        if width < 1 or width % heads:
            raise ValueError(f"width must be a multiple of the {heads} heads, above 0, given {width}")
        self.channels, self.width = channels, width
        self.embed = nn.Linear(channels, channels * width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.score = nn.Linear(width, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """Gates `(N, F)` of features `(N, F)`."""
        tokens = self.embed(feature).view(-1, self.channels, self.width)
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.score(attended).squeeze(-1).sigmoid()


class MapMask(nn.Module):
    """One gate in (0, 1) per channel of a map: a small convolutional summary, then `ChannelMask`.

    Depthwise 3x3 convolution of stride 2 and padding 1, 1x1 convolution (both without bias), batch norm, ReLU, mean
    over positions, `ChannelMask`.

    Args:
        channels: C.
        heads: of the attention.
        shrink: q of `mask_width`.
        width: H, above 0; None for `mask_width`.
        batch_norm_eps: of the batch norm.

    Source: Li et al. 2025, arXiv:2507.07015, MaskNet_2d of the authors' code.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 3,
        shrink: int = 2,
        width: int | None = None,
        batch_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=batch_norm_eps)
        self.mask = ChannelMask(channels, heads=heads, shrink=shrink, width=width)

    def forward(self, feature: Tensor) -> Tensor:
        """Gates `(N, C)` of maps `(N, C, H, W)`."""
        summary = self.norm(self.pointwise(self.depthwise(feature))).relu().mean(dim=(2, 3))
        return self.mask(summary)


class Masked(nn.Module):
    """Multiplies a layer's output by gates per channel that are read off that output.

    Args:
        shape: of the layer's output without the batch: `(F,)`, or `(C, H, W)`; a map of one position is a vector.
        heads: of the attention.
        shrink: q of `mask_width`.
        most_parameters: a larger mask network is refused.

    Raises:
        ValueError: an output of another form (a sequence of tokens), H would be 0, or the network would be too large.
    """

    def __init__(
        self, shape: Sequence[int], *, heads: int = 3, shrink: int = 2, most_parameters: int = 20_000_000
    ) -> None:
        super().__init__()
        shape = tuple(shape)
        if len(shape) not in (1, 3):
            raise ValueError(
                f"a mask is made for vectors (N, F) and maps (N, C, H, W), given a layer with outputs (N, "
                f"{', '.join(map(str, shape))}): tap another layer"
            )
        is_map = len(shape) == 3 and shape[1] * shape[2] > 1
        width = mask_width(shape[0], heads=heads, shrink=shrink)
        size = mask_parameters(shape[0], width, is_map=is_map)
        if size > most_parameters:
            raise ValueError(
                f"a mask over {shape[0]} channels has {size:,} parameters, more than the {most_parameters:,} allowed: "
                "tap a narrower layer, raise shrink, or raise most_parameters"
            )
        kind: type[ChannelMask | MapMask] = MapMask if is_map else ChannelMask
        self.mask = kind(shape[0], heads=heads, shrink=shrink)

    def gates(self, feature: Tensor) -> Tensor:
        """The gates `(N, C)` of a layer's output."""
        return self.mask(feature if isinstance(self.mask, MapMask) else feature.flatten(1))

    def forward(self, feature: Tensor) -> Tensor:
        """The output times its gates, in its own shape."""
        gates = self.gates(feature)
        return feature * gates.view(*gates.shape, *(1,) * (feature.ndim - 2))
