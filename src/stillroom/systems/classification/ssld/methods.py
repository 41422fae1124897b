"""Distillation without labels: three divergences, a teacher in one of three modes, and training in two phases."""

from __future__ import annotations

import copy
from typing import Any, Literal

from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch
from stillroom.losses import flatten_positions, generalized_jensen_shannon, soft_cross_entropy, symmetric_kl
from stillroom.losses._shared import at_least_float32, check_logits, check_not_negative, check_positive
from stillroom.method import Losses, Method, Needs, Stage

TeacherMode = Literal["eval", "batch_stats_no_update", "train"]
BATCH_NORM: dict[str, Literal["running", "batch", "train"]] = {
    "eval": "running",
    "batch_stats_no_update": "batch",
    "train": "train",
}


class LabelFree(Method):
    """Base of the three forms of SSLD: a divergence between two classifiers, of any images, and two phases.

    The first phase draws from the training samples and the pool as from one set; the second one from the training
    samples alone, at a fraction of the learning rate. Each has a schedule of its own. No label is looked at in either,
    nor shown to the teacher.

    Args:
        student: inputs -> logits `(N, C)`, or `(N, C, ...)` per position.
        teacher: inputs -> logits over the same classes; a network or a function of the batch.
        teacher_mode: "batch_stats_no_update" normalises by the statistics of the batch and changes nothing in the
            teacher; "train" is the authors' way (the stored statistics of a copy move on, dropout is active); "eval"
            uses the stored statistics, and is the only mode in which the teacher's answers may be cached.
        fine_tune_share: the second phase's part of all steps, in [0, 1); 0 for one phase. 0.05 is near what the
            authors' epochs come to.
        fine_tune_lr_factor: of its learning rate, above 0; unless the training names an optimizer for the stage
            "domain".

    Losses:
        ssld: `divergence`, over all rows (or positions).
    """

    needs = Needs(
        labels="none",
        whole_batch="the teacher's batch norm may use the statistics of the batch",
        min_batch=2,
        tasks=("classification", "segmentation", "embeddings"),
    )

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        teacher_mode: TeacherMode = "batch_stats_no_update",
        fine_tune_share: float = 0.05,
        fine_tune_lr_factor: float = 0.01,
    ) -> None:
        if teacher_mode not in BATCH_NORM:
            raise ValueError(f"teacher_mode must be one of {', '.join(BATCH_NORM)}, given {teacher_mode!r}")
        if not 0 <= fine_tune_share < 1:
            raise ValueError(f"fine_tune_share is a part of all steps in [0, 1), given {fine_tune_share}")
        check_positive(fine_tune_lr_factor=fine_tune_lr_factor)
        network = teacher.network if isinstance(teacher, Frozen) else teacher
        if teacher_mode == "train" and isinstance(network, nn.Module):
            network = copy.deepcopy(network)  # its statistics will move: nobody else's may
        super().__init__(student, None if network is None else Frozen(network, batch_norm=BATCH_NORM[teacher_mode]))
        self.fine_tune_share, self.fine_tune_lr_factor = fine_tune_share, fine_tune_lr_factor

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Mean over rows of what parts the two `(N, C)`; the teacher's side gets no gradient."""
        raise TypeError(f"{type(self).__name__} must define divergence(student_logits, teacher_logits)")

    def forward(self, batch: Batch) -> Losses:
        """Return the divergence of a batch, whose labels play no part."""
        student_logits = self.student(batch.inputs)
        teacher_logits = self.teacher(batch.replace(labels=None))
        divergence = self.divergence(flatten_positions(student_logits), flatten_positions(teacher_logits))
        return Losses(ssld=divergence, outputs=student_logits)

    def stages(self) -> tuple[Stage, ...]:
        """Both sets as one, then the training samples alone."""
        pool = Stage("pool", share=1 - self.fine_tune_share, data="merged", fresh_optimizers=True)
        if self.fine_tune_share == 0:
            return (pool,)
        domain = Stage(
            "domain",
            share=self.fine_tune_share,
            data="train-alone",
            fresh_optimizers=True,
            lr_factor=self.fine_tune_lr_factor,
        )
        return pool, domain


