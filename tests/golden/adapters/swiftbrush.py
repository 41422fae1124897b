"""Adapters of the vectors of SwiftBrush's losses, its one-step sample and its noise schedule."""

from __future__ import annotations

from torch import nn

from stillroom import losses
from stillroom.blocks.diffusion import NoiseSchedule, OneStepGenerator, guided


class Stub(nn.Module):
    """eps = a z + b t / 1000."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, noisy, timesteps, prompts):
        return self.a * noisy + self.b * timesteps.to(noisy).view(-1, *[1] * (noisy.ndim - 1)) / 1000


def vsd_loss(inputs, params):
    scale = params["guidance_scale"]
    loss = losses.vsd_loss(
        inputs["x"],
        guided(inputs["teacher_cond"].double(), inputs["teacher_uncond"].double(), scale),
        guided(inputs["lora_cond"].double(), inputs["lora_uncond"].double(), scale),
        alphas_cumprod=inputs["alphas_cumprod_t"].double(),
    )
    return {"loss": loss}


def lora_teacher_loss(inputs, params):
    weights = inputs["alphas_cumprod_t"].double()
    return {"loss": losses.denoising_loss(inputs["eps_lora"].double(), inputs["noise"].double(), weights=weights)}


def one_step_sample(inputs, params):
    z = inputs["z"].float()  # as the vectors were made: divided by sqrt(a), the rounding of float32 shows

    stub = Stub(params["a"], params["b"])
    generator = OneStepGenerator(stub, z.shape[1:], alpha_cumprod=params["abar_T"], timestep=params["t"])
    return {"x": generator(z.new_zeros(len(z)), z)}


def noise_schedule(inputs, params):
    betas = {name: params[name] for name in ("beta_start", "beta_end") if name in params}
    steps = params["T"]
    kinds = {
        "scaled_linear": lambda: NoiseSchedule.scaled_linear(steps=steps, **betas),
        "linear": lambda: NoiseSchedule.linear(steps=steps, **betas),
        "squaredcos_cap_v2": lambda: NoiseSchedule.cosine(steps=steps),
    }
    schedule = kinds[params["beta_schedule"]]()
    return {"alphas_cumprod": schedule.alphas_cumprod[inputs["t"]]}
