"""Diffusion networks: a small one for vectors, exact ones for closed-form checks, and a view of others as noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.diffusion.schedule import NoiseSchedule, Prediction, predict
from stillroom.blocks.ema import EMA


class NoiseMLP(nn.Module):
    """A small class-conditional noise predictor for vectors (or small images, as vectors).

    Hidden layers see the time (sines and cosines) and the class; the answer is the input plus what they say, so that
    the network starts near the right answer at high noise.

    Args:
        shape: of one sample.
        classes: number of classes; class number `classes` stands for no class (`null_prompt`).
        width: of the hidden layers.
        depth: hidden layers, 1 or more.

    Example:
        >>> network = NoiseMLP((1, 8, 8), classes=10)
        >>> network(torch.randn(4, 1, 8, 8), torch.tensor([0, 9, 500, 999]), torch.tensor([0, 3, 9, 10])).shape
        torch.Size([4, 1, 8, 8])
    """

    def __init__(self, shape: Sequence[int], classes: int, *, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        if depth < 1 or width < 2 or classes < 1:
            raise ValueError(
                f"depth and classes must be 1 or more, width 2 or more, given {depth}, {classes} and {width}"
            )
        self.shape = tuple(shape)
        self.classes = classes
        features, condition = math.prod(shape), width // 2
        self.frequencies = condition // 2
        self.embedding = nn.Embedding(classes + 1, condition)
        self.time = nn.Linear(2 * self.frequencies, condition)
        self.layers = nn.ModuleList([nn.Linear(features if i == 0 else width, width) for i in range(depth)])
        self.conditions = nn.ModuleList([nn.Linear(condition, width) for _ in range(depth)])
        self.head = nn.Linear(width, features)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def null_prompt(self) -> int:
        """The class number that stands for no class."""
        return self.classes

    def forward(self, noisy: Tensor, timesteps: Tensor, prompts: Tensor) -> Tensor:
        """Predict the noise in `(N, *shape)` at steps `(N,)` of the classes `(N,)`."""
        if prompts.is_floating_point() or prompts.shape != noisy.shape[:1]:
            raise ValueError(
                f"prompts must be class numbers ({len(noisy)},), given {tuple(prompts.shape)} {prompts.dtype}"
            )
        flat = noisy.flatten(1)
        steps = torch.arange(self.frequencies, device=noisy.device, dtype=torch.float32)
        angles = timesteps.float().unsqueeze(1) * (10_000.0 ** (-steps / self.frequencies))
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(flat.dtype)
        condition = nn.functional.silu(self.time(waves) + self.embedding(prompts))
        hidden = flat
        for number, (layer, extra) in enumerate(zip(self.layers, self.conditions, strict=True)):
            found = nn.functional.silu(layer(hidden) + extra(condition))
            hidden = found if number == 0 else hidden + found
        return noisy + self.head(hidden).view_as(noisy)


class GaussianNoise(nn.Module):
    """The exact noise predictor of Gaussian data: class k is N(means[k], variances[k] I), no class their mixture.

    E[n | z] = sqrt(1 - a) (z - sqrt(a) m) / (a v + 1 - a) for one Gaussian; for the mixture (equal shares) the mean of
    these over the classes' probabilities given z.

    Args:
        means: `(K, ...)`.
        variances: `(K,)`, above 0; 1 for all when not given.
        schedule: that it answers for.

    Example:
        >>> schedule = NoiseSchedule.scaled_linear()
        >>> exact = GaussianNoise(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), schedule=schedule)
        >>> exact(torch.zeros(1, 2), torch.tensor([999]), torch.tensor([2])).tolist()  # between the two: no preference
        [[0.0, 0.0]]
    """

    means: Tensor
    variances: Tensor

    def __init__(self, means: Tensor, variances: Tensor | None = None, *, schedule: NoiseSchedule) -> None:
        super().__init__()
        variances = means.new_ones(len(means)) if variances is None else variances
        if variances.shape != means.shape[:1] or not bool((variances > 0).all()):
            raise ValueError(
                f"variances must be {len(means)} numbers above 0, one per mean, given {variances.tolist()}"
            )
        self.register_buffer("means", means)
        self.register_buffer("variances", variances)
        self.schedule = schedule

    @property
    def null_prompt(self) -> int:
        """The class number that stands for the mixture."""
        return len(self.means)

    def forward(self, noisy: Tensor, timesteps: Tensor, prompts: Tensor) -> Tensor:
        """Predict the noise in `(N, ...)` at steps `(N,)` of the classes `(N,)`; K stands for the mixture."""
        count = len(self.means)
        alphas = self.schedule.at(timesteps, noisy).unsqueeze(1)  # (N, 1, ...)
        spread = (1 - alphas).sqrt()
        variances = self.variances.view(1, count, *[1] * (noisy.ndim - 1)).to(noisy.dtype)
        total = alphas * variances + 1 - alphas  # (N, K, ...), variance of z
        off = noisy.unsqueeze(1) - alphas.sqrt() * self.means.to(noisy.dtype)  # (N, K, ...)
        size = off[0, 0].numel()
        log_density = -(off.square() / total).flatten(2).sum(2) / 2 - size / 2 * total.flatten(2)[..., 0].log()
        chosen = torch.nn.functional.one_hot(prompts.clamp(max=count - 1), count).to(noisy.dtype)
        shares = torch.where((prompts == count).unsqueeze(1), log_density.softmax(1), chosen)
        return (shares.view(*shares.shape, *[1] * (noisy.ndim - 1)) * spread * off / total).sum(1)


class NoisePredictor(nn.Module):
    """A network that predicts clean data or v, seen as one that predicts noise.

    Args:
        network: predicts as `kind` says.
        schedule: of the network.
        kind: what it predicts; the schedule's own word when not given.
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, *, kind: Prediction | None = None) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.kind: Prediction = kind or schedule.prediction

    @property
    def config(self) -> Any:
        """The config of the network, where it has one."""
        return getattr(self.network, "config", None)

    def forward(self, noisy: Tensor, timesteps: Tensor, prompts: Any) -> Tensor:
        """Predict the noise."""
        return self.schedule.noise(noisy, predict(self.network, noisy, timesteps, prompts), timesteps, self.kind)


