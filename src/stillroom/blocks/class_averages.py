"""What a teacher says on the average about each class of a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.data.samples import Samples
from stillroom.data.stream import sequential
from stillroom.losses._shared import at_least_float32, check_label_range


class ClassAverages(nn.Module):
    """Mean of some vectors over all samples of a class, kept as buffers: `averages(labels)` looks them up.

    Args:
        classes: how many, 2 or more.
        width: size of a vector; None for as many as classes (probabilities).

    Raises:
        ValueError: fewer than 2 classes.

    Example:
        >>> averages = ClassAverages(2)
        >>> averages.put(torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]), torch.tensor([0, 0, 1]))
        >>> [round(float(value), 2) for value in averages(torch.tensor([0]))[0]]
        [0.7, 0.3]
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, classes: int, width: int | None = None) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be 2 or more, given {classes}")
        self.register_buffer("sums", torch.zeros(classes, classes if width is None else width))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))

    @property
    def filled(self) -> bool:
        """Whether anything was put in."""
        return bool(self.counts.any())

    @torch.no_grad()
    def put(self, vectors: Tensor, labels: Tensor) -> None:
        """Take more samples into the averages.

        Args:
            vectors: `(N, width)`.
            labels: `(N,)`, int64 in [0, classes).

        Raises:
            ValueError: shapes disagree, or labels are not int64 or out of range.
        """
        classes, width = self.sums.shape
        if labels.dtype != torch.int64 or vectors.shape != (*labels.shape, width) or labels.ndim != 1:
            raise ValueError(
                f"vectors must be (N, {width}) and labels (N,) int64, given {tuple(vectors.shape)} and "
                f"{tuple(labels.shape)} {labels.dtype}"
            )
        check_label_range(labels, classes)
        self.sums.index_add_(0, labels, vectors.to(self.sums))
        self.counts += torch.bincount(labels, minlength=classes)

    @torch.no_grad()
    def fill(
        self,
        teacher: Callable[[Any], Tensor],
        samples: Samples,
        *,
        batch_size: int = 256,
        device: torch.device | str | None = None,
    ) -> None:
        """Put the softmax of what a teacher says about all samples, once each.

        Args:
            teacher: called with a batch, gives logits `(N, classes)` (`stillroom.blocks.Frozen`).
            samples: with a class number each.
            batch_size: samples that are asked about at once.
            device: where the teacher is; None for where these averages are.
        """
        for batch in sequential(samples, batch_size):
            batch = batch.to(self.sums.device if device is None else device)
            said = at_least_float32(teacher(batch)).softmax(1)
            self.put(said.to(self.sums.device), batch.labels.to(self.sums.device))

    def forward(self, labels: Tensor) -> Tensor:
        """Look up the average of each label's class: `(N, width)`.

        Raises:
            ValueError: labels out of range, or a class of which no sample was put in.
        """
        check_label_range(labels, len(self.counts))
        counts = self.counts[labels]
        if bool((counts == 0).any()):
            raise ValueError(
                f"class {int(labels[counts == 0][0])} is absent from the {int(self.counts.sum())} samples that the "
                "averages were taken over: there is no average of it; leave the class out, or give samples of it"
            )
        return self.sums[labels] / counts.unsqueeze(1)
