"""CRD: contrastive representation distillation, with a memory of every training sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.blocks import pooled
from stillroom.data.batch import UNLABELLED, Batch
from stillroom.losses import crd_loss
from stillroom.losses._shared import at_least_float32, check_not_negative, check_positive
from stillroom.method import Losses, Needs
from stillroom.systems.classification.logit_kd.tapped import TappedDistillation
from stillroom.task import Task


class CRD(TappedDistillation):
    """Contrastive distillation: the two networks' features of one sample find each other among those of other classes.

    Both features, pooled over positions, go through a linear map to `embedding_size` and are L2-normalised. Two
    memories hold every training sample as either network embedded it last (mixed with what they held before). Each
    embedding is compared with the other network's memory: its own row, and K rows of other classes, drawn in every call
    from PyTorch's global generator. The normaliser Z of each direction is fixed by the first training batch. The
    memories are part of the state dict. As batch norm's statistics, they change in training mode only, in the forward.

    A sample is drawn as a negative if its class is known or it has been in a batch, and it is not known to be of the
    same class; for a sample without a class, every other sample is a negative.

    Args:
        student: inputs -> outputs of the task.
        teacher: inputs -> outputs; frozen here.
        train_size: rows of the memories: one more than the largest number in `batch.index`.
        train_labels: `(train_size,)` int64, the class of each training sample by its number in `batch.index`, -100
            where it has none or is not trained on; None to know of no classes but those in the batches so far.
        label_weight: weight of the supervised loss, 0 or more.
        contrast_weight: weight of the contrastive loss, 0 or more.
        embedding_size: width of the embeddings, 1 or more.
        negatives: K, 1 or more; drawn without replacement where there are enough.
        temperature: tau of the scores exp(u . v / tau), above 0.
        memory_momentum: share of the old row in a memory's update, in [0, 1).
        student_layers: one module name inside the student; None chooses the last stage.
        teacher_layers: one module name inside the teacher; None with `student_layers` None.
        probe: a batch (or inputs) to learn shapes from, two samples are enough.
        task: whose supervised loss is used; classification when not given.

    Losses:
        label: the task's supervised loss over the labelled rows; absent when the batch carries no labels.
        contrast: `stillroom.losses.crd_loss` over all rows, the sum of both directions.

    Source: Tian et al. 2020, arXiv:1910.10699, and the authors' code ("exact" negatives). Scores are taken from all
        rows of the memory and then gathered, which is the same and takes less memory than gathering rows. Every process
        of a distributed run keeps memories of its own, from the samples it sees.
    """

    needs = Needs(
        labels="some",
        index=True,
        features=True,
        min_batch=2,
        whole_batch="samples are compared with a memory of earlier batches",
        tasks=("classification",),
    )

    memories: Tensor
    log_normalizers: Tensor
    classes: Tensor
    known: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        train_size: int,
        train_labels: Tensor | None = None,
        label_weight: float = 1.0,
        contrast_weight: float = 0.8,
        embedding_size: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        memory_momentum: float = 0.5,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        probe: Batch | Tensor | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__(student, teacher, label_weight=label_weight, task=task)
        check_not_negative(contrast_weight=contrast_weight)
        check_positive(
            train_size=train_size, embedding_size=embedding_size, negatives=negatives, temperature=temperature
        )
        if not 0 <= memory_momentum < 1:
            raise ValueError(f"memory_momentum must lie in [0, 1), given {memory_momentum}")
        if train_labels is None:
            train_labels = torch.full((train_size,), UNLABELLED)
        if train_labels.dtype != torch.int64 or train_labels.shape != (train_size,):
            raise ValueError(
                f"train_labels must be int64 of shape ({train_size},), a class for every number in batch.index below "
                f"train_size, given {train_labels.dtype} of shape {tuple(train_labels.shape)}: put the labels at their "
                "samples' numbers, and -100 elsewhere"
            )
        self.contrast_weight = contrast_weight
        self.negatives = negatives
        self.temperature = temperature
        self.memory_momentum = memory_momentum
        self.choose_layers(student_layers, teacher_layers, probe, pick=lambda stages: [stages - 1], exactly=1)
        ((student_feature, teacher_feature),) = self.probe_features(probe)
        self.student_embedding = nn.Linear(pooled(student_feature).shape[1], embedding_size)
        self.teacher_embedding = nn.Linear(pooled(teacher_feature).shape[1], embedding_size)
        bound = math.sqrt(3 / embedding_size)  # rows of length 1, on average
        self.register_buffer("memories", torch.empty(2, train_size, embedding_size).uniform_(-bound, bound))
        self.register_buffer("log_normalizers", torch.full((2,), torch.nan))
        self.register_buffer("classes", train_labels.clone())
        self.register_buffer("known", train_labels != UNLABELLED)

    def forward(self, batch: Batch) -> Losses:
        """Return the supervised loss and the contrastive loss of a batch."""
        index = self._index(batch)
        outputs, _, ((student_feature, teacher_feature),) = self.ask(batch)
        embeddings = [
            F.normalize(at_least_float32(embed(pooled(feature))), dim=1)
            for embed, feature in (
                (self.student_embedding, student_feature),
                (self.teacher_embedding, teacher_feature),
            )
        ]
        if self.training:
            self._note(index, batch.labels)
        columns = torch.cat([index.unsqueeze(1), self.draw_negatives(index)], dim=1)
        directions = [self._direction(side, embedding, columns) for side, embedding in enumerate(embeddings)]
        if self.training:
            self._remember(index, embeddings)
        terms = {"contrast": torch.stack(directions).sum()}
        return self.losses(outputs, batch, terms, {"contrast": self.contrast_weight})

    def draw_negatives(self, index: Tensor) -> Tensor:
        """Draw K samples of other classes for each of some samples.

        Args:
            index: `(N,)` numbers of the samples.

        Returns:
            `(N, K)` numbers of other samples.

        Raises:
            ValueError: a sample has no negative: all samples known so far are of its class.
        """
        of_other_class: dict[int, Tensor] = {}
        rows = []
        for number, own in zip(index.tolist(), self.classes[index].tolist(), strict=True):
            if own == UNLABELLED:
                candidates = self.known.index_fill(0, index.new_tensor([number]), False).nonzero().squeeze(1)
            elif own in of_other_class:
                candidates = of_other_class[own]
            else:
                candidates = of_other_class[own] = (self.known & (self.classes != own)).nonzero().squeeze(1)
            if not len(candidates):
                raise ValueError(
                    f"sample {number} has no negatives: all {int(self.known.sum())} samples known so far are of class "
                    f"{own}; CRD needs samples of at least 2 classes"
                )
            if len(candidates) >= self.negatives:
                drawn = torch.randperm(len(candidates), device=index.device)[: self.negatives]
            else:
                drawn = torch.randint(len(candidates), (self.negatives,), device=index.device)
            rows.append(candidates[drawn])
        return torch.stack(rows)

    def _index(self, batch: Batch) -> Tensor:
        if batch.index is None:
            raise ValueError("CRD keeps a memory of every sample, but this batch has no index: number the samples")
        if len(batch.index) < 2:
            raise ValueError(f"CRD needs at least 2 samples in a batch, given {len(batch.index)}")
        lowest, highest = int(batch.index.min()), int(batch.index.max())
        if lowest < 0 or highest >= len(self.classes):
            raise ValueError(
                f"batch.index runs from {lowest} to {highest}, but the memories have {len(self.classes)} rows: give "
                "train_size one more than the largest number, the unlabelled pool included"
            )
        return batch.index

    def _note(self, index: Tensor, labels: Tensor | None) -> None:
        """Learn which samples there are, and their classes where the batch tells."""
        self.known[index] = True
        if labels is not None:
            if labels.dtype != torch.int64 or labels.shape != index.shape:
                raise ValueError(
                    f"labels must be int64 class numbers of shape {tuple(index.shape)}, given {labels.dtype} of shape "
                    f"{tuple(labels.shape)}"
                )
            self.classes[index] = torch.where(labels == UNLABELLED, self.classes[index], labels)

    def _direction(self, side: int, embedding: Tensor, columns: Tensor) -> Tensor:
        """Loss of one network's embeddings against the other's memory; the pair of the same sample is column 0."""
        with torch.autocast(embedding.device.type, enabled=False):
            scores = embedding @ self.memories[1 - side].to(embedding.dtype).T
            log_scores = scores.gather(1, columns) / self.temperature
            log_scores = log_scores - self._log_normalizer(side, log_scores.detach())
            return crd_loss(log_scores[:, 0], log_scores[:, 1:], dataset_size=len(self.classes))

    def _log_normalizer(self, side: int, log_scores: Tensor) -> Tensor:
        """log Z: of the first training batch, the log of the mean exp(score) times the size of the data set."""
        if not bool(self.log_normalizers[side].isnan()):
            return self.log_normalizers[side]
        found = log_scores.logsumexp(dim=(0, 1)) - math.log(log_scores.numel()) + math.log(len(self.classes))
        if self.training:
            self.log_normalizers[side] = found
        return found

    @torch.no_grad()
    def _remember(self, index: Tensor, embeddings: Sequence[Tensor]) -> None:
        new = torch.stack([embedding.detach() for embedding in embeddings]).to(self.memories.dtype)
        mixed = self.memory_momentum * self.memories[:, index] + (1 - self.memory_momentum) * new
        self.memories = self.memories.index_copy(1, index, F.normalize(mixed, dim=2))  # backward needs the old ones