def train_denoiser(
    network: nn.Module,
    samples: Tensor,
    prompts: Tensor,
    schedule: NoiseSchedule,
    *,
    null_prompt: Tensor,
    steps: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    null_probability: float = 0.1,
    ema_decay: float = 0.999,
    seed: int = 0,
) -> nn.Module:
    """Train a small diffusion network in memory, so that there is a teacher to start from.

    Minimises the mean of (eps(z_t, t, y) - n)^2 over uniform t with Adam and a cosine rate; a prompt becomes the null
    prompt with some probability, so that the teacher can be guided.

    Args:
        network: predicts noise; trained in place.
        samples: `(N, ...)`, scaled to about [-1, 1].
        prompts: of N rows.
        schedule: of the noise.
        null_prompt: one row that stands for no prompt.
        steps: optimizer steps.
        batch_size: samples per step, drawn with replacement.
        lr: highest learning rate.
        null_probability: of losing the prompt, per sample.
        ema_decay: of the averaged weights that are returned.
        seed: of the draws.

    Returns:
        The averaged network, in eval mode.
    """
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    average = EMA(network, decay=ema_decay, warmup=True)
    network.train()
    for step in range(steps):
        rows = torch.randint(len(samples), (batch_size,), generator=random)
        clean, wanted = samples[rows], prompts[rows]
        lost = torch.rand(batch_size, generator=random) < null_probability
        wanted = torch.where(lost.view(-1, *[1] * (wanted.ndim - 1)), null_prompt.to(wanted), wanted)
        timesteps = torch.randint(len(schedule), (batch_size,), generator=random)
        noise = torch.randn(clean.shape, generator=random)
        predicted = predict(network, schedule.add_noise(clean, noise, timesteps), timesteps, wanted)
        loss = (predicted - noise).square().mean()
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update()
    return average.module.eval()
