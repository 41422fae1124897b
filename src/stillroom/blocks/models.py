"""Small networks by name: perceptrons, plain conv nets, the CIFAR family of the distillation literature, small ViTs.

Every network takes inputs `(N, in_channels, image_size, image_size)`, returns logits `(N, classes)`, and ends in a
linear layer called `head`. Its stages are the modules `stages.0`, `stages.1`, ...; in residual networks the sum of a
block before its ReLU can be tapped as `stages.0.0.summed`.
"""

from __future__ import annotations

import difflib
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.blocks.causal import CausalTransformer
from stillroom.blocks.enlarge import build_enlarger, is_enlarger
from stillroom.blocks.label_queries import LabelQueryNetwork
from stillroom.blocks.segmenter import FCN

NAMES = (
    *(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)),
    *("resnet8x4", "resnet32x4", "wrn-16-1", "wrn-16-2", "wrn-28-2", "wrn-40-1", "wrn-40-2", "vgg8", "vgg13"),
    *("mlp-16", "mlp-256-256", "conv-8-16", "convnet-3-128", "vit-64-4"),
)
"""Names that `build` knows; the numbers of the last kinds (wrn, mlp, conv, convnet, vit) may be others."""


def build(name: str, *, classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Make a network by name, with fresh weights from torch's global random state.

    - "mlp-16", "mlp-256-256": hidden widths, with ReLUs, over the flattened input.
    - "conv-8-16": 3x3 convolution, batch norm and ReLU per width, stride 2 from the second on; then the mean.
    - "conv-8-16+labels-32": the same stages, and in place of mean and head a query per label that looks at their maps;
      label-wise embeddings of width 32, heads of width 8. See `blocks.LabelQueryNetwork`.
    - "convnet-DEPTH-WIDTH": as many blocks of a 3x3 convolution to WIDTH channels, instance norm, ReLU and 2x2 average
      pooling, then all positions into the head: the network that dataset distillation is measured with.
    - "resnet8" to "resnet110": three stages of 16, 32 and 64 channels with (depth - 2) / 6 basic blocks each;
      "resnet8x4" and "resnet32x4": a stem of 32 and stages of 64, 128 and 256.
    - "wrn-DEPTH-WIDTH": a wide residual network with (DEPTH - 4) / 6 pre-activation blocks in each of three stages of
      16, 32 and 64 channels times WIDTH.
    - "preact-resnet18": four stages of 64 to 512 channels with two pre-activation blocks each, for small images.
    - "vgg8", "vgg13": five stages of 64 to 512 channels with one or two convolutions each and batch norm.
    - "vit-DIM-DEPTH": a vision transformer with a class token, heads of width 16, and patches of 4 pixels, or of 2
      where the image is smaller than 16 pixels.
    - "fcn-16-32", "fcn-16-32-64+aux": a small segmenter with these widths, with an auxiliary head; see `blocks.FCN`.
    - "gpt-DEPTH-WIDTH": a causal language model over tokens `(N, L)`, in the form of GPT-2, heads of width 16.
    - "imdn-WIDTH-BLOCKS-xSCALE" and "plain-sr-WIDTH-BLOCKS-xSCALE" enlarge images; see `blocks.build_enlarger`.

    Args:
        name: as above; `NAMES` lists examples.
        classes: number of logits, 1 or more.
        in_channels: channels of the input; for table rows `(N, D)`, which only "mlp" takes, D with an image_size of 1;
            for "gpt" the longest sequence that it reads.
        image_size: height and width of the input, in pixels.

    Raises:
        ValueError: no network has that name (the message shows the nearest), or the images do not fit it.

    Source: He et al. 2016, arXiv:1512.03385 (section 4.2); Zagoruyko and Komodakis 2016, arXiv:1605.07146; Simonyan and
        Zisserman 2015, arXiv:1409.1556; Gidaris and Komodakis 2018, arXiv:1804.09458 (convnet); Dosovitskiy et al.
        2021, arXiv:2010.11929; in the sizes used for comparisons of distillation methods since Tian et al. 2020,
        arXiv:1910.10699.
    """
    for given, value in (("classes", classes), ("in_channels", in_channels), ("image_size", image_size)):
        if value < 1:
            raise ValueError(f"{given} must be 1 or more, given {value}")
    if is_enlarger(name):
        return build_enlarger(name, classes=classes, in_channels=in_channels)
    for pattern, make in _KINDS.items():
        if match := re.fullmatch(pattern, name):
            numbers = [int(number) for number in re.findall(r"\d+", match[0])]
            if min(numbers) < 1:
                raise ValueError(f"the numbers in a network's name must be 1 or more, given {name!r}")
            return make(numbers, classes, in_channels, image_size)
    near = difflib.get_close_matches(name, NAMES, n=4, cutoff=0.3) or NAMES[:4]
    raise ValueError(
        f"no network of ours is called {name!r}, expected a name such as {', '.join(map(repr, near))}: "
        "networks of timm and torchvision are called timm/NAME and torchvision/NAME"
    )


class Staged(nn.Module):
    """A stem, stages, the mean over positions and a linear head.

    Args:
        stem: what comes before the stages.
        stages: one module per stage.
        tail: what comes after them, before the mean.
        width: channels that reach the head.
        classes: number of logits.
    """

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], tail: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.tail = tail
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images `(N, in_channels, H, W)` to logits `(N, classes)`."""
        return self.head(self.pool(self.tail(self.stages(self.stem(inputs)))))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes; ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))
        self.summed = nn.Identity()  # a place to tap

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, inputs, H, W)` to `(N, outputs, H / stride, W / stride)`."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.summed(self.norm2(self.conv2(y)) + self.shortcut(x)))


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions, and a shortcut; nothing after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None
        self.summed = nn.Identity()  # a place to tap

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, inputs, H, W)` to `(N, outputs, H / stride, W / stride)`."""
        y = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(F.relu(self.norm2(self.conv1(y))))
        return self.summed(y + shortcut)


class Attention(nn.Module):
    """Multi-head self-attention over tokens `(N, T, dim)`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, T, dim)` to the same shape."""
        parts = self.queries_keys_values(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts.unbind(0))
        return self.project(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and a perceptron four times as wide, each behind a layer norm and beside a shortcut."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, T, dim)` to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches and a class token through transformer blocks; the class token's features give the logits.

    Args:
        dim: width of the tokens, a multiple of 16.
        depth: number of blocks.
        classes: number of logits.
        in_channels: channels of the images.
        image_size: their height and width in pixels, a multiple of the patch size.
        patch_size: height and width of a patch.
    """

    def __init__(
        self, *, dim: int, depth: int, classes: int, in_channels: int, image_size: int, patch_size: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, 1 + (image_size // patch_size) ** 2, dim))
        self.stages = nn.Sequential(*(TransformerBlock(dim, dim // 16) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images `(N, in_channels, image_size, image_size)` to logits `(N, classes)`."""
        patches = self.patches(inputs).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(inputs), -1, -1), patches], dim=1) + self.positions
        return self.head(self.norm(self.stages(tokens))[:, 0])


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _conv_norm_relu(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [_conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU()]


def _mlp(widths: list[int], classes: int, in_channels: int, image_size: int) -> nn.Module:
    widths = [in_channels * image_size**2, *widths]
    stages = [nn.Sequential(nn.Linear(before, after), nn.ReLU()) for before, after in pairwise(widths)]
    named = {"flatten": nn.Flatten(), "stages": nn.Sequential(*stages), "head": nn.Linear(widths[-1], classes)}
    return nn.Sequential(OrderedDict(named))


def _conv(widths: list[int], classes: int, in_channels: int, image_size: int) -> Staged:
    inputs = [in_channels, *widths]
    stages = [nn.Sequential(*_conv_norm_relu(inputs[row], width, 2 if row else 1)) for row, width in enumerate(widths)]
    return Staged(nn.Identity(), stages, nn.Identity(), widths[-1], classes)


def _conv_with_label_queries(numbers: list[int], classes: int, in_channels: int, image_size: int) -> nn.Module:
    *widths, width = numbers
    if width % 8:
        raise ValueError(f"the width after +labels- must be a multiple of 8, the width of a head, given {width}")
    stages = _conv(widths, classes, in_channels, image_size).stages
    return LabelQueryNetwork(stages, widths[-1], classes=classes, width=width, heads=width // 8, hidden=4 * width)


def _convnet(numbers: list[int], classes: int, in_channels: int, image_size: int) -> nn.Module:
    depth, width = numbers
    side = image_size >> depth
    if side < 1:
        raise ValueError(
            f"convnet-{depth}-{width} halves its maps {depth} times and needs images of {2**depth} pixels or more, "
            f"given {image_size}: take fewer blocks"
        )
    stages = [
        nn.Sequential(
            nn.Conv2d(width if row else in_channels, width, 3, padding=1),
            nn.GroupNorm(width, width),  # a group per channel: instance norm
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        for row in range(depth)
    ]
    named = {"stages": nn.Sequential(*stages), "flatten": nn.Flatten(), "head": nn.Linear(width * side**2, classes)}
    return nn.Sequential(OrderedDict(named))


def _resnet(numbers: list[int], classes: int, in_channels: int, image_size: int) -> nn.Module:
    depth, wide = numbers[0], len(numbers) > 1
    stem, *widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
    stages = _residual_stages(f"resnet{depth}", depth - 2, [stem, *widths], BasicBlock)
    return Staged(nn.Sequential(*_conv_norm_relu(in_channels, stem)), stages, nn.Identity(), widths[-1], classes)


def _wrn(numbers: list[int], classes: int, in_channels: int, image_size: int) -> nn.Module:
    depth, factor = numbers
    widths = [16, 16 * factor, 32 * factor, 64 * factor]
    stages = _residual_stages(f"wrn-{depth}-{factor}", depth - 4, widths, PreActivationBlock)
    tail = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())
    return Staged(_conv3x3(in_channels, 16), stages, tail, widths[-1], classes)


def _preact_resnet(numbers: list[int], classes: int, in_channels: int, image_size: int) -> nn.Module:
    widths = [64, 64, 128, 256, 512]
    stages = [
        nn.Sequential(PreActivationBlock(inputs, outputs, 2 if row else 1), PreActivationBlock(outputs, outputs, 1))
        for row, (inputs, outputs) in enumerate(pairwise(widths))
    ]
    tail = nn.Sequential(nn.BatchNorm2d(512), nn.ReLU())
    return Staged(_conv3x3(in_channels, 64), stages, tail, 512, classes)


def _residual_stages(
    name: str, layers: int, widths: list[int], block: Callable[[int, int, int], nn.Module]
) -> list[nn.Module]:
    blocks, rest = divmod(layers, 6)
    if rest or blocks < 1:
        raise ValueError(
            f"the depth of {name!r} must be 6n + {2 if block is BasicBlock else 4}, for three stages of n blocks: the "
            "networks for large images, such as resnet18, are called torchvision/NAME and timm/NAME"
        )
    stages: list[nn.Module] = []
    for row, (inputs, outputs) in enumerate(pairwise(widths)):
        first = block(inputs, outputs, 2 if row else 1)
        stages.append(nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(blocks - 1))))
    return stages


