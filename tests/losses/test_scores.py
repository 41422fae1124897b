"""Prescribed gradients, variational score distillation, denoising."""

from __future__ import annotations

import pytest
import torch

from stillroom.losses import denoising_loss, prescribed_gradient_loss, vsd_loss

SHAPE = (3, 2, 4)


def test_the_gradient_is_what_was_prescribed():
    values, gradient = torch.randn(SHAPE).requires_grad_(), torch.randn(SHAPE)
    for reduction, factor in (("sum", 1.0), ("mean", 1 / 24)):
        loss = prescribed_gradient_loss(values, gradient, reduction=reduction)
        torch.testing.assert_close(loss, factor * 0.5 * gradient.square().sum())
        torch.testing.assert_close(torch.autograd.grad(3 * loss, values)[0], 3 * factor * gradient)
    assert prescribed_gradient_loss(values, gradient, reduction="none").shape == SHAPE


def test_the_prescribed_gradient_gets_none_itself():
    gradient = torch.randn(SHAPE).requires_grad_()
    prescribed_gradient_loss(torch.randn(SHAPE).requires_grad_(), gradient).backward()
    assert gradient.grad is None


def test_vsd_against_a_loop_in_float64():
    x = torch.randn(SHAPE, dtype=torch.float64).requires_grad_()
    teacher, second = torch.randn(SHAPE).double().requires_grad_(), torch.randn(SHAPE).double().requires_grad_()
    alphas = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
    value, expected = 0.0, torch.zeros(SHAPE, dtype=torch.float64)
    for n in range(3):
        for c in range(2):
            for i in range(4):
                push = float((1 - alphas[n]) * (teacher[n, c, i] - second[n, c, i]).detach())
                value += 0.5 * push**2 / 24
                expected[n, c, i] = push / 24
    loss = vsd_loss(x, teacher, second, alphas_cumprod=alphas)
    torch.testing.assert_close(loss, torch.tensor(value, dtype=torch.float64))
    found = torch.autograd.grad(3 * loss, (x, teacher, second), allow_unused=True)
    torch.testing.assert_close(found[0], 3 * expected)
    assert found[1] is None
    assert found[2] is None
    shaped = vsd_loss(x, teacher, second, alphas_cumprod=alphas.view(3, 1, 1))
    assert torch.equal(shaped, loss)


def test_vsd_of_equal_predictions_is_exactly_zero():
    x, said = torch.randn(SHAPE).requires_grad_(), torch.randn(SHAPE)
    loss = vsd_loss(x, said, said.clone(), alphas_cumprod=torch.full((3,), 0.3))
    assert float(loss.detach()) == 0
    assert float(torch.autograd.grad(loss, x)[0].abs().max()) == 0


def test_what_is_not_finite_counts_as_nothing_unless_it_is_all():
    x, teacher = torch.randn(SHAPE).requires_grad_(), torch.randn(SHAPE)
    alphas = torch.full((3,), 0.3)
    teacher[0, 0, 0] = torch.nan
    loss = vsd_loss(x, teacher, torch.zeros(SHAPE), alphas_cumprod=alphas)
    (gradient,) = torch.autograd.grad(loss, x)
    assert bool(loss.isfinite())
    assert float(gradient[0, 0, 0]) == 0
    torch.testing.assert_close(gradient[1], 0.7 * teacher[1] / 24)
    nothing = vsd_loss(x, torch.full(SHAPE, torch.nan), torch.zeros(SHAPE), alphas_cumprod=alphas)
    assert bool(nothing.isnan())


def test_denoising_by_hand():
    predicted, noise = torch.tensor([[1.0, 2.0], [0.0, 0.0]]).requires_grad_(), torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    loss = denoising_loss(predicted, noise, weights=torch.tensor([0.5, 2.0]))
    assert float(loss.detach()) == pytest.approx((0.5 * (1 + 4) + 2 * (9 + 1)) / 4)
    (gradient,) = torch.autograd.grad(3 * loss, predicted)
    torch.testing.assert_close(gradient, 3 * torch.tensor([[0.25, 0.5], [-3.0, -1.0]]))
    assert denoising_loss(predicted, noise, reduction="none").tolist() == [[1, 4], [9, 1]]
    assert denoising_loss(predicted, noise, reduction="sum").item() == 15


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: prescribed_gradient_loss(x, y),
        lambda x, y: vsd_loss(x, y, -y, alphas_cumprod=torch.full((3,), 0.4)),
        lambda x, y: denoising_loss(x, y, weights=torch.full((3,), 0.4)),
    ],
    ids=["prescribed", "vsd", "denoising"],
)
def test_they_are_computed_in_float32_under_autocast_and_for_half_inputs(loss):
    x, y = torch.randn(SHAPE), torch.randn(SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(x, y), loss(x, y))
    assert torch.equal(loss(x.bfloat16(), y), loss(x.bfloat16().float(), y))
    assert loss(x.double(), y.double()).dtype == torch.float64
    empty = torch.zeros(0, 2).requires_grad_()
    kept = prescribed_gradient_loss(empty, empty)
    assert float(kept.detach()) == 0
    kept.backward()


def test_shapes_that_differ_are_refused():
    x, y = torch.randn(3, 2), torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"values has shape \(3, 2\), but gradient has shape \(3, 4\)"):
        prescribed_gradient_loss(x, y)
    with pytest.raises(ValueError, match=r"teacher_noise has shape \(3, 4\)"):
        vsd_loss(x, y, x, alphas_cumprod=torch.ones(3))
    with pytest.raises(ValueError, match=r"second_noise has shape \(3, 4\)"):
        vsd_loss(x, x, y, alphas_cumprod=torch.ones(3))
    with pytest.raises(ValueError, match="2 numbers for 3 samples"):
        denoising_loss(x, x, weights=torch.ones(2))
