"""The three levels of LightGNN and how the lowest is pruned, as options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.blocks.propagation import MaskedLightGCN
from stillroom.blocks.pruning import Rule, check_rate, guided_edge_importance
from stillroom.data.graphs import Adjacency

Importance = Callable[[MaskedLightGCN, MaskedLightGCN | None, torch.Generator], tuple[Tensor, Tensor]]
"""`(student, intermediate, random) -> (importance of its edges (nnz,), importance of its entries (n, d))`."""


def guided_importance(
    student: MaskedLightGCN,
    intermediate: MaskedLightGCN | None,
    random: torch.Generator,
    *,
    prediction_weight: float = 0.05,
    edge_guide_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Edges by the student's weight, the intermediate model's prediction and its weight; entries by magnitude.

    Args:
        student: what is pruned.
        intermediate: its teacher; on a graph that has all edges of the student's.
        random: not used.
        prediction_weight: beta1, of sigmoid(<Z_a, Z_b>) of the intermediate model.
        edge_guide_weight: beta2, of the intermediate model's edge weights.
    """
    if intermediate is None:
        raise ValueError("guided importance asks the intermediate model, and there is none: use magnitude_importance")
    index = student.rows_and_columns
    source = Adjacency(
        intermediate.rows_and_columns.cpu(), intermediate.values.cpu(), student.user_count, student.node_count
    )
    edges = guided_edge_importance(
        student.edge_weight,
        student.edge_mask,
        index,
        intermediate.nodes(),
        source.at(index.cpu(), intermediate.edge_weights()),
        prediction_weight=prediction_weight,
        edge_guide_weight=edge_guide_weight,
    )
    return edges, student.table()


def magnitude_importance(
    student: MaskedLightGCN, intermediate: MaskedLightGCN | None, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Edges and entries by the student's own numbers, nobody asked."""
    return student.edge_weights(), student.table()


def random_importance(
    student: MaskedLightGCN, intermediate: MaskedLightGCN | None, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Chance: what guided pruning has to beat."""
    parts = [torch.rand(mask.shape, generator=random) + 0.1 for mask in (student.edge_mask, student.entry_mask)]
    return parts[0].to(student.edge_mask) * student.edge_mask, parts[1].to(student.entry_mask) * student.entry_mask


@dataclass(frozen=True)
class Level:
    """One of the three models.

    Attributes:
        layers: propagation steps; 2 or more where it teaches.
        epochs: passes over the training pairs (of the student: in each run).
        lr: Adam's constant learning rate.
        table_decay: of the squared norm of all embeddings.
        edge_decay: of the squared norm of all edge weights.
    """

    layers: int = 2
    epochs: float = 300
    lr: float = 1e-3
    table_decay: float = 1e-7
    edge_decay: float = 1e-8


@dataclass(frozen=True)
class Pruning:
    """How the student is pruned: between two runs of training, so runs - 1 times.

    Attributes:
        runs: of training, 1 or more.
        edge_rate: share of the living edges that go each time, in [0, 1).
        entry_rate: the same of embedding entries.
        importance: what is least important goes first.
        tolerances: delta of the subspace term, per run; the last one goes on. The first run has no such term.
        rule: "exact" prunes floor(rate * N), "strict" all up to and including the threshold, as the released code.
        symmetric: whether both directions of an interaction stay or go together; the released code prunes them apart.
    """

    runs: int = 13
    edge_rate: float = 0.15
    entry_rate: float = 0.2
    importance: Importance = guided_importance
    tolerances: tuple[float, ...] = (0, 0, 0, 2, 3, 4, 4, 3, 1, 0)
    rule: Rule = "exact"
    symmetric: bool = False

    def __post_init__(self) -> None:
        check_rate(edge_rate=self.edge_rate, entry_rate=self.entry_rate)
        if self.runs < 1 or not self.tolerances:
            raise ValueError(f"give 1 or more runs and tolerances, given runs={self.runs}, {self.tolerances}")


@dataclass(frozen=True)
class Run:
    """What one run of the student's training gave.

    Attributes:
        edges_kept: share of the graph's entries that were on.
        entries_kept: share of the embedding entries that were on.
        measured: metrics of the chosen epoch on what it was chosen by.
        best_step: the step of that epoch.
    """

    edges_kept: float
    entries_kept: float
    measured: dict[str, float]
    best_step: int
