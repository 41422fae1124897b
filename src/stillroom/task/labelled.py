"""Tasks with classes: one per sample, several per sample, one per position."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.data.batch import UNLABELLED
from stillroom.losses import (
    Reduction,
    bernoulli_kd_loss,
    binary_cross_entropy,
    cross_entropy,
    flatten_positions,
    kd_loss,
)
from stillroom.task.base import Meter, Task

RESIZE = "let the model enlarge them (torch.nn.functional.interpolate)"


class Classification(Task):
    """One class per sample. Outputs are logits `(N, C)`, labels `(N,)` int64 in [0, C), -100 for none."""

    name = "classification"
    metric = "accuracy"

    def supervised_loss(self, outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Cross-entropy over the labelled rows."""
        return cross_entropy(outputs, labels, reduction=reduction)

    def distillation_loss(
        self,
        student_outputs: Tensor,
        teacher_outputs: Tensor,
        *,
        temperature: float = 1.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Tempered KL divergence (Hinton's, with T squared), mean over rows."""
        return kd_loss(
            flatten_positions(student_outputs),
            flatten_positions(teacher_outputs),
            temperature=temperature,
            reduction=reduction,
        )

    def check_labels(self, labels: Tensor, outputs: Tensor | None) -> None:
        """Labels must be int64 class numbers below the number of logits, or -100."""
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"labels must be int64 class numbers, given dtype {labels.dtype}")
        known = labels[labels != UNLABELLED]
        if outputs is None or not len(known):
            return
        classes = outputs.shape[1]
        if int(known.min()) < 0 or int(known.max()) >= classes:
            raise ValueError(
                f"labels run from {int(known.min())} to {int(known.max())}, but the network has {classes} classes "
                f"(0 to {classes - 1}): give it more outputs, or number the classes from 0"
            )

    def chance(self, labels: Tensor) -> dict[str, float]:
        """The share of the commonest class."""
        known = labels[labels != UNLABELLED]
        return {"accuracy": float(known.bincount().max() / len(known))} if len(known) else {}

    def meter(self, width: int | None, *, with_teacher: bool = False) -> Meter:
        """Accuracy, macro F1, negative log-likelihood, calibration error; with a teacher, agreement with it.

        `agreement` is the share of samples with the same favourite class, `rank_agreement` the Spearman correlation of
        the logits over the classes other than the label, `kl_to_teacher` in nats.
        """
        from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

        def compute(logits: Tensor, labels: Tensor | None, teacher: Tensor | None) -> dict[str, float]:
            classes = logits.shape[1]
            found: dict[str, float] = {}
            known = None if labels is None else labels != UNLABELLED
            if labels is not None and known is not None and bool(known.any()):
                kept, truth = logits[known], labels[known]
                found["accuracy"] = float((kept.argmax(1) == truth).double().mean())
                found["macro_f1"] = float(multiclass_f1_score(kept, truth, num_classes=classes, average="macro"))
                found["nll"] = float(F.cross_entropy(kept, truth))
                found["calibration_error"] = float(multiclass_calibration_error(kept.softmax(1), truth, classes))
            if teacher is not None and teacher.shape == logits.shape:
                found["agreement"] = float((logits.argmax(1) == teacher.argmax(1)).double().mean())
                found["kl_to_teacher"] = float(kd_loss(logits, teacher, temperature=1.0))
                if classes > 2:
                    left_out = (
                        teacher.argmax(1) if labels is None else torch.where(labels < 0, teacher.argmax(1), labels)
                    )
                    found["rank_agreement"] = float(spearman_without(logits, teacher, left_out).mean())
            return found

        return Meter(compute)


class MultiLabel(Task):
    """Any number of classes per sample. Outputs are logits `(N, C)`, labels `(N, C)` floats 0 or 1, NaN for none."""

    name = "multi-label"
    metric = "mean_average_precision"
    demonstration: ClassVar[dict[str, Any]] = {
        "data": "digit-grids",
        "teacher": "conv-16-32-64+labels-32",
        "student": "conv-4-8-16+labels-16",
        "train_size": 4000,
        "labels": 800,
        "teacher_epochs": 15.0,
        "epochs": 30.0,
        "batch_size": 64,
        "lr": 3e-3,
        "seeds": 3,
    }

    def supervised_loss(self, outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Binary cross-entropy per class, over the known entries."""
        return binary_cross_entropy(outputs, labels, reduction=reduction)

    def distillation_loss(
        self,
        student_outputs: Tensor,
        teacher_outputs: Tensor,
        *,
        temperature: float = 1.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Tempered KL divergence of each class's yes-or-no, with T squared."""
        return bernoulli_kd_loss(student_outputs, teacher_outputs, temperature=temperature, reduction=reduction)

    def check_labels(self, labels: Tensor, outputs: Tensor | None) -> None:
        """Labels must be 0 or 1 (or NaN), one per logit."""
        known = labels[~labels.isnan()] if labels.is_floating_point() else labels
        if bool(((known != 0) & (known != 1)).any()):
            raise ValueError("multi-label labels must be 0 or 1 for every class (NaN for unknown): found other values")
        if outputs is not None and labels.shape != outputs.shape:
            raise ValueError(
                f"multi-label labels have shape {tuple(labels.shape)}, but the network gives {tuple(outputs.shape)}: "
                "both need one column per class"
            )

    def chance(self, labels: Tensor) -> dict[str, float]:
        """The mean share of positives over the classes that have any: a random order's average precision."""
        present = labels.nanmean(0)
        return {self.metric: float(present[present > 0].mean())} if bool((present > 0).any()) else {}

    def meter(self, width: int | None, *, with_teacher: bool = False) -> Meter:
        """Mean average precision over classes, F1 over all entries and per class, mean BCE; see `multi_label_metrics`.

        With a teacher, `agreement` is the share of entries on the same side of 0.5.
        """

        def compute(logits: Tensor, labels: Tensor | None, teacher: Tensor | None) -> dict[str, float]:
            found = {} if labels is None else multi_label_metrics(logits, labels)
            if teacher is not None and teacher.shape == logits.shape:
                found["agreement"] = float(((logits > 0) == (teacher > 0)).double().mean())
            return found

        return Meter(compute)


class Segmentation(Classification):
    """One class per position. Outputs are logits `(N, C, H, W)`, labels `(N, H, W)` int64, -100 for none."""

    name = "segmentation"
    metric = "mean_iou"

    def distillation_loss(
        self,
        student_outputs: Tensor,
        teacher_outputs: Tensor,
        *,
        temperature: float = 1.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Tempered KL divergence per position; both must have logits at the same positions."""
        if student_outputs.shape[2:] != teacher_outputs.shape[2:]:
            raise ValueError(
                f"the student's logits are of {tuple(student_outputs.shape[2:])}, the teacher's of "
                f"{tuple(teacher_outputs.shape[2:])}: both must have the size of the masks; {RESIZE}"
            )
        return super().distillation_loss(student_outputs, teacher_outputs, temperature=temperature, reduction=reduction)

    def check_labels(self, labels: Tensor, outputs: Tensor | None) -> None:
        """Labels must be int64 class numbers, one for each position of the logits, or -100."""
        if outputs is not None:
            _check_positions(outputs, labels)
        super().check_labels(labels, outputs)

    def chance(self, labels: Tensor) -> dict[str, float]:
        """The mean IoU of calling everything the commonest class."""
        known = labels[labels != UNLABELLED].flatten()
        if not len(known):
            return {}
        share = known.bincount().double() / len(known)
        return {self.metric: float(share.max() / int((share > 0).sum()))}

    def meter(self, width: int | None, *, with_teacher: bool = False) -> Meter:
        """Mean intersection over union (classes that occur in truth or prediction) and pixel accuracy."""
        from torchmetrics.classification import MulticlassConfusionMatrix

        matrix: MulticlassConfusionMatrix | None = None
        same = torch.zeros(2, dtype=torch.float64)

        class Streaming(Meter):
            def update(self, outputs: Tensor, labels: Tensor | None, teacher_outputs: Tensor | None = None) -> None:
                nonlocal matrix
                favourite = outputs.argmax(1)
                if labels is not None:
                    _check_positions(outputs, labels)
                    if matrix is None:
                        matrix = MulticlassConfusionMatrix(outputs.shape[1], ignore_index=UNLABELLED)
                        matrix = matrix.to(outputs.device)
                    matrix.update(favourite, labels)
                if teacher_outputs is not None and teacher_outputs.shape == outputs.shape:
                    same[0] += float((favourite == teacher_outputs.argmax(1)).sum())
                    same[1] += favourite.numel()

            def compute(self) -> dict[str, float]:
                found: dict[str, float] = {}
                if matrix is not None:
                    counts = matrix.compute().double()
                    hit, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
                    found["mean_iou"] = float((hit[union > 0] / union[union > 0]).mean())
                    found["pixel_accuracy"] = float(hit.sum() / counts.sum())
                if same[1]:
                    found["agreement"] = float(same[0] / same[1])
                return found

        return Streaming(lambda *_: {})


def _check_positions(logits: Tensor, masks: Tensor) -> None:
    if masks.shape[1:] != logits.shape[2:]:
        raise ValueError(
            f"the masks are {tuple(masks.shape[1:])}, but the network gives logits of {tuple(logits.shape[2:])}: both "
            f"must have the same height and width; {RESIZE}"
        )


def spearman_without(student: Tensor, teacher: Tensor, left_out: Tensor) -> Tensor:
    """Spearman correlation, per row, of two score vectors without one column each (usually the label's).

    Args:
        student: `(N, C)`.
        teacher: `(N, C)`.
        left_out: `(N,)` column that is left out of both.

    Returns:
        `(N,)` in [-1, 1]; ties are ordered by column number.
    """
    keep = torch.ones_like(student, dtype=torch.bool).scatter_(1, left_out.unsqueeze(1), False)

    def ranks(scores: Tensor) -> Tensor:
        kept = scores[keep].view(len(scores), -1)
        return kept.argsort(dim=1, stable=True).argsort(dim=1).double()

    difference = ranks(student) - ranks(teacher)
    count = student.shape[1] - 1
    return 1 - 6 * difference.square().sum(1) / (count * (count**2 - 1))


def multi_label_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of multi-label classification.

    Classes without a positive label are left out of every mean over classes, with a warning: their average precision
    is not defined.

    Args:
        logits: `(N, C)`.
        labels: `(N, C)` of 0 and 1, NaN for unknown: such entries count nowhere.

    Returns:
        `mean_average_precision` over classes; at a threshold of 0.5 `micro_f1` (over all entries) and `macro_f1` (mean
        over classes); `micro_f1_at_k` and `macro_f1_at_k`, where an image with k labels is given its k highest logits
        (papers say OF1 and CF1; k is told by the labels, so that this is no way to use a network); and `bce` in nats.
        Where no class has a positive, `micro_f1`, `micro_f1_at_k` and `bce` alone.
    """
    from torchmetrics.functional.classification import binary_average_precision, binary_f1_score

    classes = logits.shape[1]
    truth = torch.where(labels.isnan(), -1, labels).long()
    probabilities = logits.double().sigmoid()  # of float32 logits above 17 all are 1 in float32
    seen = (truth == 1).any(0)
    if not bool(seen.all()):
        absent = (~seen).nonzero().flatten().tolist()
        warnings.warn(
            f"{len(absent)} of {classes} classes have no positive label here and are left out of the means over "
            f"classes: {absent[:10]}{' ...' if len(absent) > 10 else ''}",
            stacklevel=2,
        )
    known = torch.where(truth == -1, -torch.inf, logits)
    ranks = known.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    at_k = (ranks < (truth == 1).sum(1, keepdim=True)).to(logits.dtype)

    def over_classes(metric: Callable[..., Tensor], predicted: Tensor) -> float:
        columns = seen.nonzero().flatten().tolist()
        values = [metric(predicted[:, one], truth[:, one], ignore_index=-1) for one in columns]
        return float(torch.stack(values).double().mean())

    found: dict[str, float] = {}
    if bool(seen.any()):
        found["mean_average_precision"] = over_classes(binary_average_precision, probabilities)
    for name, predicted in (("", probabilities), ("_at_k", at_k)):
        found[f"micro_f1{name}"] = float(binary_f1_score(predicted.flatten(), truth.flatten(), ignore_index=-1))
        if bool(seen.any()):
            found[f"macro_f1{name}"] = over_classes(binary_f1_score, predicted)
    found["bce"] = float(binary_cross_entropy(logits, labels))
    return found
