"""Run a network over an image in four overlapping parts: for memory, and for sides the network does not take."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def crop_size(side: int, *, overlap: int, multiple: int) -> int:
    """Length of each of the two crops that cover one side of an image.

    With half = side // 2: the largest multiple of `multiple` not above half + overlap, and not above the side itself.

    Args:
        side: height or width of the image in pixels.
        overlap: pixels a crop reaches past the middle, at most; 0 or more.
        multiple: what the length must be a multiple of, 1 or more.

    Raises:
        ValueError: the two crops would not cover the side or would not overlap.
    """
    if overlap < 0 or multiple < 1:
        raise ValueError(f"overlap must be 0 or more and multiple 1 or more, given {overlap} and {multiple}")
    half = side // 2
    size = min((half + overlap) // multiple * multiple, side - side % multiple)
    if size < half + 1 or side - size > half:
        raise ValueError(
            f"a side of {side} pixels cannot be covered by two overlapping crops of {max(size, 0)} pixels (multiples "
            f"of {multiple}, overlap {overlap}): give an overlap of at least {multiple}, or a larger image (at least "
            f"{max(multiple, 2)} pixels)"
        )
    return size


def adaptive_crop(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    overlap: int = 32,
    multiple: int = 4,
    scale: int = 1,
    sequential: bool = False,
) -> Tensor:
    """Adaptive cropping (ACS): run a network on four overlapping crops at the corners and put the results together.

    The four crops have one size, a multiple of `multiple`, and are joined at (H // 2, W // 2) without blending. What
    comes out equals the network's answer to the whole image where everything it looks at lies within the overlap; a
    network that averages over the whole image (channel attention) sees other averages in each crop.

    Args:
        network: images `(N, C, h, w)` -> `(N, C', scale h, scale w)`.
        images: `(N, C, H, W)`.
        overlap: pixels a crop reaches past the middle, at most (down to `overlap - multiple + 1`).
        multiple: what the network's input sides must be multiples of.
        scale: how many times larger the network's output is.
        sequential: run one crop after the other, for a quarter of the memory; together they are one batch, which takes
            as much memory as the whole image or more.

    Returns:
        `(N, C', scale H, scale W)`.

    Raises:
        ValueError: the image is too small to be cropped so, or the network's output is not `scale` times its input.

    Source: Hui et al. 2019, arXiv:1909.11856, section 3.4 (for scale 1); the factor `scale` on every output coordinate
        and the limit for small images are ours.

    Example:
        >>> images = torch.rand(1, 3, 41, 50)
        >>> torch.equal(adaptive_crop(lambda crop: crop, images, overlap=8), images)
        True
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (N, C, H, W), given {tuple(images.shape)}")
    if scale < 1:
        raise ValueError(f"scale must be 1 or more, given {scale}")
    count, _, height, width = images.shape
    rows, columns = (crop_size(side, overlap=overlap, multiple=multiple) for side in (height, width))
    corners = [(top, left) for top in (0, height - rows) for left in (0, width - columns)]
    crops = [images[:, :, top : top + rows, left : left + columns] for top, left in corners]
    if sequential:
        parts = [network(crop) for crop in crops]
    else:
        together = network(torch.cat(crops))
        if len(together) != 4 * count:
            raise ValueError(f"the network gave {len(together)} outputs for {4 * count} crops, expected one for each")
        parts = list(together.split(count))
    expected = (scale * rows, scale * columns)
    for part in parts:
        if tuple(part.shape[-2:]) != expected:
            raise ValueError(
                f"the network made {tuple(part.shape[-2:])} of a crop of {(rows, columns)}, expected {expected} for "
                f"scale {scale}: pass the network's own scale"
            )
    middle, centre = scale * (height // 2), scale * (width // 2)
    below, right = scale * height - middle, scale * width - centre  # one pixel more than above and left if odd
    upper = torch.cat([parts[0][:, :, :middle, :centre], parts[1][:, :, :middle, -right:]], dim=3)
    lower = torch.cat([parts[2][:, :, -below:, :centre], parts[3][:, :, -below:, -right:]], dim=3)
    return torch.cat([upper, lower], dim=2)
