"""Recommendation: which items a user takes next, measured by recall and NDCG at the head of the ranking."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.data.batch import Batch
from stillroom.data.interactions import Interactions
from stillroom.data.samples import TensorSamples
from stillroom.task.base import Task


def top_items(scores: Tensor, seen: Tensor, k: int) -> Tensor:
    """The k best items per user that the user has not seen, `(B, k)`; -1 where there are no more.

    Args:
        scores: `(B, I)`.
        seen: `(B, I)` bool.
        k: 1 or more.
    """
    found = scores.masked_fill(seen, -torch.inf).topk(min(k, scores.shape[1]), dim=1)
    items = found.indices.masked_fill(found.values == -torch.inf, -1)
    return torch.nn.functional.pad(items, (0, k - items.shape[1]), value=-1)


def recall_and_ndcg(ranked: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Recall and NDCG of rankings.

    Recall = hits / all wanted items of the user. NDCG = sum over hits of 1 / log2(place + 1), divided by what it is
    when the first min(k, wanted) places are hits.

    Args:
        ranked: `(B, k)` item numbers, the best first; -1 for none.
        wanted: `(B, I)` bool; every user wants one or more.

    Returns:
        `(B,)` and `(B,)` float64.

    Raises:
        ValueError: a user wants nothing.
    """
    count = wanted.sum(dim=1)
    if not bool((count > 0).all()):
        raise ValueError(f"{int((count == 0).sum())} of {len(wanted)} users want no item: leave them out")
    hits = (wanted.gather(1, ranked.clamp(min=0)) & (ranked >= 0)).double()
    places = torch.arange(ranked.shape[1], dtype=torch.float64, device=ranked.device)
    gains = 1 / (places + 2).log2()
    ideal = gains.cumsum(0)[count.clamp(max=ranked.shape[1]) - 1]
    return hits.sum(dim=1) / count, (hits * gains).sum(dim=1) / ideal


@torch.no_grad()
def ranking_metrics(
    score: Callable[[Tensor], Tensor],
    seen: Interactions,
    wanted: Interactions,
    *,
    k: int = 20,
    users: Tensor | None = None,
    chunk_size: int = 4096,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Mean Recall@k and NDCG@k over the users who want something.

    Args:
        score: users `(B,)` -> scores of all items `(B, I)`.
        seen: pairs that are left out of the rankings (what was trained on).
        wanted: pairs that are to be found.
        k: length of the ranking.
        users: whom to ask; all when not given. Users who want nothing are left out.
        chunk_size: users at a time.
        device: of the user numbers that `score` gets.

    Raises:
        ValueError: nobody wants anything, or the two differ in users or items.
    """
    seen.check_same_nodes(wanted)
    if users is None:
        users = torch.arange(wanted.user_count)
    users = users[wanted.user_degrees()[users] > 0]
    if not len(users):
        raise ValueError("no user has a held-out item: there is nothing to measure on")
    found = []
    for part in users.split(chunk_size):
        scores = score(part.to(device or "cpu")).float().cpu()
        found.append(torch.stack(recall_and_ndcg(top_items(scores, seen.dense(part), k), wanted.dense(part))))
    recall, ndcg = torch.cat(found, dim=1).mean(dim=1).tolist()
    return {f"recall_at_{k}": recall, f"ndcg_at_{k}": ndcg}


class Recommendation(Task):
    """Implicit feedback: inputs are users `(N,)`, labels the items they took `(N,)`, outputs scores of all items.

    Args:
        seen: pairs that are left out of the rankings.
        wanted: pairs that are to be found.
        k: length of the rankings that are measured.

    Example:
        >>> took = Interactions(torch.tensor([0, 1]), torch.tensor([0, 1]), 2, 3)
        >>> takes = Interactions(torch.tensor([0, 1]), torch.tensor([1, 2]), 2, 3)
        >>> task = Recommendation(took, takes, k=1)
        >>> right = lambda users: torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.5, 1.0]])[users]
        >>> task.evaluate(right, [Batch(task.users())])
        {'recall_at_1': 1.0, 'ndcg_at_1': 1.0}
    """

    name = "recommendation"
    needs_labels = False

    metric: str  # type: ignore[misc]

    def __init__(self, seen: Interactions, wanted: Interactions, *, k: int = 20) -> None:
        super().__init__()
        seen.check_same_nodes(wanted)
        if k < 1:
            raise ValueError(f"k (length of the ranking) must be 1 or more, given {k}")
        self.seen, self.wanted, self.k = seen, wanted, k
        self.metric = f"recall_at_{k}"

    def users(self) -> Tensor:
        """Numbers of the users who want something."""
        return self.wanted.user_degrees().nonzero().flatten()

    def held_out(self) -> TensorSamples:
        """These users as samples, for measuring."""
        return TensorSamples(self.users())

    def check_labels(self, labels: Tensor, outputs: Tensor | None) -> None:
        """Refuse item numbers out of range."""
        if labels.dtype != torch.int64 or int(labels.min()) < 0 or int(labels.max()) >= self.seen.item_count:
            raise ValueError(
                f"labels must be int64 item numbers in [0, {self.seen.item_count}), given {labels.dtype} from "
                f"{labels.min().item()} to {labels.max().item()}"
            )

    def evaluate(
        self,
        network: nn.Module | Callable[[Any], Tensor],
        batches: Iterable[Batch],
        *,
        teacher: Callable[[Any], Tensor] | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, float]:
        """Measure a network on users; a teacher beside it is not asked."""
        users = torch.cat([batch.inputs for batch in batches]).cpu()
        training = isinstance(network, nn.Module) and network.training
        if isinstance(network, nn.Module):
            network.eval()
            device = device or next((p.device for p in network.parameters()), torch.device("cpu"))
        try:
            return ranking_metrics(network, self.seen, self.wanted, k=self.k, users=users, device=device)
        finally:
            if training:
                network.train()  # type: ignore[union-attr]


def popularity(interactions: Interactions) -> Callable[[Tensor], Tensor]:
    """Scores that are the same for everybody: how many users took an item (the baseline to beat)."""
    counts = interactions.item_degrees().float()
    return lambda users: counts.to(users.device).expand(len(users), -1)
