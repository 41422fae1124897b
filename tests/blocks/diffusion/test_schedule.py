"""Noise schedules: equal to diffusers', conversions that undo each other, refusals."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from stillroom.blocks.diffusion import NoiseSchedule, predict

SCALED = {"beta_start": 0.00085, "beta_end": 0.012}
TIMES = torch.tensor([0, 20, 500, 980, 999])


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (NoiseSchedule.scaled_linear(), {"beta_schedule": "scaled_linear", **SCALED}),
        (NoiseSchedule.linear(), {"beta_schedule": "linear"}),
        (NoiseSchedule.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
        (
            NoiseSchedule.linear(beta_start=0.01, beta_end=0.3, steps=20),
            {"beta_schedule": "linear", "beta_start": 0.01, "beta_end": 0.3, "num_train_timesteps": 20},
        ),
    ],
    ids=["scaled-linear", "linear", "cosine", "short"],
)
def test_it_is_the_schedule_of_diffusers(made, options):
    scheduler = DDPMScheduler(**options)
    torch.testing.assert_close(made.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-6, atol=0)
    assert len(made) == len(scheduler.alphas_cumprod)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_one_built_from_a_scheduler_has_its_table_noise_and_velocity(kind, prediction):
    scheduler = kind(beta_schedule="scaled_linear", prediction_type=prediction, **SCALED)
    schedule = NoiseSchedule.of(scheduler)
    assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod)
    assert schedule.prediction == prediction
    assert NoiseSchedule.of(schedule) is schedule
    clean, noise = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    noisy = schedule.add_noise(clean, noise, TIMES)
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, TIMES))
    torch.testing.assert_close(
        schedule.velocity(noisy, noise, TIMES), scheduler.get_velocity(clean, noise, TIMES), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_every_prediction_gives_clean_noise_and_velocity_back(kind):
    schedule = NoiseSchedule(NoiseSchedule.scaled_linear().alphas_cumprod.double())
    clean, noise = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    noisy = schedule.add_noise(clean, noise, TIMES)
    signal, spread = schedule.at(TIMES, clean).sqrt(), (1 - schedule.at(TIMES, clean)).sqrt()
    velocity = signal * noise - spread * clean
    said = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[kind]
    torch.testing.assert_close(schedule.clean(noisy, said, TIMES, kind), clean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.noise(noisy, said, TIMES, kind), noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.velocity(noisy, said, TIMES, kind), velocity, rtol=1e-9, atol=1e-9)


def test_the_table_stays_wide_whatever_becomes_of_the_networks():
    schedule = NoiseSchedule.scaled_linear()
    half = torch.randn(5, 3).bfloat16()
    assert schedule.at(TIMES, half).dtype == torch.float32
    assert schedule.at(TIMES, half).shape == (5, 1)
    assert schedule.at(torch.tensor(3), half).shape == ()
    assert schedule.at(TIMES, half.double()).dtype == torch.float64
    assert schedule.add_noise(half, half, TIMES).dtype == torch.float32
    for twin in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert torch.equal(twin.alphas_cumprod, schedule.alphas_cumprod)
    assert repr(schedule) == "NoiseSchedule(1000 steps, alphas_cumprod 0.9991 to 0.00466, predicts epsilon)"


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"float table \(T,\), given \(2, 2\)"):
        NoiseSchedule(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"must fall within \[0, 1\], given values from 0.1 to 0.5"):
        NoiseSchedule(torch.linspace(0.1, 0.5, 5))
    with pytest.raises(ValueError, match="given 'noise'"):
        NoiseSchedule(torch.tensor([0.5]), prediction="noise")
    with pytest.raises(TypeError, match="given int"):
        NoiseSchedule.of(3)
    with pytest.raises(ValueError, match=r"beta_start=0\.5 and beta_end=0\.1"):
        NoiseSchedule.linear(beta_start=0.5, beta_end=0.1)
    with pytest.raises(ValueError, match="steps must be 1 or more, given 0"):
        NoiseSchedule.cosine(steps=0)
    schedule = NoiseSchedule.scaled_linear()
    with pytest.raises(ValueError, match=r"whole numbers of steps, given dtype torch.float32"):
        schedule.at(torch.tensor([0.5]), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"noisy has shape \(5, 2\), but predicted has shape \(5, 3\)"):
        schedule.clean(torch.zeros(5, 2), torch.zeros(5, 3), TIMES)
    with pytest.raises(ValueError, match="given 'score'"):
        schedule.clean(torch.zeros(5, 2), torch.zeros(5, 2), TIMES, "score")


class Said(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, noisy, timesteps, prompts):
        return self.wrap(2 * noisy)


def test_predict_takes_tensors_samples_and_tuples():
    noisy, times = torch.randn(2, 3), torch.tensor([1, 2])
    for wrap in (lambda x: x, lambda x: (x, None), lambda x: type("Output", (), {"sample": x})()):
        assert torch.equal(predict(Said(wrap), noisy, times, times), 2 * noisy)
    assert predict(Said(lambda x: x), noisy.bfloat16(), times, times).dtype == torch.float32
    with pytest.raises(TypeError, match="given str"):
        predict(Said(lambda x: "x"), noisy, times, times)
    with pytest.raises(ValueError, match=r"shape \(2, 6\) to noisy data of shape \(2, 3\)"):
        predict(Said(lambda x: torch.cat([x, x], 1)), noisy, times, times)
