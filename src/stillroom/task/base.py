"""Tasks: what a network's outputs mean, how they are trained on, measured and checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch, tensors_in
from stillroom.data.images import listed
from stillroom.losses import Reduction


class Task:
    """Base of all tasks. A task names a data set (or none) and knows what the outputs of a network mean on it.

    Args:
        data: what `stillroom.data.load_data` takes; None for a task that is only used for its loss and metrics.
        train_size: how many training samples the student sees, chosen by seed and stratified; None for all.
        teacher_size: how many training samples a teacher sees that is trained first; None for all.
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
    kd_weights: ClassVar[tuple[float, float]] = (0.1, 0.9)
    """Weights of the supervised and of the distillation loss in `baselines.KD`, where nobody names others."""
    kd_temperature: ClassVar[float] = 4.0
    """T of `baselines.KD`, where nobody names another."""
    augments: ClassVar[bool] = True
    """Whether batches may be augmented."""
    verb: ClassVar[str] = "sort"
    """What a network does with the data, in the question at the head of a report."""
    outputs_are: ClassVar[str] = "classes"
    """What the outputs of a network number, in the plural."""
    takes: ClassVar[str] = "inputs in [0, 1]"
    """What a trained network takes, in its model card."""
    teacher_faults: ClassVar[str] = "its class order and input range"
    """What is to be looked at where a teacher guesses."""
    demonstration: ClassVar[dict[str, Any]] = {}
    """Options of `stillroom distill` where somebody names the task and no models."""

    def __init__(
        self,
        data: Any = None,
        *,
        train_size: int | None = None,
        teacher_size: int | None = None,
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
        self.teacher_size = teacher_size
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
            everything: what a teacher is trained on: `teacher_size` instead of `train_size`, and all labels.

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
            train_size=self.teacher_size if everything else self.train_size,
            test_size=self.test_size,
            validation_share=self.validation_share,
            unlabelled=None if everything else self.unlabelled,
            label_column=self.label_column,
            image_column=self.image_column,
            task=self.name if self.needs_labels else None,
        )

    def change(self, **changes: Any) -> Self:
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
        self,
        student_outputs: Tensor,
        teacher_outputs: Tensor,
        *,
        temperature: float = 1.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """The plain loss between what student and teacher say; the teacher's side is detached."""
        raise TypeError(f"the {self.name} task has no distillation loss")

    def width(self, splits: Any) -> int | None:
        """How many outputs a network needs for this data; None where the data does not tell."""
        return len(splits.classes) if splits.classes else None

    def width_of(self, outputs: Tensor) -> int:
        """How many outputs a network gave per sample.

        Raises:
            ValueError: the outputs are no rows.
        """
        if outputs.ndim < 2:
            raise ValueError(
                f"the network gave outputs of shape {tuple(outputs.shape)}: expected (N, ...) with one row per sample; "
                "let it keep a column (unsqueeze(1))"
            )
        return outputs.shape[1]

    def for_models(self, teacher: Any, student: Any) -> Task:
        """Return the task as these models need it (a tokenizer of theirs); by default as it is.

        Args:
            teacher: what a user named as teacher.
            student: the same of the student.
        """
        return self

    def sample_name(self, splits: Any) -> str:
        """What one sample is called."""
        return "sample"

    def pieces(self, batch: Batch, width: int | None) -> Iterable[Batch]:
        """Cut a batch that is measured so that its outputs fit into memory; by default it stays whole.

        Args:
            batch: what is measured.
            width: how many outputs the network gave before; None before its first answer.
        """
        return (batch,)

    def collect(self, meter: Meter, outputs: Tensor, batch: Batch, teacher_outputs: Tensor | None) -> None:
        """Let a meter take one batch."""
        meter.update(outputs, batch.labels, teacher_outputs)

    def learn(
        self, student: nn.Module, batch: Batch, teacher: Any = None, *, temperature: float = 1.0
    ) -> tuple[dict[str, Tensor], Any]:
        """What a student is taught on a batch, as `baselines.Alone` and `baselines.KD` take it.

        Args:
            student: what is trained.
            batch: with labels, or without.
            teacher: frozen, called with the batch; None for none.
            temperature: of what the teacher says.

        Returns:
            Raw terms: "label" where there are labels (with a teacher, where the task needs any), "distill" where there
            is a teacher; and the student's outputs.
        """
        outputs = student(batch.inputs)
        terms: dict[str, Tensor] = {}
        if teacher is not None:
            terms["distill"] = self.distill(outputs, teacher(batch), batch.labels, temperature=temperature)
        if batch.labels is not None and (self.needs_labels or teacher is None):
            terms["label"] = self.supervised_loss(outputs, batch.labels)
        return terms, outputs

    def distill(
        self, student_outputs: Tensor, teacher_outputs: Tensor, labels: Tensor | None, *, temperature: float = 1.0
    ) -> Tensor:
        """The distillation loss of a batch as `baselines.KD` takes it; by default the labels play no part."""
        return self.distillation_loss(student_outputs, teacher_outputs, temperature=temperature)

    def check(self, batch: Batch, outputs: Tensor | None = None) -> None:
        """Check values once, on the first batch: finite inputs and outputs, labels of the right kind and range.

        Raises:
            ValueError: with what was found, what is expected and the remedy.
        """
        if len(batch) == 0:
            raise ValueError("the batch is empty: the data set or its selection holds no samples")
        check_finite(batch)
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

    def no_teacher(self, measured: dict[str, float]) -> str:
        """Say in a sentence why a network with these metrics can teach nobody; empty where that cannot be told."""
        return ""

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

        Raises:
            ValueError: there is no batch, or inputs hold NaN or infinite values; the message names the samples.
        """
        training = isinstance(network, nn.Module) and network.training
        if isinstance(network, nn.Module):
            network.eval()
            device = device or next((p.device for p in network.parameters()), torch.device("cpu"))
        meter: Meter | None = None
        width: int | None = None
        try:
            for batch in batches:
                check_finite(batch)
                for piece in self.pieces(batch, width):
                    piece = piece.to(device or "cpu")
                    outputs = _ask(network, piece)
                    if meter is None:
                        width = self.width_of(outputs)
                        meter = self.meter(width, with_teacher=teacher is not None)
                    said = None if teacher is None else _ask(teacher, piece).float()
                    self.collect(meter, outputs.float(), piece, said)
        finally:
            if training:
                network.train()  # type: ignore[union-attr]
        if meter is None:
            raise ValueError("there is nothing to measure on: the evaluation split is empty")
        return meter.compute()


def check_finite(batch: Batch) -> None:
    """Refuse inputs that hold NaN or infinite values.

    Raises:
        ValueError: with the numbers of the samples, where they have some.
    """
    for tensor in tensors_in(batch.inputs):
        if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
            continue
        which = ""
        if batch.index is not None and tensor.ndim and len(tensor) == len(batch.index):
            spoiled = ~tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else ~tensor.isfinite()
            which = f" (of the samples numbered {listed([str(row) for row in batch.index[spoiled].tolist()])})"
        raise ValueError(f"the inputs hold NaN or infinite values{which}: repair these samples or leave them out")


def _ask(network: Callable[[Any], Tensor], batch: Batch) -> Tensor:
    return network(batch) if isinstance(network, Frozen) else network(batch.inputs)


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
