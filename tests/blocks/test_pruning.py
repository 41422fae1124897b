"""Masks of what stays: exact counts, ties, the strict rule, pairs, against torch.nn.utils.prune."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from stillroom.blocks import guided_edge_importance, surviving
from stillroom.blocks.pruning import undirected_groups


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.2, 0.5, 0.99])
def test_exactly_the_asked_share_goes(rate):
    importance = torch.randn(37)
    assert int(surviving(importance, rate).sum()) == 37 - int(37 * rate)


def test_it_is_torchs_unstructured_pruning():
    layer = nn.Linear(8, 9)
    expected = surviving(layer.weight.detach(), 0.25)
    prune.l1_unstructured(layer, "weight", amount=18)
    assert torch.equal(layer.weight_mask, expected)


def test_the_smallest_by_size_go_and_signs_do_not_matter():
    importance = torch.tensor([-3.0, 0.5, 2.0, -0.1, 1.0])
    assert surviving(importance, 0.4).tolist() == [1, 0, 1, 0, 1]


def test_ties_are_broken_by_place():
    assert surviving(torch.ones(10), 0.3).tolist() == [0] * 3 + [1] * 7


def test_the_strict_rule_takes_the_threshold_and_its_equals():
    assert surviving(torch.tensor([4.0, 1.0, 3.0, 2.0]), 0.25, rule="strict").tolist() == [1, 0, 1, 0]
    assert surviving(torch.ones(10), 0.3, rule="strict").sum() == 0
    assert surviving(torch.tensor([4.0, 1.0, 3.0, 2.0]), 0.25).tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("rule", ["exact", "strict"])
def test_what_was_pruned_never_comes_back_and_does_not_count(rule):
    importance = torch.tensor([0.0, 5.0, -0.0, 1.0, 2.0, 3.0])
    kept = surviving(importance, 0.25, rule=rule)
    assert kept[0] == kept[2] == 0
    assert int(kept.sum()) == (3 if rule == "exact" else 2)
    assert surviving(torch.zeros(4), 0.5, rule=rule).sum() == 0


def test_shares_multiply_over_runs_and_masks_only_shrink():
    importance, mask = torch.rand(1000) + 0.1, torch.ones(1000)
    for run in range(1, 6):
        new = surviving(importance.roll(run) * mask, 0.2)
        assert bool((new <= mask).all())
        mask = new
        assert abs(float(mask.sum()) - 1000 * 0.8**run) <= run


def test_directions_of_an_edge_stay_or_go_together():
    index = torch.tensor([[0, 0, 1, 2, 2], [0, 2, 2, 0, 1]])  # a loop, 0-2 both ways, 1-2 both ways
    groups = undirected_groups(index, 3)
    assert len(groups.unique()) == 3
    importance = torch.tensor([5.0, 1.0, 3.0, 1.5, 0.1])  # means: loop 5, 0-2 1.25, 1-2 1.55
    assert surviving(importance, 0.34, groups=groups).tolist() == [1, 0, 1, 0, 1]
    assert surviving(importance, 0.34).tolist() == [1, 1, 1, 1, 0]


def test_importance_is_worked_by_hand():
    index = torch.tensor([[0, 1], [1, 1]])
    nodes = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    found = guided_edge_importance(
        torch.tensor([0.5, -0.2]),
        torch.tensor([1.0, 0.0]),
        index,
        nodes,
        torch.tensor([0.9, 1.1]),
        prediction_weight=0.3,
        edge_guide_weight=2.0,
    )
    sigmoid_of_two = 0.8807970779778823
    torch.testing.assert_close(found, torch.tensor([0.5 + 0.3 * sigmoid_of_two + 1.8, 0.0]))


def test_wrong_arguments_are_refused():
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"rate is the share that is pruned .*\[0, 1\), given {rate}"):
            surviving(torch.ones(3), rate)
    with pytest.raises(ValueError, match=r"rule must be .* given 'loose'"):
        surviving(torch.ones(3), 0.5, rule="loose")
    with pytest.raises(ValueError, match=r"groups must be \(3,\) as importance, given \(2,\)"):
        surviving(torch.ones(3), 0.5, groups=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"edge_mask must be \(2,\), one per edge, given \(3,\)"):
        guided_edge_importance(torch.ones(2), torch.ones(3), torch.zeros(2, 2).long(), torch.ones(1, 1), torch.ones(2))
