"""Guidance, DDIM and the one-step generator."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import nn

from stillroom.blocks.diffusion import (
    GaussianNoise,
    NoiseMLP,
    NoisePredictor,
    NoiseSchedule,
    OneStepGenerator,
    ddim_sample,
    ddim_timesteps,
    guided,
    guided_prediction,
    paint,
    shape_of,
)


def network(shape=(6,), classes=3):
    made = NoiseMLP(shape, classes, width=16)
    nn.init.normal_(made.head.weight, std=0.2)
    return made


def test_guidance_by_hand():
    c, u = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert guided(c, u, 3.0).tolist() == [3.0, -2.0]
    assert torch.equal(guided(c, u, 0.0), u)
    assert torch.equal(guided(c, u, 1.0), c)
    with pytest.raises(ValueError, match="finite number, given nan"):
        guided(c, u, math.nan)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5, -1.0])
def test_one_doubled_call_is_two_single_ones(scale):
    net, noisy, times, prompts = network(), torch.randn(5, 6), torch.arange(5) * 100, torch.arange(5) % 3
    null = torch.tensor(3)
    found = guided_prediction(net, noisy, times, prompts, null_prompt=null, scale=scale)
    expected = guided(net(noisy, times, prompts), net(noisy, times, torch.full((5,), 3)), scale)
    torch.testing.assert_close(found, expected)


def test_guidance_takes_nested_prompts():
    class Nested(nn.Module):
        def forward(self, noisy, timesteps, prompts):
            return noisy + prompts["text"].sum((1, 2)).unsqueeze(1) + prompts["more"][0]

    noisy, times = torch.randn(2, 4), torch.tensor([3, 4])
    prompts = {"text": torch.ones(2, 3, 5), "more": [torch.ones(2, 4)]}
    null = {"text": torch.zeros(3, 5), "more": [torch.zeros(4)]}
    found = guided_prediction(Nested(), noisy, times, prompts, null_prompt=null, scale=2.0)
    torch.testing.assert_close(found, noisy + 2 * 16)


def test_prompts_unlike_the_null_prompt_are_refused():
    with pytest.raises(ValueError, match=r"prompts have shape \(2, 4, 5\).*null prompt has shape \(3, 5\)"):
        guided_prediction(
            network(),
            torch.randn(2, 6),
            torch.ones(2).long(),
            torch.ones(2, 4, 5),
            null_prompt=torch.ones(3, 5),
            scale=2,
        )


@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_is_that_of_diffusers(steps, prediction):
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        clip_sample=False,
        prediction_type=prediction,
    )
    net, prompts, latents = network().double(), torch.tensor([0, 1, 2]), torch.randn(3, 6, dtype=torch.float64)
    found = ddim_sample(net, NoiseSchedule.of(scheduler), prompts, latents, steps=steps)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == ddim_timesteps(NoiseSchedule.of(scheduler), steps)
    expected = latents
    with torch.no_grad():
        for time in scheduler.timesteps:
            expected = scheduler.step(net(expected, time.expand(3), prompts), time, expected).prev_sample
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_ddim_with_exact_noise_samples_the_gaussian():
    schedule = NoiseSchedule.scaled_linear()
    exact = GaussianNoise(torch.tensor([[2.0, -1.0], [-3.0, 0.0]]), torch.tensor([0.25, 1.0]), schedule=schedule)
    found = ddim_sample(exact, schedule, torch.zeros(4000).long(), torch.randn(4000, 2), steps=100)
    torch.testing.assert_close(found.mean(0), torch.tensor([2.0, -1.0]), atol=0.15, rtol=0)
    torch.testing.assert_close(found.std(0), torch.tensor([0.5, 0.5]), atol=0.05, rtol=0)


def test_steps_outside_the_schedule_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 1000\], given 0"):
        ddim_timesteps(NoiseSchedule.scaled_linear(), 0)
    assert ddim_timesteps(NoiseSchedule.scaled_linear(), 1) == [999]
    assert ddim_timesteps(NoiseSchedule.scaled_linear(steps=10), 3) == [9, 6, 2]


class Oracle(nn.Module):
    """Knows x; says the noise, plus `shift`."""

    def __init__(self, clean, alpha, shift):
        super().__init__()
        self.clean, self.alpha, self.shift = clean, alpha, shift

    def forward(self, noisy, timesteps, prompts):
        return (noisy - math.sqrt(self.alpha) * self.clean) / math.sqrt(1 - self.alpha) + self.shift


def test_an_oracle_gives_the_clean_sample_and_an_error_is_amplified():
    clean, z = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    shift = torch.randn(4, 3, dtype=torch.float64)
    found = {}
    for name, off in (("exact", 0 * shift), ("shifted", shift)):
        generator = OneStepGenerator(Oracle(clean, 0.0047, off), (3,), alpha_cumprod=0.0047)
        found[name] = generator(torch.zeros(4).long(), z)
    torch.testing.assert_close(found["exact"], clean, rtol=0, atol=1e-9)
    expected = clean - math.sqrt(1 - 0.0047) / math.sqrt(0.0047) * shift
    torch.testing.assert_close(found["shifted"], expected, rtol=0, atol=1e-9)


def test_one_step_is_ddim_in_one_step():
    schedule, net, z = NoiseSchedule.scaled_linear(), network(), torch.randn(3, 6)
    generator = OneStepGenerator(net, (6,), alpha_cumprod=float(schedule.alphas_cumprod[-1]))
    prompts = torch.tensor([0, 1, 2])
    torch.testing.assert_close(generator(prompts, z), ddim_sample(net, schedule, prompts, z, steps=1))


def test_the_line_is_computed_in_float32_under_autocast_and_in_half_precision():
    generator = OneStepGenerator(network(), (6,), alpha_cumprod=0.0047)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generator(torch.tensor([0, 1])).dtype == torch.float32
    half = OneStepGenerator(network().bfloat16(), (6,), alpha_cumprod=0.0047)
    assert half(torch.tensor([0, 1])).dtype == torch.float32
    assert half.noise(torch.tensor([0, 1])).dtype == torch.bfloat16


def test_noise_is_repeatable_and_of_unit_variance():
    generator = OneStepGenerator(network(), (6,), alpha_cumprod=0.0047)
    prompts = torch.zeros(5000).long()
    first, second = (generator.noise(prompts, random=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert abs(float(first.std()) - 1) < 0.02


def test_a_picture_is_decoded_from_scaled_latents():
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    generator = OneStepGenerator(network((4, 4, 4)), (4, 4, 4), alpha_cumprod=0.0047)
    prompts, z = torch.tensor([0, 2]), torch.randn(2, 4, 4, 4)
    factor = vae.config.scaling_factor
    pictures = paint(generator, prompts, decode=vae.decode, scaling_factor=factor, latents=z)
    assert pictures.shape == (2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(pictures, vae.decode(generator(prompts, z) / factor).sample)
        assert torch.equal(paint(generator, prompts, latents=z), generator(prompts, z))
    with pytest.raises(ValueError, match="scaling_factor must be a number above 0, given 0"):
        paint(generator, prompts, scaling_factor=0)


def test_generators_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"\(0, 1\], given 0"):
        OneStepGenerator(network(), (6,), alpha_cumprod=0.0)
    with pytest.raises(ValueError, match="NoiseMLP has no config with in_channels and sample_size: pass shape="):
        OneStepGenerator(network(), alpha_cumprod=0.0047)


def test_a_shape_is_read_off_a_config():
    class Configured(nn.Module):
        config = type("Config", (), {"in_channels": 4, "sample_size": 8})()

    schedule = NoiseSchedule.scaled_linear()
    assert shape_of(Configured()) == (4, 8, 8)
    assert shape_of(NoisePredictor(Configured(), schedule)) == (4, 8, 8)
