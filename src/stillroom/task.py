"""Tasks: what a network's outputs mean, how they are trained on, measured and checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import UNLABELLED, Batch, tensors_in
from stillroom.losses import (
    Reduction,
    bernoulli_kd_loss,
    binary_cross_entropy,
    cross_entropy,
    flatten_positions,
    kd_loss,
    mean_squared_error,
    reduce,
)


class Task:
    """Base of all tasks. A task names a data set (or none) and knows what the outputs of a network mean on it.

    Args:
        data: what `stillroom.data.load_data` takes; None for a task that is only used for its loss and metrics.
        train_size: how many training samples the student sees, chosen by seed and stratified; None for all.
        test_size: how many samples the results are reported on; None for all.
        labels: how many of the training samples keep their label (the others become an unlabelled pool); None for all.
        unlabelled: a further data set whose samples are used without labels.
        image_size: side that images are brought to; None for their own.
        channels: 1 for grey, 3 for colour, None for their own.
        validation_share: part of the training samples kept for choosing a model; the reported split is never used.
        label_column: where a table holds the labels; None to find it.
        image_column: where a table holds the images; None to find it.
    """

    name: ClassVar[str] = ""
    metric: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    def __init__(
        self,
        data: Any = None,
        *,
        train_size: int | None = None,
        test_size: int | None = None,
        labels: int | None = None,
        unlabelled: Any = None,
        image_size: int | None = None,
        channels: int | None = None,
        validation_share: float = 0.1,
        label_column: str | None = None,
        image_column: str | None = None,
    ) -> None:
        self.data = data
        self.train_size = train_size
        self.test_size = test_size
        self.labels = labels
        self.unlabelled = unlabelled
        self.image_size = image_size
        self.channels = channels
        self.validation_share = validation_share
        self.label_column = label_column
        self.image_column = image_column

    def __repr__(self) -> str:
        given = {k: v for k, v in vars(self).items() if v is not None and isinstance(v, (str, int, float))}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in given.items())})"

    def load(self, seed: int = 0, *, everything: bool = False) -> Any:
        """Load the data.

        Args:
            seed: chooses the samples and labels that are kept, and the held-out part.
            everything: leave out the cuts by `train_size` and `labels` (what a teacher is trained on).

        Returns:
            `stillroom.data.Splits`.
        """
        from stillroom.data import load_data

        if self.data is None:
            raise ValueError(f"this {type(self).__name__} task has no data: pass data=")
        return load_data(
            self.data,
            image_size=self.image_size,
            channels=self.channels,
            seed=seed,
            labels=None if everything else self.labels,
            train_size=None if everything else self.train_size,
            test_size=self.test_size,
            validation_share=self.validation_share,
            unlabelled=None if everything else self.unlabelled,
            label_column=self.label_column,
            image_column=self.image_column,
            task=self.name,
        )

    def change(self, **changes: Any) -> Task:
        """Return a copy with some attributes exchanged; an unknown name is an AttributeError."""
        changed = copy.copy(self)
        for name, value in changes.items():
            if not hasattr(self, name):
                raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(sorted(vars(self)))}")
            setattr(changed, name, value)
        return changed

    def supervised_loss(self, outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Loss against the labels; rows (or positions) without a label are left out."""
        raise TypeError(f"the {self.name} task has no supervised loss")

    def distillation_loss(
        self, student_outputs: Tensor, teacher_outputs: Tensor, *, temperature: float = 1.0, reduction: Reduction = "mean"
    ) -> Tensor:
        """The plain loss between what student and teacher say; the teacher's side is detached."""
        raise TypeError(f"the {self.name} task has no distillation loss")

    def width(self, splits: Any) -> int | None:
        """How many outputs a network needs for this data; None where the data does not tell."""
        return len(splits.classes) if splits.classes else None

    def check(self, batch: Batch, outputs: Tensor | None = None) -> None:
        """Check values once, on the first batch: finite inputs and outputs, labels of the right kind and range.

        Raises:
            ValueError: with what was found, what is expected and the remedy.
        """
        if len(batch) == 0:
            raise ValueError("the batch is empty: the data set or its selection holds no samples")
        for tensor in tensors_in(batch.inputs):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError("the inputs hold NaN or infinite values: clean the data first")
        if outputs is not None:
            if outputs.ndim < 2 or len(outputs) != len(batch):
                raise ValueError(
                    f"the network gave outputs of shape {tuple(outputs.shape)} for {len(batch)} samples: "
                    "expected (N, ...) with one row per sample"
                )
            if not bool(outputs.isfinite().all()):
                raise ValueError("the network gives NaN or infinite outputs on the first batch: check its weights")
        if batch.labels is not None:
            self.check_labels(batch.labels, outputs)

    def check_labels(self, labels: Tensor, outputs: Tensor | None) -> None:
        """Check the labels' dtype, shape and range against the outputs."""

    def meter(self, width: int | None, *, with_teacher: bool = False) -> Meter:
        """Return an empty meter for this task's metrics."""
        raise TypeError(f"the {self.name} task has no metrics")

    def chance(self, labels: Tensor) -> dict[str, float]:
        """What somebody scores who looks at no input (the metrics this can be said for)."""
        return {}

    @torch.no_grad()
    def evaluate(
        self,
        network: nn.Module | Callable[[Any], Tensor],
        batches: Iterable[Batch],
        *,
        teacher: Callable[[Any], Tensor] | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, float]:
        """Measure a network on batches.

        Args:
            network: inputs -> outputs; a module is measured in eval mode and set back.
            batches: labelled batches.
            teacher: with one, agreement with it is measured too.
            device: where batches are moved; None for the network's own.

        Returns:
            Metric name -> value.
        """
        training = isinstance(network, nn.Module) and network.training
        if isinstance(network, nn.Module):
            network.eval()
            device = device or next((p.device for p in network.parameters()), torch.device("cpu"))
        meter: Meter | None = None
        try:
            for batch in batches:
                batch = batch.to(device or "cpu")
                outputs = network(batch) if isinstance(network, Frozen) else network(batch.inputs)
                if meter is None:
                    meter = self.meter(outputs.shape[1], with_teacher=teacher is not None)
                meter.update(outputs.float(), batch.labels, None if teacher is None else teacher(batch).float())
        finally:
            if training:
                network.train()  # type: ignore[union-attr]
        if meter is None:
            raise ValueError("there is nothing to measure on: the evaluation split is empty")
        return meter.compute()


