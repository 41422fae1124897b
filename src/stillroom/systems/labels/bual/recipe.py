"""The recipe: five ways to spend a budget of labels on a pool that is mostly unwanted, and the paper's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from stillroom import hub
from stillroom.active import (
    UNKNOWN,
    KnownFirst,
    Oracle,
    PoolQuery,
    RandomQuery,
    UncertaintyQuery,
    learn_actively,
    open_set_labels,
    predict,
    train_classifier,
)
from stillroom.data import load_data
from stillroom.experiment.arm import Context
from stillroom.experiment.claim import Claim
from stillroom.experiment.run import Experiment
from stillroom.systems.labels.bual.query import BUAL
from stillroom.task import Measured
from stillroom.training import Optim, Training


@dataclass(frozen=True)
class Setting:
    """A pool, a budget and how the networks are trained; the same for every arm.

    Attributes:
        data: a classification data set.
        known: how many of its classes are wanted, chosen by seed.
        initial: labels of wanted samples that are there before the first round.
        rounds: how often labels are bought.
        budget: labels per round.
        pool: training samples in the pool; None for all.
        noise: standard deviation of noise on the inputs, so that the task does not saturate.
        network: a model for `stillroom.hub.load`.
        training: of wanted and auxiliary classifiers.
        negative_training: of the negative head.
        subset: unlabelled samples of negative learning.
    """

    data: Any
    known: int
    initial: int
    rounds: int
    budget: int
    pool: int | None
    noise: float
    network: Any
    training: Training
    negative_training: Training
    subset: int

    def tiny(self) -> Setting:
        """Seconds instead of minutes."""
        return replace(
            self,
            initial=3 * self.known,
            rounds=2,
            budget=10,
            pool=200,
            training=self.training.change(epochs=3),
            negative_training=self.negative_training.change(epochs=6),
            subset=40,
        )


@dataclass(frozen=True)
class Problem:
    """What a seed makes of a setting: the pool with its hidden labels, and wanted test samples."""

    pool: Tensor
    hidden: np.ndarray[Any, Any]
    initial: np.ndarray[Any, Any]
    test: Tensor
    test_labels: Tensor
    build: Callable[[int], nn.Module]
    full_accuracy: float


_problems: dict[str, Problem] = {}


def problem_of(setting: Setting, seed: int, closed: bool, device: str | None) -> Problem:
    """What a seed makes of a setting; the last one of each kind of pool is kept for the next arm."""
    key = f"{setting} {seed} {closed}"
    if key not in _problems:
        while len(_problems) >= 2:
            del _problems[next(iter(_problems))]
        _problems[key] = make_problem(setting, seed, closed, device)
    return _problems[key]


def make_problem(setting: Setting, seed: int, closed: bool, device: str | None) -> Problem:
    """Choose the wanted classes and the initial labels; with `closed` the pool holds wanted classes only."""
    splits = load_data(setting.data, seed=seed, train_size=setting.pool, validation_share=0.0, task="classification")
    draw = np.random.default_rng(seed)
    wanted = draw.permutation(len(splits.classes or []))[: setting.known].tolist()
    noise = torch.Generator().manual_seed(seed)

    def read(samples: Any) -> tuple[Tensor, np.ndarray[Any, Any]]:
        batch = samples.batch(torch.arange(len(samples)))
        inputs = batch.inputs + setting.noise * torch.randn(batch.inputs.shape, generator=noise)
        return inputs, open_set_labels(batch.labels.numpy(), wanted)

    pool, hidden = read(splits.train)
    test, test_labels = read(splits.test)
    if closed:
        pool, hidden = pool[hidden != UNKNOWN], hidden[hidden != UNKNOWN]
    each = [np.flatnonzero(hidden == number) for number in range(setting.known)]
    initial = np.concatenate([draw.permutation(rows)[: setting.initial // setting.known] for rows in each])
    shape = splits.train.shape
    build = partial(
        hub.load, setting.network, channels=int(shape[0]), image_size=int(shape[-1]) if len(shape) == 3 else None
    )
    here = test_labels != UNKNOWN
    found = Problem(
        pool, hidden, initial, test[here], torch.from_numpy(test_labels[here]), lambda k: build(classes=k), 0.0
    )
    everything = np.where(hidden == UNKNOWN, np.nan, hidden)
    return replace(found, full_accuracy=accuracy(found, everything, setting, seed, device))


def accuracy(problem: Problem, y: np.ndarray[Any, Any], setting: Setting, seed: int, device: str | None) -> float:
    """Test accuracy of a classifier trained from scratch on the wanted samples that are labelled in y."""
    rows = np.flatnonzero(~np.isnan(y) & (y != UNKNOWN))
    classifier = train_classifier(
        problem.build,
        problem.pool[rows],
        torch.from_numpy(y[rows]).long(),
        classes=setting.known,
        training=setting.training,
        seed=seed,
        device=device,
    )
    return float((predict(classifier, problem.test).argmax(1) == problem.test_labels).double().mean())


def run_arm(
    seed: int, context: Context, *, make: Callable[..., PoolQuery], setting: Setting, closed: bool = False
) -> dict[str, float]:
    """Spend the budget by one strategy and measure what it bought."""
    setting = setting.tiny() if context.tiny else setting
    problem = problem_of(setting, seed, closed, context.device)
    oracle = Oracle(problem.hidden)
    strategy = make(problem.build, setting=setting, seed=seed, device=context.device)
    seen: dict[str, list[float]] = {"auc": [], "shift": []}

    def measure(strategy: PoolQuery, X: Tensor, y: np.ndarray[Any, Any]) -> dict[str, float]:
        if isinstance(strategy, BUAL) and not closed:  # what the reader should know; no strategy sees it
            wanted = problem.hidden[strategy.candidates_] != UNKNOWN
            sure = predict(strategy.classifier_, X[strategy.candidates_]).max(1).values.numpy()
            negative = strategy.negative_.max(1).values.numpy()
            seen["auc"].append(float(roc_auc_score(wanted, sure)))
            seen["shift"].append(float(negative[~wanted].mean() - negative[wanted].mean()))
        return {"accuracy": accuracy(problem, y, setting, seed, context.device)}

    _, history = learn_actively(
        strategy, problem.pool, oracle, problem.initial, rounds=setting.rounds, batch_size=setting.budget,
        measure=measure,
    )  # fmt: skip
    goal = 0.95 * problem.full_accuracy
    reached = [one.bought for one in history if one.measured["accuracy"] >= goal]
    context.extra["curve"] = [[one.bought, {"known_share": one.known_share, **one.measured}] for one in history]
    context.extra["steps"] = oracle.accesses
    found = {
        "known_share": float(np.mean([one.known_share for one in history[1:]])),
        "accuracy": history[-1].measured["accuracy"],
        "labels_to_95": float(reached[0] if reached else oracle.accesses + setting.budget),
        "full_accuracy": problem.full_accuracy,
    }
    if seen["auc"]:
        found |= {"first_confidence_auc": seen["auc"][0], "negative_shift": float(np.mean(seen["shift"]))}
    return found


class NegativeOnly(BUAL):
    """An ablation of the paper: the negative head alone decides."""

    def value(self, negative: Tensor, positive: Tensor, unknown: Tensor | None) -> Tensor:
        """Uncertainty of the negative head."""
        return self.informativeness.uncertainty(negative)


class ShuffledUnknown(BUAL):
    """A control: every candidate gets the probability of being unwanted of some other one."""

    def utilities(self, X: Tensor, y: np.ndarray[Any, Any], candidates: np.ndarray[Any, Any], batch_size: int) -> Any:
        """As BUAL, with the auxiliary classifier's answers dealt out anew."""
        self._deal = torch.from_numpy(self._random.permutation(len(candidates)))
        return super().utilities(X, y, candidates, batch_size)

    def ask_auxiliary(self, X: Tensor, y: np.ndarray[Any, Any], candidates: np.ndarray[Any, Any]) -> Tensor:
        """The right answers in the wrong order."""
        return super().ask_auxiliary(X, y, candidates)[self._deal]


