"""Graphs as sparse matrices: entries in order, normalised adjacency with self-loops, two-hop neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.data.interactions import Interactions
from stillroom.extras import require


class Adjacency:
    """A weighted directed graph over U users and then I items, entries ordered by row (the receiver) and column.

    Args:
        index: `(2, nnz)` int64, rows and columns, row-major, each entry once.
        values: `(nnz,)` floats.
        user_count: U.
        node_count: U + I.

    Raises:
        ValueError: index and values differ in length, or entries are not in order.
    """

    def __init__(self, index: Tensor, values: Tensor, user_count: int, node_count: int) -> None:
        if index.shape != (2, len(values)):
            raise ValueError(f"index must be (2, {len(values)}) for {len(values)} values, given {tuple(index.shape)}")
        keys = index[0] * node_count + index[1]
        if bool((keys[1:] <= keys[:-1]).any()):
            raise ValueError("entries must be ordered by row and then by column, each once: use from_entries")
        self.index, self.values, self.user_count, self.node_count = index, values, user_count, node_count

    @classmethod
    def from_entries(cls, rows: Tensor, columns: Tensor, values: Tensor, user_count: int, node_count: int) -> Adjacency:
        """Put entries in order and add up those at one place."""
        keys, place = (rows * node_count + columns).unique(return_inverse=True)
        summed = torch.zeros(len(keys), dtype=values.dtype).index_add_(0, place, values)
        return cls(torch.stack([keys // node_count, keys % node_count]), summed, user_count, node_count)

    def __len__(self) -> int:
        return len(self.values)

    def dense(self) -> Tensor:
        """`(n, n)`."""
        found = self.values.new_zeros(self.node_count, self.node_count)
        return found.index_put((self.index[0], self.index[1]), self.values)

    def normalised(self) -> Adjacency:
        """D^(-1/2) A D^(-1/2) with D the sums of rows."""
        degrees = torch.zeros(self.node_count, dtype=self.values.dtype).index_add_(0, self.index[0], self.values)
        scale = torch.where(degrees > 0, degrees.rsqrt(), 0)
        values = scale[self.index[0]] * self.values * scale[self.index[1]]
        return Adjacency(self.index, values, self.user_count, self.node_count)

    def at(self, index: Tensor, values: Tensor) -> Tensor:
        """Read numbers that belong to this graph's entries at other entries `(2, m)`.

        Args:
            index: entries, which must all be among this graph's.
            values: `(nnz,)`, one number per entry of this graph.

        Raises:
            ValueError: some entries are not in this graph.
        """
        mine = self.index[0] * self.node_count + self.index[1]
        keys = index[0] * self.node_count + index[1]
        place = torch.searchsorted(mine, keys).clamp(max=len(mine) - 1)
        missing = int((mine[place] != keys).sum())
        if missing:
            raise ValueError(f"{missing} of {len(keys)} entries are not among the {len(mine)} of this graph")
        return values[place.to(values.device)]

    def to_pyg(self) -> Any:
        """Return a torch_geometric `Data` with `edge_index` (source, receiver) and `edge_weight`."""
        return require("torch_geometric.data").Data(
            edge_index=self.index.flip(0),
            edge_weight=self.values,
            num_nodes=self.node_count,
            user_count=self.user_count,
        )


def adjacency(
    interactions: Interactions, *, two_hop: bool = False, two_hop_keep: float = 1.0, normalise: bool = True
) -> Adjacency:
    """Graph of users and items with self-loops: I + A, or with two-hop neighbours I + A + A^2; then normalised.

    A = [[0, R], [R^T, 0]]. Entries of A^2 count common neighbours (and, on the diagonal, neighbours).

    Args:
        interactions: R.
        two_hop: add A^2.
        two_hop_keep: share of A^2's entries that are kept, the largest; ties are broken by place; in (0, 1].
        normalise: D^(-1/2) . D^(-1/2), self-loops included in D.

    Raises:
        ValueError: two_hop_keep is out of range.
    """
    if not 0 < two_hop_keep <= 1:
        raise ValueError(f"two_hop_keep is a share in (0, 1], given {two_hop_keep}")
    from scipy.sparse import bmat, csr_matrix, eye

    ratings = interactions.to_scipy().astype(np.float64)
    one_hop = bmat([[None, ratings], [ratings.T, None]], format="csr")
    count = interactions.node_count
    total = one_hop + eye(count, format="csr")
    if two_hop:
        squared = (one_hop @ one_hop).tocoo()
        if two_hop_keep < 1:
            place = squared.row.astype(np.int64) * count + squared.col
            order = np.lexsort((place, -squared.data))[: int(two_hop_keep * squared.nnz)]
            squared = csr_matrix((squared.data[order], (squared.row[order], squared.col[order])), (count, count))
        total = total + squared
    entries = total.tocoo()
    rows, columns = (torch.from_numpy(part.astype(np.int64)) for part in (entries.row, entries.col))
    graph = Adjacency.from_entries(rows, columns, torch.from_numpy(entries.data), interactions.user_count, count)
    return graph.normalised() if normalise else graph
