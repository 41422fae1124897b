"""What a teacher says on the average about each class."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.blocks import ClassAverages, Frozen
from stillroom.data import TensorSamples


def test_the_mean_over_a_class_is_that_over_all_its_samples_whatever_the_batches():
    inputs, labels = torch.randn(50, 4), torch.arange(50) ** 2 % 3
    teacher = Frozen(nn.Linear(4, 3))
    averages = ClassAverages(3)
    averages.fill(teacher, TensorSamples(inputs, labels), batch_size=7)
    said = teacher(inputs).softmax(1)
    for label in labels.unique():
        torch.testing.assert_close(averages(label[None])[0], said[labels == label].mean(0))
    assert averages.filled
    assert averages(labels).shape == (50, 3)


def test_a_class_with_one_sample_is_that_sample():
    averages = ClassAverages(2, width=3)
    averages.put(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1]))
    assert averages(torch.tensor([1, 1])).tolist() == [[1, 2, 3], [1, 2, 3]]


def test_it_is_part_of_the_state():
    averages, other = ClassAverages(2), ClassAverages(2)
    averages.put(torch.rand(4, 2), torch.tensor([0, 1, 1, 0]))
    other.load_state_dict(averages.state_dict())
    labels = torch.tensor([1, 0])
    assert torch.equal(averages(labels), other(labels))


def test_what_cannot_be_is_refused():
    averages = ClassAverages(3)
    assert not averages.filled
    averages.put(torch.rand(4, 3), torch.tensor([0, 1, 1, 0]))
    with pytest.raises(ValueError, match="class 2 is absent from the 4 samples"):
        averages(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"vectors must be \(N, 3\).*given \(2, 4\)"):
        averages.put(torch.rand(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"float32"):
        averages.put(torch.rand(2, 3), torch.rand(2))
    with pytest.raises(ValueError, match="labels from 0 to 3"):
        averages.put(torch.rand(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="classes must be 2 or more, given 1"):
        ClassAverages(1)
