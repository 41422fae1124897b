"""Losses between noise predictions, and the surrogate of a gradient that is prescribed."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.losses._shared import Reduction, at_least_float32, check_same_shape, outside_autocast, reduce


@outside_autocast
def prescribed_gradient_loss(values: Tensor, gradient: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """A loss whose gradient is given: per entry 0.5 (x - stopgrad(x - G))^2, whose derivative in x is G.

    Its value is 0.5 G^2. Score distillation has a gradient and no loss; this makes it one.

    Args:
        values: x, any shape.
        gradient: G, the same shape; receives no gradient itself.
        reduction: over entries. "mean" divides G by their number; "sum" leaves it as it is.

    Returns:
        A scalar, or the shape of `values` for "none".

    Raises:
        ValueError: the shapes differ.

    Source: as in threestudio and SwiftBrush (arXiv:2312.05239).
    """
    check_same_shape(values=values, gradient=gradient)
    values = at_least_float32(values)
    target = (values - gradient.to(values.dtype)).detach()
    return reduce(0.5 * (values - target).square(), reduction)


@outside_autocast
def vsd_loss(
    generated: Tensor,
    teacher_noise: Tensor,
    second_noise: Tensor,
    *,
    alphas_cumprod: Tensor,
    reduction: Reduction = "mean",
) -> Tensor:
    """Variational score distillation: 0.5 (x - stopgrad(x - G))^2 with G = (1 - a_t) (eps_teacher - eps_second).

    The gradient in x is G (over the number of entries for "mean"): generated data move to where the teacher finds them
    likelier than the second network, which follows their distribution, does. Entries of G that are not finite count as
    0 (infinite ones as the largest number); where not one entry is finite the loss is NaN, so that a broken teacher
    shows.

    Args:
        generated: x, `(N, ...)`.
        teacher_noise: what the teacher predicts in the noised x (guided, where guidance is used); no gradient.
        second_noise: the same of the network that follows the generator (or the noise itself: score distillation
            sampling); no gradient.
        alphas_cumprod: a_t, `(N,)` or of a shape that multiplies x.
        reduction: over entries.

    Returns:
        A scalar, or the shape of x for "none".

    Raises:
        ValueError: the shapes differ.

    Source: Nguyen and Tran 2023, arXiv:2312.05239; Wang et al. 2023, arXiv:2305.16213.
    """
    check_same_shape(generated=generated, teacher_noise=teacher_noise)
    check_same_shape(generated=generated, second_noise=second_noise)
    generated = at_least_float32(generated)
    alphas = _like(alphas_cumprod, generated)
    raw = (1 - alphas) * (teacher_noise.to(generated.dtype) - second_noise.to(generated.dtype)).detach()
    gradient = torch.nan_to_num(raw)
    loss = prescribed_gradient_loss(generated, gradient, reduction=reduction)
    if not generated.numel():
        return loss
    return loss + torch.where(raw.isfinite().any(), 0.0, torch.nan).to(loss.dtype)


@outside_autocast
def denoising_loss(
    predicted_noise: Tensor, noise: Tensor, *, weights: Tensor | float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """Weighted squared error of a noise prediction: w (eps - n)^2 per entry.

    With w = a_t it is the loss of SwiftBrush's second teacher, with 1 the usual one of diffusion training.

    Args:
        predicted_noise: `(N, ...)`.
        noise: what was mixed in, the same shape; receives no gradient.
        weights: a number, `(N,)`, or of a shape that multiplies the noise; 0 or more.
        reduction: over entries.

    Returns:
        A scalar, or the shape of the noise for "none".

    Raises:
        ValueError: the shapes differ.

    Source: Ho et al. 2020, arXiv:2006.11239; Nguyen and Tran 2023, arXiv:2312.05239.
    """
    check_same_shape(predicted_noise=predicted_noise, noise=noise)
    predicted_noise = at_least_float32(predicted_noise)
    off = predicted_noise - noise.detach().to(predicted_noise.dtype)
    return reduce(_like(weights, predicted_noise) * off.square(), reduction)


def _like(values: Tensor | float, entries: Tensor) -> Tensor:
    """Bring numbers per sample to a shape that multiplies entries `(N, ...)`."""
    found = torch.as_tensor(values, dtype=entries.dtype, device=entries.device).detach()
    if found.ndim == 1 and entries.ndim > 1:
        if len(found) != len(entries):
            raise ValueError(f"there are {len(found)} numbers for {len(entries)} samples: give one per sample")
        found = found.view(-1, *[1] * (entries.ndim - 1))
    return found
