"""What trains a level of LightGNN: ranking alone, and ranking with a teacher level's help."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch
from stillroom.data.interactions import Interactions
from stillroom.losses import (
    log_sum_uniformity_loss,
    node_contrast_loss,
    pairwise_soft_target_loss,
    subspace_uniformity_loss,
)
from stillroom.losses._shared import check_not_negative, check_positive
from stillroom.method import Losses, Method, Needs


class Ranking(Method):
    """Trains a LightGCN to score what users took above what they did not.

    Args:
        student: `stillroom.blocks.LightGCN` or `MaskedLightGCN`, or any module with `nodes()` -> `(n, d)` (users, then
            items), `table()` -> `(n, d)` and `edge_weights()` -> `(nnz,)` or None.
        teacher: taken and ignored.
        interactions: what was taken; negatives are drawn outside of it.
        spread_weight: of the log-sum term over all nodes, 0 or more.
        subspace_weight: of the subspace term, 0 or more; needs a student with `entry_mask`.
        tolerance: by how many dimensions two nodes of one subspace may differ, 0 or more.
        table_decay: of the squared norm of all embeddings, in every step; 0 or more.
        edge_decay: of the squared norm of all edge weights; 0 or more.
        spread_temperature: above 0.
        subspace_temperature: above 0.
        chunk_size: rows of products with all nodes that exist at a time.

    Losses:
        ranking: mean of -log sigmoid(positive score - negative score).
        spread: `stillroom.losses.log_sum_uniformity_loss`, users and items against users and items, four terms.
        subspace: `stillroom.losses.subspace_uniformity_loss`, the same four pairings.
        table_norm, edge_norm: squared norms.

    A batch has users as inputs and items as labels; a field `negatives` is used where there is one, else drawn.

    Source: Chen et al. 2025, arXiv:2501.03228; Rendle et al. 2009 (BPR).
    """

    needs = Needs(
        labels="every",
        teacher=False,
        tasks=("recommendation",),
        whole_batch="nodes are told apart from all other nodes, and norms are of whole tables",
    )
    may_be_negative = ("spread",)

    student: Any

    def __init__(
        self,
        student: nn.Module,
        teacher: Any = None,
        *,
        interactions: Interactions,
        spread_weight: float = 0.0,
        subspace_weight: float = 0.0,
        tolerance: float = 0.0,
        table_decay: float = 1e-7,
        edge_decay: float = 0.0,
        spread_temperature: float = 1.0,
        subspace_temperature: float = 1.0,
        chunk_size: int = 1024,
    ) -> None:
        super().__init__(student, teacher if self.needs.teacher else None)
        check_not_negative(
            spread_weight=spread_weight,
            subspace_weight=subspace_weight,
            tolerance=tolerance,
            table_decay=table_decay,
            edge_decay=edge_decay,
        )
        check_positive(spread_temperature=spread_temperature, subspace_temperature=subspace_temperature)
        self.interactions = interactions
        self.weights = {
            "spread": spread_weight,
            "subspace": subspace_weight,
            "table_norm": table_decay,
            "edge_norm": edge_decay,
        }
        self.tolerance = tolerance
        self.spread_temperature, self.subspace_temperature = spread_temperature, subspace_temperature
        self.chunk_size = chunk_size

    def forward(self, batch: Batch) -> Losses:
        """Return the losses of a batch of users and the items they took."""
        if batch.labels is None:
            raise ValueError("ranking needs the item that each user took as labels, but this batch has none")
        if batch.labels.shape != batch.inputs.shape or batch.labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be {tuple(batch.inputs.shape)} int64, one item per user, given "
                f"{tuple(batch.labels.shape)} {batch.labels.dtype}"
            )
        nodes = self.student.nodes()
        terms, outputs = self.terms(batch, nodes)
        return Losses(
            outputs=outputs, weights={name: self.weights[name] for name in terms if name in self.weights}, **terms
        )

    def terms(self, batch: Batch, nodes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The terms whose weight is not 0, and how far positives are above negatives."""
        users, positives = batch.inputs, batch.labels
        items = nodes[self.interactions.user_count :]
        negatives = batch.fields.get("negatives")
        if negatives is None:
            negatives = self.interactions.sample_negatives(users)
        margins = (nodes[users] * (items[positives] - items[negatives])).sum(dim=1)
        found = {"ranking": F.softplus(-margins).mean()}
        if self.weights["spread"]:
            found["spread"] = self._over_pairings(self._spread, nodes, users, positives)
        if self.weights["subspace"]:
            found["subspace"] = self._over_pairings(self._subspace, nodes, users, positives)
        if self.weights["table_norm"]:
            found["table_norm"] = self.student.table().square().sum()
        edge_weights = self.student.edge_weights()
        if self.weights["edge_norm"] and edge_weights is not None:
            found["edge_norm"] = edge_weights.square().sum()
        return found, margins

    def _over_pairings(self, loss: Any, nodes: Tensor, users: Tensor, positives: Tensor) -> Tensor:
        """Users and items of the batch, each against all users and all items: four losses, summed."""
        count = self.interactions.user_count
        kinds = (slice(0, count), slice(count, len(nodes)))
        anchors = (users.unique(), positives.unique())
        return torch.stack(
            [loss(nodes, mine, other, rows) for mine, rows in zip(kinds, anchors) for other in kinds]
        ).sum()

    def _spread(self, nodes: Tensor, mine: slice, other: slice, rows: Tensor) -> Tensor:
        return log_sum_uniformity_loss(
            nodes[mine], nodes[other], rows, temperature=self.spread_temperature, chunk_size=self.chunk_size
        )

    def _subspace(self, nodes: Tensor, mine: slice, other: slice, rows: Tensor) -> Tensor:
        mask = self.student.entry_mask
        return subspace_uniformity_loss(
            nodes[mine],
            nodes[other],
            mask[mine],
            mask[other],
            rows,
            tolerance=self.tolerance,
            temperature=self.subspace_temperature,
            chunk_size=self.chunk_size,
        )


