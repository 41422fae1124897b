"""An arm: what is run for one seed. Training arms are built here from a method, a student and a teacher."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom import hub, processes
from stillroom.baselines import Alone
from stillroom.blocks.frozen import Frozen
from stillroom.checkpoint import seed_everything
from stillroom.data.batch import UNLABELLED
from stillroom.data.samples import Samples, Splits
from stillroom.data.stream import sequential
from stillroom.experiment.described import text_of
from stillroom.fit import Fitted, fit
from stillroom.method import Method
from stillroom.task import Task
from stillroom.teacher_cache import CachedOnDisk, CacheOptions, check_cacheable
from stillroom.training import Training
from stillroom.tripwires import NotFiniteError

Metrics = dict[str, float]


@dataclass(frozen=True)
class Context:
    """What an arm is told by the run it belongs to.

    Attributes:
        folder: where this arm and seed may write.
        teacher: the frozen teacher, where the experiment has one.
        training: how training arms train.
        device: None for the machine's own choice.
        workers: threads that read data ahead.
        resume: go on from a checkpoint in the folder.
        tiny: everything is as small as can be, for a test.
        extra: what the arm wants kept beside its metrics (curves, steps, notes); written by the arm.
    """

    folder: Path
    teacher: Frozen | None = None
    training: Training = field(default_factory=Training)
    device: str | None = None
    workers: int = 0
    resume: bool = False
    tiny: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


Arm = Callable[[int, Context], Mapping[str, float]]


def is_method(arm: Any) -> bool:
    """Whether an arm is a method class, a partial of one, or a function `(student, teacher) -> Method`.

    A function whose first parameter is called `seed` is an arm `(seed, context) -> metrics`.
    """
    while isinstance(arm, partial):
        arm = arm.func if not (arm.args and is_method(arm.args[0])) else arm.args[0]
    if isinstance(arm, type):
        return issubclass(arm, Method)
    return callable(arm) and next(iter(inspect.signature(arm).parameters), "") != "seed"


def method_class(arm: Any) -> type[Method] | None:
    """The method class inside an arm, where there is one."""
    while isinstance(arm, partial):
        arm = arm.args[0] if arm.args and is_method(arm.args[0]) else arm.func
    return arm if isinstance(arm, type) and issubclass(arm, Method) else None


def arguments_of(arm: Any) -> dict[str, str]:
    """What an arm's method was given beside student and teacher, as text that two runs can be compared by."""
    found: dict[str, Any] = {}
    while isinstance(arm, partial):
        wraps = bool(arm.args) and is_method(arm.args[0])
        found = {f"argument {place}": value for place, value in enumerate(arm.args, 1) if not wraps} | found
        found = arm.keywords | found
        arm = arm.args[0] if wraps else arm.func
    return {name: text_of(value) for name, value in sorted(found.items())}


def takes_teacher(arm: Any) -> bool:
    """Whether the method inside an arm can be given a teacher; somebody's own function is taken to want one."""
    kind = method_class(arm)
    return kind is None or kind.needs.takes_teacher


@dataclass(frozen=True)
class Given:
    """What a method's constructor may ask for by parameter name, besides student and teacher.

    Attributes:
        task: what the outputs mean.
        probe: one batch of training inputs, to learn shapes from.
        train_labels: class numbers at their samples' numbers, -100 elsewhere; None where there are none.
        train_size: how many rows a per-sample memory needs.
        train_samples: the training samples themselves, for a method that goes over all of them or keeps some apart.
        classes: number of outputs, where known.
        tokenizer: what turned the text into tokens; None where the inputs are no text.
    """

    task: Task
    probe: Any
    train_labels: torch.Tensor | None
    train_size: int
    train_samples: Samples
    classes: int | None
    tokenizer: Any = None


def build_method(arm: Callable[..., Method], student: nn.Module, teacher: Any, given: Given) -> Method:
    """Call a method's constructor with student, teacher, and whatever of `given` it has parameters for."""
    names = _parameters(arm)
    if not takes_teacher(arm):
        teacher = None
    options = {name: value for name, value in vars(given).items() if name in names}
    return arm(student, teacher, **options)


def _parameters(arm: Any) -> set[str]:
    bound: set[str] = set()
    while isinstance(arm, partial):
        bound |= set(arm.keywords)
        arm = arm.args[0] if arm.args and is_method(arm.args[0]) else arm.func
    return set(inspect.signature(arm).parameters) - bound


