"""Interactions: from and to what others have, negatives, fakes, splits per user."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch

from stillroom.data import Interactions, InteractionSplits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its import uses what torch deprecates
    import torch_geometric.data  # noqa: F401


def some(users: int = 12, items: int = 9, share: float = 0.4) -> Interactions:
    matrix = torch.rand(users, items) < share
    matrix[:, 0] |= ~matrix.any(dim=1)
    return Interactions.from_matrix(matrix)


def test_pairs_are_a_set_in_order():
    found = Interactions(torch.tensor([1, 0, 1, 0]), torch.tensor([2, 1, 2, 0]), 2, 3)
    assert found.users.tolist() == [0, 0, 1]
    assert found.items.tolist() == [0, 1, 2]
    assert len(found) == 3
    assert found.items_of(1).tolist() == [2]
    assert found.user_degrees().tolist() == [2, 1]
    assert found.item_degrees().tolist() == [1, 1, 1]


def test_every_kind_of_matrix_gives_the_same():
    dense = np.array([[0, 2.0, 1], [0, 0, 0], [3, 0, 0]])
    expected = [(0, 1), (0, 2), (2, 0)]
    for matrix in (dense, scipy.sparse.csr_matrix(dense), scipy.sparse.coo_matrix(dense), torch.from_numpy(dense)):
        found = Interactions.from_matrix(matrix)
        assert list(zip(found.users.tolist(), found.items.tolist(), strict=True)) == expected
        assert (found.user_count, found.item_count) == (3, 3)
    assert Interactions.from_pairs(expected).keys.tolist() == found.keys.tolist()
    assert (found.to_scipy().toarray() == (dense > 0)).all()


def test_torch_geometric_takes_it_and_gives_it_back():
    from torch_geometric.data import HeteroData

    found = some()
    data = found.to_pyg()
    assert data.is_undirected()
    assert not data.has_self_loops()
    assert data.num_nodes == 21
    assert data.num_edges == 2 * len(found)
    assert torch.equal(Interactions.from_pyg(data).keys, found.keys)
    hetero = HeteroData()
    hetero["listener"].num_nodes, hetero["artist"].num_nodes = 12, 9
    hetero["listener", "hears", "artist"].edge_index = torch.stack([found.users, found.items])
    assert torch.equal(Interactions.from_pyg(hetero).keys, found.keys)
    hetero["artist", "knows", "artist"].edge_index = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="the graph has 2 relations: name one of"):
        Interactions.from_pyg(hetero)
    assert torch.equal(Interactions.from_pyg(hetero, ("listener", "hears", "artist")).keys, found.keys)


def test_membership_and_dense_rows():
    found = some()
    matrix = torch.from_numpy(found.to_scipy().toarray()) > 0
    users, items = torch.meshgrid(torch.arange(12), torch.arange(9), indexing="ij")
    assert torch.equal(found.contains(users.flatten(), items.flatten()).view(12, 9), matrix)
    rows = torch.tensor([3, 0, 3])
    assert torch.equal(found.dense(rows), matrix[rows])


def test_nodes_are_kept_and_renumbered():
    found = Interactions.from_pairs([(0, 0), (0, 2), (1, 1), (2, 2)])
    kept = found.keep_nodes(torch.tensor([2, 0]), torch.tensor([2, 1]))
    assert list(zip(kept.users.tolist(), kept.items.tolist(), strict=True)) == [(0, 0), (1, 0)]
    assert (kept.user_count, kept.item_count) == (2, 2)


def test_negatives_are_never_taken_and_reach_every_other_item():
    found = some(6, 5, 0.5)
    if bool((found.user_degrees() == 5).any()):
        found = found.where(found.items != 4)
    users = torch.arange(6).repeat(400)
    items = found.sample_negatives(users)
    assert not bool(found.contains(users, items).any())
    for user in range(6):
        assert set(items[users == user].tolist()) == set(range(5)) - set(found.items_of(user).tolist())


def test_negatives_repeat_with_their_generator():
    found, users = some(), torch.arange(12).repeat(5)
    draws = [found.sample_negatives(users, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)


def test_fakes_are_new_pairs_of_the_asked_number():
    found, held = some(), None
    splits = found.split(validation=0.2, test=0.0)
    train, held = splits.train, splits.validation
    everything, is_fake = train.with_fakes(0.25, avoid=held, seed=1)
    assert int(is_fake.sum()) == round(0.25 * len(train))
    assert bool(train.contains(everything.users[~is_fake], everything.items[~is_fake]).all())
    fakes = everything.users[is_fake], everything.items[is_fake]
    assert not bool(train.contains(*fakes).any() | held.contains(*fakes).any())
    with pytest.raises(ValueError, match=r"share=50 asks for \d+ fake pairs"):
        train.with_fakes(50)


def test_a_split_is_a_partition_with_the_asked_shares():
    found = some(40, 30, 0.5)
    splits = found.split(validation=0.1, test=0.2, seed=4)
    parts = [splits.train, splits.validation, splits.test]
    assert sum(map(len, parts)) == len(found)
    assert torch.equal(torch.cat([part.keys for part in parts]).sort().values, found.keys)
    assert torch.equal(splits.test.user_degrees(), (found.user_degrees() * 0.2).round().long())
    assert torch.equal(splits.validation.user_degrees(), (found.user_degrees() * 0.1).round().long())
    again = found.split(validation=0.1, test=0.2, seed=4)
    assert torch.equal(again.test.keys, splits.test.keys)
    assert not torch.equal(found.split(seed=5).test.keys, splits.test.keys)


def test_a_user_keeps_one_item_to_train_on():
    found = Interactions.from_pairs([(0, 0), (1, 0), (1, 1), *[(2, item) for item in range(10)]])
    splits = found.split(validation=0.4, test=0.5)
    assert splits.train.user_degrees().tolist() == [1, 1, 1]


def test_empty_rows_are_refused():
    found = Interactions(torch.tensor([0, 2]), torch.tensor([0, 1]), 5, 2)
    for attempt in (found.check_every_user, found.split, lambda: InteractionSplits(found)):
        with pytest.raises(ValueError, match=r"3 of 5 users have no interaction \(user 1, 3, 4\)"):
            attempt()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="there are no interactions"):
        Interactions.from_matrix(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"items must lie in \[0, 2\), given numbers from 0 to 2"):
        Interactions(torch.tensor([0, 0]), torch.tensor([0, 2]), 1, 2)
    with pytest.raises(ValueError, match=r"given \(2,\) and \(3,\)"):
        Interactions(torch.zeros(2).long(), torch.zeros(3).long(), 1, 1)
    with pytest.raises(ValueError, match=r"pairs must be \(E, 2\) whole numbers, given \(2, 3\)"):
        Interactions.from_pairs([(0, 1, 2), (1, 0, 2)])
    full = Interactions.from_matrix(np.ones((2, 3)))
    with pytest.raises(ValueError, match="user 1 has taken all 3 items"):
        full.sample_negatives(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"given \(2, 3\) and \(2, 4\)"):
        full.union(Interactions.from_matrix(np.ones((2, 4))))
    with pytest.raises(ValueError, match=r"shares must be .* given 0.5 and 0.5"):
        full.split(validation=0.5, test=0.5)
