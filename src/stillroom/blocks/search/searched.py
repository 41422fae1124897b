"""A convolution of every candidate width at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.blocks.search.choices import channel_interpolate, width_choices


class SearchedConvolution(nn.Module):
    """A convolution whose output width is searched: one weight for all widths, a batch norm for each.

    Inputs of fewer channels than the weight expects are padded with zeros, convolved once with the whole weight, and
    the leading channels of two candidate widths are normalised, brought to the wider one and mixed.

    Args:
        in_channels: of the full input.
        out_channels: of the full output.
        kernel_size: odd.
        stride: of the convolution.
        relu: whether a ReLU follows.
        choices: candidate widths; those of `width_choices` when not given.

    Source: Dong and Yang 2019, arXiv:1905.09717, figure 2 and equation 5.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        relu: bool = True,
        choices: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.choices = list(choices) if choices is not None else width_choices(out_channels)
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in self.choices)
        self.relu = relu

    def forward(self, inputs: Tensor, picked: Sequence[int], weights: Sequence[Tensor] | Tensor) -> Tensor:
        """Mix some candidate widths.

        Args:
            inputs: `(N, C, H, W)`, C at most the full input width.
            picked: numbers of the candidates.
            weights: one scalar per candidate.

        Returns:
            `(N, C', H', W')` with the widest candidate's C'.
        """
        padded = F.pad(inputs, (0, 0, 0, 0, 0, self.convolution.in_channels - inputs.shape[1]))
        whole = self.convolution(padded)
        widest = max(self.choices[choice] for choice in picked)
        parts = [
            weight * channel_interpolate(self.norms[choice](whole[:, : self.choices[choice]]), widest)
            for choice, weight in zip(picked, weights, strict=True)
        ]
        mixed = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return F.relu(mixed) if self.relu else mixed

    def cost(self, inputs: Tensor | float, outputs: Tensor | float, side: int) -> Tensor | float:
        """Multiply-accumulates in millions for (expected) widths, with outputs of `side` by `side` positions."""
        kernel = self.convolution.kernel_size[0] * self.convolution.kernel_size[1]
        return kernel * side * side * inputs * outputs / 1e6
