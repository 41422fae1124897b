"""Guidance, sampling in many steps and in one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.diffusion.schedule import Network, NoiseSchedule, predict
from stillroom.data.batch import map_tensors, tensors_in
from stillroom.losses._shared import check_positive, check_same_shape


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: u + scale * (c - u). 1 gives c, 0 gives u.

    Source: Ho and Salimans 2022, arXiv:2207.12598.
    """
    check_same_shape(conditional=conditional, unconditional=unconditional)
    check_scale(scale)
    return unconditional + scale * (conditional - unconditional)


def guided_prediction(
    network: Network, noisy: Tensor, timesteps: Tensor, prompts: Any, *, null_prompt: Any, scale: float
) -> Tensor:
    """Ask a network with classifier-free guidance, in one call with a doubled batch.

    At a scale of 1 or 0 only the side that counts is asked.

    Args:
        network: `network(noisy, timesteps, prompts)`.
        noisy: `(N, ...)`.
        timesteps: `(N,)`, int64.
        prompts: of N rows.
        null_prompt: one row of `prompts` that stands for no prompt.
        scale: guidance scale, finite; other than 1 it needs a network that was trained with the null prompt too.

    Returns:
        `(N, ...)`, float32 or wider.
    """
    check_scale(scale)
    if scale == 1:
        return predict(network, noisy, timesteps, prompts)
    nothing = null_like(prompts, null_prompt)
    if scale == 0:
        return predict(network, noisy, timesteps, nothing)
    both = predict(network, torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps]), _stack(prompts, nothing))
    conditional, unconditional = both.chunk(2)
    return guided(conditional, unconditional, scale)


def check_scale(scale: float) -> None:
    """Refuse a guidance scale that is not finite."""
    if not math.isfinite(scale):
        raise ValueError(f"guidance_scale must be a finite number, given {scale}")


def null_like(prompts: Any, null_prompt: Any) -> Any:
    """Repeat the null prompt once per row of prompts.

    Raises:
        ValueError: the null prompt is no row of these prompts; with both shapes.
    """
    if isinstance(prompts, Mapping):
        return {name: null_like(value, null_prompt[name]) for name, value in prompts.items()}
    if isinstance(prompts, (list, tuple)):
        return type(prompts)(null_like(value, null) for value, null in zip(prompts, null_prompt, strict=True))
    check_rows(prompts, null_prompt)
    return null_prompt.to(prompts).expand_as(prompts)


def check_rows(prompts: Tensor, null_prompt: Tensor) -> None:
    """Refuse prompts that are not rows like the null prompt: another shape, or numbers of another kind."""
    same_kind = prompts.is_floating_point() == null_prompt.is_floating_point()
    if prompts.ndim == 0 or prompts.shape[1:] != null_prompt.shape or not same_kind:
        raise ValueError(
            f"prompts have shape {tuple(prompts.shape)} and dtype {prompts.dtype}, but the null prompt has shape "
            f"{tuple(null_prompt.shape)} and dtype {null_prompt.dtype}: each row of the prompts must be like the null "
            "prompt (images are no prompts)"
        )


def _stack(first: Any, second: Any) -> Any:
    if isinstance(first, Mapping):
        return {name: _stack(value, second[name]) for name, value in first.items()}
    if isinstance(first, (list, tuple)):
        return type(first)(_stack(one, other) for one, other in zip(first, second, strict=True))
    return torch.cat([first, second])


def ddim_timesteps(schedule: NoiseSchedule, steps: int) -> list[int]:
    """Steps from T - 1 down, evenly spaced ("trailing" in diffusers): 1 step is T - 1 alone.

    Raises:
        ValueError: steps is not in [1, T].
    """
    if not 1 <= steps <= len(schedule):
        raise ValueError(f"steps must lie in [1, {len(schedule)}], given {steps}")
    return [round(len(schedule) * (steps - done) / steps) - 1 for done in range(steps)]


