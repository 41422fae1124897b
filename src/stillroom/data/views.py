"""Strong views of images that keep every object where it is: colours, blur and erased patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.data.batch import Ragged


class StrongView:
    """Changes colours, blurs and erases patches of each image by itself; boxes stay right.

    Colour jitter (brightness, contrast and saturation by 0.4, hue by 0.1) with probability 0.8, grey with 0.2, Gaussian
    blur of sigma 0.1 to 2 with 0.5, then three patches of noise with probability 0.7, 0.5 and 0.3 that cover 5 to 20 %,
    2 to 20 % and 2 to 20 % of the image. Random numbers come from torch's global generator.

    Args:
        jitter: of brightness, contrast and saturation; hue by a quarter of it. 0 or more.
        blur_sigma: range of the blur in pixels.
        erasings: per patch its probability, range of areas and range of aspect ratios.

    Example:
        >>> StrongView()(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        *,
        jitter: float = 0.4,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        erasings: tuple[tuple[float, tuple[float, float], tuple[float, float]], ...] = (
            (0.7, (0.05, 0.2), (0.3, 3.3)),
            (0.5, (0.02, 0.2), (0.1, 6.0)),
            (0.3, (0.02, 0.2), (0.05, 8.0)),
        ),
    ) -> None:
        from torchvision.transforms import v2

        steps: list[Any] = []
        if jitter:
            steps.append(v2.RandomApply([v2.ColorJitter(jitter, jitter, jitter, jitter / 4)], p=0.8))
        steps += [
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(_odd(blur_sigma[1]), sigma=blur_sigma)], p=0.5),
        ]
        steps += [v2.RandomErasing(p=p, scale=area, ratio=ratio, value="random") for p, area, ratio in erasings]
        self.steps = steps

    def __call__(self, inputs: Any) -> Any:
        """Change images `(N, C, H, W)` or a list of `(C, H, W)`, floats in [0, 1]."""
        changed = [self._one(image) for image in inputs]
        return torch.stack(changed) if isinstance(inputs, Tensor) else Ragged(changed)

    def _one(self, image: Tensor) -> Tensor:
        for step in self.steps:
            image = step(image)
        return image.clamp(0, 1)  # the noise of an erased patch is Gaussian


def _odd(sigma: float) -> int:
    """A kernel that holds two sigmas on each side."""
    return 2 * max(round(2 * sigma), 1) + 1