class Meter:
    """Collects outputs batch by batch and computes a task's metrics at the end.

    Args:
        compute: `(outputs, labels, teacher_outputs) -> {metric: value}` over everything that was collected.
    """

    def __init__(self, compute: Callable[[Tensor, Tensor | None, Tensor | None], dict[str, float]]) -> None:
        self._compute = compute
        self._seen: list[tuple[Tensor, Tensor | None, Tensor | None]] = []

    def update(self, outputs: Tensor, labels: Tensor | None, teacher_outputs: Tensor | None = None) -> None:
        """Take one batch."""
        self._seen.append((outputs, labels, teacher_outputs))

    def compute(self) -> dict[str, float]:
        """Compute the metrics over all batches."""
        columns = list(zip(*self._seen, strict=True))
        outputs, labels, teachers = (None if column[0] is None else torch.cat(column) for column in columns)
        if outputs is None:
            raise ValueError("nothing was collected")
        return self._compute(outputs, labels, teachers)


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


class Classification(Task):
    """One class per sample. Outputs are logits `(N, C)`, labels `(N,)` int64 in [0, C), -100 for none."""

    name = "classification"
    metric = "accuracy"

    def supervised_loss(self, outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Cross-entropy over the labelled rows."""
        return cross_entropy(outputs, labels, reduction=reduction)

    def distillation_loss(
        self, student_outputs: Tensor, teacher_outputs: Tensor, *, temperature: float = 1.0, reduction: Reduction = "mean"
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
                    left_out = teacher.argmax(1) if labels is None else torch.where(labels < 0, teacher.argmax(1), labels)
                    found["rank_agreement"] = float(spearman_without(logits, teacher, left_out).mean())
            return found

        return Meter(compute)


class MultiLabel(Task):
    """Any number of classes per sample. Outputs are logits `(N, C)`, labels `(N, C)` floats 0 or 1, NaN for none."""

    name = "multi-label"
    metric = "mean_average_precision"

    def supervised_loss(self, outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Binary cross-entropy per class, over the known entries."""
        return binary_cross_entropy(outputs, labels, reduction=reduction)

    def distillation_loss(
        self, student_outputs: Tensor, teacher_outputs: Tensor, *, temperature: float = 1.0, reduction: Reduction = "mean"
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
        """Mean average precision over classes, micro F1 at 0.5, mean BCE; with a teacher, agreement at 0.5."""
        from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

        def compute(logits: Tensor, labels: Tensor | None, teacher: Tensor | None) -> dict[str, float]:
            found: dict[str, float] = {}
            if labels is not None:
                classes = logits.shape[1]
                truth = torch.where(labels.isnan(), -1, labels).long()
                probabilities = logits.sigmoid()
                per_class = multilabel_average_precision(probabilities, truth, classes, average="none", ignore_index=-1)
                present = ((truth == 1).any(0)) & ~per_class.isnan()
                found[self.metric] = float(per_class[present].mean())
                found["micro_f1"] = float(
                    multilabel_f1_score(probabilities, truth, classes, average="micro", ignore_index=-1)
                )
                found["bce"] = float(binary_cross_entropy(logits, labels))
            if teacher is not None and teacher.shape == logits.shape:
                found["agreement"] = float(((logits > 0) == (teacher > 0)).double().mean())
            return found

        return Meter(compute)


class Segmentation(Classification):
    """One class per position. Outputs are logits `(N, C, H, W)`, labels `(N, H, W)` int64, -100 for none."""

    name = "segmentation"
    metric = "mean_iou"

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


class Regression(Task):
    """Numbers per sample. Outputs and labels are `(N, D)` floats, NaN for none."""

    name = "regression"
    metric = "r2"

    def supervised_loss(self, outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Mean squared error over the known entries."""
        return mean_squared_error(outputs, labels, reduction=reduction)

    def distillation_loss(
        self, student_outputs: Tensor, teacher_outputs: Tensor, *, temperature: float = 1.0, reduction: Reduction = "mean"
    ) -> Tensor:
        """Mean squared error against the teacher's numbers; temperature plays no part."""
        return mean_squared_error(student_outputs, teacher_outputs.detach(), reduction=reduction)

    def width(self, splits: Any) -> int | None:
        """One output per number in a label."""
        labels = splits.train.labels
        return None if labels is None else int(labels[0].numel())

    def check_labels(self, labels: Tensor, outputs: Tensor | None) -> None:
        """Labels must be floats of the outputs' shape."""
        if outputs is not None and labels.shape != outputs.shape:
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


class Embeddings(Task):
    """Vectors that stand for samples, learned from a teacher's vectors without any labels. Outputs are `(N, D)`."""

    name = "embeddings"
    metric = "neighbour_overlap"
    needs_labels = False

    def supervised_loss(self, outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Nothing: this task has no labels (0 for every sample, connected to the graph)."""
        return reduce(0 * outputs.flatten(1).sum(1), reduction)

    def distillation_loss(
        self, student_outputs: Tensor, teacher_outputs: Tensor, *, temperature: float = 1.0, reduction: Reduction = "mean"
    ) -> Tensor:
        """One minus the cosine between student's and teacher's vectors; temperature plays no part."""
        if student_outputs.shape != teacher_outputs.shape:
            raise ValueError(
                f"student embeddings have shape {tuple(student_outputs.shape)}, teacher embeddings "
                f"{tuple(teacher_outputs.shape)}: give the student as many outputs, or use a method that compares "
                "relations between samples (rkd)"
            )
        cosine = F.cosine_similarity(student_outputs.float(), teacher_outputs.detach().float(), dim=1)
        return reduce(1 - cosine, reduction)

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


TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, MultiLabel, Segmentation, Regression, Embeddings)
}
TaskName = Literal["classification", "multi-label", "segmentation", "regression", "embeddings"]


def task_for(name: str, data: Any = None, **options: Any) -> Task:
    """Build a task by its name.

    Raises:
        ValueError: unknown name, with the known ones.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known tasks: {', '.join(TASKS)}")
    return TASKS[name](data, **options)


def teacher_beats_chance(measured: dict[str, float], task: Task, labels: Tensor, samples: Sequence[int] | int) -> str:
    """Say in one sentence why a teacher is no teacher for this data; empty when it is one.

    The teacher must be better than a guess by two standard errors (classification and its kin), or better at all.

    Args:
        measured: the teacher's metrics on the data.
        task: the task, which knows what guessing scores.
        labels: labels of the measured samples.
        samples: how many they are.
    """
    guess = task.chance(labels).get(task.metric)
    if guess is None or task.metric not in measured:
        return ""
    count = samples if isinstance(samples, int) else len(samples)
    margin = 2 * (guess * (1 - guess) / count) ** 0.5 if task.metric == "accuracy" else 0.0
    if measured[task.metric] > guess + margin:
        return ""
    return (
        f"the teacher's {task.metric.replace('_', ' ')} on this data is {measured[task.metric]:.3f}, no better than "
        f"guessing ({guess:.3f}): check its class order and input range, give it weights, or train it first "
        "(--teacher-epochs)"
    )
