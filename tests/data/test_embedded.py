import pytest
import torch

from stillroom.data import digits, keep_labels


def test_digits_are_cut_once_for_all():
    splits = digits()
    assert (len(splits.train), len(splits.test)) == (1197, 600)
    assert not set(splits.train.index.tolist()) & set(splits.test.index.tolist())
    assert torch.equal(digits(seed=9).test.index, splits.test.index)
    assert splits.classes == list("0123456789")
    assert splits.kind == "classification"
    counts = splits.test.labels.bincount()
    assert int(counts.min()) >= 57
    assert int(counts.max()) <= 63


def test_digits_are_images_in_0_1_in_sixteenths():
    batch = digits().train.batch(torch.arange(1197))
    assert batch.inputs.shape == (1197, 1, 8, 8)
    assert float(batch.inputs.min()) == 0
    assert float(batch.inputs.max()) == 1
    assert torch.equal(batch.inputs * 16, (batch.inputs * 16).round())


def test_the_first_digit_is_a_zero():
    """The first image of the data set, as scikit-learn's manual prints it."""
    splits = digits()
    side = splits.train if 0 in splits.train.index else splits.test
    batch = side.batch((side.index == 0).nonzero().flatten())
    assert batch.labels.tolist() == [0]
    assert (batch.inputs[0, 0, 0] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_few_labels_and_a_pool():
    splits = digits(labels=100, seed=3)
    assert len(splits.train) == 100
    assert splits.train.labels.bincount().tolist() == [10] * 10
    assert len(splits.unlabelled) == 1097
    assert splits.unlabelled.labels is None
    assert splits.unlabelled.batch([0]).labels is None
    numbers = [set(part.index.tolist()) for part in (splits.train, splits.unlabelled, splits.test)]
    assert len(set.union(*numbers)) == 1797
    assert torch.equal(digits(labels=100, seed=3).train.index, splits.train.index)
    assert not torch.equal(digits(labels=100, seed=4).train.index, splits.train.index)
    assert digits(labels=1197).unlabelled is None


def test_impossible_numbers_of_labels_are_refused():
    with pytest.raises(ValueError, match=r"1197.*given 1198"):
        digits(labels=1198)
    with pytest.raises(ValueError, match="given 0"):
        digits(labels=0)
    with pytest.raises(ValueError, match="train_size=50"):
        keep_labels(digits(labels=100), 50, 0)
