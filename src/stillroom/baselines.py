"""What every method is compared with: the student alone, Hinton's distillation, and controls that must fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen, parts_of
from stillroom.blocks.providers import ask
from stillroom.data.batch import Batch
from stillroom.losses._shared import check_not_negative, check_positive
from stillroom.method import Losses, Method, Needs
from stillroom.task import Classification, Task

EVERY_TASK = (
    *("classification", "multi-label", "segmentation", "detection", "regression", "embeddings"),
    *("language-modelling", "super-resolution"),
)


class Alone(Method):
    """Trains the student by the labels alone: the baseline that distillation has to beat.

    Args:
        student: inputs -> outputs of the task.
        teacher: taken and ignored, so that every arm is built alike.
        task: whose supervised loss is used; classification when not given.

    Losses:
        label: the task's supervised loss over the labelled rows.

    Example:
        >>> method = Alone(torch.nn.Linear(4, 3))
        >>> losses = method(Batch(torch.randn(8, 4), torch.randint(3, (8,))))
        >>> list(losses)
        ['label']
    """

    needs = Needs(labels="some", teacher=False, tasks=EVERY_TASK)

    def __init__(self, student: nn.Module, teacher: Any = None, *, task: Task | None = None) -> None:
        super().__init__(student)
        self.task = task or Classification()

    def forward(self, batch: Batch) -> Losses:
        """Return the supervised loss of a batch."""
        if batch.labels is None:
            raise ValueError("the student alone learns from labels, but this batch has none")
        terms, outputs = self.task.learn(self.student, batch)
        return Losses(outputs=outputs, weights=None, **terms)


alone = Alone


class KD(Method):
    """Trains a student on its teacher's softened outputs and on the labels, where there are any (Hinton et al. 2015).

    For tasks other than classification the softened outputs are compared as the task says: per position, per class, by
    squared error or by cosine; detectors on the teacher's proposals.

    Args:
        student: inputs -> outputs of the task.
        teacher: inputs -> outputs of the same shape; frozen here.
        temperature: T, above 0; not given: 4, for language models 1.
        label_weight: weight of the supervised loss, 0 or more; not given: 0.1, for super-resolution and language 0.5.
        distill_weight: of the distillation loss, 0 or more; not given: 0.9, for super-resolution and language 0.5.
        task: whose losses are used; classification when not given.

    Losses:
        label: the task's supervised loss over the labelled rows; absent when the batch carries no labels.
        distill: `T^2 KL(teacher || student)` over all rows, labelled or not.
        propose: for detectors only, the first stage's losses against what the teacher detects.

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2; the weights 0.1 and 0.9 and T = 4 are those of the
        CIFAR-100 tables of the field.

    Example:
        >>> method = KD(torch.nn.Linear(4, 3), torch.nn.Linear(4, 3), temperature=2.0)
        >>> losses = method(Batch(torch.randn(8, 4), torch.randint(3, (8,))))
        >>> sorted(losses)
        ['distill', 'label']
    """

    needs = Needs(labels="some", full_logits=False, tasks=EVERY_TASK)
    zero_at_teacher = ("distill",)

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        temperature: float | None = None,
        label_weight: float | None = None,
        distill_weight: float | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__(student, teacher)
        own = (task or Classification()).kd_weights
        temperature = (task or Classification()).kd_temperature if temperature is None else temperature
        label_weight = own[0] if label_weight is None else label_weight
        distill_weight = own[1] if distill_weight is None else distill_weight
        check_positive(temperature=temperature)
        check_not_negative(label_weight=label_weight, distill_weight=distill_weight)
        self.temperature = temperature
        self.label_weight = label_weight
        self.distill_weight = distill_weight
        self.task = task or Classification()

    def forward(self, batch: Batch) -> Losses:
        """Return the supervised and the distillation loss of a batch."""
        terms, outputs = self.task.learn(self.student, batch, self.teacher, temperature=self.temperature)
        weights = {name: self.label_weight if name == "label" else self.distill_weight for name in terms}
        return Losses(outputs=outputs, weights=weights, **terms)


class _Control(nn.Module):
    """Stands before a teacher and passes on less than it says; asked like any provider, with the batch."""

    takes_batch = True

    def __init__(self, network: Any) -> None:
        super().__init__()
        if isinstance(network, Frozen) and network.batch_norm == "running" and isinstance(network.network, nn.Module):
            network = network.network  # its mode is that of the Frozen around this control
        self.network = network if isinstance(network, nn.Module) else Frozen(network)

    @property
    def answers_from_memory(self) -> bool:
        """Whether what is asked is a cache."""
        return any(getattr(part, "answers_from_memory", False) for part in parts_of(self.network))

    def forward(self, batch: Any) -> Tensor:
        """Ask about a batch, or about inputs alone, and pass on less."""
        return self.take_away(ask(self.network, batch if isinstance(batch, Batch) else Batch(batch)))

    def take_away(self, logits: Tensor) -> Tensor:
        """What is passed on of the teacher's outputs."""
        raise NotImplementedError(f"{type(self).__name__} must define take_away(logits)")


class ScrambledTeacher(_Control):
    """A control: says the same favourite with the same confidence, but gives each other class its neighbour's score.

    What is lost is only which wrong classes are likely: a method that lives on it must lose its gain.

    Args:
        network: inputs -> logits `(N, C)`, C of 3 or more; or a teacher provider (a function, a cache), or a `Frozen`,
            whose mode is kept.

    Raises:
        TypeError: it cannot be called.
    """

    def take_away(self, logits: Tensor) -> Tensor:
        """Return the logits `(N, C)` with the classes other than the favourite moved on by one."""
        classes = logits.shape[1]
        favourite = logits.argmax(dim=1, keepdim=True)
        position = torch.arange(classes - 1, device=logits.device).expand(len(logits), -1)
        others = position + (position >= favourite)  # class numbers without the favourite
        return logits.scatter(1, others, logits.gather(1, others.roll(1, dims=1)))


class ConstantTeacher(_Control):
    """A control: says the same for every sample, namely that all classes are equally likely.

    Args:
        network: as of `ScrambledTeacher`; only the shape of its outputs is used.

    Raises:
        TypeError: it cannot be called.
    """

    def take_away(self, logits: Tensor) -> Tensor:
        """Return zeros of the shape of what the teacher says."""
        return torch.zeros_like(logits)


def _build_constant(method: Callable[..., Method], student: nn.Module, teacher: Any, **options: Any) -> Method:
    return method(student, ConstantTeacher(teacher), **options)


def is_control(arm: Any) -> bool:
    """Whether an arm is a method whose teacher was taken its knowledge away."""
    return isinstance(arm, partial) and arm.func in (_build_constant, _build_scrambled)


def _build_scrambled(method: Callable[..., Method], student: nn.Module, teacher: Any, **options: Any) -> Method:
    return method(student, ScrambledTeacher(teacher), **options)


def with_scrambled_teacher(method: Callable[..., Method]) -> Callable[..., Method]:
    """Return the method with `ScrambledTeacher` between it and its teacher: the same in all but the wrong classes."""
    return partial(_build_scrambled, method)


def with_constant_teacher(method: Callable[..., Method]) -> Callable[..., Method]:
    """Return the method with `ConstantTeacher` in its teacher's place: everything but the knowledge."""
    return partial(_build_constant, method)
