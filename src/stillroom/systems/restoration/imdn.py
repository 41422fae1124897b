"""IMDN: a small network that enlarges images, distilling information inside itself by splitting channels.

For whom: you enlarge photographs two, three or four times with about 0.7 million parameters, or by any factor with
`AnyScaleIMDN`, and your images have any size: `stillroom.blocks.adaptive_crop` cuts them into four overlapping parts
where memory or a network's strides demand it.

Not for whom: you want detail that is not in the image (this network is trained by the mean absolute error and answers
with an average; see generative models); you have a large teacher and want its knowledge ("distillation" is here the
splitting of channels, without a teacher; `stillroom distill --task super-resolution` takes one, with this network or
any other as student); your images were not made small bicubically and you have no pairs of your own.

Citation: Zheng Hui, Xinbo Gao, Yunchu Yang, Xiumei Wang. Lightweight Image Super-Resolution with Information
Multi-distillation Network. ACM Multimedia 2019. arXiv:1909.11856.

Deviations from the paper: none in the networks, whose parameter counts are those of the authors' code (694,404, 703,059
and 715,176 at scales 2, 3 and 4, 752,104 for any scale, 20,190 for phones). The contrast's variance is held at 1e-12 or
more, so that a constant channel has a finite gradient. Adaptive cropping also knows networks that enlarge, small
images, and running the four crops one after the other. `image_skip="bicubic"`, which the recipe uses and the
paper does not, adds the bicubic image to the output: from random weights without it a network of the recipe's size
needs thousands of steps to reach bicubic. Training draws its patches from all positions of all images in a random
order, about as many an epoch as cover them; the authors draw one patch from each image in turn. The training data of
the any-scale network are given in the authors' code by a comment only (RealSR, batches of 6), so no settings for it
stand here; it trains with `SuperResolution(scale=1)` on folders LR and HR, where the measure is the luminance's without
one pixel of border (the authors measure that network on RGB without a border).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom import hub
from stillroom.baselines import Alone
from stillroom.blocks.enlarge import (
    IMDN,
    AnyScaleIMDN,
    PlainSR,
    TinyIMDN,
    build_enlarger,
    load_released,
)
from stillroom.blocks.imdb import ContrastAttention, InformationDistillation
from stillroom.blocks.tiling import adaptive_crop
from stillroom.checkpoint import seed_everything
from stillroom.data.degrade import bicubic_resize
from stillroom.experiment.arm import Context, Metrics, TrainingArm, load_splits, measure
from stillroom.experiment.claim import Claim
from stillroom.experiment.run import Experiment
from stillroom.task import SuperResolution, psnr_y
from stillroom.training import Optim, Training

__all__ = [
    "IMDN",
    "AnyScaleIMDN",
    "Bicubic",
    "ContrastAttention",
    "InformationDistillation",
    "PlainSR",
    "TinyIMDN",
    "adaptive_crop",
    "load_released",
    "paper",
    "recipe",
]

CROP = (131, 101)
"""Sides of the part of a small image on which tiled and whole inference are compared; odd, as real images may be."""
BAND = 4
"""Pixels of the enlarged image around a seam."""


class Bicubic(nn.Module):
    """Enlarges images by the cubic kernel: what every network here has to beat.

    Args:
        scale: how many times.

    Example:
        >>> Bicubic(3)(torch.rand(1, 3, 5, 6)).shape
        torch.Size([1, 3, 15, 18])
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to `(N, C, scale H, scale W)`."""
        height, width = images.shape[-2:]
        return bicubic_resize(images, self.scale * height, self.scale * width)


@dataclass(frozen=True)
class AsItComes:
    """An arm that measures a network without training it: bicubic enlargement, or random weights.

    Attributes:
        task: the data and the scale.
        network: name of a network; empty for bicubic enlargement.
    """

    task: SuperResolution
    network: str = ""

    def __call__(self, seed: int, context: Context) -> Metrics:
        """Measure the network that a seed gives, and how far it is from bicubic enlargement."""
        seed_everything(seed)
        network: nn.Module = build_enlarger(self.network) if self.network else Bicubic(self.task.scale)
        splits = load_splits(self.task, seed)
        metrics = measure(self.task, network.eval(), splits, None)
        images = splits.test.batch([0]).inputs[:, :, : CROP[0], : CROP[1]]
        with torch.no_grad():
            gap = (network(images) - Bicubic(self.task.scale)(images)).abs().max()
        context.extra.update(steps=0)
        return metrics | {"largest_gap_to_bicubic": float(gap)}


@dataclass(frozen=True)
class Trained:
    """An arm that trains a network by the mean absolute error, measures it, and compares tiled with whole inference.

    Attributes:
        task: the data and the scale.
        network: name of a network.
        overlap: of the tiles, in pixels of the small image.
    """

    task: SuperResolution
    network: str
    overlap: int

    def __call__(self, seed: int, context: Context) -> Metrics:
        """Train with a seed."""
        metrics = TrainingArm(Alone, self.task, self.network, save=True)(seed, context)
        network = hub.load_folder(context.folder / "student").eval()
        splits = load_splits(self.task, seed)
        return metrics | compare_tiled(network, splits.test.batch([0]), scale=self.task.scale, overlap=self.overlap)


@torch.no_grad()
def compare_tiled(network: nn.Module, batch: Any, *, scale: int, overlap: int) -> Metrics:
    """Compare inference in four crops with inference on the whole, on a part of an image with odd sides.

    Args:
        network: images -> images `scale` times larger.
        batch: a small image and its large one.
        scale: of the network.
        overlap: of the crops.

    Returns:
        "tiling_psnr_difference": absolute difference of the two PSNR values, in dB.
        "seam_ratio": mean absolute difference of the two outputs within 2 pixels of a seam, divided by that elsewhere.
    """
    height, width = (
        (min(side, most) - 1) // 2 * 2 + 1 for side, most in zip(batch.inputs.shape[-2:], CROP, strict=True)
    )
    small = batch.inputs[:, :, :height, :width]
    large = batch.labels[:, :, : scale * height, : scale * width]
    whole = network(small)
    tiled = adaptive_crop(network, small, overlap=overlap, scale=scale, sequential=True)
    gap = (whole - tiled).abs()
    rows, columns = (torch.arange(scale * side) for side in (height, width))
    near = [
        (places - scale * (side // 2) + 0.5).abs() < BAND / 2 for places, side in ((rows, height), (columns, width))
    ]
    band = (near[0][:, None] | near[1][None, :]).expand_as(gap)
    difference = psnr_y(whole, large, border=scale) - psnr_y(tiled, large, border=scale)
    return {
        "tiling_psnr_difference": float(difference.abs()),
        "seam_ratio": float(gap[band].mean() / gap[~band].mean().clamp_min(1e-12)),
    }


def recipe(
    data: Any = "photographs",
    *,
    scale: int = 2,
    network: str = "imdn-16-3",
    plain: str = "plain-sr-14-3",
    steps: int = 500,
    batch_size: int = 8,
    patch_size: int = 24,
    lr: float = 1e-3,
    overlap: int = 8,
) -> Experiment:
    """Does a network of 25,000 parameters beat bicubic enlargement after minutes of training, and does splitting help?

    The plain network has the same depth and shortcuts and as many parameters within 1%, and sees the same batches. Both
    add the bicubic image to their output (`image_skip="bicubic"`, a departure from the paper), so that all gain over
    bicubic enlargement is learned; "untrained_skip" shows that nothing of it is there before. Tiled inference cuts a
    part of the first reported image into four.

    Seen: both networks gain about 0.47 dB on the photographs, and splitting neither helps nor hurts at this size. Tiled
    and whole inference differ by less than 0.001 dB; the ratio of the difference at the seam to that elsewhere is
    between 0.7 and 4.5 and its claim not shown: a network of this depth sees 15 pixels around each, the overlap has 8.
    The learning rate was chosen with seed 100 out of 0.001, 0.002 and 0.004, between which neither network told a
    difference; the steps, so that all seeds take two minutes. On Set5, with twice the steps and all else as it is, IMDN
    gains 2.0 dB and the plain network 2.1, and seeds differ too much to say which is better.

    Args:
        data: what `stillroom.data.load_pairs` takes: photographs, set5, set14, bsd100, a folder.
        scale: 2, 3 or 4.
        network: of IMDN, without its scale.
        plain: the plain network of as many parameters, without its scale.
        steps: optimizer steps of both.
        batch_size: patches per step.
        patch_size: side of a patch of the small image.
        lr: Adam's, halved after 60% and 85% of the steps.
        overlap: of the tiles, in pixels of the small image.
    """
    task = SuperResolution(data, scale=scale, image_size=patch_size, validation_share=0.0)
    optimizer = Optim("adam", lr=lr, schedule="step", milestones=(0.6, 0.85), gamma=0.5)
    return Experiment(
        task=task,
        training=Training(steps=steps, batch_size=batch_size, optimizer=optimizer, keep="last"),
        arms={
            "bicubic": AsItComes(task),
            "plain": Trained(task, f"{plain}-x{scale}-skip", overlap),
            "imdn": Trained(task, f"{network}-x{scale}-skip", overlap),
            "untrained_skip": AsItComes(task, f"{network}-x{scale}-skip"),  # control: nothing learned, bicubic left
            "untrained": AsItComes(task, f"imdn-64-6-x{scale}"),  # control: the paper's network, nothing learned
        },
        baseline="plain",
        controls=("untrained_skip", "untrained"),
        rivals=("bicubic",),
        method="imdn",
        claims=[
            Claim("imdn", ">", "bicubic", on="psnr", by=0.3),
            Claim("imdn", ">", "plain", on="psnr", by=-0.1),
            Claim("untrained_skip", "<", 1e-6, on="largest_gap_to_bicubic"),
            Claim("untrained", "<", "bicubic", on="psnr", by=10.0),
            Claim("imdn", "<", 0.1, on="tiling_psnr_difference"),
            Claim("imdn", "<", 3.0, on="seam_ratio"),
        ],
        title=f"Information multi-distillation network (IMDN), {scale} times larger",
        question=(
            f"A network of about 25,000 parameters learns to make {data if isinstance(data, str) else 'images'} "
            f"{scale} times larger in {steps} steps; PSNR of the luminance on images it has not seen."
        ),
        seeds=3,
    )


def paper(
    data: Any = "div2k",
    *,
    scale: int = 4,
    network: str = "imdn-64-6",
    steps: int = 1_000_000,
    batch_size: int = 16,
    patch_size: int = 192,
) -> Experiment:
    """DIV2K: patches of 192 pixels, batches of 16, Adam 2e-4 halved every 200 of 1,000 epochs of 1,000 steps, L1.

    Expected on Set5: 38.00 dB at scale 2, 32.2 dB at scale 4; on BSD100 32.19 and 27.56 dB. About a day on one GPU.
    Images are held in memory: 9 GB for DIV2K.

    Args:
        data: a folder with DIV2K's 800 large images in train and those of Set5 in test; also looked for in the folder
            super-resolution of STILLROOM_DATA.
        scale: 2, 3 or 4.
        network: without its scale.
        steps: optimizer steps.
        batch_size: patches per step.
        patch_size: side of a patch of the large image.
    """
    task = SuperResolution(data, scale=scale, image_size=patch_size // scale, validation_share=0.0)
    halved = tuple((200 * number - 1) / 1000 for number in range(1, 6))  # epochs are counted from 1
    optimizer = Optim("adam", lr=2e-4, schedule="step", milestones=halved, gamma=0.5)
    return Experiment(
        task=task,
        training=Training(steps=steps, batch_size=batch_size, optimizer=optimizer, keep="last"),
        arms={"bicubic": AsItComes(task), "imdn": Trained(task, f"{network}-x{scale}", 32)},
        baseline="bicubic",
        method="imdn",
        claims=[Claim("imdn", ">", "bicubic", on="psnr", by=3.0)],
        title=f"Information multi-distillation network (IMDN) on DIV2K, {scale} times larger",
        question=f"{network} learns to make DIV2K's images {scale} times larger.",
        seeds=1,
    )
