"""One bilevel step: hypergradients by three ways, and a network that stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.bilevel import At, hypergradient, look_ahead, own_weights, weight_hypergradient
from tests.systems.classification.toys import ConvNet

RATE = 0.3


class Problem:
    """A network, training samples with a target each, held-out samples, and weights of the samples."""

    def __init__(self, network, inputs=(6, 5), classes=3):
        draw = torch.Generator().manual_seed(4)
        self.network = network
        self.inputs, self.held = (
            torch.rand(rows, *inputs[1:], generator=draw, dtype=torch.float64) for rows in (inputs[0], 4)
        )
        self.labels, self.held_labels = torch.arange(inputs[0]) % classes, torch.arange(4) % classes
        self.soft = torch.rand(inputs[0], classes, generator=draw, dtype=torch.float64).softmax(1)
        self.weights = torch.rand(inputs[0], generator=draw, dtype=torch.float64)

    def weighed(self, at):
        logits = at(self.inputs)
        hard = F.cross_entropy(logits, self.labels, reduction="none")
        soft = F.cross_entropy(logits, self.soft, reduction="none")
        return hard.mean(), (soft - hard) / len(self.labels)

    def lower(self, weights):
        def loss(at):
            base, terms = self.weighed(at)
            return base + (weights * terms).sum()

        return loss

    def upper(self, at):
        return F.cross_entropy(at(self.held), self.held_labels)

    def after_a_step(self, weights):
        """The held-out loss after a step of torch's own SGD."""
        network = copy.deepcopy(self.network)
        optimizer = torch.optim.SGD(network.parameters(), RATE)
        self.lower(weights)(network).backward()
        optimizer.step()
        return float(self.upper(network).detach())


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def problems():
    torch.manual_seed(0)
    return {
        "mlp": Problem(mlp()),
        "batch norm": Problem(ConvNet(2, 3).double(), (6, 1, 8, 8)),
        "batch norm, evaluated": Problem(ConvNet(2, 3).double().eval(), (6, 1, 8, 8)),
    }


@pytest.mark.parametrize("name", ["mlp", "batch norm", "batch norm, evaluated"])
def test_three_ways_to_the_hypergradient_agree(name):
    problem = problems()[name]
    weights = problem.weights.clone().requires_grad_()
    forward = weight_hypergradient(problem.network, problem.weighed, problem.upper, weights, rate=RATE)
    through = hypergradient(problem.network, problem.lower(weights), problem.upper, [weights], rate=RATE)
    torch.testing.assert_close(forward.gradients[0], through.gradients[0], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(forward.value, through.value)
    assert float(forward.value) == pytest.approx(problem.after_a_step(problem.weights), rel=1e-10)
    for row in range(len(weights)):
        nudge = 1e-5 * F.one_hot(torch.tensor(row), len(weights))
        up, down = (problem.after_a_step(problem.weights + sign * nudge) for sign in (1, -1))
        assert float(forward.gradients[0][row]) == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-9)
    assert float(forward.gradients[0].abs().min()) > 1e-6


def test_the_gradient_is_the_agreement_of_a_terms_gradient_with_the_held_out_one():
    problem = problems()["mlp"]
    found = weight_hypergradient(problem.network, problem.weighed, problem.upper, problem.weights, rate=RATE)
    here = own_weights(problem.network)
    ahead = look_ahead(problem.network, problem.lower(problem.weights), rate=RATE)
    parameters = list(here.parameters.values())
    held = torch.autograd.grad(problem.upper(ahead), list(ahead.parameters.values()))
    for row in range(len(problem.weights)):
        own = torch.autograd.grad(problem.weighed(here)[1][row], parameters)
        agreement = sum(float((one * other).sum()) for one, other in zip(own, held, strict=True))
        assert float(found.gradients[0][row]) == pytest.approx(-RATE * agreement)


def test_weights_of_loss_terms_and_a_network_that_makes_weights_have_hypergradients():
    problem = problems()["mlp"]
    meta = nn.Linear(5, 1).double()

    def lower(at):
        return (meta(problem.inputs).sigmoid().squeeze(1) * F.cross_entropy(at(problem.inputs), problem.labels)).mean()

    variables = list(meta.parameters())
    through = hypergradient(problem.network, lower, problem.upper, variables, rate=RATE)
    shares = meta(problem.inputs).sigmoid().squeeze(1)

    def weighed(at):
        loss = F.cross_entropy(at(problem.inputs), problem.labels)
        return torch.zeros_like(loss), loss.expand(len(shares)) / len(shares)

    attached = weight_hypergradient(problem.network, weighed, problem.upper, shares, rate=RATE)
    by_weights = torch.autograd.grad(3 * attached.attach(shares), variables)
    for one, other in zip(by_weights, through.gradients, strict=True):
        torch.testing.assert_close(one, 3 * other)
    two = torch.tensor([0.3, 0.7], dtype=torch.float64)

    def terms(at):
        logits = at(problem.inputs)
        both = torch.stack([F.cross_entropy(logits, problem.labels), logits.square().mean()])
        return torch.zeros((), dtype=both.dtype), both

    assert weight_hypergradient(problem.network, terms, problem.upper, two, rate=RATE).gradients[0].shape == (2,)