class SSLD(LabelFree):
    """Trains a student by the symmetric divergence from its teacher, on images with or without labels.

    Args:
        student: inputs -> logits `(N, C)`, or `(N, C, ...)` per position.
        teacher: inputs -> logits over the same classes; a network or a function of the batch.
        teacher_mode: see `LabelFree`.
        fine_tune_share: see `LabelFree`.
        fine_tune_lr_factor: see `LabelFree`.
        eps: of `symmetric_kl`; 0 is exact, 1e-12 is what the authors' code has.

    Losses:
        ssld: `stillroom.losses.symmetric_kl` over all rows, labelled or not.

    Source: Cui et al. 2021, arXiv:2103.05959.

    Example:
        >>> import torch
        >>> teacher = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 3))
        >>> method = SSLD(nn.Linear(4, 3), teacher)
        >>> losses = method(Batch(torch.randn(8, 4)))  # inputs are enough
        >>> losses.total.backward()
        >>> [stage.name for stage in method.stages()]
        ['pool', 'domain']
    """

    zero_at_teacher = ("ssld",)

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        teacher_mode: TeacherMode = "batch_stats_no_update",
        fine_tune_share: float = 0.05,
        fine_tune_lr_factor: float = 0.01,
        eps: float = 0.0,
    ) -> None:
        super().__init__(
            student,
            teacher,
            teacher_mode=teacher_mode,
            fine_tune_share=fine_tune_share,
            fine_tune_lr_factor=fine_tune_lr_factor,
        )
        check_not_negative(eps=eps)
        self.eps = eps

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Half of both Kullback-Leibler divergences."""
        return symmetric_kl(student_logits, teacher_logits, eps=self.eps)


class JensenShannonSSLD(LabelFree):
    """SSLD by the true Jensen-Shannon divergence, which the paper's text names and the authors' code does not have.

    Args:
        student: inputs -> logits `(N, C)`, or `(N, C, ...)` per position.
        teacher: inputs -> logits over the same classes; a network or a function of the batch.
        teacher_mode: see `LabelFree`.
        fine_tune_share: see `LabelFree`.
        fine_tune_lr_factor: see `LabelFree`.

    Losses:
        ssld: `stillroom.losses.generalized_jensen_shannon` with equal shares: at most log 2, about a quarter of the
            symmetric divergence where both are close.

    Example:
        >>> import torch
        >>> method = JensenShannonSSLD(nn.Linear(4, 3), nn.Linear(4, 3))
        >>> list(method(Batch(torch.randn(8, 4))))
        ['ssld']
    """

    zero_at_teacher = ("ssld",)

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Jensen-Shannon divergence."""
        return generalized_jensen_shannon(student_logits, teacher_logits)


class SoftLabelSSLD(LabelFree):
    """SSLD by cross-entropy with the teacher's probabilities, as some of the authors' configurations have it.

    Args:
        student: inputs -> logits `(N, C)`, or `(N, C, ...)` per position.
        teacher: inputs -> logits over the same classes; a network or a function of the batch.
        teacher_mode: see `LabelFree`.
        fine_tune_share: see `LabelFree`.
        fine_tune_lr_factor: see `LabelFree`.

    Losses:
        ssld: `stillroom.losses.soft_cross_entropy`; the teacher's entropy where the student says the same.

    Example:
        >>> import torch
        >>> method = SoftLabelSSLD(nn.Linear(4, 3), nn.Linear(4, 3))
        >>> list(method(Batch(torch.randn(8, 4))))
        ['ssld']
    """

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Cross-entropy with the teacher's probabilities."""
        check_logits(student_logits, teacher_logits)
        return soft_cross_entropy(student_logits, at_least_float32(teacher_logits).softmax(dim=1))
