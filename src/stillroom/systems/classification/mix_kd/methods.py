"""Mixup alone, plain distillation of mixed samples, and the recipe without a temperature, as methods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from stillroom.data import draw_mixture
from stillroom.data.batch import Batch
from stillroom.losses import kd_loss, soft_cross_entropy, unit_deviation_kd_loss, unit_deviation_logits
from stillroom.losses._shared import check_not_negative, check_positive
from stillroom.method import Losses, Method, Needs


class Mixup(Method):
    """Trains a network alone on mixed samples and their mixed labels: how a mixup teacher comes about.

    Args:
        student: inputs -> logits `(N, C)`.
        teacher: taken and ignored.
        beta: both parameters of the shares' Beta distribution, above 0.
        mixed_share: part of a batch that is mixed, in [0, 1].
        official_sampling: see `stillroom.data.draw_mixture`.

    Losses:
        label: `stillroom.losses.soft_cross_entropy` of the mixed labels.

    Source: Zhang et al. 2018, arXiv:1710.09412.
    """

    needs = Needs(labels="every", teacher=False, whole_batch="samples of a batch are mixed with each other")

    def __init__(
        self,
        student: nn.Module,
        teacher: Any = None,
        *,
        beta: float = 1.0,
        mixed_share: float = 1.0,
        official_sampling: bool = False,
    ) -> None:
        super().__init__(student, teacher if self.needs.teacher else None)
        draw_mixture(1, beta=beta, mixed_share=mixed_share)  # refuses what it cannot draw from
        self.beta, self.mixed_share, self.official_sampling = beta, mixed_share, official_sampling

    def mix(self, batch: Batch) -> tuple[Batch, Tensor, Tensor]:
        """Mix a batch anew: the mixed batch, the student's logits on it, the mixed labels (both `(N, C)`)."""
        if batch.labels is None:
            raise ValueError(f"{type(self).__name__} mixes labels and needs one for every sample, but there are none")
        mixture = draw_mixture(
            len(batch), beta=self.beta, mixed_share=self.mixed_share, official_sampling=self.official_sampling
        )
        mixed = mixture.mix(batch)
        logits = self.student(mixed.inputs)
        return mixed, logits, mixture.labels(batch.labels, logits.shape[1])

    def forward(self, batch: Batch) -> Losses:
        """Return the loss of a mixed batch; the outputs are those of the mixed samples."""
        _, logits, soft_labels = self.mix(batch)
        return Losses(label=soft_cross_entropy(logits, soft_labels), outputs=logits)


class MixupKD(Mixup):
    """Hinton's distillation on mixed samples that student and teacher both see: the arms of the study.

    Args:
        student: inputs -> logits `(N, C)`.
        teacher: inputs -> logits over the same classes; frozen here, and asked about the mixed inputs.
        temperature: T, above 0.
        label_weight: of the cross-entropy, 0 or more.
        distill_weight: of the distillation loss, 0 or more.
        beta: see `Mixup`.
        mixed_share: see `Mixup`; 0 is distillation without mixup.
        official_sampling: see `Mixup`.

    Losses:
        label: `stillroom.losses.soft_cross_entropy` of the mixed labels.
        distill: `stillroom.losses.kd_loss`, with T^2.
    """

    needs = Needs(labels="every", teacher_at="own", whole_batch=Mixup.needs.whole_batch)
    zero_at_teacher = ("distill",)

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        temperature: float = 4.0,
        label_weight: float = 0.1,
        distill_weight: float = 0.9,
        beta: float = 1.0,
        mixed_share: float = 1.0,
        official_sampling: bool = False,
    ) -> None:
        super().__init__(student, teacher, beta=beta, mixed_share=mixed_share, official_sampling=official_sampling)
        check_positive(temperature=temperature)
        check_not_negative(label_weight=label_weight, distill_weight=distill_weight)
        if getattr(self.teacher.network, "answers_from_memory", False):
            raise ValueError(
                f"the teacher is a {type(self.teacher.network).__name__}, which answers from memory, but it has to see "
                "mixed inputs, which are new in every step: give the live network"
            )
        self.temperature, self.label_weight, self.distill_weight = temperature, label_weight, distill_weight

    def forward(self, batch: Batch) -> Losses:
        """Return both losses of a mixed batch; the outputs are the student's on the mixed samples."""
        mixed, logits, soft_labels = self.mix(batch)
        label, distill = self.terms(logits, self.teacher(mixed), soft_labels)
        weights = {"label": self.label_weight, "distill": self.distill_weight}
        return Losses(label=label, distill=distill, weights=weights, outputs=logits)

    def terms(self, logits: Tensor, teacher_logits: Tensor, soft_labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss against the labels and the one against the teacher, of rows `(N, C)`."""
        distill = kd_loss(logits, teacher_logits, temperature=self.temperature)
        return soft_cross_entropy(logits, soft_labels), distill


class MixKD(MixupKD):
    """Trains a student on partly mixed batches, with all logits divided by their own standard deviation.

    There is no temperature: each sample's deviation, the student's and the teacher's apart, takes its place.

    Args:
        student: inputs -> logits `(N, C)`, C of 3 or more.
        teacher: inputs -> logits over the same classes, trained without mixup; frozen here, asked about mixed inputs.
        label_weight: gamma, of the cross-entropy, 0 or more.
        distill_weight: alpha, of the divergence, 0 or more.
        beta: both parameters of the shares' Beta distribution, above 0.
        mixed_share: part of a batch that is mixed, in [0, 1]; the others stay clean.
        official_sampling: choose the clean samples as the authors' code does, see `stillroom.data.draw_mixture`.
        allow_two_classes: take two classes in spite of what that means, see `stillroom.losses.unit_deviation_logits`.

    Losses:
        label: `soft_cross_entropy` of the student's divided logits and the mixed labels.
        distill: `unit_deviation_kd_loss`.

    Source: Choi et al. 2023, arXiv:2211.03946, and the authors' code (MIXSTD).

    Example:
        >>> method = MixKD(nn.Linear(4, 3), nn.Linear(4, 3), mixed_share=0.25)
        >>> losses = method(Batch(torch.randn(8, 4), torch.randint(3, (8,))))
        >>> sorted(losses)
        ['distill', 'label']
    """

    needs = replace(MixupKD.needs, min_classes=3)

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        label_weight: float = 0.1,
        distill_weight: float = 0.9,
        beta: float = 1.0,
        mixed_share: float = 0.1,
        official_sampling: bool = False,
        allow_two_classes: bool = False,
    ) -> None:
        super().__init__(
            student,
            teacher,
            label_weight=label_weight,
            distill_weight=distill_weight,
            beta=beta,
            mixed_share=mixed_share,
            official_sampling=official_sampling,
        )
        self.allow_two_classes = allow_two_classes

    def terms(self, logits: Tensor, teacher_logits: Tensor, soft_labels: Tensor) -> tuple[Tensor, Tensor]:
        """The same two losses of the divided logits."""
        divided = unit_deviation_logits(logits, allow_two_classes=self.allow_two_classes)
        distill = unit_deviation_kd_loss(logits, teacher_logits, allow_two_classes=self.allow_two_classes)
        return soft_cross_entropy(divided, soft_labels), distill
