"""LightGCN: embeddings that are passed along the edges of a graph, with masks and weights on edges and entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.data.graphs import Adjacency
from stillroom.losses._shared import at_least_float32, outside_autocast


class _SparseProduct(torch.autograd.Function):
    """A sparse matrix times a dense one; the gradient of its entries is taken at its entries only."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, features: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(values, features, index)
        return _multiply(index, values, features)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = upstream
        values, features, index = ctx.saved_tensors
        of_values = entry_products(gradient, features, index) if ctx.needs_input_grad[0] else None
        of_features = _multiply(index.flip(0), values, gradient) if ctx.needs_input_grad[1] else None
        return of_values, of_features, None


def _multiply(index: Tensor, values: Tensor, features: Tensor) -> Tensor:
    size = (len(features), len(features))
    return torch.sparse.mm(torch.sparse_coo_tensor(index, values, size, check_invariants=False), features)


def entry_products(left: Tensor, right: Tensor, index: Tensor, *, chunk_size: int = 1 << 18) -> Tensor:
    """Inner products <left[a], right[b]> at entries (a, b), in chunks.

    Args:
        left: `(n, d)`.
        right: `(n, d)`.
        index: `(2, m)`.
        chunk_size: entries at a time.

    Returns:
        `(m,)`.
    """
    parts = [(left[part[0]] * right[part[1]]).sum(dim=1) for part in index.split(chunk_size, dim=1)]
    return torch.cat(parts) if parts else left.new_zeros(0)


@outside_autocast
def sparse_product(values: Tensor, features: Tensor, index: Tensor) -> Tensor:
    """Multiply a sparse matrix `(n, n)` by features, with gradients for both that never make a dense `(n, n)`.

    Args:
        values: `(nnz,)` of the matrix.
        features: `(n, d)`.
        index: `(2, nnz)` int64, rows and columns, each entry once.

    Returns:
        `(n, d)`, float32 or wider, also under autocast.
    """
    return _SparseProduct.apply(at_least_float32(values), at_least_float32(features), index)


class LightGCN(nn.Module):
    """Users' and items' embeddings, smoothed along a graph and summed over the layers.

    H_0 = E, H_{k+1} = S H_k, nodes Z = sum_{k=0..K} H_k; the score of a user and an item is <Z_u, Z_i>.

    Args:
        graph: S, normalised; it is not normalised again.
        dimensions: d.
        layers: K, 1 or more.
        seed: of the initial embeddings (Xavier, users and items apart).

    Source: He et al. 2020 (arXiv:2002.02126), with the sum of layers in place of the mean.

    Example:
        >>> from stillroom.data.graphs import adjacency
        >>> from stillroom.data.interactions import Interactions
        >>> graph = adjacency(Interactions(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2, 3))
        >>> LightGCN(graph, dimensions=4, layers=2)(torch.tensor([0, 1])).shape
        torch.Size([2, 3])
    """

    rows_and_columns: Tensor
    values: Tensor

    def __init__(self, graph: Adjacency, dimensions: int = 64, layers: int = 2, *, seed: int = 0) -> None:
        super().__init__()
        for name, number in (("dimensions", dimensions), ("layers", layers)):
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, given {number}")
        self.user_count, self.node_count, self.layers = graph.user_count, graph.node_count, layers
        self.register_buffer("rows_and_columns", graph.index.clone(), persistent=False)
        self.register_buffer("values", graph.values.to(torch.get_default_dtype()), persistent=False)
        random = torch.Generator().manual_seed(seed)
        parts = [torch.empty(count, dimensions) for count in (self.user_count, self.node_count - self.user_count)]
        self.embedding = nn.Parameter(torch.cat([nn.init.xavier_uniform_(part, generator=random) for part in parts]))

    def table(self) -> Tensor:
        """H_0 `(n, d)`."""
        return self.embedding

    def entries(self) -> Tensor:
        """`(nnz,)`: what the embeddings are multiplied by along the graph's entries."""
        return self.values

    def edge_weights(self) -> Tensor | None:
        """`(nnz,)` learned weights of the edges; None where there are none."""
        return None

    def layer_outputs(self) -> list[Tensor]:
        """H_0 to H_K, `(n, d)` each."""
        outputs, entries = [self.table()], self.entries()
        for _ in range(self.layers):
            outputs.append(sparse_product(entries, outputs[-1], self.rows_and_columns))
        return outputs

    def nodes(self) -> Tensor:
        """Z `(n, d)`: users, then items."""
        return torch.stack(self.layer_outputs()).sum(dim=0)

    def nodes_and_high_order(self) -> tuple[Tensor, Tensor]:
        """Z, and the sum of the layers from the second on, `(n, d)` each.

        Raises:
            ValueError: there are fewer than two layers.
        """
        if self.layers < 2:
            raise ValueError(f"the high-order part sums layers from the second on, given {self.layers} layer: use 2")
        outputs = torch.stack(self.layer_outputs())
        return outputs.sum(dim=0), outputs[2:].sum(dim=0)

    def forward(self, users: Tensor) -> Tensor:
        """Scores of all items for some users: `(B,)` int64 -> `(B, I)`."""
        users_out, items_out = self.nodes().split([self.user_count, self.node_count - self.user_count])
        return users_out[users] @ items_out.T


