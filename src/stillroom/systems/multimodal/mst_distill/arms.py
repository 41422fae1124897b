"""The arms of the experiment: everybody starts from the same three networks and chooses by the same held-out number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.baselines import KD, Alone
from stillroom.blocks import routing_shares, top_picks
from stillroom.checkpoint import seed_everything
from stillroom.data.batch import UNLABELLED, Batch
from stillroom.data.samples import Samples, Splits
from stillroom.data.stream import sequential
from stillroom.experiment.arm import Context
from stillroom.fit import Fitted, fit
from stillroom.method import Method
from stillroom.systems.multimodal.mst_distill.method import MSTDistill
from stillroom.systems.multimodal.mst_distill.networks import Build, Trio
from stillroom.task import Task


@dataclass(frozen=True)
class Setting:
    """What all arms share.

    Attributes:
        task: the data and what outputs mean.
        build: makes the three networks from the modalities' shapes.
        student: the modality that the student sees; "" for the first.
        collaborate_epochs: of the first stage.
        specialise_epochs: of the second stage, in which the student stands still.
        distil_epochs: of the third stage; the other arms train for first and third stage together.
        teacher_taps: of MST-Distill; None for the last two hidden layers.
        auxiliary_taps: the same.
        most_mask_parameters: of MST-Distill.
        look_every: epochs between two looks at the held-out samples, by which weights are chosen.
    """

    task: Task
    build: Build
    student: str = ""
    collaborate_epochs: float = 20
    specialise_epochs: float = 5
    distil_epochs: float = 120
    teacher_taps: tuple[str, ...] | None = None
    auxiliary_taps: tuple[str, ...] | None = None
    most_mask_parameters: int = 20_000_000
    look_every: int = 4

    @property
    def epochs(self) -> float:
        """How long a student is trained, in every arm."""
        return self.collaborate_epochs + self.distil_epochs

    def begin(self, seed: int, context: Context) -> tuple[Splits, Trio]:
        """Load the data of a seed and make its three networks."""
        small = {"train_size": 48, "test_size": 32} if context.tiny else {}
        splits: Splits = self.task.change(**small).load(seed)
        probe = splits.train.batch([0]).inputs
        if not isinstance(probe, Mapping) or len(probe) != 2:
            raise ValueError(
                f"this recipe needs inputs of two named modalities, given {type(probe).__name__}: pair two data sets "
                "(stillroom.data.pair_by_class)"
            )
        student = self.student or next(iter(probe))
        if student not in probe:
            raise ValueError(
                f"the student sees {student!r}, but the modalities are {', '.join(probe)}: name one of them"
            )
        other = next(name for name in probe if name != student)
        shapes = {name: tuple(part.shape[1:]) for name, part in probe.items()}
        seed_everything(seed)
        return splits, self.build(shapes, student, other, len(splits.classes or ()))

    def train(
        self, method: Method, epochs: float, seed: int, splits: Splits, context: Context, folder: str = ""
    ) -> Fitted:
        """Train as all arms are: the held-out cross-entropy, looked at every few epochs, chooses the weights."""
        training = context.training
        steps = max(len(splits.train) // training.batch_size, 1)
        if context.tiny:
            training = training.change(steps=6, evaluate_every=2)
        else:
            training = training.change(epochs=epochs, evaluate_every=steps * self.look_every)
        return fit(
            method,
            splits,
            training,
            task=self.task.change(metric="nll", higher_is_better=False),
            seed=seed,
            folder=context.folder / folder if folder else context.folder,
            resume=context.resume,
            device=context.device,
            workers=context.workers,
            trackers=(),
            progress=False,
            check_teacher=False,  # it is measured below
        )

    def measure(self, fitted: Fitted, splits: Splits, context: Context) -> dict[str, float]:
        """Measure a student on the reported samples, also with the other modality of other samples beside its own."""
        context.extra.update(
            steps=fitted.steps,
            train_seconds=round(fitted.seconds, 3),
            best_step=fitted.best_step,
            validation=fitted.validation,
            curve=fitted.curve,
            terms=fitted.terms,
            stages=fitted.stages,
        )
        student = fitted.product
        found = self.task.evaluate(student, sequential(splits.test, 256))
        shuffled = self.task.evaluate(student, _shuffled(splits.test, self._seen(student)))
        return found | {"accuracy_with_other_modality_shuffled": shuffled["accuracy"]}

    @staticmethod
    def _seen(student: nn.Module) -> str:
        (modality,) = getattr(student, "modalities", ("",))
        return str(modality)


def _shuffled(samples: Samples, kept: str) -> Iterable[Batch]:
    """Batches in which every modality but one belongs to the sample next to it."""
    for batch in sequential(samples, 256):
        inputs = {name: part if name == kept else part.roll(1, dims=0) for name, part in batch.inputs.items()}
        yield batch.replace(inputs=inputs)


@dataclass(frozen=True)
class LabelsOnly:
    """The student alone, by its labels."""

    setting: Setting

    def __call__(self, seed: int, context: Context) -> dict[str, float]:
        """Train and measure."""
        splits, trio = self.setting.begin(seed, context)
        method = Alone(trio.student, task=self.setting.task)
        fitted = self.setting.train(method, self.setting.epochs, seed, splits, context)
        return self.setting.measure(fitted, splits, context)


@dataclass(frozen=True)
class PlainKD:
    """Hinton's distillation from a teacher that was trained by its labels before, for as many epochs.

    Attributes:
        setting: what all arms share.
        teacher: "teacher" (all modalities) or "auxiliary" (the other one).
        distill_weight: beside a label weight of 1.
        temperature: T.
    """

    setting: Setting
    teacher: str
    distill_weight: float = 1.0
    temperature: float = 4.0

    def __call__(self, seed: int, context: Context) -> dict[str, float]:
        """Train both and measure."""
        setting = self.setting
        splits, trio = setting.begin(seed, context)
        first = Alone(getattr(trio, self.teacher), task=setting.task)
        teacher = setting.train(first, setting.epochs, seed, splits, context, "teacher").product
        method = KD(
            trio.student,
            teacher,
            temperature=self.temperature,
            label_weight=1.0,
            distill_weight=self.distill_weight,
            task=setting.task,
        )
        fitted = setting.train(method, setting.epochs, seed, splits, context)
        found = setting.measure(fitted, splits, context)
        alone = setting.task.evaluate(teacher, sequential(splits.test, 256))
        return found | {"teacher_accuracy": alone["accuracy"]}


@dataclass(frozen=True)
class MST:
    """MST-Distill, whole or with a part exchanged.

    Attributes:
        setting: what all arms share.
        options: further arguments of `MSTDistill`.
    """

    setting: Setting
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, context: Context) -> dict[str, float]:
        """Train all three stages, measure the student, and examine the teachers."""
        setting = self.setting
        splits, trio = setting.begin(seed, context)
        method = MSTDistill(
            trio.student,
            trio.teacher,
            auxiliary=trio.auxiliary,
            probe=splits.train.batch([0, 1]),
            teacher_taps=setting.teacher_taps,
            auxiliary_taps=setting.auxiliary_taps,
            collaborate_epochs=setting.collaborate_epochs,
            specialise_epochs=setting.specialise_epochs,
            distil_epochs=setting.distil_epochs,
            choose_by="nll",
            most_mask_parameters=setting.most_mask_parameters,
            **dict(self.options),
        )
        epochs = sum(method.epochs.values())
        fitted = setting.train(method, epochs, seed, splits, context)
        found = setting.measure(fitted, splits, context)
        context.extra["masked"] = [".".join(tap) for tap in method.taps]
        return found | examine(method, sequential(splits.test, 256)) | {"mask_parameters": method.mask_parameters}


def without(arm: MST, **options: Any) -> MST:
    """The same arm with some options of the method exchanged."""
    return replace(arm, options=(*arm.options, *options.items()))


@torch.no_grad()
def examine(method: MSTDistill, batches: Iterable[Batch]) -> dict[str, float]:
    """Measure the teachers with and without their masks, and where the router sends the samples.

    Args:
        method: trained.
        batches: labelled batches.

    Returns:
        Accuracy of `teacher`, `auxiliary` and `specialised_0`, ... (with their masks), their agreement with the
        student, and the share of the picks that goes to each (`routed_to_0`, ...; sum 1).
    """
    before = method.training
    method.eval()
    device = next(method.parameters()).device
    said: dict[str, list[Tensor]] = {}
    for batch in batches:
        batch = batch.to(device)
        if batch.labels is None:
            raise ValueError("teachers are examined by the labels, but this batch has none")
        student = method.student(batch.inputs)
        outputs = {
            "labels": batch.labels,
            "student": student.argmax(1),
            "teacher": method.multimodal(batch.inputs).argmax(1),
            "auxiliary": method.auxiliary(batch.inputs).argmax(1),
            "picks": top_picks(method.router(student), method.picks),
        }
        for number in range(len(method.taps)):
            outputs[f"specialised_{number}"] = method.specialised_logits(number, batch.inputs).argmax(1)
        for name, tensor in outputs.items():
            said.setdefault(name, []).append(tensor)
    method.train(before)
    joined = {name: torch.cat(parts) for name, parts in said.items()}
    labels, student, picks = joined.pop("labels"), joined.pop("student"), joined.pop("picks")
    known, found = labels != UNLABELLED, {}
    for name, favourite in joined.items():
        found[f"{name}_accuracy"] = float((favourite == labels)[known].double().mean())
        found[f"{name}_agreement"] = float((favourite == student)[known].double().mean())
    shares = routing_shares(picks, len(method.taps))
    return found | {f"routed_to_{number}": float(share) for number, share in enumerate(shares)}