def _vgg(numbers: list[int], classes: int, in_channels: int, image_size: int) -> nn.Module:
    if image_size < 8:
        raise ValueError(f"vgg halves its maps three times and needs images of 8 pixels or more, given {image_size}")
    stages: list[nn.Module] = []
    inputs = in_channels
    for row, width in enumerate((64, 128, 256, 512, 512)):
        pools = row in (1, 2, 3) or (row == 4 and image_size >= 64)
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if pools else []
        for _ in range({8: 1, 13: 2}[numbers[0]]):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        stages.append(nn.Sequential(*layers))
    return Staged(nn.Identity(), stages, nn.Identity(), 512, classes)


def _vit(numbers: list[int], classes: int, in_channels: int, image_size: int) -> nn.Module:
    dim, depth = numbers
    patch_size = 2 if image_size < 16 else 4
    if dim % 16:
        raise ValueError(f"the width of a vit must be a multiple of 16, the width of a head, given {dim}")
    if image_size % patch_size:
        raise ValueError(f"a vit cuts images into patches of {patch_size} pixels, given images of {image_size}: resize")
    return VisionTransformer(
        dim=dim, depth=depth, classes=classes, in_channels=in_channels, image_size=image_size, patch_size=patch_size
    )


def _gpt(numbers: list[int], classes: int, in_channels: int, image_size: int) -> nn.Module:
    depth, width = numbers
    if width % 16:
        raise ValueError(f"the width of a gpt must be a multiple of 16, the width of a head, given {width}")
    return CausalTransformer(classes, width=width, depth=depth, heads=width // 16, context=in_channels)


def _fcn(numbers: list[int], classes: int, in_channels: int, image_size: int) -> nn.Module:
    return FCN(numbers, classes=classes, in_channels=in_channels)


def _fcn_with_auxiliary(numbers: list[int], classes: int, in_channels: int, image_size: int) -> nn.Module:
    return FCN(numbers, classes=classes, in_channels=in_channels, auxiliary=True)


_KINDS: dict[str, Callable[[list[int], int, int, int], nn.Module]] = {
    r"mlp(-\d+)+": _mlp,
    r"conv(-\d+)+": _conv,
    r"conv(-\d+)+\+labels-\d+": _conv_with_label_queries,
    r"convnet-\d+-\d+": _convnet,
    r"resnet\d+(x4)?": _resnet,
    r"wrn-\d+-\d+": _wrn,
    r"preact-resnet18": _preact_resnet,
    r"vgg(8|13)": _vgg,
    r"vit-\d+-\d+": _vit,
    r"gpt-\d+-\d+": _gpt,
    r"fcn(-\d+)+": _fcn,
    r"fcn(-\d+)+\+aux": _fcn_with_auxiliary,
}
