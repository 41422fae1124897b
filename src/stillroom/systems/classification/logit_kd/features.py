"""FitNets, AT, RKD and MGD: the task's own loss plus a loss between activations inside both networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks import Align, HintRegressor, as_map, kind_of, pooled
from stillroom.data.batch import Batch
from stillroom.losses import (
    attention_transfer_loss,
    hint_loss,
    masked_generative_loss,
    rkd_angle_loss,
    rkd_distance_loss,
)
from stillroom.losses._shared import at_least_float32, check_not_negative, check_positive
from stillroom.method import Losses, Needs, Stage
from stillroom.systems.classification.logit_kd.tapped import LABELLED_TASKS, Pairs, TappedDistillation
from stillroom.task import Task


class FitNets(TappedDistillation):
    """FitNets in its one-stage form: the student's middle layer predicts the teacher's, through a trained regressor.

    Between maps the regressor is a convolution that matches the size, batch norm and ReLU (`HintRegressor`); between
    other features, or where the student's map is the smaller one, it is a linear map (`Align`).

    Args:
        student: inputs -> outputs of the task.
        teacher: inputs -> outputs; frozen here.
        label_weight: weight of the supervised loss, 0 or more.
        hint_weight: weight of the hint, 0 or more.
        relu: end the regressor in a ReLU, as fits a hint that is read behind one; False for hints that may be negative.
        student_layers: one module name inside the student; None chooses the middle stage of those that match.
        teacher_layers: one module name inside the teacher; None with `student_layers` None.
        probe: a batch (or inputs) to learn shapes from, two samples are enough.
        task: whose supervised loss is used; classification when not given.

    Losses:
        label: the task's supervised loss over the labelled rows; absent when the batch carries no labels.
        hint: `stillroom.losses.hint_loss` over all rows.

    Source: Romero et al. 2015, arXiv:1412.6550, section 2.2, trained in one stage with the weight and the middle layer
        of the CIFAR-100 tables of the field. `TwoStageFitNets` is the paper's own procedure.
    """

    needs = Needs(
        labels="some", features=True, whole_batch="the regressor normalises by the batch", tasks=LABELLED_TASKS
    )

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        label_weight: float = 1.0,
        hint_weight: float = 100.0,
        relu: bool = True,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        probe: Batch | Tensor | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__(student, teacher, label_weight=label_weight, task=task)
        check_not_negative(hint_weight=hint_weight)
        self.hint_weight = hint_weight
        self.choose_layers(student_layers, teacher_layers, probe, pick=lambda stages: [(stages - 1) // 2], exactly=1)
        ((student_feature, teacher_feature),) = self.probe_features(probe)
        self.regressor = _regressor(student_feature.shape[1:], teacher_feature.shape[1:], relu=relu)

    def forward(self, batch: Batch) -> Losses:
        """Return the supervised loss and the hint of a batch."""
        outputs, _, ((student_feature, teacher_feature),) = self.ask(batch)
        hint = hint_loss(self.regressor(student_feature), teacher_feature)
        return self.losses(outputs, batch, {"hint": hint}, {"hint": self.hint_weight})


def _regressor(student_shape: Sequence[int], teacher_shape: Sequence[int], *, relu: bool) -> nn.Module:
    if kind_of(student_shape) == kind_of(teacher_shape) == "map":
        larger = all(own >= other for own, other in zip(student_shape[1:], teacher_shape[1:], strict=True))
        half = all(2 * own == other for own, other in zip(student_shape[1:], teacher_shape[1:], strict=True))
        if larger or half:
            return HintRegressor(student_shape, teacher_shape, relu=relu)
    return Align(student_shape, teacher_shape, always_project=True)


class TwoStageFitNets(FitNets):
    """FitNets as in the paper: first the layers up to the hint by the hint alone, then the whole student by KD.

    Args:
        student: inputs -> logits.
        teacher: inputs -> logits over the same classes; frozen here.
        hint_share: part of the training that the first stage takes, inside (0, 1).
        temperature: T of KD, above 0.
        label_weight: weight of the supervised loss in the second stage, 0 or more.
        distill_weight: weight of KD at the beginning of the second stage, 0 or more; it falls in a straight line.
        final_distill_weight: weight of KD at the end of training, 0 or more.
        relu: end the regressor in a ReLU, as fits a hint that is read behind one; False for hints that may be negative.
        student_layers: one module name inside the student; None chooses the middle stage of those that match.
        teacher_layers: one module name inside the teacher; None with `student_layers` None.
        probe: a batch (or inputs) to learn shapes from, two samples are enough.
        task: whose losses are used; classification when not given.

    Losses:
        hint: `stillroom.losses.hint_loss`, in the first stage only.
        label: the task's supervised loss, in the second stage only.
        distill: the task's distillation loss (`kd_loss`, T^2 included), in the second stage only.

    Source: Romero et al. 2015, arXiv:1412.6550, section 2.3; T = 3 and the fall from 4 to 1 as in section 3.1, where
        the cross-entropy of soft targets is meant; `kd_loss` differs from it by a constant and by T^2, hence the
        default weights 4 / 9 and 1 / 9. In a loop of your own, the stages are yours to run: `losses.only(stage.terms)`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        hint_share: float = 0.5,
        temperature: float = 3.0,
        label_weight: float = 1.0,
        distill_weight: float = 4 / 9,
        final_distill_weight: float = 1 / 9,
        relu: bool = True,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        probe: Batch | Tensor | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__(
            student,
            teacher,
            label_weight=label_weight,
            hint_weight=1.0,
            relu=relu,
            student_layers=student_layers,
            teacher_layers=teacher_layers,
            probe=probe,
            task=task,
        )
        check_positive(temperature=temperature)
        if not 0 < hint_share < 1:
            raise ValueError(f"hint_share must lie inside (0, 1), given {hint_share}: use FitNets for a single stage")
        check_not_negative(distill_weight=distill_weight, final_distill_weight=final_distill_weight)
        self.hint_share = hint_share
        self.temperature = temperature
        self.distill_weight = distill_weight
        self.final_distill_weight = final_distill_weight

    def stages(self) -> tuple[Stage, ...]:
        """The hint alone, then labels and soft targets."""
        return (
            Stage("hint", terms=("hint",), share=self.hint_share),
            Stage("distill", terms=("label", "distill"), share=1 - self.hint_share),
        )

    def forward(self, batch: Batch) -> Losses:
        """Return the hint, the supervised loss and KD's loss of a batch; the stage says which of them count."""
        outputs, teacher_outputs, ((student_feature, teacher_feature),) = self.ask(batch)
        terms = {
            "hint": hint_loss(self.regressor(student_feature), teacher_feature),
            "distill": self.task.distillation_loss(outputs, teacher_outputs, temperature=self.temperature),
        }
        done = max(self.clock.progress - self.hint_share, 0) / (1 - self.hint_share)
        weight = self.distill_weight + done * (self.final_distill_weight - self.distill_weight)
        return self.losses(outputs, batch, terms, {"hint": 1.0, "distill": weight})


