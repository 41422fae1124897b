"""Networks that train together."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.blocks import Frozen
from stillroom.check import check_method
from stillroom.data.batch import Batch
from stillroom.data.samples import TensorSamples
from stillroom.fit import fit
from stillroom.online import MutualLearning, OnlineDistillation
from stillroom.training import Optim, Training


def network(width=8, inputs=6, classes=4):
    return nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes))


def batch(samples=12):
    return Batch(torch.randn(samples, 6), torch.arange(samples) % 4)


def test_it_passes_the_checks():
    for update in ("simultaneous", "alternating"):
        method = MutualLearning(network(), network(16), peers=[network(12)], temperature=2.0, update=update)
        report = check_method(method, batch(), processes=False)
        assert len(report.passed) > 15


def test_every_network_is_a_player():
    student, teacher, peer = network(), network(16), network(12)
    method = MutualLearning(student, teacher, peers=[peer])
    assert {name: len(group) for name, group in method.players().items()} == dict.fromkeys(
        ("student", "teacher", "peer-1"), 6
    )
    assert method.networks["teacher"] is teacher
    assert method.product is student
    assert teacher.training


def test_mutual_learning_is_labels_and_each_others_outputs():
    student, teacher = nn.Linear(6, 4), nn.Linear(6, 4)
    method, data = MutualLearning(student, teacher, temperature=2.0, kd_weight=0.5), batch()
    turns = dict(method.turns(data))
    ours, theirs = student(data.inputs), teacher(data.inputs)
    for name, own, other in (("student", ours, theirs), ("teacher", theirs, ours)):
        kl = F.kl_div((own / 2).log_softmax(1), (other / 2).log_softmax(1), reduction="batchmean", log_target=True)
        torch.testing.assert_close(turns[name].total, F.cross_entropy(own, data.labels) + 0.5 * 4 * kl)
    assert set(turns["teacher"]) == {"teacher_label", "teacher_mutual"}


def test_no_gradient_crosses_over():
    method = MutualLearning(nn.Linear(6, 4), nn.Linear(6, 4))
    turns = dict(method.turns(batch()))
    other = list(method.networks["teacher"].parameters())
    assert torch.autograd.grad(turns["student"].total, other, allow_unused=True) == (None, None)
    own = list(method.student.parameters())
    assert torch.autograd.grad(turns["teacher"].total, own, allow_unused=True) == (None, None)


def step(method, data):
    for player, losses in method.turns(data):
        losses.total.backward()
        with torch.no_grad():
            for parameter in method.players()[player]:
                parameter -= 0.5 * parameter.grad
        method.zero_grad()


def test_simultaneous_turns_do_not_see_each_others_steps_and_alternating_ones_do():
    start, data = MutualLearning(nn.Linear(6, 4), nn.Linear(6, 4)), batch()
    both = copy.deepcopy(start)
    step(both, data)
    turned = MutualLearning(
        copy.deepcopy(start.student), copy.deepcopy(start.networks["teacher"]), update="alternating"
    )
    step(turned, data)
    torch.testing.assert_close(turned.student.weight, both.student.weight)
    assert not torch.allclose(turned.networks["teacher"].weight, both.networks["teacher"].weight)

    by_hand = copy.deepcopy(start.networks["teacher"])
    stepped = both.student(data.inputs).detach()
    own = by_hand(data.inputs)
    loss = F.cross_entropy(own, data.labels) + F.kl_div(
        own.log_softmax(1), stepped.log_softmax(1), reduction="batchmean", log_target=True
    )
    loss.backward()
    torch.testing.assert_close(turned.networks["teacher"].weight, by_hand.weight - 0.5 * by_hand.weight.grad)


def test_one_optimizer_over_both_is_the_same_as_two():
    start, data = MutualLearning(nn.Linear(6, 4), nn.Linear(6, 4)), batch()
    apart, together = copy.deepcopy(start), copy.deepcopy(start)
    step(apart, data)
    sum(losses.total for _, losses in together.turns(data)).backward()
    with torch.no_grad():
        for parameter in together.parameters():
            parameter -= 0.5 * parameter.grad
    for one, other in zip(apart.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_fit_trains_both_with_optimizers_of_their_own():
    data = batch(64)
    method = MutualLearning(network(), network(16))
    before = copy.deepcopy(method.state_dict())
    slow = Training(steps=3, batch_size=16, players={"teacher": Optim(lr=1e-12)}, optimizer=Optim(lr=0.1))
    fitted = fit(method, TensorSamples(data.inputs, data.labels), slow, progress=False, device="cpu")
    assert fitted.product is method.student
    moved = {
        name: float((value - before[name]).abs().max())
        for name, value in method.state_dict().items()
        if name.endswith("0.weight")
    }
    assert moved["student.0.weight"] > 0.01
    assert moved["companions.teacher.0.weight"] < 1e-6


def test_a_frozen_teacher_is_copied_and_goes_on_learning():
    teacher = network()
    method = MutualLearning(network(), Frozen(teacher))
    own = method.networks["teacher"]
    assert own is not teacher
    assert all(parameter.requires_grad for parameter in own.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    with pytest.raises(TypeError, match="trained beside the student, but a function only answers: give a network"):
        MutualLearning(network(), Frozen(len_of))


def len_of(given):
    return torch.zeros(len(given), 4)


def test_what_cannot_be_is_refused():
    student, teacher = network(), network(16)
    with pytest.raises(ValueError, match="teacher and student are the same module"):
        MutualLearning(student, student)
    with pytest.raises(ValueError, match="peer-1 and teacher are the same module"):
        MutualLearning(student, teacher, peers=[teacher])
    shared = nn.Sequential(teacher[0], nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(ValueError, match=r"peer-1 and teacher share the parameter '0\.weight'"):
        MutualLearning(student, teacher, peers=[shared])
    with pytest.raises(TypeError, match=r"teacher must be a torch\.nn\.Module that is trained too, given NoneType"):
        MutualLearning(student, None)
    with pytest.raises(ValueError, match=r"\(12, 4\).*\(12, 5\).*same classes"):
        list(MutualLearning(network(), network(classes=5)).turns(batch()))
    with pytest.raises(ValueError, match='"simultaneous" or "alternating", given \'both\''):
        MutualLearning(student, teacher, update="both")
    with pytest.raises(ValueError, match="temperature must be a number above 0, given 0"):
        MutualLearning(student, teacher, temperature=0)
    with pytest.raises(ValueError, match="kd_weight must be a number of 0 or more, given -1"):
        MutualLearning(student, teacher, kd_weight=-1)
    with pytest.raises(TypeError, match="OnlineDistillation must define losses_of"):
        list(OnlineDistillation(network(), network()).turns(batch()))
