"""Adjacency: self-loops, normalisation, two-hop neighbours, worked out densely."""

from __future__ import annotations

import warnings

import pytest
import torch

from stillroom.data import Adjacency, Interactions, adjacency

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its import uses what torch deprecates
    import torch_geometric.data  # noqa: F401


@pytest.fixture
def ratings() -> torch.Tensor:
    matrix = torch.rand(6, 5) < 0.4
    matrix[:, 1] = True
    return matrix.double()


def one_hop(ratings: torch.Tensor) -> torch.Tensor:
    users, items = ratings.shape
    return torch.cat(
        [
            torch.cat([torch.zeros(users, users).double(), ratings], dim=1),
            torch.cat([ratings.T, torch.zeros(items, items).double()], dim=1),
        ]
    )


def normalised(dense: torch.Tensor) -> torch.Tensor:
    scale = dense.sum(dim=1).rsqrt()
    return scale.unsqueeze(1) * dense * scale


def test_one_hop_with_loops(ratings):
    graph = adjacency(Interactions.from_matrix(ratings))
    expected = normalised(one_hop(ratings) + torch.eye(11))
    torch.testing.assert_close(graph.dense(), expected)
    assert len(graph) == 2 * int(ratings.sum()) + 11
    keys = graph.index[0] * 11 + graph.index[1]
    assert torch.equal(keys, keys.sort().values)


def test_two_hops_are_counted(ratings):
    single = one_hop(ratings)
    found = adjacency(Interactions.from_matrix(ratings), two_hop=True, normalise=False)
    torch.testing.assert_close(found.dense(), torch.eye(11) + single + single @ single)
    scaled = adjacency(Interactions.from_matrix(ratings), two_hop=True)
    torch.testing.assert_close(scaled.dense(), normalised(torch.eye(11) + single + single @ single))


def test_only_the_largest_two_hop_entries_may_be_kept(ratings):
    single = one_hop(ratings)
    squared = single @ single
    found = adjacency(Interactions.from_matrix(ratings), two_hop=True, two_hop_keep=0.5, normalise=False)
    kept = found.dense() - torch.eye(11) - single
    count = int(0.5 * int((squared > 0).sum()))
    assert int((kept > 0).sum()) == count
    assert torch.equal(kept[kept > 0].sort().values, squared.flatten().sort().values[-count:])
    assert bool((found.dense() >= single + torch.eye(11)).all())  # one-hop edges stay, whatever is left out


def test_an_item_that_nobody_took_keeps_its_loop():
    graph = adjacency(Interactions.from_pairs([(0, 0)], item_count=2))
    torch.testing.assert_close(graph.dense()[2], torch.tensor([0.0, 0.0, 1.0]).double())


def test_numbers_are_read_at_other_entries(ratings):
    narrow = adjacency(Interactions.from_matrix(ratings))
    wide = adjacency(Interactions.from_matrix(ratings), two_hop=True)
    values = torch.rand(len(wide))
    dense = Adjacency(wide.index, values, 6, 11).dense()
    assert torch.equal(wide.at(narrow.index, values), dense[narrow.index[0], narrow.index[1]])
    with pytest.raises(ValueError, match=rf"\d+ of {len(wide)} entries are not among the {len(narrow)}"):
        narrow.at(wide.index, narrow.values)


def test_torch_geometric_gets_source_and_receiver():
    graph = Adjacency.from_entries(
        torch.tensor([1, 0, 1]), torch.tensor([0, 0, 0]), torch.tensor([1.0, 2.0, 3.0]), 1, 2
    )
    assert graph.values.tolist() == [2.0, 4.0]
    data = graph.to_pyg()
    assert data.edge_index.tolist() == [[0, 0], [0, 1]]  # from 0 to 0, from 0 to 1
    assert data.edge_weight.tolist() == [2.0, 4.0]


def test_wrong_arguments_are_refused(ratings):
    found = Interactions.from_matrix(ratings)
    for keep in (0, 1.5):
        with pytest.raises(ValueError, match=rf"two_hop_keep is a share in \(0, 1\], given {keep}"):
            adjacency(found, two_hop=True, two_hop_keep=keep)
    with pytest.raises(ValueError, match=r"index must be \(2, 3\) for 3 values, given \(2, 2\)"):
        Adjacency(torch.zeros(2, 2).long(), torch.ones(3), 1, 2)
    with pytest.raises(ValueError, match="ordered by row"):
        Adjacency(torch.tensor([[1, 0], [0, 0]]), torch.ones(2), 1, 2)
