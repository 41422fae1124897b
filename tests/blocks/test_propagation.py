"""LightGCN against dense products, torch_geometric's LGConv, and with everything that is masked overwritten."""

from __future__ import annotations

import warnings

import pytest
import torch

from stillroom.blocks import FixedNodes, LightGCN, MaskedLightGCN
from stillroom.blocks.propagation import entry_products, sparse_product
from stillroom.data import Interactions, adjacency


@pytest.fixture
def interactions() -> Interactions:
    return Interactions.from_matrix(torch.rand(7, 5) < 0.5)


@pytest.fixture
def network(interactions) -> MaskedLightGCN:
    return MaskedLightGCN(adjacency(interactions), 3, 3)


def test_it_is_the_sum_of_powers_computed_densely(interactions, network):
    graph = adjacency(interactions)
    dense = graph.dense().float()
    powers = [torch.linalg.matrix_power(dense, k) for k in range(4)]
    expected = sum(power @ network.embedding for power in powers)
    torch.testing.assert_close(network.nodes(), expected)
    plain = LightGCN(graph, 3, 3)
    assert torch.equal(plain.embedding, network.embedding)
    torch.testing.assert_close(plain.nodes(), expected)
    torch.testing.assert_close(plain(torch.tensor([2])), expected[2:3] @ expected[7:].T)


def test_it_is_torch_geometrics_lgconv_where_that_has_the_same_graph(interactions, network):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import uses what torch deprecates
        from torch_geometric.nn import LGConv
    graph = adjacency(interactions).to_pyg()
    layer = LGConv(normalize=False)
    features, total = network.embedding, network.embedding
    for _ in range(3):
        features = layer(features, graph.edge_index, graph.edge_weight.float())
        total = total + features
    torch.testing.assert_close(network.nodes(), total)


def test_gradients_are_those_of_a_dense_product():
    index = torch.tensor([[0, 0, 1, 3], [1, 2, 1, 0]])
    values, features = torch.rand(4, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64)
    values.requires_grad_()
    features.requires_grad_()
    dense = torch.zeros(4, 4, dtype=torch.float64).index_put((index[0], index[1]), values)
    upstream = torch.rand(4, 3, dtype=torch.float64)
    expected = torch.autograd.grad(dense @ features, (values, features), upstream)
    found = torch.autograd.grad(sparse_product(values, features, index), (values, features), upstream)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(sparse_product(values, features, index), dense @ features)


def test_products_at_entries_are_the_same_in_chunks():
    left, right, index = torch.rand(4, 3), torch.rand(4, 3), torch.tensor([[0, 3, 1], [2, 0, 1]])
    expected = (left @ right.T)[index[0], index[1]]
    for chunk_size in (1, 2, 9):
        torch.testing.assert_close(entry_products(left, right, index, chunk_size=chunk_size), expected)


def random_masks(network):
    edge_mask = (torch.rand_like(network.edge_mask) < 0.6).float()
    return edge_mask, (torch.rand_like(network.entry_mask) < 0.6).float()


def test_what_is_masked_out_does_not_matter(network):
    network.prune(*random_masks(network))
    users = torch.arange(7)
    before = network(users)
    assert 0 < network.kept()[0] < 1
    with torch.no_grad():
        off_edges, off_entries = network.edge_mask == 0, network.entry_mask == 0
        network.edge_weight[off_edges] = torch.randn(int(off_edges.sum()))
        network.embedding[off_entries] = torch.randn(int(off_entries.sum()))
    assert torch.equal(network(users), before)
    gradients = torch.autograd.grad(network(users).square().sum(), (network.edge_weight, network.embedding))
    assert float(gradients[0][off_edges].abs().sum()) == 0
    assert float(gradients[1][off_entries].abs().sum()) == 0
    assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)


def test_pruning_resets_edge_weights_and_keeps_the_values_of_entries(network):
    with torch.no_grad():
        network.edge_weight.copy_(torch.rand_like(network.edge_weight))
    edge_mask, entry_mask = random_masks(network)
    before = network.embedding.detach().clone()
    network.prune(edge_mask, entry_mask)
    assert torch.equal(network.edge_weight, edge_mask)
    assert torch.equal(network.embedding, before * entry_mask)
    assert network.kept() == (float(edge_mask.mean()), float(entry_mask.mean()))


def test_the_pruned_graph_is_all_that_inference_needs(network):
    edge_mask, entry_mask = random_masks(network)
    network.prune(edge_mask, entry_mask)
    graph = network.pruned_graph()
    assert len(graph) == int(edge_mask.sum())
    small = LightGCN(graph, 3, 3)
    with torch.no_grad():
        small.embedding.copy_(network.table())
    torch.testing.assert_close(small.nodes(), network.nodes())


def test_fixed_nodes_say_what_the_network_says(network):
    fixed, users = FixedNodes(network), torch.tensor([1, 5])
    torch.testing.assert_close(fixed(users), network(users))
    layers = network.layer_outputs()
    torch.testing.assert_close(fixed.nodes_and_high_order()[1], layers[2] + layers[3])
    assert not list(fixed.parameters())


def test_wrong_arguments_are_refused(interactions, network):
    graph = adjacency(interactions)
    with pytest.raises(ValueError, match="layers must be 1 or more, given 0"):
        LightGCN(graph, 3, 0)
    with pytest.raises(ValueError, match="high-order part sums layers from the second on, given 1 layer"):
        FixedNodes(LightGCN(graph, 3, 1))
    count = len(graph)
    with pytest.raises(ValueError, match=rf"edge_mask must have shape \({count},\), given \({count + 1},\)"):
        network.prune(torch.ones(count + 1), torch.ones(12, 3))
    with pytest.raises(ValueError, match=r"entry_mask must have shape \(12, 3\), given \(12, 4\)"):
        network.prune(torch.ones(count), torch.ones(12, 4))
    nothing_off, one_off = torch.ones(count), torch.ones(count)
    one_off[2] = 0
    network.prune(one_off, torch.ones(12, 3))
    with pytest.raises(ValueError, match="edge_mask switches 1 places on that were pruned before"):
        network.prune(nothing_off, torch.ones(12, 3))
