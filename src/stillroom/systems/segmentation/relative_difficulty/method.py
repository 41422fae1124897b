"""The method: two phases of one label loss, and pixel-wise distillation beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.blocks import Taps
from stillroom.data.batch import Batch
from stillroom.losses import (
    cross_entropy,
    flatten_positions,
    hard_positions,
    head_agreement,
    kd_loss,
    selected_pixel_loss,
    weighted_pixel_loss,
)
from stillroom.losses._shared import check_not_negative, check_positive
from stillroom.losses.pixels import Selection, exclusive
from stillroom.method import Losses, Method, Needs, Stage

HEADS = ("classifier", "aux_classifier")
"""Names of the modules, in the style of torchvision, that give primary and auxiliary logits."""


class RDD(Method):
    """Trains a segmenter whose label loss looks where teacher and student differ.

    Args:
        student: images -> logits `(N, C, H, W)`. Its modules `classifier` and `aux_classifier` are tapped where it has
            them (as torchvision's segmenters and `stillroom.blocks.FCN` do).
        teacher: the same over the same classes; frozen here. With `tfe_share` above 0 it needs an `aux_classifier`.
        tfe_share: p, share of training in the first phase, in [0, 1].
        threshold: t, probability of the true class up to which a pixel is hard, in [0, 1].
        min_kept: pixels of a batch that are hard at least; 0 for none.
        temperature: of distillation, above 0.
        distill_weight: of distillation, 0 or more.
        auxiliary_weight: of the auxiliary head's label loss, 0 or more.
        select: which pixels of two maps of hard ones count in the second phase: `exclusive` is the paper's; `either`,
            `both` and `students` of `stillroom.losses.pixels` are its ablations.
        class_weights: one per class, in the second phase only; None for ones.
        direction: of the divergence in the first phase's weight.
        blend: fade the first phase's loss out over the rest of the training instead of switching (in the code only).

    Losses:
        difficulty: the label loss, `weighted_pixel_loss` in the stage "tfe", `selected_pixel_loss` in the stage "tse";
            absent where there are no labels.
        distill: `T^2 KL(teacher || student)`, mean over positions.

    Source: Liang et al. 2024, arXiv:2407.03719.

    Example:
        >>> from stillroom.blocks import FCN
        >>> method = RDD(FCN([4, 8], classes=3), FCN([8, 16], classes=3, auxiliary=True))
        >>> losses = method(Batch(torch.rand(2, 1, 24, 24), torch.randint(3, (2, 24, 24))))
        >>> sorted(losses)
        ['difficulty', 'distill']
    """

    needs = Needs(
        labels="some",
        features=True,
        tasks=("segmentation",),
        whole_batch="the label loss is a mean over the pixels selected, whose number differs from part to part",
    )
    zero_at_teacher = ("distill",)

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        tfe_share: float = 0.1,
        threshold: float = 0.7,
        min_kept: int = 0,
        temperature: float = 1.0,
        distill_weight: float = 1.0,
        auxiliary_weight: float = 0.4,
        select: Selection = exclusive,
        class_weights: Sequence[float] | None = None,
        direction: Literal["auxiliary||primary", "primary||auxiliary"] = "auxiliary||primary",
        blend: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        if not 0 <= tfe_share <= 1:
            raise ValueError(f"tfe_share is the share of training in the first phase, in [0, 1], given {tfe_share}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is a probability in [0, 1], given {threshold}")
        check_positive(temperature=temperature)
        check_not_negative(distill_weight=distill_weight, auxiliary_weight=auxiliary_weight, min_kept=min_kept)
        self.tfe_share = tfe_share
        self.threshold = threshold
        self.min_kept = min_kept
        self.temperature = temperature
        self.distill_weight = distill_weight
        self.auxiliary_weight = auxiliary_weight
        self.select = select
        self.class_weights = None if class_weights is None else tuple(class_weights)
        self.direction = direction
        self.blend = blend
        self.student_heads = heads_of(self.student)
        self.teacher_heads = heads_of(self.teacher.network)
        if tfe_share > 0 and "aux_classifier" not in self.teacher_heads:
            raise ValueError(
                "the first phase weighs pixels by how far two heads of the teacher agree, but this teacher has no "
                "module aux_classifier: give it an auxiliary head, or set tfe_share=0"
            )

    def stages(self) -> tuple[Stage, ...]:
        """First the teacher alone says what is easy, then both say what is hard."""
        parts = (Stage("tfe", share=self.tfe_share), Stage("tse", share=1 - self.tfe_share))
        return tuple(stage for stage in parts if stage.share > 0)

    def forward(self, batch: Batch) -> Losses:
        """Return the label's and the distillation loss of a batch."""
        outputs, own = self._ask(self.student, self.student_heads, batch.inputs)
        teacher_outputs, theirs = self._ask(self.teacher, self.teacher_heads, batch)
        if outputs.shape[1] != teacher_outputs.shape[1]:
            raise ValueError(
                f"the student gives {outputs.shape[1]} classes, the teacher {teacher_outputs.shape[1]}: both need the "
                "same"
            )
        student, teacher = own["classifier"], theirs["classifier"]
        if student.shape != teacher.shape:  # strides differ: compare what both say of the image
            student, teacher = outputs, teacher_outputs
        rows = flatten_positions(student), flatten_positions(teacher)
        terms = {"distill": kd_loss(*rows, temperature=self.temperature)}
        weights = {"distill": self.distill_weight}
        if batch.labels is not None:
            check_masks(batch.labels, outputs)
            terms["difficulty"] = self.label_loss(own, theirs, batch.labels)
        return Losses(outputs=outputs, weights=weights, **terms)

    def label_loss(self, own: dict[str, Tensor], theirs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The label loss of the running phase, from the heads' logits of student and teacher."""
        if self.stage.name == "tfe":
            return self._easy(own, theirs, labels)
        hard = self._hard(own, theirs, labels, "classifier")
        if "aux_classifier" in own and "aux_classifier" in theirs:
            hard = hard + self.auxiliary_weight * self._hard(own, theirs, labels, "aux_classifier")
        if not self.blend or self.tfe_share in (0.0, 1.0):
            return hard
        share = (1 - self.clock.progress) / (1 - self.tfe_share)
        return (1 - share) * hard + share * self._easy(own, theirs, labels)

    def selected(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """The pixels that count in the second phase: `(N, H, W)` bool."""
        options = {"threshold": self.threshold, "min_kept": self.min_kept}
        return self.select(
            hard_positions(student_logits, labels, **options),  # type: ignore[arg-type]
            hard_positions(teacher_logits, labels, **options),  # type: ignore[arg-type]
        )

    def _easy(self, own: dict[str, Tensor], theirs: dict[str, Tensor], labels: Tensor) -> Tensor:
        size = (int(labels.shape[1]), int(labels.shape[2]))
        weights = head_agreement(theirs["classifier"], theirs["aux_classifier"], size=size, direction=self.direction)
        return weighted_pixel_loss(
            own["classifier"],
            labels,
            weights,
            auxiliary_logits=own.get("aux_classifier"),
            auxiliary_weight=self.auxiliary_weight,
        )

    def _hard(self, own: dict[str, Tensor], theirs: dict[str, Tensor], labels: Tensor, head: str) -> Tensor:
        weights = None if self.class_weights is None else torch.tensor(self.class_weights, device=own[head].device)
        chosen = self.selected(own[head], theirs[head], labels)
        return selected_pixel_loss(own[head], labels, chosen, class_weights=weights)

    @staticmethod
    def _ask(network: nn.Module, heads: Sequence[str], inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Call a network once: its outputs, and the logits of its heads (its outputs, where it has none so called)."""
        if not heads:
            outputs = network(inputs)
            return outputs, {"classifier": outputs}
        with Taps(network, heads) as taps:
            outputs = network(inputs)
            found = dict(taps.features)
        if (
            "classifier" not in found
            or found["classifier"].ndim != 4
            or found["classifier"].shape[1] != outputs.shape[1]
        ):
            found["classifier"] = outputs
        return outputs, found


class RDDWithoutTeachersPlaces(RDD):
    """A control: the teacher's maps of hard and easy pixels are those of other images of the batch."""

    def label_loss(self, own: dict[str, Tensor], theirs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The label loss, with the teacher's maps dealt out to other images."""
        moved = {name: logits.roll(1, dims=0) for name, logits in theirs.items()}
        return super().label_loss(own, moved, labels)


class LabelsOfTwoHeads(Method):
    """Trains a segmenter by its labels, its auxiliary head too: how the teacher comes by one.

    Args:
        student: images -> logits `(N, C, H, W)`, with a module `aux_classifier` or without.
        teacher: taken and ignored.
        auxiliary_weight: of the auxiliary head's loss.

    Losses:
        label: cross-entropy of the outputs.
        auxiliary: cross-entropy of the auxiliary head, resized; absent without one.
    """

    needs = Needs(labels="some", teacher=False, tasks=("segmentation",))

    def __init__(self, student: nn.Module, teacher: Any = None, *, auxiliary_weight: float = 0.4) -> None:
        super().__init__(student)
        self.auxiliary_weight = auxiliary_weight

    def forward(self, batch: Batch) -> Losses:
        """Return the losses of both heads."""
        if batch.labels is None:
            raise ValueError("a segmenter learns from labels, but this batch has none")
        outputs, heads = RDD._ask(self.student, heads_of(self.student), batch.inputs)
        terms = {"label": cross_entropy(outputs, batch.labels)}
        if "aux_classifier" in heads:
            every = torch.ones_like(batch.labels, dtype=torch.bool)
            terms["auxiliary"] = selected_pixel_loss(heads["aux_classifier"], batch.labels, every)
        return Losses(
            outputs=outputs, weights={name: self.auxiliary_weight for name in terms if name != "label"}, **terms
        )


def check_masks(labels: Tensor, outputs: Tensor) -> None:
    """Refuse masks that are no class numbers of the outputs' height and width."""
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 class numbers, given dtype {labels.dtype}")
    if labels.shape != (len(outputs), *outputs.shape[2:]):
        raise ValueError(
            f"labels must be masks (N, H, W) of the outputs' size, given {tuple(labels.shape)} for outputs "
            f"{tuple(outputs.shape)}"
        )


def heads_of(network: Any) -> tuple[str, ...]:
    """Which of the modules `classifier` and `aux_classifier` a network has; none for what is no module."""
    if not isinstance(network, nn.Module):
        return ()
    names = set(Taps.names(network))
    return tuple(name for name in HEADS if name in names)
