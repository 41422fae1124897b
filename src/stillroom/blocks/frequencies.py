"""Frequencies at which characteristic functions are compared: learned ones."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

Form = Literal["mixture", "released"]


class FrequencySampler(nn.Module):
    """Makes frequencies from noise by a small network that can be trained to find where two distributions differ.

    With K / R components: noise e ~ N(0, I) of shape `(K / R, D)` goes through three blocks of Linear(D, D), batch norm
    and an activation (LeakyReLU 0.2 twice, then tanh), which gives scales A; each row is repeated R times.
    "mixture": t = A * z with z ~ N(0, I) of shape `(K, D)`, a scale mixture of normals with K different rows.
    "released": t = A itself, as the authors' released code has it, with K / R different rows only.

    Trained to raise `stillroom.losses.characteristic_function_discrepancy` (see `minmax_gradients`), the max player.
    Batch norm uses the statistics of the components at hand in training.

    Args:
        dim: D, width of the features.
        frequencies: K, a multiple of `repeats`.
        repeats: R, how many frequencies share a row of scales; K / R must be 2 or more.
        form: "mixture" or "released".

    Raises:
        ValueError: K is no multiple of R, fewer than 2 components, or another form.

    Source: Wang et al. 2025, arXiv:2502.20653, section 3.3 (the scale mixture); the multiplication by z is our reading
        of it.

    Example:
        >>> sampler = FrequencySampler(8, frequencies=64)
        >>> sampler().shape
        torch.Size([64, 8])
    """

    def __init__(self, dim: int, *, frequencies: int = 1024, repeats: int = 16, form: Form = "mixture") -> None:
        super().__init__()
        if dim < 1 or repeats < 1:
            raise ValueError(f"dim and repeats must be 1 or more, given {dim} and {repeats}")
        if frequencies % repeats or frequencies // repeats < 2:
            nearest = max(2, -(-frequencies // repeats)) * repeats
            raise ValueError(
                "frequencies must be a multiple of repeats with 2 or more components (batch norm needs them), given "
                f"{frequencies} / {repeats} = {frequencies / repeats:g}: use {nearest}"
            )
        if form not in get_args(Form):
            raise ValueError(f"form must be one of {', '.join(get_args(Form))}, given {form!r}")
        self.dim, self.frequencies, self.repeats, self.form = dim, frequencies, repeats, form
        self.blocks = nn.Sequential(
            *(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.LeakyReLU(0.2)),
            *(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.LeakyReLU(0.2)),
            *(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.Tanh()),
        )

    def forward(
        self, noise: Tensor | None = None, normals: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Make frequencies.

        Args:
            noise: e, `(K / R, D)`; drawn where not given.
            normals: z, `(K, D)`, for the mixture; drawn where not given.
            generator: of the CPU, for what is drawn.

        Returns:
            t, `(K, D)`.
        """
        weight = next(self.parameters())
        if noise is None:
            noise = torch.randn(self.frequencies // self.repeats, self.dim, generator=generator).to(weight)
        scales = self.blocks(noise).repeat_interleave(self.repeats, dim=0)
        if self.form == "released":
            return scales
        if normals is None:
            normals = torch.randn(self.frequencies, self.dim, generator=generator).to(weight)
        return scales * normals
