"""Mining a pool: the surest of each class, and no reported image."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.data import TensorSamples, mine, near_duplicates, top_per_class


def test_the_surest_of_each_class_come_first():
    probabilities = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    assert [rows.tolist() for rows in top_per_class(probabilities, 3)] == [[2, 5, 0], [1, 3]]
    assert [rows.tolist() for rows in top_per_class(probabilities, 1)] == [[2], [1]]
    assert [rows.tolist() for rows in top_per_class(probabilities, 99)] == [[2, 5, 0, 4], [1, 3]]  # ties: rows' order


def test_it_is_what_a_plain_loop_finds():
    probabilities = torch.randn(200, 7).softmax(1)
    expected = []
    for number in range(7):
        members = [(-float(row.max()), at) for at, row in enumerate(probabilities) if int(row.argmax()) == number]
        expected.append([at for _, at in sorted(members)[:10]])
    assert [rows.tolist() for rows in top_per_class(probabilities, 10)] == expected


def test_a_class_nobody_belongs_to_is_empty():
    rows = top_per_class(torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]]), 2)
    assert [one.tolist() for one in rows] == [[0], [1], []]
    assert [one.tolist() for one in top_per_class(torch.zeros(0, 2), 2)] == [[], []]


def test_near_duplicates_are_found_by_their_distance():
    images, reported = torch.rand(30, 1, 8, 8), torch.rand(10, 1, 8, 8)
    images[7] = reported[3]
    images[20] = reported[9] + 0.015  # every value off by 0.015
    images[25] = reported[0] + 0.03
    pool, evaluation = TensorSamples(images), TensorSamples(reported)
    assert near_duplicates(pool, evaluation).tolist() == [7, 20]
    assert near_duplicates(pool, evaluation, radius=0.0).tolist() == [7]
    assert near_duplicates(pool, evaluation, radius=0.031).tolist() == [7, 20, 25]
    assert near_duplicates(pool, evaluation.subset([])).tolist() == []


def test_near_duplicates_of_features_may_be_moved_images():
    images, reported = torch.rand(12, 1, 8, 8), torch.rand(5, 1, 8, 8)
    images[4] = reported[2].roll(2, dims=2)
    pool, evaluation = TensorSamples(images), TensorSamples(reported)
    assert near_duplicates(pool, evaluation).tolist() == []
    histogram = near_duplicates(pool, evaluation, radius=1e-6, embed=lambda x: x.flatten(1).sort(1).values)
    assert histogram.tolist() == [4]


class Says(nn.Module):
    """Sees the class in the first value and its confidence in the second."""

    def forward(self, inputs):
        return torch.nn.functional.one_hot(inputs[:, 0].long(), 3) * inputs[:, 1:2]


def pool_of(rows):
    return TensorSamples(torch.tensor(rows), torch.tensor([99 - row for row in range(len(rows))]))


def test_a_pool_is_mined_without_its_labels():
    pool = pool_of([[0.0, 5.0], [2.0, 1.0], [0.0, 9.0], [0.0, 7.0], [2.0, 3.0]])
    teacher = nn.Sequential(nn.Dropout(0.9), Says()).train()
    mined = mine(pool, teacher, 2, evaluation=None)
    assert mined.rows.tolist() == [1, 2, 3, 4]
    assert mined.counts.tolist() == [2, 0, 2]
    assert mined.empty_classes == [1]
    assert mined.samples.labels is None
    assert mined.samples.index.tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(mined.probabilities[1], torch.tensor([9.0, 0.0, 0.0]).softmax(0))
    seen = []
    mine(pool, lambda batch: (seen.append(batch.labels), Says()(batch.inputs))[1], 2, evaluation=None)
    assert seen == [None]


def test_what_cannot_be_is_refused():
    pool = pool_of([[0.0, 5.0], [2.0, 1.0]])
    for k in (0, -3):
        with pytest.raises(ValueError, match=f"k, .* must be 1 or more, given {k}"):
            top_per_class(torch.rand(4, 3), k)
        with pytest.raises(ValueError, match=f"k, .* must be 1 or more, given {k}"):
            mine(pool, Says(), k, evaluation=None)
    with pytest.raises(ValueError, match=r"1 images of the pool are images of the evaluation set .* row 1\)"):
        mine(pool, Says(), 1, evaluation=pool.subset([1]))
    with pytest.raises(ValueError, match=r"must have shape \(N, C\), given \(4,\)"):
        top_per_class(torch.rand(4), 1)
    with pytest.raises(ValueError, match="given NaN"):
        top_per_class(torch.tensor([[float("nan"), 1.0]]), 1)
    with pytest.raises(ValueError, match="radius must be a number of 0 or more, given -1"):
        near_duplicates(pool, pool, radius=-1)
    with pytest.raises(ValueError, match="have 2 values, those of the evaluation set 3"):
        near_duplicates(pool, TensorSamples(torch.rand(2, 3)))
    with pytest.raises(ValueError, match=r"logits \(N, C\) to mine by, given \(2,\)"):
        mine(pool, lambda batch: batch.inputs[:, 0], 1, evaluation=None)
    with pytest.raises(ValueError, match="the pool holds 0 images"):
        mine(pool.subset([]), Says(), 1, evaluation=None)
