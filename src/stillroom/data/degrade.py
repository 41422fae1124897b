"""How images are made small: bicubic resizing with antialiasing, as the super-resolution literature does it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bicubic_resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resize images with the cubic convolution kernel (a = -0.5), widened where they shrink, so that nothing aliases.

    At the border the kernel's weights are renormalised over the pixels that exist. Values may leave the range of the
    input by a little, as they do with every cubic kernel; nothing is clamped.

    Args:
        images: `(N, C, H, W)`, floats.
        height: of the result, 1 or more.
        width: of the result, 1 or more.

    Returns:
        `(N, C, height, width)` of the same dtype.

    Raises:
        ValueError: other inputs, or a size below 1.

    Source: Keys 1981 (cubic convolution); the kernel and its widening are those of MATLAB's imresize and Pillow.

    Example:
        >>> bicubic_resize(torch.full((1, 3, 8, 6), 0.5), 4, 3).shape
        torch.Size([1, 3, 4, 3])
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be floats (N, C, H, W), given {tuple(images.shape)} {images.dtype}")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be 1 or more, given {height} and {width}")
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True, align_corners=False)


def crop_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Cut rows at the bottom and columns at the right, so that both sides are multiples of `multiple`.

    Args:
        images: `(..., H, W)`.
        multiple: 1 or more.

    Raises:
        ValueError: a side is shorter than `multiple`.
    """
    height, width = images.shape[-2:]
    if multiple < 1 or min(height, width) < multiple:
        raise ValueError(f"an image of {height}x{width} pixels has no part whose sides are multiples of {multiple}")
    return images[..., : height - height % multiple, : width - width % multiple]


def shrink(image: Tensor, scale: int) -> Tensor:
    """Make the small image of a pair from the large one: antialiased bicubic, kept as bytes like any image file.

    Args:
        image: `(3, H, W)` or `(N, 3, H, W)`, uint8, sides that are multiples of `scale`.
        scale: how many times smaller, a whole number of 1 or more.

    Returns:
        uint8, sides divided by `scale`; rounded and clipped to 0 to 255.

    Raises:
        ValueError: other inputs, or sides that are no multiples of the scale (`crop_to_multiple` cuts them).
    """
    if str(image.dtype) != "torch.uint8" or image.ndim not in (3, 4):
        raise ValueError(f"image must be uint8 (3, H, W), given {tuple(image.shape)} {image.dtype}")
    height, width = image.shape[-2:]
    if scale < 1 or height % scale or width % scale:
        raise ValueError(
            f"an image of {height}x{width} pixels cannot be made {scale} times smaller: crop it to a multiple first"
        )
    images = image if image.ndim == 4 else image.unsqueeze(0)
    small = bicubic_resize(images.float(), height // scale, width // scale).round().clamp(0, 255).to(image.dtype)
    return small if image.ndim == 4 else small[0]
