"""Tasks whose outputs are plain numbers: regression, and embeddings without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.data.batch import Batch
from stillroom.data.sources import find_source
from stillroom.losses import Reduction, mean_squared_error, reduce
from stillroom.losses._shared import at_least_float32, check_same_shape
from stillroom.task.base import Meter, Task


class Regression(Task):
    """Numbers per sample. Outputs and labels are `(N, D)` floats, NaN for none; with D = 1 also `(N,)`."""

    name = "regression"
    verb = "predict numbers for"
    outputs_are = "numbers to predict"
    teacher_faults = "its input range and the units of its outputs"
    metric = "r2"

    def supervised_loss(self, outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Mean squared error over the known entries."""
        if outputs.ndim != labels.ndim:
            outputs, labels = _columns(outputs), _columns(labels)
        return mean_squared_error(outputs, labels, reduction=reduction)

    def distillation_loss(
        self,
        student_outputs: Tensor,
        teacher_outputs: Tensor,
        *,
        temperature: float = 1.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Mean squared error against the teacher's numbers; temperature plays no part."""
        if student_outputs.ndim != teacher_outputs.ndim:
            student_outputs, teacher_outputs = _columns(student_outputs), _columns(teacher_outputs)
        check_same_shape(student_outputs=student_outputs, teacher_outputs=teacher_outputs)
        gap = at_least_float32(student_outputs) - at_least_float32(teacher_outputs.detach())
        return reduce(gap.square(), reduction)

    def width(self, splits: Any) -> int | None:
        """One output per number in a label."""
        labels = splits.train.labels
        return None if labels is None else int(labels[0].numel())

    def width_of(self, outputs: Tensor) -> int:
        """How many numbers a network gave per sample."""
        return super().width_of(_columns(outputs))

    def collect(self, meter: Meter, outputs: Tensor, batch: Batch, teacher_outputs: Tensor | None) -> None:
        """Let a meter take one batch, with a column per number."""
        labels = None if batch.labels is None else _columns(batch.labels)
        meter.update(_columns(outputs), labels, None if teacher_outputs is None else _columns(teacher_outputs))

    def check(self, batch: Batch, outputs: Tensor | None = None) -> None:
        """Check values once, on the first batch; one number per sample may be `(N,)`."""
        if outputs is not None and outputs.shape == (len(batch),):
            outputs = _columns(outputs)
        super().check(batch, outputs)

    def check_labels(self, labels: Tensor, outputs: Tensor | None) -> None:
        """Labels must be floats of the outputs' shape."""
        if outputs is not None and _columns(labels).shape != _columns(outputs).shape:
            raise ValueError(
                f"regression labels have shape {tuple(labels.shape)}, but the network gives {tuple(outputs.shape)}: "
                "both need one column per number"
            )

    def chance(self, labels: Tensor) -> dict[str, float]:
        """Saying the mean scores an R2 of 0."""
        return {"r2": 0.0}

    def meter(self, width: int | None, *, with_teacher: bool = False) -> Meter:
        """R2 (mean over columns), root mean squared error and mean absolute error."""
        from torchmetrics.functional.regression import r2_score

        def compute(outputs: Tensor, labels: Tensor | None, teacher: Tensor | None) -> dict[str, float]:
            found: dict[str, float] = {}
            if labels is not None:
                known = ~labels.isnan().any(1)
                error = outputs[known] - labels[known]
                found["r2"] = float(r2_score(outputs[known], labels[known], multioutput="uniform_average"))
                found["rmse"] = float(error.square().mean().sqrt())
                found["mae"] = float(error.abs().mean())
            if teacher is not None and teacher.shape == outputs.shape:
                found["rmse_to_teacher"] = float((outputs - teacher).square().mean().sqrt())
            return found

        return Meter(compute)


def _columns(values: Tensor) -> Tensor:
    return values.unsqueeze(1) if values.ndim == 1 else values


class Embeddings(Task):
    """Vectors that stand for samples, learned from a teacher's vectors without any labels. Outputs are `(N, D)`."""

    name = "embeddings"
    verb = "embed"
    metric = "neighbour_overlap"
    needs_labels = False

    def supervised_loss(self, outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Nothing: this task has no labels (0 for every sample, connected to the graph)."""
        return reduce(0 * outputs.flatten(1).sum(1), reduction)

    def distillation_loss(
        self,
        student_outputs: Tensor,
        teacher_outputs: Tensor,
        *,
        temperature: float = 1.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """One minus the cosine between student's and teacher's vectors; temperature plays no part."""
        if student_outputs.shape != teacher_outputs.shape:
            raise ValueError(
                f"student embeddings have shape {tuple(student_outputs.shape)}, teacher embeddings "
                f"{tuple(teacher_outputs.shape)}: give the student as many outputs, or use a method that compares "
                "relations between samples (rkd)"
            )
        cosine = F.cosine_similarity(
            at_least_float32(student_outputs), at_least_float32(teacher_outputs.detach()), dim=1
        )
        return reduce(1 - cosine, reduction)

    def for_models(self, teacher: Any, student: Any) -> Task:
        """Refuse a teacher that is built anew for classes, because there are none.

        Raises:
            ValueError: it is one of the embedded names; the message says why the data have no labels.
        """
        embedded = isinstance(teacher, str) and not set("/:") & set(teacher) and not Path(teacher).exists()
        if not embedded or self.data is None:
            return self
        columns = {"label_column": self.label_column, "image_column": self.image_column}
        source = find_source(self.data, **columns)
        if source.kind != "unlabelled":
            return self
        why = next((note for note in source.notes if note.endswith("taken as unlabelled")), "the data have no labels")
        raise ValueError(
            f"{why}, and the teacher {teacher!r} is built for a number of classes: give labels (a folder per class, a "
            "label column, pairs (X, y)), or a teacher that is trained already"
        )

    def width(self, splits: Any) -> int | None:
        """The teacher decides."""
        return None

    def meter(self, width: int | None, *, with_teacher: bool = False) -> Meter:
        """Against the teacher: the overlap of the ten nearest neighbours within the split, and the mean cosine.

        With labels, also the accuracy of the nearest neighbour (leaving the sample itself out).
        """

        def compute(outputs: Tensor, labels: Tensor | None, teacher: Tensor | None) -> dict[str, float]:
            found: dict[str, float] = {}
            own = nearest(outputs)
            if teacher is not None:
                theirs = nearest(teacher)
                shared = (own.unsqueeze(2) == theirs.unsqueeze(1)).any(2).double().mean()
                found[self.metric] = float(shared)
                if teacher.shape == outputs.shape:
                    found["cosine_to_teacher"] = float(F.cosine_similarity(outputs, teacher, dim=1).mean())
            if labels is not None and not labels.is_floating_point() and labels.ndim == 1:
                found["neighbour_accuracy"] = float((labels[own[:, 0]] == labels).double().mean())
            return found

        return Meter(compute)


def nearest(vectors: Tensor, count: int = 10) -> Tensor:
    """Return, for each row, the numbers of the `count` other rows with the highest cosine: `(N, count)`."""
    vectors = F.normalize(vectors.float(), dim=1)
    count = min(count, len(vectors) - 1)
    found = [
        (part @ vectors.T).scatter_(1, rows.unsqueeze(1), -torch.inf).topk(count, dim=1).indices
        for part, rows in zip(
            vectors.split(1024), torch.arange(len(vectors), device=vectors.device).split(1024), strict=True
        )
    ]
    return torch.cat(found)
