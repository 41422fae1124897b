"""PLD as a method."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.data.batch import Batch
from stillroom.losses import pld_loss
from stillroom.method import Method
from stillroom.systems.classification.pld import PLD
from tests.systems.classification.toys import ConvNet, accuracy, problem, segmenter, train, trained_teacher


def test_it_is_the_loss_of_both_networks_logits():
    student, teacher, batch = ConvNet(2), ConvNet(4), problem(10)
    losses = PLD(student, teacher, teacher_temperature=2.0)(batch)
    expected = pld_loss(losses.outputs, teacher.eval()(batch.inputs), batch.labels, teacher_temperature=2.0)
    torch.testing.assert_close(losses.total, expected)
    assert list(losses) == ["pld"]


def test_the_defaults_are_the_papers():
    assert PLD(nn.Linear(2, 3), nn.Linear(2, 3)).teacher_temperature == 1.0


def test_a_student_learns_from_a_teacher_in_a_plain_loop():
    method = PLD(ConvNet(2), trained_teacher(), teacher_temperature=4.0)
    assert accuracy(trained_teacher()) > 0.9
    assert accuracy(method.product) < 0.5
    terms = train(method, problem(50))
    assert terms[-1]["pld"] < terms[0]["pld"]
    assert accuracy(method.product) > 0.6


def test_a_certain_teacher_trains_exactly_as_the_labels_do():
    """A teacher of one-hot weights is cross-entropy, so two students that start alike end alike."""

    class Oracle(nn.Module):
        def forward(self, inputs):
            return 1e4 * F.one_hot(problem(20).labels, 5).float()

    torch.manual_seed(3)
    distilled = PLD(ConvNet(2), Oracle())
    torch.manual_seed(3)
    alone = ConvNet(2)
    for network, loss_of in (
        (distilled.student, lambda batch: distilled(batch).total),
        (alone, lambda batch: F.cross_entropy(alone(batch.inputs), batch.labels)),
    ):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(problem(20)).backward()
            optimizer.step()
    for ours, theirs in zip(distilled.student.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_positions_without_label_are_left_out():
    student, teacher = segmenter(), segmenter(8)
    labels = torch.randint(5, (3, 4, 4))
    labels[:, 0] = -100
    batch = Batch(torch.rand(3, 1, 8, 8), labels)
    losses = PLD(student, teacher)(batch)
    rows = losses.outputs[:, :, 1:].movedim(1, -1).reshape(-1, 5)
    theirs = teacher.eval()(batch.inputs)[:, :, 1:].movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(losses["pld"], pld_loss(rows, theirs, labels[:, 1:].flatten()))


def test_a_batch_without_any_labelled_position_counts_for_nothing():
    method = PLD(segmenter(), segmenter())
    losses = method(Batch(torch.rand(2, 1, 8, 8), torch.full((2, 4, 4), -100)))
    losses.total.backward()
    assert losses.total.item() == 0
    assert all(parameter.grad is not None for parameter in method.student.parameters())


def test_samples_without_label_are_refused():
    method = PLD(ConvNet(2), ConvNet(2))
    batch = problem(10)
    with pytest.raises(ValueError, match="needs one for every sample, but this batch has no labels"):
        method(batch.replace(labels=None))
    some = batch.labels.clone()
    some[3] = -100
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\), given labels from -100 to 4"):
        method(batch.replace(labels=some))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="teacher_temperature must be a number above 0, given 0"):
        PLD(nn.Linear(2, 3), nn.Linear(2, 3), teacher_temperature=0)
    with pytest.raises(ValueError, match=r"\(10, 5\), but teacher_logits have shape \(10, 7\).*same classes"):
        PLD(ConvNet(2), ConvNet(2, classes=7))(problem(10))


def test_it_is_a_method_for_classes_and_positions():
    assert issubclass(PLD, Method)
    assert PLD.needs.labels == "every"
    assert PLD.needs.tasks == ("classification", "segmentation")
