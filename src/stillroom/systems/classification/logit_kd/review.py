"""ReviewKD: each stage of the student, fused with all deeper ones, predicts the teacher's stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.blocks import as_map, pooled
from stillroom.data.batch import Batch
from stillroom.losses import review_context_loss
from stillroom.losses._shared import check_not_negative
from stillroom.method import Losses, Needs
from stillroom.systems.classification.logit_kd.logits import PAPER_WARMUP, check_share
from stillroom.systems.classification.logit_kd.tapped import LABELLED_TASKS, Pairs, TappedDistillation
from stillroom.task import Task

WIDEST = 512
"""The fusion blocks work at the width of the student's deepest stage, and at no more than this."""


class ReviewKD(TappedDistillation):
    """Knowledge review: the student's deeper stages help its earlier ones to predict the teacher's.

    The stages are taken from the deepest (the last one, pooled to one position) to the first. Each goes through an
    attention fusion block: a 1x1 convolution, a mixture with what the deeper block passed on, by two attention maps,
    and a 3x3 convolution to the teacher's width.

    Args:
        student: inputs -> outputs of the task.
        teacher: inputs -> outputs; frozen here.
        label_weight: weight of the supervised loss, 0 or more.
        review_weight: weight of the sum over stages, 0 or more; 5 for ResNet-32x4 to 8x4 on CIFAR-100.
        warmup_share: the part of training in which that weight rises from 0, in [0, 1].
        student_layers: module names inside the student, from the first stage to the last; None chooses all stages that
            match, four at most.
        teacher_layers: as many module names inside the teacher, pair by pair; None with `student_layers` None.
        probe: a batch (or inputs) to learn shapes from, two samples are enough.
        task: whose supervised loss is used; classification when not given.

    Losses:
        label: the task's supervised loss over the labelled rows; absent when the batch carries no labels.
        review: `stillroom.losses.review_context_loss` over all rows, summed over stages.

    Source: Chen et al. 2021, arXiv:2104.09044, section 3 and the authors' code. The warm-up rises step by step instead
        of epoch by epoch, and features are read where modules return them, not before the ReLU.
    """

    needs = Needs(
        labels="some", features=True, whole_batch="the fusion blocks normalise by the batch", tasks=LABELLED_TASKS
    )

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        label_weight: float = 1.0,
        review_weight: float = 1.0,
        warmup_share: float = PAPER_WARMUP,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        probe: Batch | Tensor | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__(student, teacher, label_weight=label_weight, task=task)
        check_not_negative(review_weight=review_weight)
        check_share(warmup_share=warmup_share)
        self.review_weight = review_weight
        self.warmup_share = warmup_share
        self.choose_layers(student_layers, teacher_layers, probe)
        pairs = _deepest_first(self.probe_features(probe))
        middle = min(WIDEST, pairs[0][0].shape[1])
        self.fusions = nn.ModuleList(
            Fusion(own.shape[1], middle, theirs.shape[1], fuses=depth > 0) for depth, (own, theirs) in enumerate(pairs)
        )

    def forward(self, batch: Batch) -> Losses:
        """Return the supervised loss and the review loss of a batch."""
        outputs, _, pairs = self.ask(batch)
        passed: Tensor | None = None
        stages = []
        for fusion, (own, theirs) in zip(self.fusions, _deepest_first(pairs), strict=True):
            predicted, passed = fusion(own, passed, (theirs.shape[2], theirs.shape[3]))
            stages.append(review_context_loss(predicted, theirs))
        weights = {"review": self.review_weight * self.clock.ramp(self.warmup_share)}
        return self.losses(outputs, batch, {"review": torch.stack(stages).sum()}, weights)


class Fusion(nn.Module):
    """Attention fusion block: bring a stage to a common width, mix in what the deeper stages passed on, predict.

    Args:
        student_width: channels of the student's stage.
        middle: the common width.
        teacher_width: channels that are predicted.
        fuses: whether there is a deeper stage.
    """

    def __init__(self, student_width: int, middle: int, teacher_width: int, *, fuses: bool) -> None:
        super().__init__()
        enter = nn.Conv2d(student_width, middle, 1, bias=False)
        leave = nn.Conv2d(middle, teacher_width, 3, padding=1, bias=False)
        for convolution in (enter, leave):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.enter = nn.Sequential(enter, nn.BatchNorm2d(middle))
        self.leave = nn.Sequential(leave, nn.BatchNorm2d(teacher_width))
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuses else None

    def forward(self, feature: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Fuse a stage.

        Args:
            feature: `(N, student_width, H, W)`.
            deeper: `(N, middle, ...)`, what the deeper block passed on; None for the deepest.
            size: of the teacher's map.

        Returns:
            The predicted map `(N, teacher_width, *size)`, and what is passed on, `(N, middle, *size)`.
        """
        mixed = self.enter(feature)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, size=mixed.shape[2:], mode="nearest")
            own_share, deeper_share = self.attention(torch.cat([mixed, deeper], dim=1)).sigmoid().split(1, dim=1)
            mixed = mixed * own_share + deeper * deeper_share
        if tuple(mixed.shape[2:]) != size:
            mixed = F.interpolate(mixed, size=size, mode="nearest")
        return self.leave(mixed), mixed


def _deepest_first(pairs: Pairs) -> Pairs:
    """The stages as maps from the last to the first, the last one pooled to one position in front of them."""
    last = tuple(pooled(feature)[:, :, None, None] for feature in pairs[-1])
    stages = [(as_map(own), as_map(theirs)) for own, theirs in reversed(pairs)]
    return [(last[0], last[1]), *stages]
