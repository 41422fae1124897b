"""Small methods and networks that the tests of the battery are run on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.blocks.taps import Taps
from stillroom.check import check_method
from stillroom.data.batch import Batch
from stillroom.losses._shared import at_least_float32, check_logits, reduce
from stillroom.method import Losses, Method, Needs, Stage
from stillroom.task import Task

CLASSES = 3


def mlp(width: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, CLASSES)
    )


def conv(width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 36, CLASSES),
    )


def rows(size: int = 8) -> Batch:
    return Batch(torch.randn(size, 4), torch.arange(size) % CLASSES, torch.arange(size))


def images(size: int = 8) -> Batch:
    return Batch(torch.rand(size, 3, 6, 6), torch.arange(size) % CLASSES, torch.arange(size))


class ToyKD(Method):
    """Distillation as in the books, in pieces that a broken method can exchange."""

    zero_at_teacher = ("distill",)

    def forward(self, batch: Batch) -> Losses:
        student_logits, teacher_logits = self.student(self.inputs(batch)), self.teacher_logits(batch)
        labels = self.labels(batch)
        self.check(student_logits, teacher_logits, labels)
        terms = {"label": self.label(student_logits, labels), "distill": self.distill(student_logits, teacher_logits)}
        return self.losses(student_logits, terms | self.more(batch, student_logits))

    def inputs(self, batch: Batch) -> Tensor:
        return batch.inputs

    def labels(self, batch: Batch) -> Tensor:
        return batch.labels

    def teacher_logits(self, batch: Batch) -> Tensor:
        return self.teacher(batch)

    def check(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> None:
        check_logits(student_logits, teacher_logits, labels)

    def label(self, student_logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(student_logits, labels)

    def distill(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        s, t = (at_least_float32(logits).log_softmax(1) for logits in (student_logits, teacher_logits))
        return F.kl_div(s, t, reduction="batchmean", log_target=True)

    def more(self, batch: Batch, student_logits: Tensor) -> dict[str, Tensor]:
        return {}

    def losses(self, outputs: Tensor, terms: dict[str, Tensor]) -> Losses:
        return Losses(outputs=outputs, weights={"label": 0.5}, **terms)


class ToyHint(Method):
    """Matches an activation through an adapter of its own; labels are optional."""

    needs = Needs(labels="some", features=True)
    layer_of_student = "2"

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student, teacher)
        self.adapter = nn.Conv2d(student[0].out_channels, teacher[0].out_channels, 1)

    def forward(self, batch: Batch) -> Losses:
        if len(batch) == 0:
            raise ValueError("the batch is empty: give samples")
        with Taps(self.student, self.layer_of_student) as mine, Taps(self.teacher, "2") as theirs:
            outputs, _ = self.student(batch.inputs), self.teacher(batch)
            hint = F.mse_loss(
                at_least_float32(self.adapter(mine.features[self.layer_of_student])),
                at_least_float32(theirs.features["2"].detach()),
            )
        if batch.labels is None:
            return Losses(outputs=outputs, hint=hint)
        check_logits(outputs, outputs.detach(), batch.labels)
        per_row = F.cross_entropy(outputs, batch.labels, reduction="none")
        return Losses(outputs=outputs, hint=hint, label=reduce(per_row[batch.labelled], "mean"))


class ToyMemory(ToyKD):
    """Compares a batch with a memory of earlier teacher logits, and ships an average of its student."""

    needs = Needs(whole_batch="samples are compared with a memory that every batch changes", min_batch=2)

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student, teacher)
        self.average = copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("memory", torch.randn(16, CLASSES))

    def check(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> None:
        check_logits(student_logits, teacher_logits, labels, min_samples=2)

    def more(self, batch: Batch, student_logits: Tensor) -> dict[str, Tensor]:
        distance = torch.cdist(at_least_float32(student_logits), self.memory).square().mean()
        self.latest = self.teacher(batch).detach()
        return {"memory": distance}

    def after_step(self, player: str) -> None:
        self.memory = torch.cat([self.memory, self.latest.to(self.memory)])[-16:]
        with torch.no_grad():
            for mine, new in zip(self.average.state_dict().values(), self.student.state_dict().values(), strict=True):
                mine.lerp_(new, 0.1) if mine.is_floating_point() else mine.copy_(new)

    @property
    def product(self) -> nn.Module:
        return self.average


class ToyDuel(Method):
    """Two players: a critic that tells teacher from student logits, and a student that deceives it, in two stages."""

    needs = Needs(labels="none")
    may_be_negative: ClassVar = ("critic",)

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student, teacher)
        self.critic = nn.Linear(CLASSES, 1)

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {"critic": list(self.critic.parameters()), "student": list(self.student.parameters())}

    def stages(self) -> tuple[Stage, ...]:
        return Stage("warm-up", players=("critic",), share=1), Stage("both", share=3)

    def turns(self, batch: Batch):
        student_logits, teacher_logits = self.student(batch.inputs), self.teacher(batch)
        check_logits(student_logits, teacher_logits)
        real, fake = (at_least_float32(self.critic(x)) for x in (teacher_logits, student_logits.detach()))
        yield "critic", Losses(critic=F.softplus(fake).mean() - real.sigmoid().mean())
        judged = at_least_float32(self.critic(student_logits))
        yield "student", Losses(outputs=student_logits, deceive=F.softplus(-judged).mean())


def kd(kind: type[ToyKD] = ToyKD) -> ToyKD:
    return kind(mlp(), mlp())


def failed_messages(
    method: Method | Callable[[], Method],
    batch: Batch | None = None,
    *,
    task: Task | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, str]:
    """Names of the checks that fail, and what they say."""
    return check_method(method, batch or rows(), task=task, only=only, processes=False, raises=False).failed
