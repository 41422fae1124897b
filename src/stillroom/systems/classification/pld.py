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

from functools import partial
from typing import Any

import torch
from torch import nn

from stillroom.baselines import KD, alone, with_scrambled_teacher
from stillroom.data.batch import Batch
from stillroom.experiment.claim import Claim
from stillroom.experiment.run import Experiment
from stillroom.losses import labelled_rows, plackett_luce_loss, pld_loss, teacher_optimal_permutation
from stillroom.losses._shared import check_positive
from stillroom.method import Losses, Method, Needs
from stillroom.task import Classification
from stillroom.training import Optim, Training


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


class ListMLE(PLD):
    """PLD with equal weights for all ranks: the teacher's order without its confidence (a baseline of the paper).

    Args:
        student: inputs -> logits `(N, C)`.
        teacher: inputs -> logits over the same classes; frozen here.

    Losses:
        pld: `plackett_luce_loss` with weights 1 / C.

    Source: Xia et al. 2008 (ListMLE), divided by the number of classes; Bassam et al. 2025, table of ablations.
    """

    def __init__(self, student: nn.Module, teacher: Any) -> None:
        super().__init__(student, teacher)

    def forward(self, batch: Batch) -> Losses:
        """Return the loss of a batch."""
        if batch.labels is None:
            raise ValueError("ListMLE ranks the label first and needs one for every sample, but this batch has none")
        logits = self.student(batch.inputs)
        order = teacher_optimal_permutation(self.teacher(batch), batch.labels)
        weights = torch.full_like(order, 1 / logits.shape[1], dtype=torch.float32)
        return Losses(pld=plackett_luce_loss(logits, order, weights), outputs=logits)


def recipe(
    data: Any = "digits",
    *,
    labelled: int | None = 150,
    teacher: str = "mlp-256-256",
    student: str = "mlp-16",
    teacher_epochs: float = 30,
    epochs: float = 80,
    batch_size: int = 32,
    teacher_temperature: float = 4.0,
    test_size: int | None = None,
) -> Experiment:
    """Does the teacher's ranking of the wrong classes help a small student that sees few labels?

    Every arm tries the same two learning rates and keeps the better one on held-out training images.

    Args:
        data: a classification data set.
        labelled: training images the student sees; None for all. The teacher has seen all of them.
        teacher: a model for the teacher.
        student: a model for the student.
        teacher_epochs: passes of the teacher over all training images.
        epochs: passes of the student over its images, the same for every arm.
        batch_size: images per step.
        teacher_temperature: of PLD and KD; 4 as in the paper's CIFAR-100 table. At 1 this teacher makes PLD equal
            cross-entropy.
        test_size: reported images; None for all.
    """
    pld = partial(PLD, teacher_temperature=teacher_temperature)
    training = Training(epochs=epochs, batch_size=batch_size)
    return Experiment(
        task=Classification(data, train_size=labelled, test_size=test_size),
        student=student,
        teacher=teacher,
        training=training,
        teacher_training=training.change(epochs=teacher_epochs, augment="shift"),
        lrs=(0.003, 0.01),
        arms={
            "alone": alone,
            "kd": partial(KD, temperature=teacher_temperature),
            "pld": pld,
            "listmle": ListMLE,  # the teacher's order, every rank equally important
            "scrambled": with_scrambled_teacher(pld),  # control: favourite and confidence kept, other classes rotated
        },
        claims=[
            Claim("pld", ">", "alone", on="accuracy"),
            Claim("pld", ">", "alone", on="rank_agreement"),
            Claim("pld", ">", "scrambled", on="rank_agreement"),
            Claim("pld", ">", "listmle", on="accuracy"),
        ],
        title="Plackett-Luce distillation (PLD)",
        question=(
            f"A {student} learns to sort {data if isinstance(data, str) else 'the data'} from "
            f"{labelled or 'all'} labelled images; its teacher, a {teacher}, has learned from all of them."
        ),
        seeds=10,
    )


def paper(
    data: Any = "torchvision:CIFAR100",
    *,
    teacher: str = "resnet32x4",
    student: str = "resnet8x4",
    teacher_epochs: float | None = 250,
    epochs: float = 250,
) -> Experiment:
    """CIFAR-100, ResNet-32x4 to ResNet-8x4: AdamW 1e-3, weight decay 0.5, cosine, 250 epochs, batch 128, 3 seeds.

    Expected top-1: PLD 73.97 +- 0.05, alone 71.56, KD 72.11. These are not comparable with the field's SGD tables.

    Args:
        data: a classification data set.
        teacher: a model for the teacher, or a folder that holds a trained one.
        student: a model for the student.
        teacher_epochs: passes to train the teacher first; None takes it as it is.
        epochs: passes of every arm.
    """
    adamw = Optim("adamw", lr=1e-3, weight_decay=0.5)
    training = Training(epochs=epochs, batch_size=128, optimizer=adamw, augment="crop_flip", keep="last")
    return Experiment(
        task=Classification(data, validation_share=0.0),
        student=student,
        teacher=teacher,
        training=training,
        teacher_training=None if teacher_epochs is None else training.change(epochs=teacher_epochs),
        arms={"alone": alone, "kd": KD, "pld": partial(PLD, teacher_temperature=4.0)},
        claims=[Claim("pld", ">", "alone", on="accuracy"), Claim("pld", ">", "kd", on="accuracy")],
        title="Plackett-Luce distillation (PLD) on CIFAR-100",
        question=f"A {student} learns CIFAR-100 from a {teacher}.",
        seeds=3,
    )
