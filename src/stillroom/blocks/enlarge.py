"""Networks that enlarge images: IMDN in its three forms, and a plain control."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.blocks.imdb import SLOPE, InformationDistillation, conv3x3
from stillroom.blocks.tiling import adaptive_crop
from stillroom.data.degrade import bicubic_resize

SCALES = (2, 3, 4)
_NAMED = re.compile(r"(imdn|plain-sr)-(\d+)-(\d+)-x([234])(-skip)?")
ImageSkip = Literal["none", "bicubic"]


class Enlarger(nn.Module):
    """Base of the networks here: checks the images, and adds the bicubic image where that is asked for.

    Args:
        scale: how many times larger the output is.
        in_channels: of input and output.
        image_skip: "bicubic" adds the bicubically enlarged input to the output.
        check_range: refuse images outside of [0, 1] in every call (one more pass over the data).
    """

    any_size = True

    def __init__(
        self, scale: int, in_channels: int, *, image_skip: ImageSkip = "none", check_range: bool = False
    ) -> None:
        super().__init__()
        if image_skip not in ("none", "bicubic"):
            raise ValueError(f'image_skip must be "none" or "bicubic", given {image_skip!r}')
        self.scale = scale
        self.in_channels = in_channels
        self.image_skip = image_skip
        self.check_range = check_range

    def enlarge(self, images: Tensor) -> Tensor:
        """What the network itself makes of images; a subclass writes it."""
        raise NotImplementedError(f"{type(self).__name__} must define enlarge(images)")

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, in_channels, H, W)` in [0, 1] to `(N, in_channels, scale H, scale W)`, not clamped."""
        check_images(images, self.in_channels, in_range=self.check_range)
        if self.image_skip == "none":
            return self.enlarge(images)
        height, width = images.shape[-2:]
        return self.enlarge(images) + bicubic_resize(images, self.scale * height, self.scale * width)


class IMDN(Enlarger):
    """Information multi-distillation network: images `(N, 3, H, W)` in [0, 1] to `(N, 3, scale H, scale W)`.

    A 3x3 stem, the blocks, a 1x1 convolution over all of their outputs, a 3x3 convolution beside a shortcut from the
    stem, a 3x3 convolution to 3 scale^2 channels and a pixel shuffle. No mean is subtracted and nothing is clamped.

    Args:
        scale: 2, 3 or 4; for all else there is `AnyScaleIMDN`.
        channels: of the features.
        blocks: how many `InformationDistillation` blocks.
        rate: part of the channels kept at each step of a block.
        reduction: of the attention in each block.
        in_channels: of input and output.
        image_skip: "bicubic" adds the bicubically enlarged input to the output and begins with a last convolution of
            zeros, so that the untrained network is bicubic enlargement; the paper has "none".
        check_range: refuse images outside of [0, 1] in every call.

    Raises:
        ValueError: another scale, or widths that do not fit each other.

    Source: Hui et al. 2019, arXiv:1909.11856; 694,404, 703,059 and 715,176 parameters at scales 2, 3 and 4.

    Example:
        >>> IMDN(2, channels=16, blocks=2, reduction=4)(torch.rand(1, 3, 12, 10)).shape
        torch.Size([1, 3, 24, 20])
    """

    def __init__(
        self,
        scale: int = 4,
        *,
        channels: int = 64,
        blocks: int = 6,
        rate: float = 0.25,
        reduction: int = 16,
        in_channels: int = 3,
        image_skip: ImageSkip = "none",
        check_range: bool = False,
    ) -> None:
        check_scale(scale, blocks)
        super().__init__(scale, in_channels, image_skip=image_skip, check_range=check_range)
        self.stem = conv3x3(in_channels, channels)
        self.body = IMDNBody(channels, blocks, rate=rate, reduction=reduction)
        self.upsample = conv3x3(channels, in_channels * scale**2)
        if image_skip == "bicubic":
            zero(self.upsample)

    def enlarge(self, images: Tensor) -> Tensor:
        """The network without the image skip."""
        return F.pixel_shuffle(self.upsample(self.body(self.stem(images))), self.scale)


