"""What to prune: importance of edges and entries, and the masks of those that stay."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stillroom.blocks.propagation import entry_products

Rule = Literal["exact", "strict"]


def check_rate(**named: float) -> None:
    """Refuse pruning rates outside [0, 1), naming them."""
    for name, rate in named.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{name} is the share that is pruned and must lie in [0, 1), given {rate}")


@torch.no_grad()
def surviving(importance: Tensor, rate: float, *, rule: Rule = "exact", groups: Tensor | None = None) -> Tensor:
    """Mask of what stays when the least important share is pruned. What has importance 0 is pruned already.

    Among the N numbers other than 0, by absolute value:
    "exact" prunes the floor(rate * N) smallest, of equal ones those that stand first;
    "strict" keeps what is above the number at place floor(rate * N) (from 0) of the ascending order, so that this
    number goes too, and everything that equals it: equal numbers go together, in the extreme all of them.

    Args:
        importance: any shape.
        rate: share to prune, in [0, 1).
        rule: "exact", or "strict" as LightGNN's released code does.
        groups: int64 of the same shape: places with one number stay or go together, by the mean of their importance,
            and count as one. None: each for itself.

    Returns:
        Zeros and ones of importance's shape and dtype.

    Raises:
        ValueError: rate or shapes out of order, or another rule.
    """
    check_rate(rate=rate)
    if rule not in ("exact", "strict"):
        raise ValueError(f'rule must be "exact" or "strict", given {rule!r}')
    if groups is not None:
        if groups.shape != importance.shape:
            raise ValueError(f"groups must be {tuple(importance.shape)} as importance, given {tuple(groups.shape)}")
        _, place, counts = groups.unique(return_inverse=True, return_counts=True)
        means = importance.new_zeros(len(counts)).index_add_(0, place.flatten(), importance.abs().flatten()) / counts
        alive = (importance != 0).to(importance.dtype)
        return surviving(means, rate, rule=rule)[place] * alive
    size = importance.abs().flatten()
    places = size.nonzero().flatten()
    cut = int(rate * len(places))
    if not len(places):
        return torch.zeros_like(importance)
    order = size[places].argsort(stable=True)
    if rule == "strict":
        return (importance.abs() > size[places[order[cut]]]).to(importance.dtype)
    kept = torch.zeros_like(size)
    kept[places[order[cut:]]] = 1
    return kept.view_as(importance)


@torch.no_grad()
def guided_edge_importance(
    edge_weight: Tensor,
    edge_mask: Tensor,
    index: Tensor,
    guide_nodes: Tensor,
    guide_edge_weight: Tensor,
    *,
    prediction_weight: float = 0.05,
    edge_guide_weight: float = 1.0,
) -> Tensor:
    """Importance of edges by a student's own weights, and by what its teacher predicts and weighs.

    q_e = ( w_e + prediction_weight * sigmoid(<Z_a, Z_b>) + edge_guide_weight * v_e ) * m_e for e = (a, b).

    Args:
        edge_weight: w, `(m,)`, learned by the student.
        edge_mask: m, `(m,)` of zeros and ones.
        index: `(2, m)`, the edges.
        guide_nodes: Z, `(n, d)`, of the teacher.
        guide_edge_weight: v, `(m,)`, learned by the teacher at these edges.
        prediction_weight: beta1 of the released code (whose help texts swap the two).
        edge_guide_weight: beta2.

    Returns:
        `(m,)`.

    Raises:
        ValueError: the lengths differ.

    Source: LightGNN (arXiv:2501.03228).
    """
    lengths = {"edge_weight": edge_weight, "edge_mask": edge_mask, "guide_edge_weight": guide_edge_weight}
    for name, tensor in lengths.items():
        if tensor.shape != (index.shape[1],):
            raise ValueError(f"{name} must be ({index.shape[1]},), one per edge, given {tuple(tensor.shape)}")
    predicted = entry_products(guide_nodes, guide_nodes, index).sigmoid()
    return (edge_weight + prediction_weight * predicted + edge_guide_weight * guide_edge_weight) * edge_mask


def undirected_groups(index: Tensor, node_count: int) -> Tensor:
    """A number per entry that both directions of an edge share, `(m,)` int64."""
    return index.amin(dim=0) * node_count + index.amax(dim=0)
