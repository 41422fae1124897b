"""Iterate and redistil: each generation is a fresh network that learns from the one before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import nn

from stillroom.checkpoint import seed_everything
from stillroom.data.samples import Samples, Splits
from stillroom.fit import fit
from stillroom.method import Method
from stillroom.staging import Fitted
from stillroom.task import Task, logits_on
from stillroom.training import Training

SEEDS_BETWEEN_GENERATIONS = 1_000_000


class LabelWeight(NamedTuple):
    """The best share of the labels in a mixture of labels and teacher.

    Attributes:
        unclipped: the minimiser of the squared error. Below 0: more smoothing is wanted than the teacher alone gives;
            above 1: less than the labels alone give.
        clipped: the minimiser over [0, 1].
    """

    unclipped: float
    clipped: float


def optimal_label_weight(targets: ArrayLike, by_labels: ArrayLike, by_teacher: ArrayLike) -> LabelWeight:
    """Which mixture of two predictions comes nearest to the targets, on points that were not fitted.

    The mixture is `w a + (1 - w) c`. Its squared error is a parabola in w with the minimum at
    `w* = <y - c, a - c> / ||a - c||^2`, sums over points and outputs. Where learning is linear in its targets (kernel
    ridge regression; approximately a network), this is the share of the labels to train the next step with.

    Args:
        targets: y, any shape; held out from training, or the weight tends to less regularisation for no reason.
        by_labels: a, what training on the labels alone (w = 1) predicts; the same shape.
        by_teacher: c, what training on the teacher alone (w = 0) predicts; the same shape.

    Returns:
        Both the free and the clipped minimiser; 1 where the two predictions are the same.

    Raises:
        ValueError: shapes disagree, there are no points, or a number is not finite.

    Source: Borup and Andersen 2021, arXiv:2102.13088.

    Example:
        >>> optimal_label_weight([1.0, 2.0], by_labels=[2.0, 4.0], by_teacher=[0.0, 0.0])
        LabelWeight(unclipped=0.5, clipped=0.5)
    """
    y, a, c = (np.asarray(values, dtype=np.float64) for values in (targets, by_labels, by_teacher))
    if not y.shape == a.shape == c.shape or not y.size:
        raise ValueError(
            f"targets, by_labels and by_teacher must have one shape with at least one number, given {y.shape}, "
            f"{a.shape} and {c.shape}"
        )
    if not all(np.isfinite(values).all() for values in (y, a, c)):
        raise ValueError("targets, by_labels and by_teacher must be finite, given NaN or infinite values")
    between = a - c
    length = float((between * between).sum())
    if length == 0:
        return LabelWeight(1.0, 1.0)
    unclipped = float(((y - c) * between).sum()) / length
    return LabelWeight(unclipped, min(max(unclipped, 0.0), 1.0))


def estimate_label_weight(by_labels: nn.Module, by_teacher: nn.Module, held_out: Samples) -> LabelWeight:
    """Estimate the share of the labels for classifiers from two trainings, without a grid.

    `optimal_label_weight` of the class probabilities against one-hot labels. It is exact where a network trained on a
    mixture says the mixture of what both networks say.

    Args:
        by_labels: inputs -> logits `(N, C)`; trained on labels alone.
        by_teacher: the same classes; trained on the teacher alone.
        held_out: samples with labels that trained neither.

    Raises:
        ValueError: there are no held-out samples with labels.
    """
    said, labels = logits_on(by_labels, held_out) if len(held_out) else (torch.empty(0, 1), torch.empty(0))
    known = labels >= 0
    if not known.any():
        raise ValueError(
            f"the label weight is estimated on held-out samples with labels, given none among {len(held_out)}: hold a "
            "labelled part of the data out"
        )
    pure, _ = logits_on(by_teacher, held_out)
    said, pure, labels = said[known], pure[known], labels[known]
    targets = F.one_hot(labels, said.shape[1])
    return optimal_label_weight(targets.numpy(), said.double().softmax(1).numpy(), pure.double().softmax(1).numpy())


Maker = Callable[[nn.Module, nn.Module | None], Method]
"""`(student, teacher) -> Method`; the teacher of the first generation is None."""


@dataclass(frozen=True)
class Redistiller:
    """Trains generation after generation of one architecture, each from scratch, each by its predecessor.

    Args:
        build: makes a new, untrained network at every call, under the seed of its generation.
        data: training samples, or splits with a held-out part.
        training: how every generation is trained.
        task: what the outputs mean; the method's own task, or classification.
        seed: of the first generation, 0 or more; each later one has a seed of its own that follows from it.
        folder: where generations keep their checkpoints (`generation-1`, ...); None keeps nothing.
        resume: go on in that folder.
        device: None for the machine's own choice.
        workers: threads that read data ahead.
        progress: show how far each training is.
        check_teacher: stop when a generation that is to teach does not beat chance.

    Example:
        >>> from stillroom import KD, Alone
        >>> from stillroom.data import TensorSamples
        >>> samples = TensorSamples(torch.randn(64, 4), torch.arange(64) % 3)
        >>> born_again = Redistiller(lambda: nn.Linear(4, 3), samples, Training(steps=2), check_teacher=False)
        >>> generations = born_again.run([Alone, KD, KD])
        >>> len(generations), generations[-1].product
        (3, Linear(in_features=4, out_features=3, bias=True))
    """

    build: Callable[[], nn.Module]
    data: Splits | Samples
    training: Training
    task: Task | None = None
    seed: int = 0
    folder: str | Path | None = None
    resume: bool = False
    device: str | None = None
    workers: int = 0
    progress: bool = False
    check_teacher: bool = True

    def run(self, methods: Sequence[Maker]) -> list[Fitted]:
        """Train one generation per method; the first has no teacher, every other one its predecessor.

        Args:
            methods: `(student, teacher) -> Method`, one per generation.

        Returns:
            What each training gave, in order; the last product is the one to ship.

        Raises:
            ValueError: there is no method, or `build` gives trained networks.
        """
        if not methods:
            raise ValueError("methods must name one method per generation, given none")
        generations: list[Fitted] = []
        for number, method in enumerate(methods, start=1):
            teacher = generations[-1].product if generations else None
            generations.append(self.train(method, teacher, generation=number))
        return generations

    def train(self, method: Maker, teacher: nn.Module | None, *, generation: int, name: str = "") -> Fitted:
        """Train a network of one generation; networks of one generation begin alike and see the same batches.

        Args:
            method: `(student, teacher) -> Method`.
            teacher: the generation before; None where there is none.
            generation: its number, from 1.
            name: of its folder; `generation-N` when not given.

        Raises:
            ValueError: generation is below 1, or `build` gives the teacher or a copy of it.
        """
        if generation < 1:
            raise ValueError(f"generations are numbered from 1, given {generation}")
        seed = self.seed + SEEDS_BETWEEN_GENERATIONS * (generation - 1)
        seed_everything(seed)
        student = self.build()
        if teacher is not None and _same_weights(student, teacher):
            raise ValueError(
                f"build() gives the weights of generation {generation - 1}, expected a new, untrained network: going "
                "on from the teacher's weights is another method"
            )
        name = name or f"generation-{generation}"
        return fit(
            method(student, teacher),
            self.data,
            self.training,
            task=self.task,
            seed=seed,
            folder=None if self.folder is None else Path(self.folder) / name,
            resume=self.resume,
            device=self.device,
            workers=self.workers,
            trackers=(),
            progress=self.progress,
            title=name,
            check_teacher=self.check_teacher,
        )


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = list(one.parameters()), list(other.parameters())
    if {id(parameter) for parameter in ours} & {id(parameter) for parameter in theirs}:
        return True
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.equal(a.detach().cpu(), b.detach().cpu()) for a, b in zip(ours, theirs)
    )