def make_random(build: Any, *, setting: Setting, seed: int, device: str | None) -> PoolQuery:
    """Random choice."""
    return RandomQuery(random_state=np.random.RandomState(seed))


def make_uncertain(
    build: Any, *, setting: Setting, seed: int, device: str | None, kind: type[UncertaintyQuery] = UncertaintyQuery
) -> PoolQuery:
    """Margin sampling, or the auxiliary classifier alone."""
    return kind(
        build, classes=setting.known, training=setting.training, random_state=np.random.RandomState(seed), device=device
    )


def make_bual(
    build: Any, *, setting: Setting, seed: int, device: str | None, kind: type[BUAL] = BUAL, form: Any = "confidence"
) -> PoolQuery:
    """BUAL, and what is left of it."""
    return kind(
        build,
        classes=setting.known,
        form=form,
        training=setting.training,
        negative_training=setting.negative_training,
        subset=setting.subset,
        random_state=np.random.RandomState(seed),
        device=device,
    )


def recipe(
    data: Any = "digits",
    *,
    known: int = 4,
    initial: int = 12,
    rounds: int = 5,
    budget: int = 40,
    pool: int | None = None,
    noise: float = 0.3,
    network: str = "mlp-128-128",
    epochs: float = 60,
    negative_epochs: float = 60,
    subset: int = 300,
) -> Experiment:
    """Does the budget go to wanted classes, and does what is bought teach?

    The pool holds ten classes of which some are wanted. `known_share` is the share of wanted samples among what was
    bought from the second round on; `labels_to_95` the labels bought until 95% of the accuracy with all labels is
    reached. `negative_shift` is how much surer the negative head is of unwanted than of wanted samples: the paper finds
    it above 0. On digits it is below 0 (that claim is refuted), and the gain comes from the auxiliary classifier: the
    negative head alone buys as well, and with its answers shuffled the budget goes where margin sampling sends it. The
    settings were fixed beforehand and not tuned for any arm.

    Args:
        data: a classification data set.
        known: wanted classes, chosen by seed.
        initial: labels before the first round, the same number for each wanted class.
        rounds: how often labels are bought.
        budget: labels per round.
        pool: training samples in the pool; None for all.
        noise: standard deviation of noise on the inputs, so that accuracy does not saturate.
        network: for all classifiers.
        epochs: of the wanted and auxiliary classifiers.
        negative_epochs: of the negative head.
        subset: unlabelled samples of negative learning.
    """
    setting = Setting(
        data, known, initial, rounds, budget, pool, noise, network,
        Training(epochs=epochs, batch_size=128, optimizer=Optim("adam", lr=1e-3, schedule="constant")),
        Training(epochs=negative_epochs, batch_size=100, optimizer=Optim("sgd", lr=0.01, schedule="constant")), subset,
    )  # fmt: skip
    return experiment_of(setting)


