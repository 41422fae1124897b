"""How noise is mixed into data over time, and the three ways to say what a diffusion network predicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from stillroom.losses._shared import at_least_float32, check_same_shape

Prediction = Literal["epsilon", "sample", "v_prediction"]
"""What a network predicts, in the words of diffusers: the noise n, the data x, or v = sqrt(a) n - sqrt(1 - a) x."""


class NoiseSchedule:
    """Cumulative alphas of a diffusion: z_t = sqrt(a_t) x + sqrt(1 - a_t) n with n ~ N(0, I), t = 0 ... T - 1.

    It is no module and has no dtype to be cast: the table stays in float32 or wider, whatever becomes of the networks.
    Results are float32 or wider too.

    Args:
        alphas_cumprod: `(T,)` falling from nearly 1 to nearly 0, each in [0, 1].
        prediction: what networks of this schedule predict.

    Raises:
        ValueError: no falling table of numbers in [0, 1], or another word for the prediction.

    Example:
        >>> schedule = NoiseSchedule.scaled_linear()
        >>> round(float(schedule.alphas_cumprod[999]), 4)
        0.0047
        >>> x, n, t = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 10, 500, 900, 999])
        >>> z = schedule.add_noise(x, n, t)
        >>> torch.allclose(schedule.clean(z, n, t), x, atol=1e-4)
        True
    """

    def __init__(self, alphas_cumprod: Tensor, *, prediction: Prediction = "epsilon") -> None:
        if alphas_cumprod.ndim != 1 or not len(alphas_cumprod) or not alphas_cumprod.is_floating_point():
            raise ValueError(
                f"alphas_cumprod must be a float table (T,), given {tuple(alphas_cumprod.shape)} {alphas_cumprod.dtype}"
            )
        table = at_least_float32(alphas_cumprod.detach().cpu()).clone()
        if not bool(((table >= 0) & (table <= 1)).all()) or bool((table.diff() > 0).any()):
            raise ValueError(
                f"alphas_cumprod must fall within [0, 1], given values from {float(table[0]):.4g} to "
                f"{float(table[-1]):.4g}: pass cumulative products of alphas, not betas"
            )
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}, given {prediction!r}")
        self.alphas_cumprod = table
        self.prediction: Prediction = prediction
        self._tables: dict[torch.device, Tensor] = {}

    @classmethod
    def from_betas(cls, betas: Tensor, *, prediction: Prediction = "epsilon") -> NoiseSchedule:
        """Build a schedule from the variances that each step adds, `(T,)`."""
        return cls(torch.cumprod(1 - betas, dim=0), prediction=prediction)

    @classmethod
    def scaled_linear(cls, *, beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000) -> NoiseSchedule:
        """Square roots of the betas rise linearly: Stable Diffusion's schedule."""
        _check_betas(beta_start, beta_end, steps)
        return cls.from_betas(torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32) ** 2)

    @classmethod
    def linear(cls, *, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> NoiseSchedule:
        """Betas rise linearly: the schedule of the first diffusion models."""
        _check_betas(beta_start, beta_end, steps)
        return cls.from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float32))

    @classmethod
    def cosine(cls, *, steps: int = 1000, largest_beta: float = 0.999) -> NoiseSchedule:
        """The squared-cosine schedule of Nichol and Dhariwal 2021 (diffusers' "squaredcos_cap_v2")."""
        _check_betas(0.0, largest_beta, steps)

        def level(time: float) -> float:
            return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [min(1 - level((step + 1) / steps) / level(step / steps), largest_beta) for step in range(steps)]
        return cls.from_betas(torch.tensor(betas, dtype=torch.float32))

    @classmethod
    def of(cls, scheduler: Any) -> NoiseSchedule:
        """Take over the table (and the prediction type) of a diffusers scheduler; a `NoiseSchedule` stays itself.

        Raises:
            TypeError: the object has no `alphas_cumprod`.
        """
        if isinstance(scheduler, NoiseSchedule):
            return scheduler
        table = getattr(scheduler, "alphas_cumprod", None)
        if not isinstance(table, Tensor):
            raise TypeError(
                f"schedule must be a NoiseSchedule or a diffusers scheduler with alphas_cumprod (DDPMScheduler, "
                f"DDIMScheduler), given {type(scheduler).__name__}"
            )
        return cls(table, prediction=getattr(getattr(scheduler, "config", None), "prediction_type", "epsilon"))

    def __len__(self) -> int:
        """Return T, the number of steps."""
        return len(self.alphas_cumprod)

    def __repr__(self) -> str:
        first, last = float(self.alphas_cumprod[0]), float(self.alphas_cumprod[-1])
        return f"NoiseSchedule({len(self)} steps, alphas_cumprod {first:.4g} to {last:.4g}, predicts {self.prediction})"

    def at(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Cumulative alphas of some steps, shaped to multiply `like`.

        Args:
            timesteps: `(N,)` or a scalar, int64 in [0, T).
            like: `(N, ...)`; gives the device, the number of dimensions, and the dtype where it is wider than float32.
        """
        if timesteps.is_floating_point():
            raise ValueError(f"timesteps must be whole numbers of steps, given dtype {timesteps.dtype}")
        table = self._tables.get(like.device)
        if table is None:
            table = self._tables.setdefault(like.device, self.alphas_cumprod.to(like.device))
        found = table[timesteps.to(like.device)].to(at_least_float32(like).dtype)
        return found.view(-1, *[1] * (like.ndim - 1)) if found.ndim else found

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return z_t = sqrt(a_t) x + sqrt(1 - a_t) n."""
        check_same_shape(clean=clean, noise=noise)
        alphas = self.at(timesteps, clean)
        return alphas.sqrt() * clean + (1 - alphas).sqrt() * noise

    def clean(self, noisy: Tensor, predicted: Tensor, timesteps: Tensor, kind: Prediction = "epsilon") -> Tensor:
        """What a prediction says of the clean data x; from noise it is (z - sqrt(1 - a) n) / sqrt(a)."""
        return self._convert(noisy, predicted, timesteps, kind)[0]

    def noise(self, noisy: Tensor, predicted: Tensor, timesteps: Tensor, kind: Prediction = "sample") -> Tensor:
        """What a prediction says of the noise n; from clean data it is (z - sqrt(a) x) / sqrt(1 - a)."""
        return self._convert(noisy, predicted, timesteps, kind)[1]

    def velocity(self, noisy: Tensor, predicted: Tensor, timesteps: Tensor, kind: Prediction = "epsilon") -> Tensor:
        """What a prediction says of v = sqrt(a) n - sqrt(1 - a) x."""
        clean, noise = self._convert(noisy, predicted, timesteps, kind)
        alphas = self.at(timesteps, noisy)
        return alphas.sqrt() * noise - (1 - alphas).sqrt() * clean

    def _convert(self, noisy: Tensor, predicted: Tensor, timesteps: Tensor, kind: Prediction) -> tuple[Tensor, Tensor]:
        check_same_shape(noisy=noisy, predicted=predicted)
        noisy, predicted = at_least_float32(noisy), at_least_float32(predicted)
        alphas = self.at(timesteps, noisy)
        signal, spread = alphas.sqrt(), (1 - alphas).sqrt()
        if kind == "epsilon":
            return (noisy - spread * predicted) / signal, predicted
        if kind == "sample":
            return predicted, (noisy - signal * predicted) / spread
        if kind == "v_prediction":
            return signal * noisy - spread * predicted, spread * noisy + signal * predicted
        raise ValueError(f"kind must be one of {', '.join(get_args(Prediction))}, given {kind!r}")


def _check_betas(beta_start: float, beta_end: float, steps: int) -> None:
    if not 0 <= beta_start <= beta_end < 1:
        raise ValueError(f"betas must rise within [0, 1), given beta_start={beta_start} and beta_end={beta_end}")
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, given {steps}")


Network = Callable[[Tensor, Tensor, Any], Any]
"""`network(noisy, timesteps, prompts)`: a tensor, or what diffusers' networks return (`.sample`)."""


def predict(network: Network, noisy: Tensor, timesteps: Tensor, prompts: Any) -> Tensor:
    """Ask a diffusion network and take the tensor out of what it returns.

    Args:
        network: `network(noisy, timesteps, prompts)`, as diffusers' UNet2DConditionModel takes them.
        noisy: `(N, ...)`.
        timesteps: `(N,)`, int64.
        prompts: embeddings `(N, L, d)`, class numbers `(N,)`, or whatever the network takes.

    Returns:
        `(N, ...)`, float32 or wider.

    Raises:
        TypeError: the network returned no tensor.
        ValueError: it returned another shape than `noisy` has.
    """
    said = network(noisy, timesteps, prompts)
    found = getattr(said, "sample", said)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"a diffusion network must return a tensor (or have .sample), given {type(found).__name__}")
    if found.shape != noisy.shape:
        raise ValueError(
            f"the network answered with shape {tuple(found.shape)} to noisy data of shape {tuple(noisy.shape)}: its "
            "prediction must have the shape of its input (no learned variance)"
        )
    return at_least_float32(found)
