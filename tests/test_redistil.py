"""Iterate and redistil: fresh networks, generation after generation, and the weight of the labels."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.baselines import KD, Alone
from stillroom.data.samples import Splits, TensorSamples
from stillroom.redistil import Redistiller, estimate_label_weight, optimal_label_weight
from stillroom.training import Training

SHORT = Training(steps=3, batch_size=16)


def splits(held=20):
    inputs = torch.randn(100 + held, 4)
    labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    train, test = TensorSamples(inputs[:60], labels[:60]), TensorSamples(inputs[60:100], labels[60:100])
    return Splits(train, test, TensorSamples(inputs[100:], labels[100:]) if held else None, name="rows")


def redistiller(**options):
    given = {"build": lambda: nn.Linear(4, 3), "data": splits(), "training": SHORT, "check_teacher": False}
    return Redistiller(**given | options)


def weights_of(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_each_generation_is_fresh_and_learns_from_the_one_before():
    seen = []

    def watched(student, teacher):
        seen.append((weights_of(student).clone(), teacher))
        return Alone(student) if teacher is None else KD(student, teacher)

    found = redistiller().run([watched] * 3)
    assert [teacher for _, teacher in seen] == [None, found[0].product, found[1].product]
    begun = [weights for weights, _ in seen]
    ended = [weights_of(one.product) for one in found]
    everything = [*begun, *ended]
    assert all(not torch.equal(a, b) for k, a in enumerate(everything) for b in everything[:k])


def test_trainings_of_one_generation_begin_alike():
    made, begun = redistiller(seed=5), []

    def watched(student, teacher):
        begun.append(weights_of(student).clone())
        return Alone(student)

    one, two = (made.train(watched, None, generation=2) for _ in range(2))
    assert torch.equal(*begun)
    assert torch.equal(weights_of(one.product), weights_of(two.product))


def test_going_on_from_the_teachers_weights_is_refused():
    network = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="weights of generation 1, expected a new, untrained network"):
        redistiller(build=lambda: network).run([Alone, KD])
    with pytest.raises(ValueError, match="weights of generation 1, expected a new, untrained network"):
        redistiller(build=lambda: copy.deepcopy(network)).train(KD, network, generation=2)
    with pytest.raises(ValueError, match="numbered from 1, given 0"):
        redistiller().train(Alone, None, generation=0)
    with pytest.raises(ValueError, match="one method per generation, given none"):
        redistiller().run([])


def test_an_interrupted_run_goes_on(tmp_path):
    data = splits()
    whole = redistiller(data=data, folder=tmp_path / "a").run([Alone, KD])
    redistiller(data=data, folder=tmp_path / "b").train(Alone, None, generation=1)
    again = redistiller(data=data, folder=tmp_path / "b", resume=True).run([Alone, KD])
    assert torch.equal(weights_of(whole[-1].product), weights_of(again[-1].product))


def test_the_weight_is_the_least_squares_solution():
    draw = np.random.default_rng(0)
    y, a, c = draw.normal(size=(3, 30, 2))
    best = optimal_label_weight(y, a, c)
    solved = np.linalg.lstsq((a - c).reshape(-1, 1), (y - c).ravel(), rcond=None)[0][0]
    assert best.unclipped == pytest.approx(solved, rel=1e-12)
    errors = [((y - w * a - (1 - w) * c) ** 2).mean() for w in np.linspace(0, 1, 201)]
    assert ((y - best.clipped * a - (1 - best.clipped) * c) ** 2).mean() <= min(errors)


def test_the_weight_is_clipped_at_both_ends():
    assert optimal_label_weight([3.0], [1.0], [0.0]) == (3.0, 1.0)
    assert optimal_label_weight([-3.0], [1.0], [0.0]) == (-3.0, 0.0)
    assert optimal_label_weight([5.0, 1.0], [1.0, 2.0], [1.0, 2.0]) == (1.0, 1.0)  # nothing between them


def test_strange_predictions_are_refused():
    with pytest.raises(ValueError, match=r"given \(2,\), \(2,\) and \(1,\)"):
        optimal_label_weight([1.0, 2.0], [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least one number"):
        optimal_label_weight([], [], [])
    with pytest.raises(ValueError, match="must be finite"):
        optimal_label_weight([np.nan], [1.0], [0.0])


def test_the_estimate_is_exact_where_predictions_are_linear():
    class Says(nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = nn.Parameter(logits)

        def forward(self, inputs):
            return self.logits[inputs[:, 0].long()]

    a, c, labels = torch.randn(40, 5), torch.randn(40, 5), torch.arange(40) % 5
    held = TensorSamples(torch.arange(40.0)[:, None], labels)
    found = estimate_label_weight(Says(a), Says(c), held)
    onehot, p, q = torch.eye(5)[labels], a.softmax(1), c.softmax(1)
    errors = [
        float(((w * p + (1 - w) * q - onehot) ** 2).mean()) for w in (found.unclipped + d for d in (-0.01, 0, 0.01))
    ]
    assert errors[1] < min(errors[0], errors[2])
    with pytest.raises(ValueError, match="held-out samples with labels, given none among 0"):
        estimate_label_weight(Says(a), Says(c), held.subset(torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(ValueError, match=f"given none among {len(held)}"):
        estimate_label_weight(Says(a), Says(c), held.relabel(torch.full((len(held),), -100)))


def test_methods_may_differ_by_generation():
    made = redistiller().run([Alone, partial(KD, label_weight=1.0), partial(KD, label_weight=0.0)])
    assert ["label" in one.terms[0][1] for one in made] == [True, True, True]
