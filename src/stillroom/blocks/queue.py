"""A queue of features: the latest ones, first in, first out."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stillroom.data.batch import UNLABELLED


class FeatureQueue(nn.Module):
    """Keeps the latest features (and labels) of earlier batches, in float32, as part of the state dict.

    Where `torch.distributed` is initialised, each process enqueues the features of all, in the order of the ranks, so
    that every process holds the same queue.

    Args:
        size: how many features it holds.
        dim: width of a feature.

    Raises:
        ValueError: size or dim below 1.

    Example:
        >>> queue = FeatureQueue(3, 1)
        >>> for step in range(5):
        ...     queue.enqueue(torch.tensor([[float(step)]]))
        >>> queue.features.flatten().tolist()
        [2.0, 3.0, 4.0]
    """

    memory: Tensor
    label_memory: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"FeatureQueue needs a size and a dim of 1 or more, given {size} and {dim}")
        self.size = size
        self.dim = dim
        self.enqueued = 0
        self.register_buffer("memory", torch.zeros(size, dim))
        self.register_buffer("label_memory", torch.full((size,), UNLABELLED))

    def __len__(self) -> int:
        """How many features it holds now."""
        return min(self.enqueued, self.size)

    @property
    def features(self) -> Tensor:
        """`(len(queue), dim)`, a copy, the oldest first; it carries no gradient."""
        return self.memory[self._rows(self.enqueued - len(self), len(self))]

    @property
    def labels(self) -> Tensor:
        """`(len(queue),)` int64, the labels of `features`; -100 where none was given."""
        return self.label_memory[self._rows(self.enqueued - len(self), len(self))]

    @torch.no_grad()
    def enqueue(self, features: Tensor, labels: Tensor | None = None) -> None:
        """Put a batch in; the oldest features make room.

        Args:
            features: `(N, dim)`; every process may bring another N.
            labels: `(N,)` int64; None for none.

        Raises:
            ValueError: shapes or dtypes disagree, or the batch (of all processes) is larger than the queue.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features must have shape (N, {self.dim}), given {tuple(features.shape)}")
        if labels is not None and (labels.shape != features.shape[:1] or labels.dtype != torch.int64):
            raise ValueError(
                f"labels must be int64 of shape ({len(features)},), given {labels.dtype} of {tuple(labels.shape)}"
            )
        if labels is None:
            labels = torch.full((len(features),), UNLABELLED)
        features, labels = gathered(features.to(self.memory)), gathered(labels.to(self.label_memory))
        if len(features) > self.size:
            raise ValueError(
                f"{len(features)} features were given to a queue of {self.size}: make the queue as large as a batch of "
                "all processes, or larger"
            )
        rows = self._rows(self.enqueued, len(features))
        self.memory[rows] = features
        self.label_memory[rows] = labels
        self.enqueued += len(features)

    def _rows(self, first: int, count: int) -> Tensor:
        return torch.arange(first, first + count, device=self.memory.device) % self.size

    def get_extra_state(self) -> Tensor:
        """How many features were ever enqueued: the place in the ring."""
        return torch.tensor(self.enqueued)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on at that place."""
        self.enqueued = int(state)


def gathered(rows: Tensor) -> Tensor:
    """Join the rows of all processes, in the order of their ranks; without processes, the rows themselves.

    Args:
        rows: `(N, ...)`; N may differ between processes.

    Returns:
        `(sum of N, ...)`, without gradient.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(count) for count in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
