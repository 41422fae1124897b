"""The small network, the exact ones, views of other predictions, and training a teacher."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.blocks.diffusion import GaussianNoise, NoiseMLP, NoisePredictor, NoiseSchedule, predict, train_denoiser


def test_the_small_network_sees_time_class_and_data():
    network = NoiseMLP((2, 3), classes=4, width=16)
    noisy, times, classes = torch.randn(5, 2, 3), torch.full((5,), 500), torch.full((5,), 1)
    assert torch.equal(network(noisy, times, classes), noisy)  # as built it says that all is noise
    nn.init.normal_(network.head.weight)
    before = network(noisy, times, classes)
    assert before.shape == noisy.shape
    assert not torch.allclose(before, network(noisy, times + 1, classes))
    assert not torch.allclose(before, network(noisy, times, classes + 1))
    assert network.null_prompt == 4
    assert network(noisy, times, torch.full((5,), 4)).isfinite().all()
    with pytest.raises(ValueError, match=r"class numbers \(5,\), given \(5, 2\)"):
        network(noisy, times, torch.zeros(5, 2))
    with pytest.raises(ValueError, match="given 0, 4 and 16"):
        NoiseMLP((2,), 4, width=16, depth=0)


def posterior_noise(z, alpha, means, variances):
    """E[n | z] of an equal mixture, by summing over a fine grid of x (one dimension)."""
    x = torch.linspace(-20, 20, 40001, dtype=torch.float64)
    prior = sum(torch.exp(-((x - m) ** 2) / (2 * v)) / v**0.5 for m, v in zip(means, variances, strict=True))
    weights = prior * torch.exp(-((z - alpha**0.5 * x) ** 2) / (2 * (1 - alpha)))
    mean = (weights * x).sum() / weights.sum()
    return (z - alpha**0.5 * mean) / (1 - alpha) ** 0.5


@pytest.mark.parametrize("prompt", [0, 1, 2])
def test_exact_noise_is_the_posterior_mean(prompt):
    schedule = NoiseSchedule.scaled_linear()
    means, variances = [1.5, -2.0], [0.3, 1.2]
    exact = GaussianNoise(
        torch.tensor(means, dtype=torch.float64).view(2, 1), torch.tensor(variances).double(), schedule=schedule
    )
    times, z = torch.tensor([50, 400, 900]), torch.tensor([[0.4], [-0.7], [1.1]], dtype=torch.float64)
    found = exact(z, times, torch.full((3,), prompt))
    chosen = slice(None) if prompt == exact.null_prompt else slice(prompt, prompt + 1)
    for row in range(3):
        alpha = float(schedule.alphas_cumprod[times[row]])
        expected = posterior_noise(float(z[row]), alpha, means[chosen], variances[chosen])
        assert float(found[row]) == pytest.approx(float(expected), abs=1e-6)


def test_variances_must_be_positive_and_one_per_mean():
    with pytest.raises(ValueError, match="2 numbers above 0"):
        GaussianNoise(torch.zeros(2, 3), torch.tensor([1.0, 0.0]), schedule=NoiseSchedule.scaled_linear())


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_other_predictions_are_seen_as_noise(kind):
    schedule = NoiseSchedule(NoiseSchedule.scaled_linear().alphas_cumprod, prediction=kind)
    clean, noise, times = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([10, 500, 900])
    said = clean if kind == "sample" else schedule.velocity(schedule.add_noise(clean, noise, times), noise, times)

    class Says(nn.Module):
        def forward(self, noisy, timesteps, prompts):
            return said

    noisy = schedule.add_noise(clean, noise, times)
    for view in (NoisePredictor(Says(), schedule), NoisePredictor(Says(), NoiseSchedule.scaled_linear(), kind=kind)):
        torch.testing.assert_close(predict(view, noisy, times, None), noise, rtol=1e-3, atol=2e-3)


def test_a_teacher_learns_the_noise_of_two_gaussians():
    schedule = NoiseSchedule.scaled_linear()
    labels = torch.arange(400) % 2
    samples = torch.randn(400, 2) * 0.3 + torch.tensor([[1.0, 1.0], [-1.0, 0.0]])[labels]
    network = NoiseMLP((2,), 2, width=32)
    made = train_denoiser(network, samples, labels, schedule, null_prompt=torch.tensor(2), steps=300, lr=5e-3)
    exact = GaussianNoise(torch.tensor([[1.0, 1.0], [-1.0, 0.0]]), torch.full((2,), 0.09), schedule=schedule)
    assert not made.training
    for prompts in (labels, torch.full((400,), 2)):
        times = torch.full((400,), 600)
        noisy = schedule.add_noise(samples, torch.randn(400, 2), times)
        off = (predict(made, noisy, times, prompts) - exact(noisy, times, prompts)).square().mean()
        assert float(off) < 0.05, float(off)