def experiment_of(setting: Setting, *, seeds: int = 10) -> Experiment:
    """The arms and claims of a setting."""
    makers: dict[str, Any] = {
        "random": make_random,
        "margin": make_uncertain,
        "auxiliary only": partial(make_uncertain, kind=KnownFirst),
        "negative only": partial(make_bual, kind=NegativeOnly),
        "bual": make_bual,
        "bual, paper's form": partial(make_bual, form="paper"),
        "shuffled": partial(make_bual, kind=ShuffledUnknown),
    }
    arms = {name: partial(run_arm, make=make, setting=setting) for name, make in makers.items()}
    for name in ("margin", "bual"):
        arms[f"{name}, closed pool"] = partial(run_arm, make=makers[name], setting=setting, closed=True)
    return Experiment(
        task=Measured("known_share"),
        arms=arms,
        baseline="random",
        method="bual",
        rivals=("margin", "auxiliary only", "negative only", "margin, closed pool"),
        controls=("shuffled",),
        claims=[
            Claim("bual", ">", "random", on="known_share", by=0.10),
            Claim("bual", ">", "margin", on="known_share", by=0.30),
            Claim("bual", ">", "shuffled", on="known_share"),
            Claim("bual", ">", "random", on="accuracy", by=-0.01),
            Claim("bual", "<", "random", on="labels_to_95"),
            Claim("bual, closed pool", "==", "margin, closed pool", on="accuracy", within=0.01),
            Claim("bual", ">", 0.0, on="negative_shift"),
        ],
        title="Bidirectional uncertainty-based active learning (BUAL)",
        question=(
            f"{setting.initial} labels of {setting.known} wanted classes are there; {setting.rounds} times "
            f"{setting.budget} more are bought from a pool of all classes of "
            f"{setting.data if isinstance(setting.data, str) else 'the data'}."
        ),
        seeds=seeds,
    )


def paper(data: Any = "cifar10", *, known: int = 4, network: str = "timm/resnet18", epochs: float = 100) -> Experiment:
    """CIFAR-10 with 4 wanted classes: ResNet-18, 8 rounds of 1,500, three trainings of 100 epochs in each.

    Expected after the last round with margins: 92.6% (margin sampling 89.0, random 87.2). SGD here uses Nesterov's
    momentum, and the ResNet has its family's stem instead of a 3x3 one.

    Args:
        data: a classification data set of 50,000 training images.
        known: wanted classes.
        network: for all classifiers.
        epochs: of every training.
    """
    sgd = Optim("sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, schedule="constant")
    training = Training(epochs=epochs, batch_size=128, optimizer=sgd, augment="crop_flip")
    negative = training.change(batch_size=100)
    setting = Setting(data, known, 50 * known, 8, 1500, None, 0.0, network, training, negative, 5000)
    return experiment_of(setting, seeds=3)
