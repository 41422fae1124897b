"""DKD, DIST and LSKD: the label's cross-entropy plus a loss between student's and teacher's logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.data.batch import Batch
from stillroom.losses import (
    cross_entropy,
    dist_inter_class_loss,
    dist_intra_class_loss,
    flatten_positions,
    kd_loss,
    labelled_rows,
    nckd_loss,
    standardize_logits,
    tckd_loss,
)
from stillroom.losses._shared import check_not_negative, check_positive
from stillroom.method import Losses, Method, Needs

PAPER_WARMUP = 20 / 240
"""DKD and ReviewKD warm up over 20 of 240 epochs."""


class LogitDistillation(Method):
    """Base: cross-entropy over the labelled rows, and terms that compare logits row by row.

    Positions of dense predictions are rows. Where `needs.labels` is "some", the terms compare all rows; where it is
    "every", each sample must have a label, and positions without one are left out.

    Args:
        student: inputs -> logits `(N, C)`, or `(N, C, ...)` per position.
        teacher: inputs -> logits over the same classes; frozen here.
        label_weight: weight of the cross-entropy, 0 or more.
        weights: weight of each term of `compare`, 0 or more.
        warmup_share: the part of training in which those weights rise from 0, in [0, 1].
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        label_weight: float,
        weights: dict[str, float],
        warmup_share: float = 0.0,
    ) -> None:
        super().__init__(student, teacher)
        check_not_negative(label_weight=label_weight)
        check_share(warmup_share=warmup_share)
        self.label_weight = label_weight
        self.weights = weights
        self.warmup_share = warmup_share

    def compare(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the terms of rows `(N, C)`; labels `(N,)` are given only where every row must have one."""
        raise TypeError(f"{type(self).__name__} must define compare(student_logits, teacher_logits, labels)")

    def forward(self, batch: Batch) -> Losses:
        """Return the cross-entropy and the terms between the logits of a batch."""
        student_logits = self.student(batch.inputs)
        student_rows, teacher_rows, labels = self._rows(student_logits, self.teacher(batch), batch.labels)
        if student_logits.ndim > 2 and not len(student_rows):
            terms = {name: 0 * student_logits.sum() for name in self.weights}
        else:
            terms = self.compare(student_rows, teacher_rows, labels)
        ramp = self.clock.ramp(self.warmup_share)
        weights = {name: ramp * weight for name, weight in self.weights.items()}
        if batch.labels is not None:
            terms["label"] = cross_entropy(student_logits, batch.labels)
            weights["label"] = self.label_weight
        return Losses(outputs=student_logits, weights=weights, **terms)

    def _rows(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
        if self.needs.labels == "some":
            return flatten_positions(student_logits), flatten_positions(teacher_logits), torch.empty(0)
        if labels is None:
            raise ValueError(f"{type(self).__name__} needs a label for every sample, but this batch has no labels")
        return labelled_rows(student_logits, teacher_logits, labels)


class DKD(LogitDistillation):
    """Decoupled knowledge distillation: KD's two parts with weights of their own.

    Args:
        student: inputs -> logits `(N, C)`, or `(N, C, ...)` per position; C of 3 or more.
        teacher: inputs -> logits over the same classes; frozen here.
        temperature: T, above 0.
        label_weight: weight of the cross-entropy, 0 or more.
        alpha: weight of the part that compares the label with all other classes together, 0 or more.
        beta: weight of the part that compares the other classes with each other, 0 or more. The paper tunes
            it per pair: 8, but 2 for ResNet-56 to 20 and 110 to 32, and 6 for VGG and WideResNet teachers on CIFAR-100.
        warmup_share: the part of training in which alpha and beta rise from 0, in [0, 1].

    Losses:
        label: cross-entropy with the labels.
        target: `stillroom.losses.tckd_loss`, T^2 included; needs a label for every sample.
        non_target: `stillroom.losses.nckd_loss`, T^2 included.

    Source: Zhao et al. 2022, arXiv:2203.08679, equation 7 and the authors' code. The warm-up rises step by step instead
        of epoch by epoch.
    """

    needs = Needs(labels="every", min_classes=3, tasks=("classification", "segmentation"))
    zero_at_teacher = ("target", "non_target")

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        temperature: float = 4.0,
        label_weight: float = 1.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        warmup_share: float = PAPER_WARMUP,
    ) -> None:
        check_not_negative(alpha=alpha, beta=beta)
        weights = {"target": alpha, "non_target": beta}
        super().__init__(student, teacher, label_weight=label_weight, weights=weights, warmup_share=warmup_share)
        check_positive(temperature=temperature)
        self.temperature = temperature

    def compare(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return both parts."""
        return {
            name: part(student_logits, teacher_logits, labels, temperature=self.temperature)
            for name, part in (("target", tckd_loss), ("non_target", nckd_loss))
        }


class DIST(LogitDistillation):
    """DIST: match how classes correlate within a sample, and how samples correlate within a class.

    Args:
        student: inputs -> logits `(N, C)`, or `(N, C, ...)` per position; C of 3 or more, N of 2 or more.
        teacher: inputs -> logits over the same classes; frozen here.
        temperature: tau, above 0: 4 as on CIFAR-100; the paper takes 1 on ImageNet.
        label_weight: weight of the cross-entropy, 0 or more.
        beta: weight of the correlations within a sample, 0 or more.
        gamma: weight of the correlations within a class, 0 or more.

    Losses:
        label: cross-entropy over the labelled rows; absent when the batch carries no labels.
        inter_class: `stillroom.losses.dist_inter_class_loss` over all rows, tau^2 included.
        intra_class: `stillroom.losses.dist_intra_class_loss` over all rows, tau^2 included. Neither gets quite to 0, as
            the authors add 1e-8 to the denominator of a correlation.

    Source: Huang et al. 2022, arXiv:2205.10536, equation 10 and the authors' code.
    """

    needs = Needs(
        labels="some",
        min_classes=3,
        min_batch=2,
        whole_batch="the second term correlates the samples of a batch with each other",
        tasks=("classification", "segmentation"),
    )

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        temperature: float = 4.0,
        label_weight: float = 1.0,
        beta: float = 2.0,
        gamma: float = 2.0,
    ) -> None:
        check_not_negative(beta=beta, gamma=gamma)
        weights = {"inter_class": beta, "intra_class": gamma}
        super().__init__(student, teacher, label_weight=label_weight, weights=weights)
        check_positive(temperature=temperature)
        self.temperature = temperature

    def compare(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return both correlations' losses."""
        return {
            "inter_class": dist_inter_class_loss(student_logits, teacher_logits, temperature=self.temperature),
            "intra_class": dist_intra_class_loss(student_logits, teacher_logits, temperature=self.temperature),
        }


class LSKD(LogitDistillation):
    """Logit standardisation with KD: match the shape of the logits, not their mean and spread.

    Args:
        student: inputs -> logits `(N, C)`, or `(N, C, ...)` per position; C of 3 or more.
        teacher: inputs -> logits over the same classes; frozen here.
        base_temperature: T on the standardised logits, above 0; the paper takes 2 to 4, by pair.
        label_weight: weight of the cross-entropy, which is on the raw logits, 0 or more.
        distill_weight: 0 or more; on top of T^2, hence other than plain KD's: 9, by pair 1 to 12.

    Losses:
        label: cross-entropy over the labelled rows; absent when the batch carries no labels.
        distill: `kd_loss` of both networks' `standardize_logits`, over all rows.

    Source: Sun et al. 2024, arXiv:2403.01427, algorithm 1 and the authors' code.
    """

    needs = Needs(labels="some", min_classes=3, tasks=("classification", "segmentation"))
    zero_at_teacher = ("distill",)

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        base_temperature: float = 2.0,
        label_weight: float = 0.1,
        distill_weight: float = 9.0,
    ) -> None:
        super().__init__(student, teacher, label_weight=label_weight, weights={"distill": distill_weight})
        check_positive(base_temperature=base_temperature)
        check_not_negative(distill_weight=distill_weight)
        self.base_temperature = base_temperature

    def compare(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return KD's loss on standardised logits."""
        student, teacher = standardize_logits(student_logits), standardize_logits(teacher_logits)
        return {"distill": kd_loss(student, teacher, temperature=self.base_temperature)}


class LSKDDKD(DKD):
    """Logit standardisation with DKD.

    Args:
        student: inputs -> logits `(N, C)`, or `(N, C, ...)` per position; C of 3 or more.
        teacher: inputs -> logits over the same classes; frozen here.
        base_temperature: T on the standardised logits, above 0.
        label_weight: weight of the cross-entropy, which is on the raw logits, 0 or more.
        alpha: weight of the target term, 0 or more.
        beta: weight of the non-target term, 0 or more.
        distill_weight: multiplies alpha and beta, 0 or more; the paper takes 9 to 18, by pair.
        warmup_share: the part of training in which alpha and beta rise from 0, in [0, 1].

    Losses:
        label: cross-entropy with the labels.
        target: `tckd_loss` of both networks' `standardize_logits`; needs a label for every sample.
        non_target: `nckd_loss` of the same.

    Source: Sun et al. 2024, arXiv:2403.01427, section 4 and the authors' code. The warm-up rises step by step.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        base_temperature: float = 2.0,
        label_weight: float = 1.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        distill_weight: float = 9.0,
        warmup_share: float = PAPER_WARMUP,
    ) -> None:
        check_positive(base_temperature=base_temperature)
        check_not_negative(alpha=alpha, beta=beta, distill_weight=distill_weight)
        super().__init__(
            student,
            teacher,
            temperature=base_temperature,
            label_weight=label_weight,
            alpha=distill_weight * alpha,
            beta=distill_weight * beta,
            warmup_share=warmup_share,
        )

    def compare(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return both parts of DKD on standardised logits."""
        return super().compare(standardize_logits(student_logits), standardize_logits(teacher_logits), labels)


def check_share(**named: float) -> None:
    """Refuse shares outside [0, 1], naming them."""
    for name, value in named.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], given {value}")
