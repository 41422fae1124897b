"""The network version of self-distillation: its losses, its methods, and the two-training estimate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.check import check_method
from stillroom.data.batch import Batch
from stillroom.data.samples import Splits, TensorSamples
from stillroom.redistil import Redistiller
from stillroom.systems.classification.kernel_self_distillation import (
    FirstStep,
    SelfDistillation,
    self_distil,
    self_distil_by_estimate,
)
from stillroom.training import Optim, Training
from tests.systems.classification.toys import ConvNet, accuracy, problem, trained_teacher


def samples(rows, seed):
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 4, generator=draw)
    return TensorSamples(inputs, (inputs[:, :3].argmax(1) + (torch.rand(rows, generator=draw) < 0.2)) % 3)


def redistiller(**options):
    data = Splits(samples(60, 1), samples(60, 2), samples(200, 3), name="rows")
    training = Training(steps=60, batch_size=30, evaluate_every=60, optimizer=Optim("adam", lr=0.03), keep="last")
    build = lambda: nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 3))  # noqa: E731
    return Redistiller(**{"build": build, "data": data, "training": training} | options)


@pytest.mark.parametrize("method", [FirstStep(ConvNet(2)), SelfDistillation(ConvNet(2), ConvNet(2))])
def test_it_passes_the_checks(method):
    assert len(check_method(method, problem(10), processes=False).passed) > 10


def test_the_loss_is_the_weighted_sum_of_squares_and_norms():
    student, teacher, batch = nn.Linear(6, 4), nn.Linear(6, 4), Batch(torch.randn(9, 6), torch.arange(9) % 4)
    losses = SelfDistillation(student, teacher, label_weight=0.3, norm_weight=0.01)(batch)
    said, taught = student(batch.inputs).softmax(1), teacher(batch.inputs).softmax(1).detach()
    norms = sum(parameter.square().sum().sqrt() for parameter in student.parameters())
    expected = 0.3 * F.mse_loss(said, F.one_hot(batch.labels, 4).float()) + 0.7 * F.mse_loss(said, taught)
    expected = expected + 0.01 * norms
    torch.testing.assert_close(losses.total, expected)
    ours = torch.autograd.grad(3 * losses.total, student.weight)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(3 * expected, student.weight)[0])


def test_labels_alone_are_the_first_step():
    student, batch = nn.Linear(6, 4), Batch(torch.randn(9, 6), torch.arange(9) % 4)
    torch.testing.assert_close(
        SelfDistillation(student, nn.Linear(6, 4), label_weight=1.0)(batch).total, FirstStep(student)(batch).total
    )


def test_unlabelled_rows_learn_from_the_teacher_alone():
    student, teacher = nn.Linear(6, 4), nn.Linear(6, 4)
    batch = Batch(torch.randn(9, 6), torch.arange(9) % 4)
    some = batch.labels.clone()
    some[3:] = -100
    method = SelfDistillation(student, teacher)
    torch.testing.assert_close(method(batch.replace(labels=some))["distill"], method(batch)["distill"])
    torch.testing.assert_close(method(batch.replace(labels=some))["label_mse"], method(batch[:3])["label_mse"])
    assert set(method(batch.replace(labels=None))) == {"distill", "norms"}
    with pytest.raises(ValueError, match="learns from labels, but this batch has none"):
        FirstStep(student)(batch.replace(labels=None))


def test_the_teacher_stays_in_eval_mode_and_outside_the_students_modules():
    method = SelfDistillation(ConvNet(2), ConvNet(2)).train()
    method(problem(10))
    assert not method.teacher.network.training
    assert all(name.startswith("student.") for name, _ in method.named_parameters())


def test_a_student_learns_in_a_plain_loop():
    method = SelfDistillation(ConvNet(2), trained_teacher(), label_weight=0.35)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    before = accuracy(method.product)
    for _ in range(60):
        optimizer.zero_grad()
        method(problem(50)).total.backward()
        optimizer.step()
    assert accuracy(method.product) > max(before, 0.6)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"label_weight must be a share in \[0, 1\], given 1\.2"):
        SelfDistillation(nn.Linear(2, 3), nn.Linear(2, 3), label_weight=1.2)
    with pytest.raises(ValueError, match="norm_weight must be a number of 0 or more, given -1"):
        FirstStep(nn.Linear(2, 3), norm_weight=-1)
    with pytest.raises(ValueError, match=r"1 or more .*given 0"):
        self_distil_by_estimate(redistiller(), steps=0)
    with pytest.raises(ValueError, match="held-out samples, given none"):
        self_distil_by_estimate(redistiller(data=samples(60, 1)))


def test_one_training_per_weight():
    steps = self_distil(redistiller(), label_weights=[0.6, 0.2])
    assert len(steps) == 3
    assert [set(one.terms[0][1]) for one in steps] == [{"label_mse", "norms"}, *[{"distill", "label_mse", "norms"}] * 2]


def test_two_trainings_per_estimated_step():
    made = redistiller()
    found = self_distil_by_estimate(made, steps=3)
    assert len(found.steps) == 3
    assert len(found.weights) == len(found.pure) == 2
    held = made.data.validation.batch(torch.arange(200))

    def said(fitted):
        return fitted.product(held.inputs).softmax(1).detach()

    a, c, y = said(found.steps[0]), said(found.pure[0]), F.one_hot(held.labels, 3)
    by_hand = (((y - c) * (a - c)).sum() / ((a - c) ** 2).sum()).item()
    assert found.weights[0].unclipped == pytest.approx(by_hand, rel=1e-4)
    again = self_distil(redistiller(), label_weights=[found.weights[0].clipped])
    torch.testing.assert_close(said(again[1]), said(found.steps[1]))