@dataclass(frozen=True)
class TrainingArm:
    """Trains the student by a method and measures what ships on the reported split.

    Args:
        method: `(student, teacher, ...) -> Method`.
        task: the data and what outputs mean.
        student: anything `stillroom.hub.load` takes, or a function `() -> nn.Module`.
        steps_factor: how many times the common number of steps this arm may take (equal wall-clock).
        lrs: learning rates to try; the best on the held-out part counts, and one that diverges is the worst. None
            tried: the training's own.
        save: keep the trained student in the arm's folder.
        also: `(network, splits, teacher) -> further numbers` of what ships; None for none.
        cache: what is kept of the teacher's answers, and where; None asks the teacher anew at every step.
    """

    method: Callable[..., Method]
    task: Task
    student: Any
    steps_factor: float = 1.0
    lrs: tuple[float, ...] = ()
    save: bool = False
    also: Callable[[nn.Module, Splits, Any], Mapping[str, float]] | None = None
    cache: CacheOptions | None = None

    def __call__(self, seed: int, context: Context) -> Metrics:
        """Train with one seed (and, where there are several rates, with each of them) and measure the best."""
        splits = load_splits(self.task, seed)
        training = context.training
        if training.augment is None:
            training = training.change(augment=own_augmentation(splits))
        if self.steps_factor != 1.0:
            common = training.total_steps(max(len(splits.train) // training.batch_size, 1))
            training = training.change(steps=max(round(common * self.steps_factor), 1))
        if method_class(self.method) is Alone and not self.task.needs_labels:
            return self._untrained(seed, splits, context)
        check_rates(self.lrs, splits)
        tries, diverged = [], dict[float, NotFiniteError]()
        for lr in self.lrs or (training.optimizer.lr,):
            folder = context.folder / f"lr-{lr:.12g}" if len(self.lrs) > 1 else context.folder
            try:
                fitted = fit(
                    self.build(seed, splits, context.teacher),
                    splits,
                    training.change(optimizer=replace(training.optimizer, lr=lr)),
                    task=self.task,
                    seed=seed,
                    folder=folder,
                    resume=context.resume,
                    device=context.device,
                    workers=context.workers,
                    progress=False,
                    check_teacher=False,  # the experiment did, once
                )
            except NotFiniteError as error:
                if len(self.lrs) < 2 or processes.world() > 1:  # the other processes are still in it
                    raise
                diverged[lr] = error
            else:
                tries.append((fitted, lr))
        if not tries:
            first = next(iter(diverged.values()))
            rates = ", ".join(f"{lr:g}" for lr in diverged)
            raise NotFiniteError(
                f"all {len(diverged)} learning rates diverged ({rates}); the first: {first}", first
            ) from first
        fitted, lr = max(tries, key=lambda tried: self._held_out(tried[0]))
        metrics = measure(self.task, fitted.product, splits, context.teacher, context.workers)
        if self.also is not None:
            metrics |= self.also(fitted.product, splits, context.teacher)
        context.extra.update(_account(fitted), lr=lr)
        if diverged:
            context.extra["diverged"] = {f"{lr:g}": str(error) for lr, error in diverged.items()}
        if self.save and processes.is_first():
            hub.save(fitted.product, context.folder / "student", overwrite=True)
        return metrics

    def _held_out(self, fitted: Fitted) -> float:
        """How good a training is on the held-out part; minus infinity where that is no number."""
        value = fitted.validation.get(self.task.metric, math.nan)
        return (value if self.task.higher_is_better else -value) if math.isfinite(value) else -math.inf

    def _untrained(self, seed: int, splits: Splits, context: Context) -> Metrics:
        """Without labels there is nothing to train a student alone on: it is measured as it comes."""
        student = self.build(seed, splits, context.teacher).product.eval()
        context.extra.update(steps=0)
        if self.save and processes.is_first():
            hub.save(student, context.folder / "student", overwrite=True)
        return measure(self.task, student, splits, context.teacher, context.workers)

    def build(self, seed: int, splits: Splits, teacher: Frozen | None) -> Method:
        """Build the method with the initial student of a seed."""
        seed_everything(seed)
        student = build_student(self.student, self.task, splits, teacher)
        probe = splits.train.batch(torch.arange(min(2, len(splits.train))))
        width = self.task.width(splits)
        given = Given(
            self.task, probe, labels_by_index(splits), population(splits), splits.train, width, splits.tokenizer
        )
        if self.cache is not None and teacher is not None and takes_teacher(self.method):
            if (kind := method_class(self.method)) is not None:
                check_cacheable(kind.__name__, kind.needs, self.cache.keep, self.task.name)
            teacher = Frozen(CachedOnDisk(teacher, self.cache.folder, keep=self.cache.keep))
        return build_method(self.method, student, teacher, given)


def check_rates(lrs: Sequence[float], splits: Any) -> None:
    """Refuse several learning rates where nothing is held out to choose among them.

    Args:
        lrs: learning rates that are to be tried.
        splits: the data of a run.

    Raises:
        ValueError: there are several, and no validation part.
    """
    held = getattr(splits, "validation", None)
    if len(lrs) > 1 and (held is None or not len(held)):
        raise ValueError(
            f"{len(lrs)} learning rates were given, but nothing is held out to choose one by: hold a part of the "
            "training data out (validation_share, such as 0.1), or give one rate"
        )


def population(splits: Splits) -> int:
    """How many rows a memory needs that is addressed by the sample numbers of the training batches."""
    train, pool = splits.train, splits.unlabelled
    if pool is None:
        return train.population
    collide = bool(torch.isin(pool.index, train.index).any())  # then the stream moves the pool's numbers up
    return train.population + pool.population if collide else max(train.population, pool.population)


def labels_by_index(splits: Splits) -> torch.Tensor | None:
    """Class numbers at their samples' numbers, -100 elsewhere; None where training samples have no class numbers."""
    labels = splits.train.labels
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.ndim != 1:
        return None
    found = labels.new_full((population(splits),), UNLABELLED, dtype=torch.int64)
    found[splits.train.index] = labels.long()
    return found


def build_student(student: Any, task: Task, splits: Splits, teacher: Frozen | None) -> nn.Module:
    """Build a student for the data: as many outputs as classes (or as the teacher has, where no classes are known)."""
    width = task.width(splits)
    if width is None and teacher is not None:
        probe = splits.train.batch(torch.arange(min(2, len(splits.train))))
        device = (
            next((p.device for p in teacher.network.parameters()), None)
            if hasattr(teacher.network, "parameters")
            else None
        )
        width = task.width_of(teacher(probe.to(device) if device else probe))
    return load_model(student, splits, width)


def own_augmentation(splits: Splits) -> str:
    """The augmentation of a data set that is known to stand it; none for data that we know nothing of."""
    if splits.kind == "super-resolution":
        return "flip_transpose"
    return "crop_flip" if splits.name in ("cifar10", "tiny-imagenet-100", "camvid") else "none"


def load_model(spec: Any, splits: Splits, width: int | None) -> nn.Module:
    """Load a model for the inputs of a data set."""
    shape = splits.train.shape
    if isinstance(spec, nn.Module):
        import copy

        spec = copy.deepcopy(spec)
    image = len(shape) == 3
    model = hub.load(
        spec, classes=width, channels=int(shape[0]) if shape else 1, image_size=int(shape[-1]) if image else None
    )
    return hub.language_model(model, splits.tokenizer) if splits.kind == "language-modelling" else model


def measure(task: Task, network: nn.Module, splits: Splits, teacher: Any, workers: int = 0) -> Metrics:
    """Measure a network on the reported split, and its agreement with the teacher."""
    return task.evaluate(network, sequential(splits.test, 256, workers=workers), teacher=teacher)


def _account(fitted: Fitted) -> dict[str, Any]:
    return {
        "steps": fitted.steps,
        "train_seconds": round(fitted.seconds, 3),
        "best_step": fitted.best_step,
        "validation": fitted.validation,
        "curve": fitted.curve,
        "terms": fitted.terms,
        "teacher": fitted.teacher,
        "cached": fitted.cached,
    }


_loaded: dict[tuple[int, int, bool], tuple[Task, Splits]] = {}


def load_splits(task: Task, seed: int, *, everything: bool = False) -> Splits:
    """Load a task's data once per process and seed."""
    key = (id(task), seed, everything)
    if key not in _loaded:
        while len(_loaded) >= 3:
            del _loaded[next(iter(_loaded))]
        _loaded[key] = (task, task.load(seed, everything=everything))  # the task is kept, so that its id stays its own
    return _loaded[key][1]
