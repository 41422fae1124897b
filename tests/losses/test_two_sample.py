"""Discrepancies of two samples: against complex exponentials in NumPy, invariances, equality, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stillroom.losses import characteristic_function_discrepancy, mean_discrepancy


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def samples(dtype=torch.float64):
    return torch.randn(7, 4, dtype=dtype), torch.randn(9, 4, dtype=dtype) + 0.3, torch.randn(11, 4, dtype=dtype)


def test_equal_weights_of_1_give_the_distance_of_complex_means():
    features, target, frequencies = samples()

    def phi(points):
        return np.exp(1j * frequencies.numpy() @ points.numpy().T).mean(1)

    expected = np.abs(phi(target) - phi(features))
    found = characteristic_function_discrepancy(
        features, target, frequencies, amplitude_weight=1, phase_weight=1, reduction="none"
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(("amplitude", "phase"), [(0.5, 0.5), (0.999, 0.001), (0.0, 1.0), (1.0, 0.0)])
def test_weights_are_those_of_amplitude_and_angle(amplitude, phase):
    features, target, frequencies = samples()
    one, other = (np.exp(1j * frequencies.numpy() @ x.numpy().T).mean(1) for x in (features, target))
    angle = np.angle(one) - np.angle(other)
    expected = np.sqrt(
        amplitude * (abs(one) - abs(other)) ** 2 + phase * 2 * abs(one) * abs(other) * (1 - np.cos(angle))
    ).mean()
    found = characteristic_function_discrepancy(
        features, target, frequencies, amplitude_weight=amplitude, phase_weight=phase
    )
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_it_is_symmetric_and_blind_to_the_order_of_samples():
    features, target, frequencies = samples()
    value = characteristic_function_discrepancy(features, target, frequencies)
    torch.testing.assert_close(characteristic_function_discrepancy(target, features, frequencies), value)
    shuffled = characteristic_function_discrepancy(features.flip(0), target[torch.randperm(9)], frequencies)
    torch.testing.assert_close(shuffled, value)
    moved = characteristic_function_discrepancy(features + 1, target + 1, frequencies)
    torch.testing.assert_close(moved, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_samples_give_the_floor_of_the_phase_and_no_gradient(dtype):
    features, _, frequencies = samples(dtype)
    features.requires_grad_()
    value = characteristic_function_discrepancy(features, features.detach().clone(), frequencies, phase_weight=0.3)
    assert value.item() == pytest.approx(math.sqrt(0.3e-12), rel=1e-3)
    (gradient,) = torch.autograd.grad(3 * value, features)
    assert float(gradient.abs().max()) < 1e-9
    nothing = characteristic_function_discrepancy(features, features.detach(), frequencies, phase_weight=0)
    (gradient,) = torch.autograd.grad(nothing, features)
    assert nothing.item() == 0
    assert bool(gradient.isfinite().all())


def test_a_characteristic_function_of_0_has_a_finite_gradient():
    features = torch.zeros(2, 1, dtype=torch.float64)
    features[1] = torch.pi
    features.requires_grad_()
    value = characteristic_function_discrepancy(features, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value, features)
    assert value.item() == pytest.approx(math.sqrt(0.5), rel=1e-6)
    assert bool(gradient.isfinite().all())


def test_gradients_reach_the_features_and_the_frequencies_but_not_the_target():
    features, target, frequencies = (part.requires_grad_() for part in samples())
    (3 * characteristic_function_discrepancy(features, target, frequencies)).backward()
    assert target.grad is None
    assert float(features.grad.abs().sum()) > 0
    assert torch.autograd.gradcheck(
        lambda f, t: 3 * characteristic_function_discrepancy(f, target.detach(), t), (features, frequencies)
    )


def test_it_sees_a_shape_that_the_mean_cannot_see():
    one = torch.randn(4000, 1, dtype=torch.float64)
    other = one.sign()  # two points of mean and variance as the normal distribution's
    frequencies = torch.randn(64, 1, dtype=torch.float64)
    again = torch.randn(4000, 1, dtype=torch.float64)
    assert float(mean_discrepancy(one - one.mean(), other - other.mean())) < 1e-20
    far = characteristic_function_discrepancy(one, other, frequencies)
    near = characteristic_function_discrepancy(one, again, frequencies)
    assert float(far) > 4 * float(near)


def test_the_means_by_hand():
    features = torch.tensor([[0.0, 1.0], [2.0, 3.0]], requires_grad=True)
    target = torch.tensor([[4.0, 2.0]], requires_grad=True)
    assert mean_discrepancy(features, target, reduction="none").tolist() == [9.0, 0.0]
    (3 * mean_discrepancy(features, target, reduction="sum")).backward()
    assert features.grad.tolist() == [[-9.0, 0.0], [-9.0, 0.0]]
    assert target.grad is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.randn(3, 5)}, "features have 5 columns, but target_features have 4"),
        ({"frequencies": torch.randn(6, 5)}, r"frequencies must have shape \(K, 4\).*given \(6, 5\)"),
        ({"frequencies": torch.randn(0, 4)}, r"given \(0, 4\)"),
        ({"features": torch.randn(0, 4)}, r"features is an empty sample of shape \(0, 4\)"),
        ({"target_features": torch.randn(0, 4)}, r"target_features is an empty sample of shape \(0, 4\)"),
        ({"features": torch.randn(3, 4, 2)}, r"features must have shape \(N, D\), given \(3, 4, 2\)"),
        ({"amplitude_weight": -0.5}, "amplitude_weight must be a number of 0 or more, given -0.5"),
        ({"phase_weight": -1}, "phase_weight must be a number of 0 or more, given -1"),
        ({"amplitude_weight": 0, "phase_weight": 0}, "both 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, message):
    given = {
        "features": torch.randn(3, 4),
        "target_features": torch.randn(2, 4),
        "frequencies": torch.randn(6, 4),
    } | changes
    with pytest.raises(ValueError, match=message):
        characteristic_function_discrepancy(**given)
