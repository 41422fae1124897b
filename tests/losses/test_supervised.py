"""Losses against labels: the same as torch's where all labels are there, and nothing where none is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stillroom import losses

NAN = float("nan")


def test_cross_entropy_is_torchs():
    logits, labels = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 3, 1, -100, 2, -100])
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(
            losses.cross_entropy(logits, labels, reduction=reduction),
            F.cross_entropy(logits, labels, reduction=reduction),
        )
    gradients = [torch.autograd.grad(3 * f(logits, labels), logits)[0] for f in (losses.cross_entropy, F.cross_entropy)]
    torch.testing.assert_close(*gradients)


def test_cross_entropy_of_positions_is_torchs():
    logits, labels = torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    labels[0, 1] = -100
    torch.testing.assert_close(losses.cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    assert losses.cross_entropy(logits, labels, reduction="none").shape == (2, 3, 3)


def test_another_number_may_say_that_there_is_no_label():
    logits, labels = torch.randn(3, 4), torch.tensor([0, 255, 2])
    torch.testing.assert_close(
        losses.cross_entropy(logits, labels, ignore_index=255), F.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    )


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (losses.cross_entropy, torch.full((5,), -100)),
        (losses.binary_cross_entropy, torch.full((5, 3), NAN)),
        (losses.mean_squared_error, torch.full((5, 3), NAN)),
    ],
)
def test_without_any_label_the_loss_is_0_and_connected(loss, labels):
    outputs = torch.randn(5, 3, requires_grad=True)
    value = loss(outputs, labels)
    value.backward()
    assert value.item() == 0
    assert torch.equal(outputs.grad, torch.zeros(5, 3))


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (losses.binary_cross_entropy, F.binary_cross_entropy_with_logits),
        (losses.mean_squared_error, F.mse_loss),
    ],
)
def test_entries_without_label_are_left_out(loss, reference):
    outputs, labels = torch.randn(4, 3, requires_grad=True), torch.rand(4, 3)
    known = torch.rand(4, 3) > 0.4
    some = torch.where(known, labels, NAN)
    torch.testing.assert_close(loss(outputs, some), reference(outputs[known], labels[known]))
    torch.testing.assert_close(loss(outputs, labels, reduction="none"), reference(outputs, labels, reduction="none"))
    (gradient,) = torch.autograd.grad(3 * loss(outputs, some), outputs)
    (expected,) = torch.autograd.grad(3 * reference(outputs[known], labels[known]), outputs)
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(gradient[~known], torch.zeros(int((~known).sum())))


@pytest.mark.parametrize("loss", [losses.binary_cross_entropy, losses.mean_squared_error])
def test_labels_are_never_broadcast(loss):
    with pytest.raises(ValueError, match=r"\(4, 3\), but labels has shape \(4, 1\)"):
        loss(torch.randn(4, 3), torch.rand(4, 1))


def test_a_network_that_gives_nan_is_not_hidden():
    outputs = torch.tensor([[1.0, NAN]])
    assert bool(losses.mean_squared_error(outputs, torch.ones(1, 2)).isnan())
    assert bool(losses.binary_cross_entropy(outputs, torch.ones(1, 2)).isnan())


@pytest.mark.parametrize("labels", [torch.tensor([0, 4, 1]), torch.tensor([0, -1, 1])])
def test_class_numbers_out_of_range_are_refused(labels):
    with pytest.raises(ValueError, match=rf"\[0, 4\), given labels from {labels.min()} to {labels.max()}"):
        losses.cross_entropy(torch.randn(3, 4), labels)


def test_labels_of_other_shapes_and_kinds_are_refused():
    with pytest.raises(ValueError, match=r"given labels \(3, 1\) for logits \(3, 4\)"):
        losses.cross_entropy(torch.randn(3, 4), torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be int64 class numbers, given dtype torch\.float32"):
        losses.cross_entropy(torch.randn(3, 4), torch.zeros(3))