@pytest.mark.parametrize("way", ["forward", "through"])
def test_the_network_stays_as_it_is(way):
    problem = problems()["batch norm"]
    before = {name: value.clone() for name, value in problem.network.state_dict().items()}
    weights = problem.weights.clone().requires_grad_()
    if way == "forward":
        weight_hypergradient(problem.network, problem.weighed, problem.upper, weights, rate=RATE)
    else:
        hypergradient(problem.network, problem.lower(weights), problem.upper, [weights], rate=RATE)
    for name, value in problem.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in problem.network.parameters())
    problem.network(problem.inputs)  # what the test would have noticed
    assert not torch.equal(problem.network.stage1[1].running_mean, before["stage1.1.running_mean"])


def test_both_passes_over_the_training_loss_drop_the_same_units():
    network = nn.Sequential(nn.Linear(5, 30), nn.Dropout(0.5), nn.Linear(30, 3)).double()
    problem = Problem(network)
    weights = problem.weights.clone().requires_grad_()
    torch.manual_seed(3)
    forward = weight_hypergradient(network, problem.weighed, problem.upper, weights, rate=RATE)
    after = torch.rand(1)
    torch.manual_seed(3)
    through = hypergradient(network, problem.lower(weights), problem.upper, [weights], rate=RATE)
    torch.testing.assert_close(forward.gradients, through.gradients)
    assert torch.equal(after, torch.rand(1))


def test_without_a_step_nothing_depends_on_the_weights():
    problem = problems()["mlp"]
    weights = problem.weights.clone().requires_grad_()
    for found in (
        weight_hypergradient(problem.network, problem.weighed, problem.upper, weights, rate=0.0),
        hypergradient(problem.network, problem.lower(weights), problem.upper, [weights], rate=0.0),
    ):
        assert found.gradients[0].tolist() == [0.0] * 6


def test_parameters_that_are_held_still_do_not_step():
    problem = problems()["mlp"]
    problem.network[0].requires_grad_(False)
    ahead = look_ahead(problem.network, problem.lower(problem.weights), rate=RATE)
    assert set(ahead.parameters) == {"2.weight", "2.bias"}
    weights = problem.weights.clone().requires_grad_()
    forward = weight_hypergradient(problem.network, problem.weighed, problem.upper, weights, rate=RATE)
    through = hypergradient(problem.network, problem.lower(weights), problem.upper, [weights], rate=RATE)
    torch.testing.assert_close(forward.gradients, through.gradients)


def test_it_works_where_gradients_are_off():
    problem = problems()["mlp"]
    with torch.no_grad():
        found = weight_hypergradient(problem.network, problem.weighed, problem.upper, problem.weights, rate=RATE)
    assert float(found.gradients[0].abs().sum()) > 0


def test_what_cannot_be_is_refused():
    problem = problems()["mlp"]
    network, weights = problem.network, problem.weights
    with pytest.raises(ValueError, match=r"rate of the look-ahead step must be a number of 0 or more, given -0\.1"):
        look_ahead(network, problem.lower(weights), rate=-0.1)
    with pytest.raises(ValueError, match=r"weights have shape \(5,\), but the terms have shape \(6,\)"):
        weight_hypergradient(network, problem.weighed, problem.upper, weights[:5], rate=0.1)
    with pytest.raises(ValueError, match="tensors that require a gradient"):
        hypergradient(network, problem.lower(weights), problem.upper, [weights], rate=0.1)
    with pytest.raises(ValueError, match=r"no parameter 'weight'; it has 0\.weight"):
        At(network, {"weight": weights})
    found = weight_hypergradient(network, problem.weighed, problem.upper, weights, rate=0.1)
    with pytest.raises(ValueError, match=r"by variables of shapes \[\(6,\)\], given shapes \[\(5,\)\]"):
        found.attach(weights[:5])
    network.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        own_weights(network)
