import itertools
import math

import pytest
import torch

from stillroom.training import Optim, Training


def test_cosine_falls_from_the_full_rate_to_zero():
    rates = [Optim(lr=2.0).rate(step, 100) for step in range(101)]
    assert rates[0] == 2.0
    assert math.isclose(rates[50], 1.0)
    assert rates[100] == 0.0
    assert all(after < before for before, after in itertools.pairwise(rates))


def test_warm_up_rises_linearly_and_reaches_the_full_rate_when_it_ends():
    options = Optim(lr=1.0, warmup=0.1, schedule="constant")
    assert [round(options.rate(step, 100) * 11) for step in range(11)] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_milestones_multiply_the_rate():
    options = Optim(lr=1.0, schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    assert [options.rate(step, 8) for step in (0, 3, 4, 5)] == [1.0, 1.0, 0.1, 0.1]
    assert math.isclose(options.rate(6, 8), 0.01)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_the_named_optimizer_is_built(name):
    optimizer = Optim(name, lr=0.3, weight_decay=0.1).build([torch.nn.Parameter(torch.ones(2))])
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Optim(lr=0), "lr .* above 0, given 0"),
        (lambda: Optim(lr=float("nan")), "lr .* given nan"),
        (lambda: Optim("lamb"), "one of adamw, adam, sgd, given 'lamb'"),
        (lambda: Optim(warmup=1.0), r"\[0, 1\), given 1.0"),
        (lambda: Optim(clip=0.0), "above 0, given 0.0"),
        (lambda: Optim(milestones=(150,)), r"in \(0, 1\), given \(150,\)"),
        (lambda: Training(epochs=-1), "epochs must be above 0, given -1"),
        (lambda: Training(steps=0), "steps must be above 0, given 0"),
        (lambda: Training(epochs=1, steps=1), "not both"),
        (lambda: Training(batch_size=10, accumulate=3), "10 has no 3"),
        (lambda: Training(ema_decay=1.0), "between 0 and 1, given 1.0"),
        (lambda: Training(precision="int8"), "given 'int8'"),
    ],
)
def test_numbers_out_of_range_are_refused_with_what_was_given(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_epochs_become_steps_and_a_change_to_steps_drops_the_epochs():
    training = Training(epochs=2.5)
    assert training.total_steps(10) == 25
    assert training.change(steps=7).total_steps(10) == 7
    assert Training(epochs=0.001).total_steps(10) == 1


def test_adams_averages_can_be_changed():
    built = Optim("adam", betas=(0.5, 0.99)).build([torch.nn.Parameter(torch.zeros(1))])
    assert built.defaults["betas"] == (0.5, 0.99)
    with pytest.raises(ValueError, match=r"betas are two numbers in \[0, 1\), given \(0.5, 1.0\)"):
        Optim(betas=(0.5, 1.0))


def test_sgd_looks_ahead_unless_told_otherwise():
    weights = [torch.nn.Parameter(torch.ones(2))]
    assert Optim("sgd").build(weights).param_groups[0]["nesterov"]
    assert not Optim("sgd", nesterov=False).build(weights).param_groups[0]["nesterov"]
    assert not Optim("sgd", momentum=0).build(weights).param_groups[0]["nesterov"]


def test_parts_of_a_network_learn_at_rates_of_their_own():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))
    names, parameters = zip(*network.named_parameters(prefix="student"), strict=True)
    options = Optim("sgd", lr=0.5, momentum=0.0, lr_factors={"student.0": 0.1, "student": 0.5, "student.1.0.bias": 0})
    optimizer = options.build(parameters, names=names)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    assert [rates[id(one)] for one in parameters] == pytest.approx([0.05, 0.05, 0.25, 0.0])
    assert {group["lr_factor"] for group in optimizer.param_groups} == {0.1, 0.5, 0.0}


def test_factors_of_what_is_not_there_are_refused():
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"lr_factors names 'student\.layer9'.* such as 'student\.layer1'"):
        Optim(lr_factors={"student.layer9": 0.1}).build([parameter], names=["student.layer1.weight"])
    with pytest.raises(ValueError, match="lr_factors names 'student'"):
        Optim(lr_factors={"student": 0.1}).build([parameter])
    with pytest.raises(ValueError, match=r"lr_factors\['student'\] must be a number of 0 or more, given -1"):
        Optim(lr_factors={"student": -1})
