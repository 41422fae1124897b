"""Which samples a stage draws."""

from __future__ import annotations

import pytest
import torch

from stillroom.baselines import KD
from stillroom.feed import stream_for
from stillroom.method import Losses, Method, Needs
from stillroom.task import Classification
from stillroom.training import Training
from tests.toys import mlp, splits


class NoLabels(Method):
    needs = Needs(labels="none")

    def forward(self, batch):
        return Losses(gap=(self.student(batch.inputs) - self.teacher(batch)).square().mean())


def stream(part, method=NoLabels, data=None, **options):
    data = splits(labels=20) if data is None else data
    return data, stream_for(
        method(mlp(), mlp()), Classification(), Training(batch_size=10, **options), data, part, seed=0
    )


def test_merged_samples_are_one_set_without_labels():
    data, merged = stream("merged")
    assert len(merged) == (len(data.train) + len(data.unlabelled)) // 10
    batches = [merged.batch(step) for step in range(len(merged))]
    assert all(batch.labels is None and len(batch) == 10 for batch in batches)
    drawn = torch.cat([batch.index for batch in batches]).sort().values
    both = torch.cat([data.train.index, data.unlabelled.index]).sort().values
    assert torch.equal(drawn, both)
    alone, merged = stream("merged", data=splits())
    assert len(merged) == len(alone.train) // 10
    assert merged.batch(0).labels is None
    assert alone.train.labels is not None


def test_the_training_samples_may_be_drawn_without_the_pool():
    data, own = stream("train-alone", unlabelled_batch=5)
    drawn = torch.cat([own.batch(step).index for step in range(len(own))])
    assert torch.equal(drawn.sort().values, data.train.index.sort().values)
    _, both = stream("train")
    assert len(both.batch(0)) == 20


@pytest.mark.parametrize("part", ["train", "train-alone", "merged"])
def test_no_stage_draws_what_a_method_keeps_apart(part):
    data = splits(labels=20)
    method = NoLabels(mlp(), mlp())
    method.kept_apart = data.train.index[:7]
    drawn = stream_for(method, Classification(), Training(batch_size=1), data, part, seed=0)
    seen = {number for step in range(len(drawn)) for number in drawn.batch(step).index.tolist()}
    assert seen.isdisjoint(method.kept_apart.tolist())
    assert seen >= set(data.train.index[7:].tolist())


def test_labels_are_not_merged_away_silently_and_other_parts_are_refused():
    with pytest.raises(ValueError, match='"merged" samples have no labels, but KD learns from some labels'):
        stream("merged", KD)
    with pytest.raises(ValueError, match=r'"train-alone", "merged" or, where there is a pool, .* given .test.'):
        stream("test")