class MaskedLightGCN(LightGCN):
    """LightGCN whose edges have learned weights, and whose edges and embedding entries can be switched off.

    H_0 = M_x * E, H_{k+1} = (S * w * M_e) H_k. S stays as it was normalised, whatever is switched off. Weights start
    at 1 and masks with all ones.

    Args:
        graph: S, normalised.
        dimensions: d.
        layers: K, 1 or more.
        seed: of the initial embeddings.

    Source: LightGNN (arXiv:2501.03228).
    """

    edge_mask: Tensor
    entry_mask: Tensor

    def __init__(self, graph: Adjacency, dimensions: int = 64, layers: int = 2, *, seed: int = 0) -> None:
        super().__init__(graph, dimensions, layers, seed=seed)
        self.edge_weight = nn.Parameter(torch.ones(len(graph)))
        self.register_buffer("edge_mask", torch.ones(len(graph)))
        self.register_buffer("entry_mask", torch.ones_like(self.embedding))

    def table(self) -> Tensor:
        """M_x * E."""
        return self.embedding * self.entry_mask

    def entries(self) -> Tensor:
        """S * w * M_e at the graph's entries."""
        return self.values * self.edge_weights()

    def edge_weights(self) -> Tensor:
        """w * M_e."""
        return self.edge_weight * self.edge_mask

    @torch.no_grad()
    def prune(self, edge_mask: Tensor, entry_mask: Tensor) -> None:
        """Switch off edges and entries. Surviving edges start again at weight 1, surviving entries keep their value.

        Args:
            edge_mask: `(nnz,)` of zeros and ones.
            entry_mask: `(n, d)` of zeros and ones.

        Raises:
            ValueError: another shape, or a mask that switches on what was off.
        """
        for name, new in (("edge_mask", edge_mask), ("entry_mask", entry_mask)):
            old: Tensor = getattr(self, name)
            if new.shape != old.shape:
                raise ValueError(
                    f"{name} must have shape {tuple(old.shape)}, given {tuple(new.shape)}: one number per edge or entry"
                )
            if bool((new.to(old) > old).any()):
                raise ValueError(f"{name} switches {int((new.to(old) > old).sum())} places on that were pruned before")
            old.copy_(new)
        self.edge_weight.copy_(self.edge_mask)
        self.embedding.mul_(self.entry_mask)

    def kept(self) -> tuple[float, float]:
        """Share of the edges (entries of S) and of the embedding entries that are switched on."""
        return float(self.edge_mask.mean()), float(self.entry_mask.mean())

    @torch.no_grad()
    def pruned_graph(self) -> Adjacency:
        """The surviving edges with S * w as values: all that inference needs beside the embeddings."""
        alive = self.edge_mask > 0
        index, values = self.rows_and_columns[:, alive], self.entries().detach()[alive]
        return Adjacency(index.cpu(), values.cpu(), self.user_count, self.node_count)


class FixedNodes(nn.Module):
    """What a network says about its nodes, computed once: a frozen teacher that costs nothing per step.

    Args:
        network: has `nodes_and_high_order()`.
    """

    all_nodes: Tensor
    high_order: Tensor

    def __init__(self, network: LightGCN) -> None:
        super().__init__()
        self.user_count, self.node_count, self.layers = network.user_count, network.node_count, network.layers
        with torch.no_grad():
            nodes, high_order = network.nodes_and_high_order()
        self.register_buffer("all_nodes", nodes.clone())
        self.register_buffer("high_order", high_order.clone())

    def nodes_and_high_order(self) -> tuple[Tensor, Tensor]:
        """What the network said."""
        return self.all_nodes, self.high_order

    def forward(self, users: Tensor) -> Tensor:
        """Scores of all items for some users: `(B,)` int64 -> `(B, I)`."""
        return self.all_nodes[: self.user_count][users] @ self.all_nodes[self.user_count :].T