class NodesOf(nn.Module):
    """A network that is asked about all its nodes at once, whatever the batch.

    Args:
        network: has `nodes_and_high_order()`.

    Raises:
        ValueError: it has fewer than two layers.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        if network.layers < 2:
            raise ValueError(
                f"the teacher has {network.layers} layer, but what is taught is the sum of its layers from the second "
                "on: give it 2 or more"
            )
        self.network = network

    def forward(self, inputs: Any = None) -> tuple[Tensor, Tensor]:
        """All nodes, and the high-order part of them, `(n, d)` each."""
        return self.network.nodes_and_high_order()


class GraphDistillation(Ranking):
    """Ranking, and a teacher level's soft preferences and high-order embeddings.

    Args:
        student: as for `Ranking`.
        teacher: has `nodes_and_high_order()` and `layers` of 2 or more: a `LightGCN` of any depth and graph over the
            same users, items and dimensions, or `FixedNodes` of one; frozen here.
        interactions: what was taken.
        prediction_weight: of the soft preferences, 0 or more.
        embedding_weight: of the contrast with the teacher's embeddings, 0 or more.
        prediction_temperature: above 0.
        embedding_temperature: above 0.
        triples: random (user, item, item) triples per step that preferences are compared on.
        spread_weight: as for `Ranking`; the rest too.
        subspace_weight: as for `Ranking`.
        tolerance: as for `Ranking`.
        table_decay: as for `Ranking`.
        edge_decay: as for `Ranking`.
        spread_temperature: as for `Ranking`.
        subspace_temperature: as for `Ranking`.
        chunk_size: as for `Ranking`.

    Losses:
        those of `Ranking`, and
        prediction: `stillroom.losses.pairwise_soft_target_loss` over the triples.
        embedding: `stillroom.losses.node_contrast_loss` of the batch's users among all users and of its items among
            all items; the teacher's side is the sum of its layers from the second on.

    A field `triples` `(3, m)` of a batch is used where there is one, else drawn.

    Raises:
        ValueError: the teacher has fewer than two layers, or other nodes or dimensions than the student.

    Source: Chen et al. 2025, arXiv:2501.03228.
    """

    needs = Needs(
        labels="every",
        tasks=("recommendation",),
        teacher_at="own",
        whole_batch="nodes are told apart from all other nodes, and norms are of whole tables",
    )

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        interactions: Interactions,
        prediction_weight: float = 1.0,
        embedding_weight: float = 1e-2,
        prediction_temperature: float = 0.03,
        embedding_temperature: float = 0.1,
        triples: int = 100_000,
        spread_weight: float = 1.0,
        subspace_weight: float = 0.0,
        tolerance: float = 0.0,
        table_decay: float = 1e-7,
        edge_decay: float = 1e-8,
        spread_temperature: float = 1.0,
        subspace_temperature: float = 1.0,
        chunk_size: int = 1024,
    ) -> None:
        super().__init__(
            student,
            None if teacher is None else NodesOf(teacher.network if isinstance(teacher, Frozen) else teacher),
            interactions=interactions,
            spread_weight=spread_weight,
            subspace_weight=subspace_weight,
            tolerance=tolerance,
            table_decay=table_decay,
            edge_decay=edge_decay,
            spread_temperature=spread_temperature,
            subspace_temperature=subspace_temperature,
            chunk_size=chunk_size,
        )
        check_not_negative(prediction_weight=prediction_weight, embedding_weight=embedding_weight)
        check_positive(
            prediction_temperature=prediction_temperature, embedding_temperature=embedding_temperature, triples=triples
        )
        self.weights |= {"prediction": prediction_weight, "embedding": embedding_weight}
        self.prediction_temperature, self.embedding_temperature = prediction_temperature, embedding_temperature
        self.triples = triples

    def terms(self, batch: Batch, nodes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The terms whose weight is not 0, and how far positives are above negatives."""
        found, margins = super().terms(batch, nodes)
        teacher_nodes, high_order = self.teacher(batch)
        if len(teacher_nodes) != len(nodes):
            raise ValueError(
                f"the teacher has {len(teacher_nodes)} nodes, the student {len(nodes)}: both need the same"
            )
        if self.weights["prediction"]:
            triples = batch.fields.get("triples")
            if triples is None:
                triples = self._draw(batch.inputs.device)
            found["prediction"] = pairwise_soft_target_loss(
                self._margins(nodes, triples),
                self._margins(teacher_nodes, triples),
                temperature=self.prediction_temperature,
            )
        if self.weights["embedding"]:
            count = self.interactions.user_count
            parts = ((slice(0, count), batch.inputs.unique()), (slice(count, len(nodes)), batch.labels.unique()))
            found["embedding"] = torch.stack(
                [
                    node_contrast_loss(
                        nodes[kind],
                        high_order[kind],
                        rows,
                        temperature=self.embedding_temperature,
                        chunk_size=self.chunk_size,
                    )
                    for kind, rows in parts
                ]
            ).sum()
        return found, margins

    def _draw(self, device: torch.device) -> Tensor:
        sizes = (self.interactions.user_count, self.interactions.item_count, self.interactions.item_count)
        return torch.stack([torch.randint(size, (self.triples,), device=device) for size in sizes])

    def _margins(self, nodes: Tensor, triples: Tensor) -> Tensor:
        users, first, second = triples
        items = nodes[self.interactions.user_count :]
        return (nodes[users] * (items[first] - items[second])).sum(dim=1)
