"""A method: one module that turns a batch into named losses, in anybody's training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.blocks.taps import unwrapped
from stillroom.data.batch import Batch
from stillroom.data.stream import Stream

if TYPE_CHECKING:
    from stillroom.training import Optim


class Losses(Mapping[str, Tensor]):
    """Named scalar terms, their weights, their sum, and the outputs they were computed from.

    Args:
        outputs: what the student said, so that metrics need no second pass.
        weights: weight of a term in the total; 1 where not named. A term of weight 0 is shown and left out of the sum.
        **terms: scalar tensors.

    Raises:
        ValueError: no term, a term that is not a scalar, or a weight without a term.

    Example:
        >>> losses = Losses(kd=torch.tensor(2.0), label=torch.tensor(3.0), weights={"kd": 0.5})
        >>> float(losses.total)
        4.0
    """

    def __init__(self, *, outputs: Any = None, weights: Mapping[str, float] | None = None, **terms: Tensor) -> None:
        self.outputs = outputs
        self.terms = terms
        self.weights = dict.fromkeys(terms, 1.0) | dict(weights or {})
        if not terms:
            raise ValueError("Losses needs at least one named term, given none")
        for name, term in terms.items():
            if not isinstance(term, Tensor) or term.ndim:
                given = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
                raise ValueError(f"loss term {name!r} must be a scalar tensor, given {given}: reduce it first")
        if strange := set(self.weights) - set(terms):
            raise ValueError(f"weights are given for {sorted(strange)}, but the terms are {sorted(terms)}")

    @property
    def total(self) -> Tensor:
        """The weighted sum of the terms, a scalar that gradients flow from."""
        weighted = [self.weights[name] * term for name, term in self.terms.items() if self.weights[name] != 0]
        return torch.stack(weighted).sum() if len(weighted) > 1 else (weighted or [0 * next(iter(self.values()))])[0]

    def only(self, names: Iterable[str]) -> Losses:
        """Keep some of the terms (a stage that trains by a part of them)."""
        kept = {name: self.terms[name] for name in names}
        return Losses(outputs=self.outputs, weights={name: self.weights[name] for name in kept}, **kept)

    def __getitem__(self, name: str) -> Tensor:
        return self.terms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.terms)

    def __len__(self) -> int:
        return len(self.terms)

    def __repr__(self) -> str:
        shown = (f"{name}={float(term.detach()):.4g} (x{self.weights[name]:g})" for name, term in self.terms.items())
        return f"Losses({', '.join(shown)})"


@dataclass(frozen=True)
class Needs:
    """What a method must be given.

    Attributes:
        labels: "every" row of a batch, "some" rows (the others may be unlabelled), or "none".
        index: whether `batch.index` must number the samples of one fixed data set.
        teacher: whether there is a teacher at all.
        takes_teacher: whether one can be given; where not, a comparison with methods that have one gives it none.
        features: whether it reads activations inside teacher and student, not only their outputs.
        full_logits: whether it needs the logit of every class, so that a cache that keeps the top ones and the mass of
            the rest will not do.
        teacher_at: "any" inputs may be answered by a cache; "own" when the method asks its teacher about inputs that
            it makes itself (mixtures, crops), so that no cache can answer.
        min_classes: the fewest classes it is defined for.
        min_batch: the fewest samples in a batch.
        whole_batch: empty when the loss is a mean over samples; else why two halves of a batch do not give the whole
            batch's loss (samples are compared with each other, memories are updated, ...).
        tasks: names of the tasks it works for.
    """

    labels: Literal["every", "some", "none"] = "every"
    index: bool = False
    teacher: bool = True
    takes_teacher: bool = True
    features: bool = False
    full_logits: bool = True
    teacher_at: Literal["any", "own"] = "any"
    min_classes: int = 2
    min_batch: int = 1
    whole_batch: str = ""
    tasks: tuple[str, ...] = ("classification",)


@dataclass(frozen=True)
class Clock:
    """How far training is; `fit` sets it before each step.

    A method in somebody's own loop that nobody tells the time stands at the end: every warm-up is over.
    """

    step: int = 0
    epoch: float = float("inf")
    progress: float = 1.0

    def ramp(self, share: float) -> float:
        """Rise from 0 to 1 over the first `share` of training, then stay at 1; no ramp at all for share 0."""
        return 1.0 if share <= 0 else min(self.progress / share, 1.0)


@dataclass(frozen=True)
class Stage:
    """A part of the training: which players take their turns, by which terms, on what, and what is kept of it.

    Attributes:
        name: shown in the log; `Training.stages` can name an optimizer for it.
        players: whose turns are taken; None for all of them.
        terms: which loss terms count; None for all of them.
        share: the part of all steps that this stage takes, relative to the other stages' shares.
        data: "train" draws labelled samples (and a pool beside them), "unlabelled" draws from the pool alone,
            "train-alone" from the training samples without the pool, and "merged" from both as from one set without
            any label.
        frozen: names of the method's submodules that stand still in this stage: in eval mode, without gradients of
            their own (gradients still flow through them).
        fresh_optimizers: begin with new optimizers, whose schedules run over this stage alone; otherwise every player
            goes on with the one it has.
        lr_factor: what the learning rates of this stage are multiplied by, above 0, unless the training names an
            optimizer for the stage.
        best_by: the number on the held-out part by which the stage's best weights are chosen; they are restored when
            it ends. A metric of the task, or a loss term or "total" (see `Method.measure_stage`). Empty: the last ones.
        higher_is_better: of that number.
    """

    name: str = "train"
    players: tuple[str, ...] | None = None
    terms: tuple[str, ...] | None = None
    share: float = 1.0
    data: str = "train"
    frozen: tuple[str, ...] = ()
    fresh_optimizers: bool = False
    lr_factor: float = 1.0
    best_by: str = ""
    higher_is_better: bool = False

    def counts(self, turns: Iterable[tuple[str, Losses]]) -> Iterator[tuple[str, Losses]]:
        """Keep the turns and terms that count in this stage."""
        for player, losses in turns:
            if self.players is None or player in self.players:
                kept = losses if self.terms is None else losses.only([name for name in losses if name in self.terms])
                yield player, kept


class Method(nn.Module):
    """Base of all methods: `method(batch) -> Losses`.

    A subclass sets `needs`, keeps what it trains as submodules, keeps its teacher in `stillroom.blocks.Frozen`, and
    writes `forward`. It is an ordinary module: call it in your own loop, sum `losses.total`, step an optimizer over
    `method.parameters()`, and ship `method.product`.

    Args:
        student: the network that is trained.
        teacher: the network (or provider) that is learned from, frozen here; None for methods that have none.

    Raises:
        TypeError: student is not a module.
        ValueError: the method needs a teacher and there is none, or the student has nothing to train.
    """

    needs: ClassVar[Needs] = Needs()
    may_be_negative: ClassVar[tuple[str, ...]] = ()
    zero_at_teacher: ClassVar[tuple[str, ...]] = ()
    """Terms that are 0, without gradient, when the student says exactly what the teacher says."""
    optimizers: ClassVar[Mapping[str, Optim]] = {}
    """Optimizers of players that want one of their own, where the training names none for them."""
    kept_apart: Tensor | None = None
    """Numbers of training samples that the method keeps for itself (a held-out part): `fit` does not train on them."""

    teacher: Any

    def __init__(self, student: nn.Module, teacher: Any = None) -> None:
        super().__init__()
        if not isinstance(student, nn.Module):
            raise TypeError(f"student must be a torch.nn.Module, given {type(student).__name__}")
        if self.needs.teacher and teacher is None:
            raise ValueError(f"{type(self).__name__} learns from a teacher, given none: pass teacher=")
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise ValueError("student has no parameter that requires a gradient: there is nothing to train")
        self.student = student
        self.teacher = None if teacher is None else teacher if isinstance(teacher, Frozen) else Frozen(teacher)
        self.clock = Clock()
        self.stage_clock = Clock()
        self.stage = Stage()
        self.rates: dict[str, float] = {}  # learning rate of each player in the coming step; `fit` sets it
        self._held: set[str] = set()  # parameters that the running stage holds still

    def __call__(self, batch: Batch, *more: Any, **named: Any) -> Losses:
        """Compute the named losses of a batch: `forward`, and hooks.

        Raises:
            TypeError: something else than a `Batch` is given.
        """
        if not isinstance(batch, Batch):
            raise TypeError(
                f"{type(self).__name__} learns from a stillroom.data.Batch, given a {type(batch).__name__}: wrap what "
                "a loader gives, Batch(inputs, labels)"
            )
        return super().__call__(batch, *more, **named)  # type: ignore[no-any-return]

    def forward(self, batch: Batch) -> Losses:
        """Compute the named losses of a batch."""
        raise TypeError(f"{type(self).__name__} must define forward(batch) -> Losses")

    @property
    def product(self) -> nn.Module:
        """What ships: the student, unless the method says otherwise (an average, a merged or a pruned network)."""
        return unwrapped(self.student)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """Groups of trainable parameters with an optimizer each; by default one, "student", with everything."""
        named = self.named_parameters()
        return {"student": [one for name, one in named if one.requires_grad or name in self._held]}

    def turns(self, batch: Batch) -> Iterator[tuple[str, Losses]]:
        """Yield `(player, losses)` in order; the loop steps that player before it asks for the next."""
        yield "student", self(batch)

    def stages(self) -> tuple[Stage, ...]:
        """The parts of the training, in order; by default one."""
        return (Stage(),)

    def begin_training(self, stream: Stream) -> None:
        """Learn what the training is on, before the first step of a run, a resumed one too; by default nothing.

        Args:
            stream: the batches that come: its samples, batch size, augmentation and seed.
        """

    def enter_stage(self, stage: Stage) -> None:
        """Make a stage the running one, whether it begins now or a resumed training goes on in it.

        Args:
            stage: one of `stages()`.

        Raises:
            ValueError: the stage freezes a submodule that there is not.
        """
        known = {name for name, _ in self.named_modules()} - {""}
        if strange := sorted(set(stage.frozen) - known):
            tops = [name for name, _ in self.named_children()]
            raise ValueError(
                f"stage {stage.name!r} freezes {strange[0]!r}, but {type(self).__name__} has no such submodule: "
                f"name {', '.join(tops)}, or a part of one"
            )
        for name, parameter in self.named_parameters():
            if any(name.startswith(f"{part}.") for part in stage.frozen):
                if parameter.requires_grad:
                    self._held.add(name)
                    parameter.requires_grad_(False)
            elif name in self._held:
                self._held.remove(name)
                parameter.requires_grad_(True)
        self.stage = stage
        self.train(self.training)

    def begin_stage(self, stage: Stage) -> None:
        """Prepare a stage, once, before its first step (not when a training resumes within it); by default nothing."""

    def end_stage(self, stage: Stage) -> None:
        """Conclude a stage, once, after its last step, when its best weights are back; by default nothing."""

    @torch.no_grad()
    def measure_stage(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Measure the running stage on held-out batches, for `Stage.best_by` where the task has no such metric.

        Args:
            batches: held-out samples.

        Returns:
            Every loss term that counts in this stage and their weighted sum, "total", over all players' turns; in eval
            mode, means over samples.
        """
        before, rows, sums = self.training, 0, {"total": 0.0}
        self.eval()
        try:
            for batch in batches:
                rows += len(batch)
                for _, losses in self.stage.counts(self.turns(batch)):
                    sums["total"] += len(batch) * float(losses.total)
                    for name, term in losses.items():
                        sums[name] = sums.get(name, 0.0) + len(batch) * float(term)
        finally:
            self.train(before)
        return {name: value / max(rows, 1) for name, value in sums.items()}

    def train(self, mode: bool = True) -> Self:
        """Set training mode; what the running stage freezes stays in eval mode."""
        super().train(mode)
        if mode:
            for name in self.stage.frozen:
                self.get_submodule(name).eval()
        return self

    def adjust_gradients(self, player: str) -> None:
        """Change a player's gradients between backward and step (gradient surgery); by default nothing."""

    def after_step(self, player: str) -> None:
        """Follow a player's step with what is not trained by gradients (averages, memories); by default nothing."""

    def after_evaluation(self, metrics: Mapping[str, float], epoch: float) -> None:
        """Follow a measurement on the held-out part (a schedule that heeds it); by default nothing.

        Args:
            metrics: of the task, on the validation split.
            epoch: passes over the training data so far, a fraction inside one.
        """

    def tell_time(self, step: int, epoch: float, progress: float, *, stage: Clock | None = None) -> None:
        """Set the clocks.

        Args:
            step: optimizer steps taken.
            epoch: epochs begun, fractional.
            progress: the part of all steps taken, in [0, 1].
            stage: the same, counted from the beginning of the running stage (`stage_clock`); None where there is one
                stage only.
        """
        self.clock = replace(self.clock, step=step, epoch=epoch, progress=progress)
        self.stage_clock = self.clock if stage is None else stage
