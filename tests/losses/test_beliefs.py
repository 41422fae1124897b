"""Penalties on probabilities: values by hand, gradients, refusals."""

import math

import pytest
import torch

from stillroom.losses import negative_entropy, prior_penalty


def test_the_prior_penalty_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.7, 0.3]], dtype=torch.float64, requires_grad=True)
    loss = prior_penalty(p)
    (gradient,) = torch.autograd.grad(3 * loss, p)
    assert float(loss.detach()) == pytest.approx(0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2))
    expected = torch.tensor([[-0.5 / 0.8 / 2, -0.5 / 0.2 / 2]] * 2, dtype=torch.float64)
    torch.testing.assert_close(gradient, 3 * expected)


def test_a_batch_that_uses_all_classes_is_not_penalised():
    assert float(prior_penalty(torch.eye(4))) == pytest.approx(0)
    assert float(prior_penalty(torch.eye(4)[:1])) > 10
    prior = torch.tensor([0.75, 0.25])
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert float(prior_penalty(rows, prior=prior)) == pytest.approx(0)
    assert float(prior_penalty(rows)) > 0.1


def test_the_negative_entropy_lies_between_its_bounds():
    assert float(negative_entropy(torch.full((3, 4), 0.25))) == pytest.approx(-math.log(4))
    assert float(negative_entropy(torch.eye(4))) == 0
    p = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(3 * negative_entropy(p), p)
    torch.testing.assert_close(gradient, 3 * (p.detach().log() + 1))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"of 1 or more samples and 2 or more classes, given \(0, 3\)"):
        prior_penalty(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"2 or more classes, given \(5,\)"):
        negative_entropy(torch.zeros(5))
    with pytest.raises(ValueError, match=r"each of 3 classes, given \(2,\)"):
        prior_penalty(torch.ones(2, 3) / 3, prior=torch.tensor([0.5, 0.5]))