class IMDNBody(nn.Module):
    """Blocks, the 1x1 convolution that gathers all of their outputs, and the shortcut around them."""

    def __init__(self, channels: int, blocks: int, *, rate: float, reduction: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            InformationDistillation(channels, rate=rate, reduction=reduction) for _ in range(blocks)
        )
        self.gather = nn.Conv2d(blocks * channels, channels, 1)
        self.fuse = conv3x3(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(N, C, H, W)` to the same shape."""
        found, x = [], features
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return self.fuse(F.leaky_relu(self.gather(torch.cat(found, dim=1)), SLOPE)) + features


class AnyScaleIMDN(Enlarger):
    """IMDN_AS: enhances an image at its own size, working at a quarter of it; `rescale` enlarges by any factor.

    The stem has two 3x3 convolutions of stride 2 with a leaky ReLU between them, the rest is IMDN at scale 4. Sides
    must be multiples of 4; `rescale` cuts others into overlapping crops.

    Args:
        channels: of the features.
        blocks: how many blocks.
        rate: part of the channels kept at each step of a block.
        reduction: of the attention in each block.
        in_channels: of input and output.
        check_range: refuse images outside of [0, 1] in every call.

    Source: Hui et al. 2019, arXiv:1909.11856, section 3.4; 752,104 parameters.

    Example:
        >>> network = AnyScaleIMDN(channels=16, blocks=1, reduction=4)
        >>> network.rescale(torch.rand(1, 3, 30, 20), height=67, width=45, overlap=8).shape
        torch.Size([1, 3, 67, 45])
    """

    multiple = 4

    def __init__(
        self,
        *,
        channels: int = 64,
        blocks: int = 6,
        rate: float = 0.25,
        reduction: int = 16,
        in_channels: int = 3,
        check_range: bool = False,
    ) -> None:
        check_scale(2, blocks)
        super().__init__(1, in_channels, check_range=check_range)
        self.halve = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.halve_again = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.body = IMDNBody(channels, blocks, rate=rate, reduction=reduction)
        self.upsample = conv3x3(channels, in_channels * 16)

    def enlarge(self, images: Tensor) -> Tensor:
        """Enhance images whose sides are multiples of 4."""
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"IMDN_AS takes sides that are multiples of 4, given {height}x{width}: use rescale, or "
                "stillroom.blocks.adaptive_crop"
            )
        small = self.halve_again(F.leaky_relu(self.halve(images), SLOPE))
        return F.pixel_shuffle(self.upsample(self.body(small)), 4)

    def rescale(
        self, images: Tensor, *, height: int, width: int, overlap: int = 32, sequential: bool = False
    ) -> Tensor:
        """Resize images bicubically to any size and enhance them there, in four crops where a side is no multiple of 4.

        Args:
            images: `(N, in_channels, H, W)` in [0, 1].
            height: of the result.
            width: of the result.
            overlap: of the crops.
            sequential: one crop after the other.

        Raises:
            ValueError: the result is too small to be cropped.
        """
        check_images(images, self.in_channels, in_range=self.check_range)
        resized = images
        if tuple(images.shape[-2:]) != (height, width):
            resized = bicubic_resize(images, height, width)
            resized = resized.clamp(0, 1) if self.check_range else resized
        if height % self.multiple == 0 and width % self.multiple == 0:
            return self(resized)
        return adaptive_crop(self, resized, overlap=overlap, multiple=self.multiple, sequential=sequential)


class TinyIMDN(Enlarger):
    """IMDN_RTC: 20,190 parameters for phones; blocks one after the other, no attention, a 1x1 convolution at their end.

    Args:
        scale: 2, 3 or 4.
        channels: of the features.
        blocks: how many blocks.
        rate: part of the channels kept at each step of a block.
        in_channels: of input and output.
        check_range: refuse images outside of [0, 1] in every call.

    Source: the authors' code of arXiv:1909.11856 (their entry to a challenge for constrained devices).
    """

    def __init__(
        self,
        scale: int = 2,
        *,
        channels: int = 12,
        blocks: int = 5,
        rate: float = 0.25,
        in_channels: int = 3,
        check_range: bool = False,
    ) -> None:
        check_scale(scale, blocks)
        super().__init__(scale, in_channels, check_range=check_range)
        self.stem = conv3x3(in_channels, channels)
        made = [InformationDistillation(channels, rate=rate, reduction=None) for _ in range(blocks)]
        self.body = nn.Sequential(*made, nn.Conv2d(channels, channels, 1))
        self.upsample = conv3x3(channels, in_channels * scale**2)

    def enlarge(self, images: Tensor) -> Tensor:
        """The network itself."""
        features = self.stem(images)
        return F.pixel_shuffle(self.upsample(self.body(features) + features), self.scale)


class PlainSR(Enlarger):
    """The same depth and shortcuts as IMDN without its ideas: no splitting, no attention, no gathering of all blocks.

    Args:
        scale: 2, 3 or 4.
        channels: of the features.
        blocks: residual blocks of four 3x3 convolutions, a leaky ReLU after the first three.
        in_channels: of input and output.
        image_skip: as in `IMDN`.
        check_range: refuse images outside of [0, 1] in every call.
    """

    def __init__(
        self,
        scale: int = 2,
        *,
        channels: int = 14,
        blocks: int = 3,
        in_channels: int = 3,
        image_skip: ImageSkip = "none",
        check_range: bool = False,
    ) -> None:
        check_scale(scale, blocks)
        super().__init__(scale, in_channels, image_skip=image_skip, check_range=check_range)
        self.stem = conv3x3(in_channels, channels)
        self.blocks = nn.ModuleList(plain_block(channels) for _ in range(blocks))
        self.fuse = conv3x3(channels, channels)
        self.upsample = conv3x3(channels, in_channels * scale**2)
        if image_skip == "bicubic":
            zero(self.upsample)

    def enlarge(self, images: Tensor) -> Tensor:
        """The network without the image skip."""
        features = x = self.stem(images)
        for block in self.blocks:
            x = block(x) + x
        return F.pixel_shuffle(self.upsample(self.fuse(x) + features), self.scale)


def plain_block(channels: int) -> nn.Sequential:
    """Four 3x3 convolutions with a leaky ReLU after the first three."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [conv3x3(channels, channels), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, conv3x3(channels, channels))


def is_enlarger(name: str) -> bool:
    """Whether a name is one of a network that enlarges images: "imdn-64-6-x4", "plain-sr-14-3-x2-skip", ..."""
    return _NAMED.fullmatch(name) is not None


def build_enlarger(name: str, *, in_channels: int = 3, classes: int | None = None) -> Enlarger:
    """Make a network by name: "imdn-WIDTH-BLOCKS-xSCALE" or "plain-sr-WIDTH-BLOCKS-xSCALE", "-skip" for `image_skip`.

    The attention of IMDN has WIDTH // 4 as its reduction, which is the paper's at width 64.

    Args:
        name: as above.
        in_channels: of input and output.
        classes: output channels that the caller expects; the same as `in_channels`.

    Raises:
        ValueError: no such name, or other output channels.

    Example:
        >>> sum(parameter.numel() for parameter in build_enlarger("imdn-64-6-x4").parameters())
        715176
    """
    found = _NAMED.fullmatch(name)
    if found is None:
        raise ValueError(f"no network that enlarges is called {name!r}, expected a name such as 'imdn-64-6-x4'")
    if classes not in (None, in_channels):
        raise ValueError(f"{name!r} gives images of its own {in_channels} channels, expected {classes} outputs")
    width, blocks, scale = int(found[2]), int(found[3]), int(found[4])
    skip: ImageSkip = "bicubic" if found[5] else "none"
    if found[1] == "plain-sr":
        return PlainSR(scale, channels=width, blocks=blocks, in_channels=in_channels, image_skip=skip)
    reduction = max(width // 4, 1)
    return IMDN(scale, channels=width, blocks=blocks, reduction=reduction, in_channels=in_channels, image_skip=skip)


def load_released(network: IMDN, state: Mapping[str, Tensor]) -> None:
    """Load weights that the authors released, under their names, into an `IMDN` of the same scale.

    Args:
        network: with the widths and the scale of the weights.
        state: what `torch.load(file, weights_only=True)` gives; a prefix "module." is taken off.

    Raises:
        ValueError: weights are missing, are too many, or have other shapes (those of another scale).
    """
    names = {"fea_conv": "stem", "c.0": "body.gather", "LR_conv": "body.fuse", "upsampler.0": "upsample"}
    inner = {"cca.conv_du.0": "attention.squeeze", "cca.conv_du.2": "attention.expand"}
    names |= {
        f"IMDB{number}.{theirs}": f"body.blocks.{number - 1}.{inner.get(theirs, theirs)}"
        for number in range(1, len(network.body.blocks) + 1)
        for theirs in ("c1", "c2", "c3", "c4", "c5", *inner)
    }
    own = network.state_dict()
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, kind = name.removeprefix("module.").rpartition(".")
        if module not in names:
            raise ValueError(f"the weights hold {name!r}, which IMDN with {len(network.body.blocks)} blocks has not")
        found[f"{names[module]}.{kind}"] = tensor
    if missing := sorted(set(own) - set(found)):
        raise ValueError(
            f"the weights lack {missing[0]!r} and {len(missing) - 1} more: build the network they belong to"
        )
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} in the weights, expected {tuple(own[name].shape)}: build the "
                "network with their scale and widths"
            )
    network.load_state_dict(found)


def check_images(images: Tensor, channels: int, *, in_range: bool) -> None:
    """Refuse what is no batch of float images with these channels, and values outside of [0, 1] where asked to.

    Raises:
        TypeError: whole numbers.
        ValueError: another shape, or another range.
    """
    if not images.is_floating_point():
        raise TypeError(f"images must be floats in [0, 1], given {images.dtype}: divide bytes by 255")
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(f"images must be (N, {channels}, H, W), given {tuple(images.shape)}")
    if in_range and not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError(
            f"images must lie in [0, 1], given values from {float(images.min()):.3g} to {float(images.max()):.3g}: "
            "divide bytes by 255"
        )


def check_scale(scale: int, blocks: int) -> None:
    """Refuse scales the networks are not made for, and a network without blocks."""
    if scale not in SCALES:
        raise ValueError(f"scale must be 2, 3 or 4, given {scale}: AnyScaleIMDN enlarges by any factor")
    if blocks < 1:
        raise ValueError(f"blocks must be 1 or more, given {blocks}")


def zero(layer: nn.Conv2d) -> None:
    """Let a convolution give zeros."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
