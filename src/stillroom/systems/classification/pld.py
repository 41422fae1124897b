"""Plackett-Luce distillation: cross-entropy and distillation as one ranking loss, without a weight between them.

For whom: you distil a classifier (or a segmenter) whose teacher has the same classes, every sample has a label, and you
do not want to tune how much of the loss is label and how much is teacher.

Not for whom: some samples have no label (use `KD`, `DIST` or `LSKD`); the teacher is often wrong on the training data
(where it gives the label little probability, the sample's cross-entropy is muted too); the classes differ; outputs are
not one class of many.

Citation: Ayoub Bassam, Chengyi Zhu, Jiang Bian. PLD: A Choice-Theoretic List-Wise Knowledge Distillation. NeurIPS 2025.
arXiv:2506.12542.

Deviations from the paper: none in the loss. Ties between teacher logits are ordered by class number, so that every
device gives the same order. Positions of dense predictions become rows, those without a label left out; a batch in
which no position is labelled contributes 0.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from stillroom.data.batch import Batch
from stillroom.losses import labelled_rows, pld_loss
from stillroom.losses._shared import check_positive
from stillroom.method import Losses, Method, Needs


class PLD(Method):
    """Trains a student to rank the classes as its teacher does, the label first.

    Args:
        student: inputs -> logits `(N, C)`, or `(N, C, ...)` per position.
        teacher: inputs -> logits over the same classes; frozen here.
        teacher_temperature: softens the weights of the ranks; above 0. At 1 a teacher that is sure of its training data
            makes PLD equal to cross-entropy; the paper uses 1 on ImageNet and 4 on CIFAR-100.

    Losses:
        pld: `stillroom.losses.pld_loss`; needs a label for every sample.

    Source: Bassam et al. 2025, arXiv:2506.12542.

    Example:
        >>> method = PLD(nn.Linear(4, 3), nn.Linear(4, 3))
        >>> losses = method(Batch(torch.randn(8, 4), torch.randint(3, (8,))))
        >>> list(losses)
        ['pld']
    """

    needs = Needs(labels="every", tasks=("classification", "segmentation"))

    def __init__(self, student: nn.Module, teacher: Any, *, teacher_temperature: float = 1.0) -> None:
        super().__init__(student, teacher)
        check_positive(teacher_temperature=teacher_temperature)
        self.teacher_temperature = teacher_temperature

    def forward(self, batch: Batch) -> Losses:
        """Return the ranking loss of a batch."""
        if batch.labels is None:
            raise ValueError("PLD ranks the label first and needs one for every sample, but this batch has no labels")
        student_logits = self.student(batch.inputs)
        student_rows, teacher_rows, labels = labelled_rows(student_logits, self.teacher(batch), batch.labels)
        if student_logits.ndim > 2 and not len(labels):
            return Losses(pld=0 * student_logits.sum(), outputs=student_logits)
        pld = pld_loss(student_rows, teacher_rows, labels, teacher_temperature=self.teacher_temperature)
        return Losses(pld=pld, outputs=student_logits)
