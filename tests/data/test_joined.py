"""Two data sets as one."""

from __future__ import annotations

import pytest
import torch

from stillroom.data import JoinedSamples, LazySamples, TensorSamples


def numbered(start, count, shape=(3,), labels=True, **options):
    inputs = torch.arange(start, start + count).float().view(-1, *[1] * len(shape)).expand(count, *shape).clone()
    return TensorSamples(inputs, torch.zeros(count, dtype=torch.int64) if labels else None, **options)


def test_rows_come_in_the_order_asked_for_and_without_labels():
    joined = JoinedSamples(numbered(0, 5), numbered(100, 4, labels=False))
    assert len(joined) == 9
    batch = joined.batch([8, 0, 5, 4, 0])
    assert batch.inputs[:, 0].tolist() == [103, 0, 100, 4, 0]
    assert batch.labels is None
    assert joined.labels is None
    assert not joined.has_labels
    assert joined.batch([7, 6]).inputs[:, 0].tolist() == [102, 101]
    assert joined.batch([1]).inputs[:, 0].tolist() == [1]
    assert len(joined.batch([])) == 0


def test_numbers_stay_apart():
    assert JoinedSamples(numbered(0, 3), numbered(9, 2)).index.tolist() == [0, 1, 2, 3, 4]
    apart = JoinedSamples(numbered(0, 3), numbered(9, 2, index=torch.tensor([7, 5])))
    assert apart.index.tolist() == [0, 1, 2, 7, 5]
    assert apart.batch([4, 1]).index.tolist() == [5, 1]
    assert apart.subset([4, 0]).batch([0]).inputs[0, 0] == 10


def test_lazy_samples_and_fields_join():
    lazy = LazySamples(lambda row: (torch.full((3,), 50.0 + row), row), 4, None, (3,))
    joined = JoinedSamples(numbered(0, 2), lazy)
    assert joined.lazy
    assert joined.batch([5, 0, 2]).inputs[:, 0].tolist() == [53, 0, 50]
    assert joined.batch([5, 0, 2]).labels is None
    first, second = (numbered(0, 2, fields={"weight": torch.tensor([n, n + 1.0])}) for n in (0.0, 10.0))
    assert JoinedSamples(first, second).batch([3, 0]).weight.tolist() == [11, 0]


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 8, 8\) cannot be joined by inputs of shape \(3, 8, 8\)"):
        JoinedSamples(numbered(0, 2, (1, 8, 8)), numbered(0, 2, (3, 8, 8)))
    first = numbered(0, 2)
    first.draws = 2
    with pytest.raises(ValueError, match="take 2 random numbers cannot be joined by rows that take 0"):
        JoinedSamples(first, numbered(0, 2))
