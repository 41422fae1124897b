"""Measures of generators against closed forms and loops, and the task that uses them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.data.batch import Batch
from stillroom.task import Generation, Reference, coverage, frechet_distance, picture_scores, variance_ratio


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(40_000, 3, generator=generator, dtype=torch.float64)
    scale, shift = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.0, 3.0, -1.0]).double()
    made = torch.randn(40_000, 3, generator=generator, dtype=torch.float64) * scale + shift
    expected = float(shift.square().sum() + (1 - scale).square().sum())
    assert frechet_distance(real, made) == pytest.approx(expected, rel=0.02)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(real, made) == pytest.approx(frechet_distance(made, real), rel=1e-6)


def test_the_frechet_distance_is_that_of_scipy():
    from scipy.linalg import sqrtm

    real, made = torch.randn(50, 4).double() @ torch.randn(4, 4).double(), torch.randn(60, 4).double()
    first, second = real.T.cov(), made.T.cov()
    root = torch.from_numpy(sqrtm((first @ second).numpy()).real)
    expected = (real.mean(0) - made.mean(0)).square().sum() + (first + second - 2 * root).trace()
    assert frechet_distance(real, made) == pytest.approx(float(expected), rel=1e-6)


def test_coverage_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    # distance to the first neighbour: 1, 1, 1, 8
    assert coverage(real, torch.tensor([[0.1]]), neighbours=1) == 0.5  # 0 and 1 are nearer than 1 to it
    assert coverage(real, torch.tensor([[0.1], [15.0]]), neighbours=1) == 0.75
    assert coverage(real, torch.tensor([[0.5]]), neighbours=3) == 1.0  # third neighbours are 10, 9, 8 and 10 away
    assert coverage(real, real, neighbours=1) == 1.0
    assert coverage(real, torch.tensor([[100.0]]), neighbours=1) == 0.0


def test_the_variance_within_classes_ignores_where_classes_lie():
    labels = torch.arange(200) % 4
    real = torch.randn(200, 5)
    moved = 0.5 * real + 100 * torch.randn(4, 1)[labels]
    assert variance_ratio(real, labels, moved, labels) == pytest.approx(0.25, rel=1e-3)
    averages = torch.stack([real[labels == k].mean(0) for k in range(4)])[labels]
    assert variance_ratio(real, labels, averages, labels) == pytest.approx(0, abs=1e-9)


def test_vectors_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"given \(5, 3\) and \(5, 2\)"):
        frechet_distance(torch.randn(5, 3), torch.randn(5, 2))
    with pytest.raises(ValueError, match="2 vectors or more of each, given 5 and 1"):
        frechet_distance(torch.randn(5, 3), torch.randn(1, 3))
    with pytest.raises(ValueError, match=r"\[1, 4\].*given 5"):
        coverage(torch.randn(5, 3), torch.randn(5, 3), neighbours=5)
    with pytest.raises(ValueError, match="no class has two vectors"):
        variance_ratio(torch.randn(2, 3), torch.arange(2), torch.randn(2, 3), torch.arange(2))


def clusters(count=120):
    labels = torch.arange(count) % 3
    return 0.3 * torch.randn(count, 1, 2, 2) + 2 * labels.view(-1, 1, 1, 1), labels


def test_a_reference_sees_wrong_classes_and_lost_variety():
    images, labels = clusters()
    reference = Reference(*clusters(), images, labels)
    good = reference.measure(*clusters())
    assert good["accuracy"] > 0.95
    assert good["coverage"] > 0.9
    assert good["variance_ratio"] == pytest.approx(1, abs=0.3)
    wrong = reference.measure(clusters()[0], labels.roll(1))
    assert wrong["accuracy"] < 0.1
    averages = torch.stack([images[labels == k].mean(0) for k in range(3)])[labels]
    vacuous = reference.measure(averages, labels)
    assert vacuous["accuracy"] == 1.0
    assert vacuous["variance_ratio"] < 1e-6
    assert vacuous["coverage"] < 0.5
    assert set(reference.measure(images, None)) == {"frechet_distance", "coverage"}


class Painter(nn.Module):
    def forward(self, prompts):
        return 0.3 * torch.randn(len(prompts), 1, 2, 2) + 2 * prompts.view(-1, 1, 1, 1)


def test_the_task_measures_a_generator_with_the_same_noise_each_time():
    task = Generation(reference=Reference(*clusters(), *clusters()), seed=4)
    prompts = torch.arange(60) % 3
    batches = [Batch(prompts[:30], prompts[:30]), Batch(prompts[30:], prompts[30:])]
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    first, second = task.evaluate(Painter(), batches), task.evaluate(Painter(), batches)
    assert first == second
    assert torch.equal(torch.rand(3), expected)  # and takes nothing from anybody's random numbers
    assert first["accuracy"] > 0.9
    assert not task.higher_is_better
    assert not task.needs_labels


def test_the_task_says_what_it_lacks():
    with pytest.raises(ValueError, match="pass reference="):
        Generation().meter(None)
    with pytest.raises(TypeError, match="no supervised loss"):
        Generation().supervised_loss(torch.zeros(2, 2), torch.zeros(2))
    assert Generation().width(None) is None


class Mean(nn.Module):
    num_features = 3

    def forward(self, pictures):
        return pictures.mean((2, 3))


def test_pictures_are_scored_batch_by_batch():
    real, made = torch.rand(40, 3, 4, 4), 0.5 * torch.rand(40, 3, 4, 4)
    found = picture_scores(((part, ["x"] * 10) for part in made.split(10)), real.split(10), feature=Mean(), clip="")
    assert found["fid"] == pytest.approx(frechet_distance(real.mean((2, 3)), made.mean((2, 3))), rel=1e-3)