@torch.no_grad()
def ddim_sample(
    network: Network,
    schedule: NoiseSchedule,
    prompts: Any,
    latents: Tensor,
    *,
    steps: int = 50,
    null_prompt: Any = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Sample without fresh noise: x from the prediction at t, then z at the next smaller t, until x is left.

    z_u = sqrt(a_u) x + sqrt(1 - a_u) n, with x and n as predicted at t > u.

    Args:
        network: predicts as `schedule.prediction` says.
        schedule: of the network.
        prompts: of N rows.
        latents: `(N, ...)` standard normal noise to start from.
        steps: network calls, in [1, T].
        null_prompt: one row that stands for no prompt; needed for a guidance scale other than 1.
        guidance_scale: of classifier-free guidance.

    Returns:
        `(N, ...)`, float32 or wider.

    Source: Song et al. 2021, arXiv:2010.02502, with eta = 0.
    """
    times = ddim_timesteps(schedule, steps)
    noisy = latents
    for time, following in zip(times, [*times[1:], -1], strict=True):
        timesteps = torch.full((len(noisy),), time, device=noisy.device)
        predicted = guided_prediction(network, noisy, timesteps, prompts, null_prompt=null_prompt, scale=guidance_scale)
        clean = schedule.clean(noisy, predicted, timesteps, schedule.prediction)
        if following < 0:
            return clean
        noise = schedule.noise(noisy, predicted, timesteps, schedule.prediction)
        noisy = schedule.add_noise(clean, noise, torch.full_like(timesteps, following)).to(latents.dtype)
    return noisy


class OneStepGenerator(nn.Module):
    """A noise predictor that paints in one call: x = (z - sqrt(1 - a) eps(z, t, prompt)) / sqrt(a), z ~ N(0, I).

    1 / sqrt(a) is about 15 for Stable Diffusion, so this line is computed in float32 or wider.

    Args:
        network: predicts noise.
        shape: of one sample, without the batch; empty to read it off a diffusers network's config.
        alpha_cumprod: a, in (0, 1]: that of the last step of the schedule.
        timestep: t, that step's number.

    Raises:
        ValueError: alpha_cumprod is out of range, or there is no shape.

    Example:
        >>> from stillroom.blocks.diffusion import NoiseMLP
        >>> generator = OneStepGenerator(NoiseMLP((8,), classes=3), (8,), alpha_cumprod=0.0047, timestep=999)
        >>> generator(torch.tensor([0, 2, 1])).shape
        torch.Size([3, 8])
    """

    def __init__(
        self, network: nn.Module, shape: Sequence[int] = (), *, alpha_cumprod: float, timestep: int = 999
    ) -> None:
        super().__init__()
        if not 0 < alpha_cumprod <= 1:
            raise ValueError(f"alpha_cumprod must lie in (0, 1], given {alpha_cumprod}")
        self.network = network
        self.shape = tuple(shape) or shape_of(network)
        self.alpha_cumprod = float(alpha_cumprod)
        self.timestep = int(timestep)

    def noise(self, prompts: Any, *, random: torch.Generator | None = None) -> Tensor:
        """Draw z for each prompt, in the dtype and on the device of the network."""
        rows = len(next(iter(tensors_in(prompts))))
        place = next(iter(self.network.parameters()), torch.zeros(()))
        device = random.device if random is not None else place.device
        return torch.randn(rows, *self.shape, generator=random, dtype=place.dtype, device=device).to(place.device)

    def forward(self, prompts: Any, latents: Tensor | None = None) -> Tensor:
        """Paint one sample per prompt.

        Args:
            prompts: of N rows.
            latents: `(N, *shape)` standard normal noise; drawn from torch's generator when not given.

        Returns:
            `(N, *shape)`, float32 or wider.
        """
        latents = self.noise(prompts) if latents is None else latents
        timesteps = torch.full((len(latents),), self.timestep, device=latents.device)
        eps = predict(self.network, latents, timesteps, prompts)
        return (latents.to(eps.dtype) - math.sqrt(1 - self.alpha_cumprod) * eps) / math.sqrt(self.alpha_cumprod)

    def extra_repr(self) -> str:
        """Show shape and step where the module is printed."""
        return f"shape={self.shape}, alpha_cumprod={self.alpha_cumprod:g}, timestep={self.timestep}"


def shape_of(network: nn.Module) -> tuple[int, ...]:
    """The shape of one sample, from the config of a diffusers network.

    Raises:
        ValueError: the network has no such config.
    """
    config = getattr(network, "config", None)
    channels, size = getattr(config, "in_channels", None), getattr(config, "sample_size", None)
    if not isinstance(channels, int) or size is None:
        raise ValueError(
            f"{type(network).__name__} has no config with in_channels and sample_size: pass shape=, that of one sample"
        )
    return (channels, size, size) if isinstance(size, int) else (channels, *size)


@torch.no_grad()
def paint(
    generator: OneStepGenerator,
    prompts: Any,
    *,
    decode: Callable[[Tensor], Any] | None = None,
    scaling_factor: float = 1.0,
    latents: Tensor | None = None,
    random: torch.Generator | None = None,
) -> Tensor:
    """Prompts to pictures: one call of the generator, and one of the decoder.

    Args:
        generator: a trained one-step generator.
        prompts: embeddings (or class numbers) of N rows.
        decode: latents -> pictures, such as `vae.decode` of diffusers; None returns what the generator says.
        scaling_factor: what latents are divided by first (`vae.config.scaling_factor`), above 0.
        latents: noise to start from; drawn when not given.
        random: draws that noise.

    Returns:
        `(N, ...)`: what `decode` returns (its `.sample` where there is one).

    Example:
        >>> from stillroom.blocks.diffusion import NoiseMLP
        >>> generator = OneStepGenerator(NoiseMLP((8,), classes=3), (8,), alpha_cumprod=0.0047)
        >>> paint(generator, torch.tensor([0, 2]), decode=lambda z: z.clamp(-1, 1)).shape
        torch.Size([2, 8])
    """
    check_positive(scaling_factor=scaling_factor)
    device = next(iter(generator.parameters()), torch.zeros(())).device
    prompts = map_tensors(prompts, lambda tensor: tensor.to(device))
    drawn = generator.noise(prompts, random=random) if latents is None else latents
    made = generator(prompts, drawn) / scaling_factor
    if decode is None:
        return made
    picture = decode(made)
    return getattr(picture, "sample", picture)