class AT(TappedDistillation):
    """Attention transfer: the student looks where the teacher looks, stage by stage; nothing is added to train.

    Args:
        student: inputs -> outputs of the task; a network with maps or patch tokens inside.
        teacher: inputs -> outputs; the same; frozen here.
        label_weight: weight of the supervised loss, 0 or more.
        attention_weight: weight of the sum over stages, 0 or more; 1000 belongs to a mean over positions.
        power: p of the attention maps, a whole number of 1 or more.
        student_layers: module names inside the student; None chooses all stages that match and have several positions,
            four at most.
        teacher_layers: as many module names inside the teacher, pair by pair; None with `student_layers` None.
        probe: a batch (or inputs) to choose the layers by; not needed where they are given.
        task: whose supervised loss is used; classification when not given.

    Losses:
        label: the task's supervised loss over the labelled rows; absent when the batch carries no labels.
        attention: `stillroom.losses.attention_transfer_loss` over all rows, summed over stages.

    Source: Zagoruyko, Komodakis 2017, arXiv:1612.03928, equation 2 and the authors' code.
    """

    needs = Needs(labels="some", features=True, tasks=LABELLED_TASKS)
    zero_at_teacher = ("attention",)

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        label_weight: float = 1.0,
        attention_weight: float = 1000.0,
        power: int = 2,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        probe: Batch | Tensor | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__(student, teacher, label_weight=label_weight, task=task)
        check_not_negative(attention_weight=attention_weight)
        check_positive(power=power)
        self.attention_weight = attention_weight
        self.power = power
        self.choose_layers(student_layers, teacher_layers, probe)
        if student_layers is None:
            self._keep_maps(self.probe_features(probe))

    def _keep_maps(self, pairs: Pairs) -> None:
        """Leave out chosen stages with a single position on one side: all of its attention is there."""
        rows = [row for row, pair in enumerate(pairs) if all(as_map(one).shape[2:].numel() > 1 for one in pair)]
        if not rows:
            shapes = [tuple(tuple(one.shape[1:]) for one in pair) for pair in pairs]
            raise ValueError(
                f"attention needs maps of several positions, but the stages that match have shapes {shapes}: name "
                "layers that return larger maps or tokens, or use FitNets or RKD"
            )
        self.student_layers = tuple(self.student_layers[row] for row in rows)
        self.teacher_layers = tuple(self.teacher_layers[row] for row in rows)

    def forward(self, batch: Batch) -> Losses:
        """Return the supervised loss and the attention loss of a batch."""
        outputs, _, pairs = self.ask(batch)
        stages = [self._attention(*map(as_map, pair)) for pair in pairs]
        return self.losses(
            outputs, batch, {"attention": torch.stack(stages).sum()}, {"attention": self.attention_weight}
        )

    def _attention(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        for name, feature in (("student", student_map), ("teacher", teacher_map)):
            if feature.shape[2:].numel() == 1:
                raise ValueError(
                    f"attention needs maps of several positions, given a {name} feature of shape "
                    f"{tuple(feature.shape)}: name layers that return maps or tokens, or use FitNets or RKD"
                )
        return attention_transfer_loss(student_map, teacher_map, power=self.power)


class RKD(TappedDistillation):
    """Relational distillation: the samples of a batch lie to each other as they do for the teacher.

    It compares the features before the last layer, pooled over positions; where the task has no labels (embeddings),
    the outputs themselves, which may be of different widths. Nothing is added to train.

    Args:
        student: inputs -> outputs of the task.
        teacher: inputs -> outputs; frozen here.
        label_weight: weight of the supervised loss, 0 or more.
        distance_weight: weight of the distances, 0 or more.
        angle_weight: weight of the angles, 0 or more; they take N^2 D + N^3 numbers of memory for N samples.
        student_layers: module names inside the student; None chooses the last stage.
        teacher_layers: as many module names inside the teacher, pair by pair; None with `student_layers` None.
        probe: a batch (or inputs) to choose the layers by; not needed where they are given.
        task: whose supervised loss is used; classification when not given.

    Losses:
        label: the task's supervised loss over the labelled rows; absent when the batch carries no labels.
        distance: `stillroom.losses.rkd_distance_loss` over all rows, summed over layers.
        angle: `stillroom.losses.rkd_angle_loss` over all rows, summed over layers; absent for weight 0.

    Source: Park et al. 2019, arXiv:1904.05068; the weights are those of the CIFAR-100 tables of the field.
    """

    needs = Needs(
        labels="some",
        features=True,
        min_batch=2,
        whole_batch="the samples of a batch are compared with each other",
        tasks=(*LABELLED_TASKS, "embeddings"),
    )
    zero_at_teacher = ("distance", "angle")

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        label_weight: float = 1.0,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        probe: Batch | Tensor | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__(student, teacher, label_weight=label_weight, task=task)
        check_not_negative(distance_weight=distance_weight, angle_weight=angle_weight)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        if student_layers is not None or teacher_layers is not None or self.task.needs_labels:
            self.choose_layers(student_layers, teacher_layers, probe, pick=lambda stages: [stages - 1])

    def forward(self, batch: Batch) -> Losses:
        """Return the supervised loss and the relational losses of a batch."""
        outputs, teacher_outputs, pairs = self.ask(batch)
        compared = pairs or [(outputs, teacher_outputs)]
        pairs = [(pooled(at_least_float32(own)), pooled(at_least_float32(theirs))) for own, theirs in compared]
        terms = {"distance": torch.stack([rkd_distance_loss(*pair) for pair in pairs]).sum()}
        if self.angle_weight:
            terms["angle"] = torch.stack([rkd_angle_loss(*pair) for pair in pairs]).sum()
        weights = {"distance": self.distance_weight, "angle": self.angle_weight}
        return self.losses(outputs, batch, terms, {name: weights[name] for name in terms})


class MGD(TappedDistillation):
    """Masked generative distillation: from a student's feature with parts missing, a generator makes the teacher's.

    Args:
        student: inputs -> outputs of the task.
        teacher: inputs -> outputs; frozen here.
        label_weight: weight of the supervised loss, 0 or more.
        generation_weight: alpha, weight of a sum over all elements, hence tiny, 0 or more.
        mask_ratio: lambda, the probability that an entry of the mask is 0, in [0, 1).
        mask_positions: mask positions, all channels of each, as for dense tasks (the authors then take alpha 2e-5 and
            lambda 0.75); else channels, all positions of each.
        student_layers: module names inside the student; None chooses the last stage.
        teacher_layers: as many module names inside the teacher, pair by pair; None with `student_layers` None.
        probe: a batch (or inputs) to learn shapes from, two samples are enough.
        task: whose supervised loss is used; classification when not given.

    Losses:
        label: the task's supervised loss over the labelled rows; absent when the batch carries no labels.
        generation: `stillroom.losses.masked_generative_loss` over all rows, summed over layers. Masks are drawn anew in
            every call from PyTorch's global generator.

    Source: Yang et al. 2022, arXiv:2205.01529, equation 6 and the authors' code, whose lambda is 0.15 on ImageNet.
    """

    needs = Needs(labels="some", features=True, tasks=LABELLED_TASKS)

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        label_weight: float = 1.0,
        generation_weight: float = 7e-5,
        mask_ratio: float = 0.15,
        mask_positions: bool = False,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        probe: Batch | Tensor | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__(student, teacher, label_weight=label_weight, task=task)
        check_not_negative(generation_weight=generation_weight)
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie in [0, 1), given {mask_ratio}")
        self.generation_weight = generation_weight
        self.mask_ratio = mask_ratio
        self.mask_positions = mask_positions
        self.choose_layers(student_layers, teacher_layers, probe, pick=lambda stages: [stages - 1])
        self.aligners = nn.ModuleList()
        self.generators = nn.ModuleList()
        for student_feature, teacher_feature in self.probe_features(probe):
            shape = as_map(teacher_feature).shape[1:]
            self.aligners.append(Align(student_feature.shape[1:], shape))
            self.generators.append(
                nn.Sequential(
                    nn.Conv2d(shape[0], shape[0], 3, padding=1), nn.ReLU(), nn.Conv2d(shape[0], shape[0], 3, padding=1)
                )
            )

    def forward(self, batch: Batch) -> Losses:
        """Return the supervised loss and the generation loss of a batch."""
        outputs, _, pairs = self.ask(batch)
        layers = [
            masked_generative_loss(generator(self.mask(align(own))), as_map(theirs))
            for align, generator, (own, theirs) in zip(self.aligners, self.generators, pairs, strict=True)
        ]
        terms = {"generation": torch.stack(layers).sum()}
        return self.losses(outputs, batch, terms, {"generation": self.generation_weight})

    def mask(self, feature: Tensor) -> Tensor:
        """Set channels (or positions) of a map `(N, C, H, W)` to 0, each with probability `mask_ratio`."""
        samples, channels, height, width = feature.shape
        shape = (samples, 1, height, width) if self.mask_positions else (samples, channels, 1, 1)
        return feature * (torch.rand(shape, device=feature.device) >= self.mask_ratio)
