"""Negative learning: value and gradient by hand, labels drawn as they should be, refusals."""

import pytest
import torch
from scipy import stats

from stillroom.losses import complementary_labels, negative_learning_loss


def test_value_and_gradient_by_hand():
    logits = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (7,))
    loss = negative_learning_loss(logits, labels)
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    p = logits.detach().softmax(1)
    expected = torch.zeros_like(p)
    for row, label in enumerate(labels.tolist()):
        for k in range(4):
            inner = p[row, label] * (float(k == label) - p[row, k])
            expected[row, k] = 3 * inner / (1 - p[row, label]) / 7
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(loss.detach(), -(1 - p.gather(1, labels[:, None])).log().mean())


def test_the_floor_stops_the_gradient():
    logits = torch.tensor([[20.0, 0.0, 0.0]], requires_grad=True)
    loss = negative_learning_loss(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(11.5129, abs=1e-3)
    assert bool((logits.grad == 0).all())


def test_reductions_and_half_precision():
    logits, labels = torch.randn(6, 3), torch.randint(3, (6,))
    every = negative_learning_loss(logits, labels, reduction="none")
    assert every.shape == (6,)
    torch.testing.assert_close(negative_learning_loss(logits, labels, reduction="sum"), every.sum())
    half = logits.bfloat16()
    torch.testing.assert_close(negative_learning_loss(half, labels), negative_learning_loss(half.float(), labels))


def test_nobody_gets_his_own_label():
    labels = torch.arange(10_000) % 5
    drawn = complementary_labels(labels, 5)
    assert not bool((drawn == labels).any())
    counts = ((drawn - labels) % 5).bincount(minlength=5)[1:]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_without_a_label_all_classes_are_as_likely():
    drawn = complementary_labels(torch.full((10_000,), -100), 5)
    assert stats.chisquare(drawn.bincount(minlength=5).numpy()).pvalue > 1e-3


def test_offsets_can_be_given():
    assert complementary_labels(torch.tensor([0, 3]), 4, offsets=torch.tensor([1, 3])).tolist() == [1, 2]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="2 or more classes, given 1"):
        complementary_labels(torch.tensor([0]), 1)
    with pytest.raises(ValueError, match=r"offsets must be \(1,\) whole numbers in \[1, 3\]"):
        complementary_labels(torch.tensor([0]), 4, offsets=torch.tensor([4]))
    with pytest.raises(ValueError, match=r"given \(3, 4\) and \(2,\)"):
        negative_learning_loss(torch.randn(3, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\)"):
        negative_learning_loss(torch.randn(1, 4), torch.tensor([4]))
    with pytest.raises(ValueError, match="floor must lie below 1, given 1"):
        negative_learning_loss(torch.randn(1, 4), torch.tensor([0]), floor=1.0)
