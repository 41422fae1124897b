"""Ranking metrics against torchmetrics and by hand; the task as `fit` uses it."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_recall

from stillroom.data import Batch, Interactions
from stillroom.task import Recommendation, ranking_metrics
from stillroom.task.recommendation import popularity, recall_and_ndcg, top_items


def pairs(matrix) -> Interactions:
    return Interactions.from_matrix(matrix)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_it_is_what_torchmetrics_measures(k):
    seen = torch.rand(15, 12) < 0.3
    wanted = (torch.rand(15, 12) < 0.4) & ~seen
    wanted[3] = False
    scores = torch.rand(15, 12)  # torchmetrics takes scores below 0 for not retrieved
    recalls, gains = [], []
    for user in range(15):
        if not wanted[user].any():
            continue
        left = ~seen[user]
        recalls.append(retrieval_recall(scores[user][left], wanted[user][left], top_k=min(k, int(left.sum()))))
        gains.append(retrieval_normalized_dcg(scores[user][left], wanted[user][left].long(), top_k=k))
    found = ranking_metrics(lambda users: scores[users], pairs(seen), pairs(wanted), k=k, chunk_size=4)
    assert len(recalls) < 15
    assert found[f"recall_at_{k}"] == pytest.approx(float(torch.stack(recalls).mean()), abs=1e-6)
    assert found[f"ndcg_at_{k}"] == pytest.approx(float(torch.stack(gains).mean()), abs=1e-6)


def test_it_is_worked_by_hand():
    ranked = torch.tensor([[3, 0, 2]])
    wanted = torch.tensor([[True, True, True, False, True]])
    recall, ndcg = recall_and_ndcg(ranked, wanted)
    assert recall.item() == pytest.approx(2 / 4)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg.item() == pytest.approx((1 / math.log2(3) + 1 / 2) / ideal)


def test_seen_items_are_not_ranked_and_short_lists_are_filled():
    scores, seen = torch.tensor([[5.0, 4.0, 3.0]]), torch.tensor([[True, False, False]])
    assert top_items(scores, seen, 2).tolist() == [[1, 2]]
    assert top_items(scores, seen, 4).tolist() == [[1, 2, -1, -1]]
    recall, _ = recall_and_ndcg(top_items(scores, seen, 4), torch.tensor([[True, False, True]]))
    assert recall.item() == 0.5  # the seen item cannot be a hit


def test_the_task_measures_a_network_and_sets_it_back():
    taken, wanted = pairs(torch.eye(3)), pairs(torch.eye(3).roll(1, dims=1))
    task = Recommendation(taken, wanted, k=1)
    network = torch.nn.Embedding(3, 3)
    with torch.no_grad():
        network.weight.copy_(torch.eye(3).roll(1, dims=1))
    network.train()
    found = task.evaluate(network, [Batch(torch.tensor([0, 1])), Batch(torch.tensor([2]))])
    assert found == {"recall_at_1": 1.0, "ndcg_at_1": 1.0}
    assert network.training
    assert task.metric == "recall_at_1"
    assert task.held_out().batch([1, 2]).inputs.tolist() == [1, 2]


def test_popularity_is_the_same_for_everybody():
    scores = popularity(pairs(torch.tensor([[1, 1, 0], [0, 1, 0]])))
    assert scores(torch.tensor([0, 1, 1])).tolist() == [[1, 2, 0]] * 3


def test_wrong_arguments_are_refused():
    taken, wanted = pairs(torch.eye(3)), pairs(torch.eye(3).roll(1, dims=1))
    with pytest.raises(ValueError, match=r"k \(length of the ranking\) must be 1 or more, given 0"):
        Recommendation(taken, wanted, k=0)
    with pytest.raises(ValueError, match=r"given \(3, 3\) and \(4, 4\)"):
        Recommendation(taken, pairs(torch.eye(4)))
    with pytest.raises(ValueError, match="1 of 2 users want no item"):
        recall_and_ndcg(torch.tensor([[0], [0]]), torch.tensor([[True], [False]]))
    with pytest.raises(ValueError, match="no user has a held-out item"):
        ranking_metrics(lambda users: torch.zeros(len(users), 3), taken, wanted, users=torch.zeros(0).long())
    task = Recommendation(taken, wanted)
    with pytest.raises(ValueError, match=r"item numbers in \[0, 3\), given torch.int64 from 0 to 3"):
        task.check(Batch(torch.tensor([0, 1]), torch.tensor([0, 3])))
