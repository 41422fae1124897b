"""Base of the methods that read activations: which layers, their shapes, one forward of both networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks import Align, BriefTaps, Taps, matched_taps
from stillroom.data.batch import Batch
from stillroom.losses._shared import check_not_negative
from stillroom.method import Losses, Method
from stillroom.task import Classification, Task

LABELLED_TASKS = ("classification", "multi-label", "segmentation", "regression")

Pairs = list[tuple[Tensor, Tensor]]


class TappedDistillation(Method):
    """Base: the task's supervised loss over the labelled rows, and terms between activations of both networks.

    Hooks are on the networks only while a batch goes through them, so that the student ships as it came. Compiled
    networks keep theirs, since compiled code does not look for new ones.

    Args:
        student: inputs -> outputs of the task.
        teacher: a module, inputs -> outputs; frozen here. A cache or a function has no activations to read.
        label_weight: weight of the supervised loss, 0 or more.
        task: whose supervised loss is used; classification when not given.

    Attributes:
        student_layers: the module names read inside the student.
        teacher_layers: those inside the teacher, pair by pair.
    """

    def __init__(self, student: nn.Module, teacher: Any, *, label_weight: float, task: Task | None) -> None:
        super().__init__(student, teacher)
        check_not_negative(label_weight=label_weight)
        self.label_weight = label_weight
        self.task = task or Classification()
        self.student_layers: tuple[str, ...] = ()
        self.teacher_layers: tuple[str, ...] = ()
        self._student_taps, self._teacher_taps = BriefTaps(()), BriefTaps(())

    def choose_layers(
        self,
        student_layers: Sequence[str] | None,
        teacher_layers: Sequence[str] | None,
        probe: Batch | Tensor | None,
        *,
        pick: Callable[[int], Sequence[int]] = range,
        exactly: int | None = None,
    ) -> None:
        """Set `student_layers` and `teacher_layers`: those given, else some of the stages that match.

        Args:
            student_layers: names or patterns.
            teacher_layers: names or patterns.
            probe: what the networks are called with to find their stages.
            pick: number of matching stages -> which of them to take.
            exactly: how many pairs there must be; None for any number.

        Raises:
            ValueError: only one side is given, names that no module has, numbers that differ, or no probe to choose by.
            TypeError: the teacher is no module.
        """
        if (student_layers is None) != (teacher_layers is None):
            raise ValueError(
                f"student_layers is {student_layers} and teacher_layers is {teacher_layers}: name the layers of both "
                "networks, or of neither to have them chosen"
            )
        if student_layers is None or teacher_layers is None:
            names = matched_taps(self.student, self.teacher, self._probe_inputs(probe))
            rows = pick(len(names.student_names))
            student_layers = [names.student_names[row] for row in rows]
            teacher_layers = [names.teacher_names[row] for row in rows]
        with Taps(self.student, student_layers) as own, Taps(self.teacher, teacher_layers) as theirs:
            self.student_layers, self.teacher_layers = own.tapped, theirs.tapped
        numbers = len(self.student_layers), len(self.teacher_layers)
        if numbers[0] != numbers[1] or numbers[0] != (exactly or numbers[0]):
            raise ValueError(
                f"student_layers name {numbers[0]} modules {list(self.student_layers)} and teacher_layers {numbers[1]} "
                f"{list(self.teacher_layers)}: {type(self).__name__} takes {exactly or 'as many'} of each, in pairs"
            )

    def describe_features(self) -> list[str]:
        """Say which layers are matched, and how their shapes are brought together, a sentence per pair."""
        means = [module.describe() for module in self.modules() if isinstance(module, Align) and module.student_shape]
        pairs = zip(self.student_layers, self.teacher_layers, strict=True)
        lines = [f"student {own} learns from teacher {theirs}" for own, theirs in pairs]
        return (
            [f"{line} ({how})" for line, how in zip(lines, means, strict=True)] if len(means) == len(lines) else lines
        )

    def probe_features(self, probe: Batch | Tensor | None) -> Pairs:
        """Return the features of both networks for a probe, without a trace in either."""
        inputs = self._probe_inputs(probe)
        modes = [(module, module.training) for module in self.student.modules()]
        self.student.eval()
        try:
            with torch.no_grad():
                return self._features(inputs, inputs)[2]
        finally:
            for module, mode in modes:
                module.training = mode

    def ask(self, batch: Batch) -> tuple[Tensor, Tensor, Pairs]:
        """Call both networks once: the student's outputs, the teacher's, and the pairs of features."""
        return self._features(batch.inputs, batch)

    def losses(self, outputs: Tensor, batch: Batch, terms: dict[str, Tensor], weights: Mapping[str, float]) -> Losses:
        """Add the supervised loss, where the batch and the task have labels."""
        weights = dict(weights)
        if batch.labels is not None and self.task.needs_labels:
            terms = {"label": self.task.supervised_loss(outputs, batch.labels), **terms}
            weights["label"] = self.label_weight
        return Losses(outputs=outputs, weights=weights, **terms)

    def _probe_inputs(self, probe: Batch | Tensor | None) -> Any:
        if probe is None:
            raise ValueError(
                f"{type(self).__name__} learns layers and shapes from a few inputs, given none: pass probe= (a batch "
                "of two samples is enough)"
            )
        device = next(self.student.parameters()).device
        self.teacher.to(device)
        return (probe if isinstance(probe, Batch) else Batch(probe)).to(device).inputs

    def _features(self, inputs: Any, teacher_inputs: Any) -> tuple[Tensor, Tensor, Pairs]:
        if (self._student_taps.names, self._teacher_taps.names) != ([*self.student_layers], [*self.teacher_layers]):
            self._student_taps, self._teacher_taps = BriefTaps(self.student_layers), BriefTaps(self.teacher_layers)
        outputs, own = self._student_taps(self.student, inputs)
        teacher_outputs, theirs = self._teacher_taps(self.teacher, teacher_inputs)
        return outputs, teacher_outputs, list(zip(own, theirs, strict=True))
