"""Tasks whose outputs are images: super-resolution."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from stillroom.data.batch import Batch
from stillroom.data.degrade import bicubic_resize
from stillroom.losses import Reduction, mean_absolute_error
from stillroom.losses._shared import check_same_shape
from stillroom.task.base import Meter, Task

SSIM_WINDOW = 11
"""Side of the Gaussian window of the structural similarity (sigma 1.5, cut at 3.5 sigma)."""
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class SuperResolution(Task):
    """Images made larger. Inputs are `(N, 3, H, W)`, outputs and labels `(N, 3, scale H, scale W)`, in [0, 1].

    Trained on aligned patches, measured on whole images one at a time: the mean over images of the PSNR in dB and of
    the structural similarity, both on the rounded luminance, with `scale` pixels cut off at every border.

    Args:
        data: what `stillroom.data.load_pairs` takes; None for a task that is only used for its loss and metrics.
        scale: how many times larger outputs are.
        image_size: side of the patches of the small image.
        train_size: patches of an epoch; None for as many as cover the training images.
        teacher_size: the same for a teacher that is trained first.
        test_size: how many images are reported on; None for all.
        validation_share: part of the training images kept for choosing a model.
        labels: not known here, as are the four that follow.
        unlabelled: pairs are made from the large images: there is nothing without labels.
        channels: images are RGB.
        label_column: there are no tables of pairs.
        image_column: there are no tables of pairs.

    Raises:
        ValueError: scale is below 1, or an option is given that this task does not know.
    """

    name = "super-resolution"
    metric = "psnr"
    kd_weights = (0.5, 0.5)
    demonstration: ClassVar[dict[str, Any]] = {
        "data": "photographs",
        "scale": 2,
        "teacher": "imdn-24-3-x{scale}-skip",
        "student": "imdn-8-2-x{scale}-skip",
        "teacher_epochs": 25.0,
        "steps": 300,
        "batch_size": 8,
        "lr": 2e-3,
    }
    verb = "enlarge"
    outputs_are = "colours"

    def __init__(
        self,
        data: Any = None,
        *,
        scale: int = 2,
        image_size: int | None = 24,
        train_size: int | None = None,
        teacher_size: int | None = None,
        test_size: int | None = None,
        validation_share: float = 0.1,
        labels: int | None = None,
        unlabelled: Any = None,
        channels: int | None = None,
        label_column: str | None = None,
        image_column: str | None = None,
    ) -> None:
        unknown = {"labels": labels, "unlabelled": unlabelled, "label_column": label_column}
        for option, value in {**unknown, "image_column": image_column}.items():
            if value is not None:
                raise ValueError(
                    f"super-resolution makes its pairs from images and has no {option}, given {value!r}: leave it out"
                )
        if channels not in (None, 3):
            raise ValueError(f"super-resolution works on RGB images, given channels={channels}: leave it out")
        if scale < 1:
            raise ValueError(f"scale must be a whole number of 1 or more, given {scale}")
        super().__init__(
            data,
            train_size=train_size,
            teacher_size=teacher_size,
            test_size=test_size,
            image_size=24 if image_size is None else image_size,
            validation_share=validation_share,
        )
        self.scale = scale

    def load(self, seed: int = 0, *, everything: bool = False) -> Any:
        """Load the images; see `stillroom.data.load_pairs`."""
        from stillroom.data.photographs import load_pairs

        if self.data is None:
            raise ValueError("this SuperResolution task has no data: pass data=")
        return load_pairs(
            self.data,
            scale=self.scale,
            patch_size=self.image_size or 24,
            seed=seed,
            train_size=self.teacher_size if everything else self.train_size,
            test_size=self.test_size,
            validation_share=self.validation_share,
        )

    def supervised_loss(self, outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Mean absolute error over all values of all pixels."""
        return mean_absolute_error(outputs, labels, reduction=reduction)

    def distillation_loss(
        self,
        student_outputs: Tensor,
        teacher_outputs: Tensor,
        *,
        temperature: float = 1.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Mean absolute difference to the teacher's image; temperature plays no part."""
        check_same_shape(student_outputs=student_outputs, teacher_outputs=teacher_outputs)
        return mean_absolute_error(student_outputs, teacher_outputs.detach(), reduction=reduction)

    def width(self, splits: Any) -> int | None:
        """As many output channels as the images have."""
        return 3

    def check(self, batch: Batch, outputs: Tensor | None = None) -> None:
        """Check that images lie in [0, 1] and that labels and outputs are `scale` times as large as the inputs."""
        super().check(batch, outputs)
        height, width = batch.inputs.shape[-2:]
        expected = (self.scale * height, self.scale * width)
        for what, images in (("inputs", batch.inputs), ("labels", batch.labels)):
            if images is None:
                continue
            if images.ndim != 4 or not images.is_floating_point():
                raise ValueError(
                    f"{what} must be float images (N, C, H, W), given {tuple(images.shape)} {images.dtype}"
                )
            low, high = float(images.min()), float(images.max())
            if low < 0 or high > 1:
                raise ValueError(f"{what} must lie in [0, 1], given values from {low:.3g} to {high:.3g}: divide by 255")
        for what, images in (("the labels are", batch.labels), ("the network makes", outputs)):
            if images is not None and tuple(images.shape[-2:]) != expected:
                raise ValueError(
                    f"{what} {tuple(images.shape[-2:])} for inputs of {(height, width)}, expected {expected} for scale "
                    f"{self.scale}: take a network and data of that scale, or name another scale (--scale)"
                )

    def sample_name(self, splits: Any) -> str:
        """What one sample is called."""
        return "image pair"

    def collect(self, meter: Meter, outputs: Tensor, batch: Batch, teacher_outputs: Tensor | None) -> None:
        """Let the meter see the small images too."""
        if isinstance(meter, _Images):
            meter.look(batch)
        super().collect(meter, outputs, batch, teacher_outputs)

    def no_teacher(self, measured: dict[str, float]) -> str:
        """Say why a teacher is none: its images are no better than bicubic ones."""
        gain = measured.get("gain_over_bicubic", 1.0)
        if gain > 0:
            return ""
        return (
            f"the teacher's images are {-gain:.2f} dB below bicubic enlargement ({measured['psnr']:.2f} dB): check its "
            "input range and weights, or train it first (--teacher-epochs)"
        )

    def meter(self, width: int | None, *, with_teacher: bool = False) -> Meter:
        """PSNR, its gain over bicubic enlargement, and structural similarity, all means over images."""
        return _Images(self.scale)


class _Images(Meter):
    """Measures image by image; nothing is kept but numbers."""

    def __init__(self, scale: int) -> None:
        super().__init__(lambda *_: {})
        self.scale = scale
        self.inputs: Tensor | None = None
        self.found: dict[str, list[Tensor]] = {}

    def look(self, batch: Batch) -> None:
        """Keep the small images of the batch that comes next."""
        self.inputs = batch.inputs

    def update(self, outputs: Tensor, labels: Tensor | None, teacher_outputs: Tensor | None = None) -> None:
        """Measure the images of a batch."""
        if labels is None:
            raise ValueError("there are no large images to measure against: give data with labels")
        self._add("psnr", psnr_y(outputs, labels, border=self.scale))
        if self.inputs is not None:
            plain = bicubic_resize(self.inputs, *labels.shape[-2:])
            gain = self.found["psnr"][-1] - psnr_y(plain, labels, border=self.scale)
            self._add("gain_over_bicubic", gain)
        if min(labels.shape[-2:]) - 2 * self.scale >= SSIM_WINDOW:
            self._add("ssim", ssim_y(outputs, labels, border=self.scale))
        if teacher_outputs is not None and teacher_outputs.shape == outputs.shape:
            self._add("psnr_to_teacher", psnr_y(outputs, teacher_outputs, border=self.scale).clamp(max=100.0))

    def _add(self, name: str, values: Tensor) -> None:
        self.found.setdefault(name, []).append(values)

    def compute(self) -> dict[str, float]:
        """The means over all images."""
        return {name: float(torch.cat(values).mean()) for name, values in self.found.items()}


def luminance(images: Tensor) -> Tensor:
    """Luminance of images as 8-bit files have it.

    Images are brought to whole numbers in [0, 255], then Y = 16 + 65.481 R + 128.553 G + 24.966 B with R, G, B in
    [0, 1], clipped and rounded.

    Args:
        images: `(N, 3, H, W)`, floats in [0, 1]; what lies outside is clipped.

    Returns:
        `(N, 1, H, W)`, whole numbers in float64.

    Source: ITU-R BT.601, as MATLAB's rgb2ycbcr and scikit-image have it.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images must be floats (N, 3, H, W), given {tuple(images.shape)} {images.dtype}")
    stored = images.double().mul(255).round().clamp(0, 255) / 255
    weights = stored.new_tensor((65.481, 128.553, 24.966)).view(1, 3, 1, 1)
    return (16 + (stored * weights).sum(1, keepdim=True)).round().clamp(0, 255)


def psnr_y(predictions: Tensor, targets: Tensor, *, border: int) -> Tensor:
    """Peak signal-to-noise ratio on the luminance, per image: 10 log10(255^2 / mean squared error), in dB.

    Args:
        predictions: `(N, 3, H, W)` in [0, 1]; see `luminance`.
        targets: the same.
        border: pixels cut off at every side, 0 or more.

    Returns:
        `(N,)`, float64; infinite where the two are equal.

    Raises:
        ValueError: shapes differ, or nothing is left inside the border.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    first, second = _cropped(predictions, targets, border, least=1)
    pairs = zip(first.split(1), second.split(1), strict=True)
    return torch.stack([peak_signal_noise_ratio(one, other, data_range=255.0) for one, other in pairs])


def ssim_y(predictions: Tensor, targets: Tensor, *, border: int) -> Tensor:
    """Structural similarity on the luminance, per image: Gaussian window of sigma 1.5, K1 0.01, K2 0.03, range 255.

    Population variances, as in the original; the mean leaves out the window's half width at every side.

    Args:
        predictions: `(N, 3, H, W)` in [0, 1]; see `luminance`.
        targets: the same.
        border: pixels cut off at every side, 0 or more; at least 11 must be left.

    Returns:
        `(N,)`, float64, at most 1.

    Raises:
        ValueError: shapes differ, or less than 11 pixels are left.

    Source: Wang et al. 2004. torchmetrics' function of that name also averages over windows that reach beyond the
        border, where it mirrors the image; published tables do not.
    """
    first, second = _cropped(predictions, targets, border, least=SSIM_WINDOW)
    stacked = torch.cat([first, second, first * first, second * second, first * second])
    mean, other_mean, square, other_square, product = _blurred(stacked).chunk(5)
    variance, other_variance = square - mean**2, other_square - other_mean**2
    luminances = (2 * mean * other_mean + C1) / (mean**2 + other_mean**2 + C1)
    structures = (2 * (product - mean * other_mean) + C2) / (variance + other_variance + C2)
    return (luminances * structures).flatten(1).mean(1)


def _blurred(images: Tensor) -> Tensor:
    """Weighted means under a Gaussian window, along one side after the other; only windows that lie inside."""
    offsets = torch.arange(SSIM_WINDOW, dtype=images.dtype, device=images.device) - SSIM_WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    weights = weights / weights.sum()
    for side in (2, 3):
        length = images.shape[side] - SSIM_WINDOW + 1
        images = sum(
            (weight * images.narrow(side, place, length) for place, weight in enumerate(weights)),
            start=torch.zeros((), dtype=images.dtype, device=images.device),
        )
    return images


def _cropped(predictions: Tensor, targets: Tensor, border: int, *, least: int) -> tuple[Tensor, Tensor]:
    check_same_shape(predictions=predictions, targets=targets)
    height, width = predictions.shape[-2:]
    if border < 0 or min(height, width) - 2 * border < least:
        raise ValueError(
            f"border must be 0 or more and leave {least} pixels or more, given {border} for images of {height}x{width}"
        )
    inside = (..., slice(border, height - border), slice(border, width - border))
    return luminance(predictions[inside]), luminance(targets[inside])
