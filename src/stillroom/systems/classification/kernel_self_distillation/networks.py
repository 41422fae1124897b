"""The experiment with networks: is the estimated label weight as good as the best of a grid?"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from stillroom.data import load_data
from stillroom.data.noise import corrupt_labels
from stillroom.data.samples import Samples, Splits
from stillroom.experiment.arm import Context, load_model, own_augmentation
from stillroom.experiment.claim import Claim
from stillroom.experiment.run import Experiment
from stillroom.losses import label_mse_loss
from stillroom.redistil import Redistiller
from stillroom.staging import Fitted
from stillroom.systems.classification.kernel_self_distillation.network import (
    FirstStep,
    SelfDistillation,
    self_distil_by_estimate,
)
from stillroom.task import Classification, Measured, logits_on
from stillroom.training import Training

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Setting:
    """The data, the network and how every step is trained; the same for all arms.

    Attributes:
        data: a classification data set.
        student: the network of every step.
        training: of every network.
        steps: with the first one on the labels alone.
        grid: label weights that are tried.
        validation_share: part of the training samples by which weights are chosen.
        train_size: training samples; None for all.
        label_noise: share of the training labels that are exchanged; the held-out ones stay right.
    """

    data: Any
    student: Any
    training: Training
    steps: int
    grid: tuple[float, ...]
    validation_share: float
    train_size: int | None
    label_noise: float

    def redistiller(self, seed: int, context: Context) -> Redistiller:
        """Who makes and trains the networks of a seed."""
        splits = load_data(
            self.data,
            seed=seed,
            train_size=100 if context.tiny else self.train_size,
            test_size=50 if context.tiny else None,
            validation_share=self.validation_share,
            task="classification",
        )
        if self.label_noise:
            classes = len(splits.classes or [])
            noisy = corrupt_labels(splits.train.labels, classes, self.label_noise, seed=seed, redraw="other")
            splits = replace(splits, train=splits.train.relabel(noisy))
        training = self.training.change(steps=4) if context.tiny else self.training
        if training.augment is None:
            training = training.change(augment=own_augmentation(splits))
        return Redistiller(
            partial(load_model, self.student, splits, len(splits.classes or [])),
            splits,
            training,
            task=Classification(),
            seed=seed,
            folder=context.folder,
            resume=context.resume,
            device=context.device,
            workers=context.workers,
            check_teacher=not context.tiny,
        )


_courses: dict[tuple[int, int, bool], tuple[Setting, dict[float | None, list[Fitted]]]] = {}


def course(setting: Setting, seed: int, label_weight: float | None, context: Context) -> list[Fitted]:
    """Train the steps with one label weight, or the first one alone; what the last seed gave is kept for other arms."""
    key = (id(setting), seed, context.tiny)
    for old in [kept for kept in _courses if kept != key]:
        del _courses[old]
    known = _courses.setdefault(key, (setting, {}))[1]  # the setting is kept, so that its id stays its own
    redistiller = setting.redistiller(seed, context)
    if None not in known:
        known[None] = [redistiller.train(FirstStep, None, generation=1)]
    if label_weight is None or label_weight in known:
        return known[label_weight]
    steps = list(known[None])
    for number in range(2, setting.steps + 1):
        method = partial(SelfDistillation, label_weight=label_weight)
        name = f"generation-{number}-labels-{label_weight:g}"
        steps.append(redistiller.train(method, steps[-1].product, generation=number, name=name))
    known[label_weight] = steps
    return steps


def measure(network: nn.Module, splits: Splits) -> dict[str, float]:
    """Squared error of the probabilities on the held-out and the reported part, and accuracy."""
    held, (logits, labels) = splits.validation, logits_on(network, splits.test)
    found = {
        "test_loss": float(label_mse_loss(logits, labels)),
        "accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
        "nll": float(F.cross_entropy(logits, labels)),
    }
    return found if held is None else found | {"validation_loss": _loss(network, held)}


def _loss(network: nn.Module, samples: Samples) -> float:
    return float(label_mse_loss(*logits_on(network, samples)))


def spent(trainings: Iterable[Fitted]) -> float:
    """Seconds of these trainings, each counted once, whichever arm trained it first."""
    return round(sum(one.seconds for one in {id(one): one for one in trainings}.values()), 3)


def run_course(seed: int, context: Context, *, setting: Setting, label_weight: float | None) -> dict[str, float]:
    """One label weight for all steps; None stops after the first step."""
    splits = setting.redistiller(seed, context).data
    steps = course(setting, seed, label_weight, context)
    context.extra["curve"] = [[number, _measured(one, splits)] for number, one in enumerate(steps, start=1)]
    context.extra["seconds"] = spent(steps)
    return _measured(steps[-1], splits) | {"trainings": float(len(steps) - 1)}


def run_best(seed: int, context: Context, *, setting: Setting) -> dict[str, float]:
    """The weight of the grid that is best on the held-out part."""
    splits = setting.redistiller(seed, context).data
    courses = {weight: course(setting, seed, weight, context) for weight in setting.grid}
    tried = {weight: _measured(steps[-1], splits) for weight, steps in courses.items()}
    context.extra["seconds"] = spent(one for steps in courses.values() for one in steps)
    best = min(tried, key=lambda weight: tried[weight]["validation_loss"])
    return tried[best] | {"label_weight": best, "trainings": float(len(tried) * (setting.steps - 1))}


def run_estimated(seed: int, context: Context, *, setting: Setting) -> dict[str, float]:
    """Two trainings per step: one without labels, and one with the weight that is estimated from it."""
    redistiller = setting.redistiller(seed, context)
    began = time.perf_counter()
    found = self_distil_by_estimate(redistiller, steps=setting.steps)
    took = round(time.perf_counter() - began, 3)
    measured = _measured(found.steps[-1], redistiller.data)
    best = run_best(seed, context, setting=setting)["validation_loss"]
    context.extra["seconds"] = took  # without the grid that it is held against
    context.extra["curve"] = [[number, _measured(one, redistiller.data)] for number, one in enumerate(found.steps, 1)]
    return measured | {
        "label_weight": found.weights[-1].clipped,
        "unclipped_label_weight": found.weights[-1].unclipped,
        "excess_over_grid": measured["validation_loss"] / best - 1,
        "trainings": float(sum(2 - (one.clipped == 0) for one in found.weights)),
    }


def _measured(fitted: Fitted, splits: Any) -> dict[str, float]:
    return measure(fitted.product, splits)


def network_experiment(
    data: Any,
    student: Any,
    training: Training,
    *,
    steps: int = 2,
    grid: tuple[float, ...] = GRID,
    validation_share: float = 0.2,
    train_size: int | None = None,
    label_noise: float = 0.0,
) -> Experiment:
    """Self-distil a classifier with every weight of a grid, and with the weight that is estimated.

    Args:
        data: a classification data set.
        student: the network of every step.
        training: of every network; its last weights count.
        steps: with the first one on the labels alone, 2 or more.
        grid: label weights in [0, 1]; 1, which trains again without a teacher, is the control and must be among them.
        validation_share: part of the training samples by which weights are chosen.
        train_size: training samples; None for all.
        label_noise: share of the training labels that are exchanged for another class.

    Raises:
        ValueError: fewer than two steps, or no 1 in the grid.
    """
    if steps < 2 or 1.0 not in grid:
        raise ValueError(f"self-distillation has 2 or more steps and a grid that holds 1.0, given {steps} and {grid}")
    setting = Setting(
        data, student, training.change(keep="last"), steps, grid, validation_share, train_size, label_noise
    )
    arms: dict[str, Any] = {"first step": partial(run_course, setting=setting, label_weight=None)}
    arms |= {f"labels {one:g}": partial(run_course, setting=setting, label_weight=one) for one in grid}
    arms |= {
        "best of the grid": partial(run_best, setting=setting),
        "estimated": partial(run_estimated, setting=setting),
    }
    return Experiment(
        task=Measured("test_loss", higher_is_better=False),
        arms=arms,
        baseline="first step",
        method="estimated",
        controls=("labels 1",),
        rivals=("best of the grid",),
        claims=[
            Claim("estimated", "<", 0.02, on="excess_over_grid"),
            Claim("estimated", "<", "best of the grid", on="trainings"),
            Claim("estimated", "<", "labels 1", on="test_loss"),
        ],
        title="Self-distillation of a classifier",
        question=(
            f"{steps} steps of {student} on {data if isinstance(data, str) else 'the data'}: is one estimated label "
            f"weight as good as the best of {len(grid)}?"
        ),
        seeds=5,
    )
