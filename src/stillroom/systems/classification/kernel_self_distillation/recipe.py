"""The recipes: exact kernel ridge regression on real numbers and on the authors' eleven points, networks on digits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import train_test_split

from stillroom.experiment.arm import Context
from stillroom.experiment.claim import Claim
from stillroom.experiment.run import Experiment
from stillroom.systems.classification.kernel_self_distillation.estimator import KernelSelfDistillation
from stillroom.systems.classification.kernel_self_distillation.networks import network_experiment
from stillroom.systems.classification.kernel_self_distillation.spectral import Array, dual_filter
from stillroom.task import Measured
from stillroom.training import Optim, Training

CENTRE = 0.35
"""The label weight that the claims are about."""

NOISY_SINE = (0.3847664, 1.233397, 1.332322, 0.6920159, -0.2975615, -0.2418929, -0.7964486, -0.961648, -0.4967251,
              -0.3469066, 0.5589513)  # fmt: skip
SINE_TABLE: Mapping[float, tuple[float, ...]] = {
    0.0: (0.16477, 0.15076, 0.14915, 0.15561, 0.16735, 0.18251, 0.49505),
    0.25: (0.16477, 0.15309, 0.14958, 0.14903, 0.14946, 0.15011, 0.15250),
    0.35: (0.16477, 0.15424, 0.15089, 0.14983, 0.14954, 0.14948, 0.14959),
    1.0: (0.16477,) * 7,
}
"""Label weight -> mean squared error to the noise-free sine at the steps 1 to 6 and in the limit, as published; with
the labels alone (1), the control, the first fit stays."""


@dataclass(frozen=True)
class Problem:
    """Numbers to predict, cut by seed in 60% to fit, 20% to choose by and 20% to report; standardised by the first.

    Attributes:
        data: "diabetes" (scikit-learn's 442 patients), or arrays `(X, y)`.
        gamma: of the RBF kernel.
        ridge_share: part of the ridge that is best on the second part; below 1 the first fit over-fits on purpose.
        steps: of the arms whose weight keeps the labels.
        long: steps of the arm without labels.
    """

    data: Any
    gamma: float
    ridge_share: float
    steps: int
    long: int

    def load(self, seed: int) -> tuple[tuple[Array, Array], ...]:
        """Three pairs of inputs and targets."""
        X, y = load_diabetes(return_X_y=True) if isinstance(self.data, str) else map(np.asarray, self.data)
        X, X_rest, y, y_rest = train_test_split(X, y, test_size=0.4, random_state=seed)
        X_validation, X_test, y_validation, y_test = train_test_split(X_rest, y_rest, test_size=0.5, random_state=seed)
        centre, spread = X.mean(axis=0), X.std(axis=0)
        scale = np.where(spread > 0, spread, 1.0)
        return tuple(
            ((inputs - centre) / scale, (targets - y.mean()) / y.std())
            for inputs, targets in ((X, y), (X_validation, y_validation), (X_test, y_test))
        )

    def model(self, ridge: float, label_weight: float, steps: int | float) -> KernelSelfDistillation:
        """An unfitted model."""
        return KernelSelfDistillation(ridge=ridge, label_weight=label_weight, steps=steps, gamma=self.gamma)

    def best_ridge(self, train: tuple[Array, Array], validation: tuple[Array, Array]) -> float:
        """Of 81 ridges from 1e-4 to 1e4 the one whose plain fit is best on the second part."""
        model, ridges = self.model(1.0, 1.0, 1).fit(*train), np.logspace(-4, 4, 81)
        errors = errors_of(model, [dual_filter(model.eigenvalues_, ridge, 1.0, 1) for ridge in ridges], validation)
        return float(ridges[errors.argmin()])


def errors_of(model: KernelSelfDistillation, filters: Sequence[Array], points: tuple[Array, Array]) -> Array:
    """Mean squared errors of the fits with these dual filters."""
    said = model.projected_kernel(points[0]) @ (np.stack(filters, axis=1) * model.projected_)
    return np.asarray(((said - points[1][:, None]) ** 2).mean(axis=0))


def mse(predictions: Array, targets: Array) -> float:
    """Mean squared error."""
    return float(np.mean((predictions.ravel() - targets) ** 2))


def run_kernel(
    seed: int, context: Context, *, problem: Problem, arm: Callable[..., dict[str, float]], tuned: bool = False
) -> dict[str, float]:
    """Fit and measure one arm; `tuned` gives it the best ridge instead of a part of it."""
    train, validation, test = problem.load(seed)
    best = problem.best_ridge(train, validation)
    ridge = best if tuned else problem.ridge_share * best
    return arm(problem, ridge, train, validation, test) | {"ridge": ridge}


def first_fit(problem: Problem, ridge: float, train: Any, validation: Any, test: Any) -> dict[str, float]:
    """Plain kernel ridge regression."""
    model = problem.model(ridge, 1.0, 1).fit(*train)
    return _errors(model.predict, validation, test)


def without_labels(problem: Problem, ridge: float, train: Any, validation: Any, test: Any) -> dict[str, float]:
    """Pure self-distillation, followed to its last step; also where it turned."""
    model = problem.model(ridge, 0.0, problem.long).fit(*train)
    steps = range(1, problem.long + 1)
    course = errors_of(model, [model.dual_filter(step) for step in steps], test)
    best = int(course.argmin())
    turns = 0 < best < len(course) - 1 and course[best] < course[0] and course[-1] > course[best]
    return _errors(model.predict, validation, test) | {
        "best_mse": float(course[best]),
        "best_step": float(steps[best]),
        "turns": float(turns),
    }


def stopped(problem: Problem, ridge: float, train: Any, validation: Any, test: Any) -> dict[str, float]:
    """Pure self-distillation up to the step that is best on the second part."""
    model = problem.model(ridge, 0.0, problem.long).fit(*train)
    filters = [model.dual_filter(step) for step in range(1, problem.long + 1)]
    step = 1 + int(errors_of(model, filters, validation).argmin())
    return _errors(lambda X: model.predict_at(X, step), validation, test) | {"best_step": float(step)}


def with_labels(
    problem: Problem, ridge: float, train: Any, validation: Any, test: Any, *, label_weight: float
) -> dict[str, float]:
    """Self-distillation that keeps a share of the labels, and how near it is to its limit."""
    model = problem.model(ridge, label_weight, problem.steps).fit(*train)
    error, later = (mse(model.predict_at(test[0], step), test[1]) for step in (problem.steps, 2 * problem.steps))
    limit = KernelRidge(alpha=ridge / label_weight, kernel="rbf", gamma=problem.gamma).fit(*train).predict(test[0])
    return _errors(model.predict, validation, test) | {
        "later_change": abs(later / error - 1),
        "limit_gap": float(np.abs(model.predict_at(test[0], 6 * problem.steps) - limit).max()),
    }


def with_best_labels(problem: Problem, ridge: float, train: Any, validation: Any, test: Any) -> dict[str, float]:
    """Self-distillation with the best share at each step, and how much any other share does better (below 0: worse)."""
    model = problem.model(ridge, 1.0, problem.steps).fit_validated(*train, *validation)
    weights, worst = [one.clipped for one in model.found_weights_], -math.inf
    for number in range(len(weights)):
        tried = [weights[number], *np.linspace(0, 1, 21).tolist()]
        filters = [dual_filter(model.eigenvalues_, ridge, [*weights[:number], one], number + 2) for one in tried]
        errors = errors_of(model, filters, validation)
        worst = max(worst, float(errors[0] - errors[1:].min()))
    free = [one.unclipped for one in model.found_weights_]
    return _errors(model.predict, validation, test) | {
        "validation_excess": worst,
        "weight_at_step_2": free[0],
        "weight_at_the_last_step": free[-1],
    }


def _errors(predict: Callable[[Array], Array], validation: Any, test: Any) -> dict[str, float]:
    return {"test_mse": mse(predict(test[0]), test[1]), "validation_mse": mse(predict(validation[0]), validation[1])}


def run_sine(seed: int, context: Context, *, label_weight: float) -> dict[str, float]:
    """The authors' eleven points: errors to the noise-free sine, and the largest difference to the published ones."""
    x, grid = np.linspace(0, 1, 11)[:, None], np.linspace(0, 1, 101)
    model = KernelSelfDistillation(ridge=0.2, label_weight=label_weight, steps=6, gamma=80.0).fit(x, NOISY_SINE)
    truth = np.sin(2 * np.pi * grid)
    errors = [mse(said, truth) for said in model.staged_predict(grid[:, None])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without labels the limit is the zero function, and says so
        errors.append(mse(model.predict_at(grid[:, None], math.inf), truth))
    found = {f"mse_at_step_{number}": error for number, error in enumerate(errors[:-1], start=1)}
    gaps = [abs(ours - published) for ours, published in zip(errors, SINE_TABLE[label_weight], strict=True)]
    return found | {"mse_in_the_limit": errors[-1], "largest_difference": max(gaps)}


def recipe(
    data: Any = "diabetes",
    *,
    gamma: float = 0.02,
    ridge_share: float = 0.1,
    label_weights: tuple[float, ...] = (0.1, 0.35, 0.6),
    steps: int | None = None,
    long: int = 2000,
    student: str = "mlp-64",
    epochs: float = 100,
    train_size: int | None = 400,
    label_noise: float = 0.3,
) -> Experiment:
    """When should self-distillation stop, how much of the labels should it keep, and is it more than a tuned ridge?

    With numbers to predict (scikit-learn's diabetes), kernel ridge regression is distilled into itself, exactly. The
    first fit is under-regularised on purpose, with a tenth of the ridge that is best on the validation part; that best
    ridge alone, without any distillation, is the control. Where the first fit already has it, distillation has nothing
    to add: that arm is shown too.

    The settings of the kernel part were fixed beforehand. What was seen over 20 splits: distillation helps the
    under-regularised fit (0.545; with a share 0.35 of the labels 0.520, with the best share per step 0.511), and
    reaches what the tuned ridge gives (0.508), no more; on average it harms a fit whose ridge is tuned already (in 14
    of 20 splits). Choosing a share per step shows no gain over pure distillation stopped by the validation part
    (0.508). Without labels the error falls and then rises in 18 of 20 splits.

    Four claims check the theory and can hardly fail: the plateau, the limit, the collapse without labels, and a tuned
    ridge that distillation makes worse on the part it was tuned on; this last one was added after seeds 100 to 105 had
    been seen. That no share does better than the one found (`validation_excess`, whose 20 values are 0 or below) is
    "not shown": the widened interval reaches 1e-8, and the claim was 1e-12.

    With classes, the estimated label weight is compared with a grid. Settings were chosen in three looks at seed 100
    so that the estimate lies inside [0, 1]: clean digits want all of the labels. That the estimate takes fewer
    trainings than the grid holds by counting. What was seen over 5 seeds: the
    validation loss is 2.7% above the best grid point (chosen by that loss), so that "within 2%" is not shown, nor a
    gain over training again without a teacher; single trainings differ by as much.

    Args:
        data: "diabetes", or arrays `(X, y)` of numbers to predict; "sine" for the authors' eleven points, which have
            settings of their own; a classification data set ("digits") for the network version.
        gamma: of the RBF kernel (numbers only).
        ridge_share: part of the best ridge that the first fit gets (numbers only).
        label_weights: shares of the labels that are tried, above 0 (numbers only); 0.35 must be among them.
        steps: of the arms that keep a share of the labels, whose limit is looked at after six times as many (numbers;
            10 when not given), or trainings after each other (classes; 2 when not given).
        long: steps without labels (numbers only).
        student: the network of every step (classes only).
        epochs: of every step's training (classes only).
        train_size: training samples, None for all (classes only).
        label_noise: share of the training labels that are exchanged for another class; held-out and reported labels
            stay right (classes only).
    """
    if isinstance(data, str) and data == "sine":
        if steps is not None:
            raise ValueError(f"the sine has six steps, given steps={steps}: leave it out")
        return _sine()
    if not _of_numbers(data):
        adam = Optim("adam", lr=3e-3, schedule="constant")
        training = Training(epochs=epochs, batch_size=64, optimizer=adam)
        return network_experiment(
            data, student, training, steps=steps or 2, train_size=train_size, label_noise=label_noise
        )
    if CENTRE not in label_weights or not all(0 < weight <= 1 for weight in label_weights):
        raise ValueError(f"label_weights must lie in (0, 1] with {CENTRE} among them, given {label_weights}")
    problem = Problem(data, gamma, ridge_share, steps or 10, long)
    arm = partial(partial, run_kernel, problem=problem)
    kept = {f"labels {weight:g}": arm(arm=partial(with_labels, label_weight=weight)) for weight in label_weights}
    return Experiment(
        task=Measured("test_mse", higher_is_better=False),
        arms={
            "first fit": arm(arm=first_fit),
            "labels 0": arm(arm=without_labels),
            "labels 0, stopped": arm(arm=stopped),
            **kept,
            "best labels per step": arm(arm=with_best_labels),
            "tuned ridge": arm(arm=first_fit, tuned=True),
            "tuned ridge, labels 0.35": arm(arm=partial(with_labels, label_weight=CENTRE), tuned=True),
        },
        baseline="first fit",
        method="best labels per step",
        controls=("tuned ridge", "tuned ridge, labels 0.35"),
        rivals=("labels 0, stopped",),
        claims=[
            Claim("labels 0.35", "<", "first fit", on="test_mse"),
            Claim("best labels per step", "<", "first fit", on="test_mse"),
            Claim("labels 0", ">", "first fit", on="test_mse"),
            Claim("labels 0", ">", 0.5, on="turns"),
            Claim("labels 0.35", "<", 0.0003, on="later_change"),
            Claim("labels 0.35", "<", 1e-10, on="limit_gap"),
            Claim("best labels per step", "<", 1e-12, on="validation_excess"),
            Claim("best labels per step", "==", "tuned ridge", on="test_mse", within=0.01),
            Claim("tuned ridge, labels 0.35", ">", "tuned ridge", on="validation_mse"),
            Claim("tuned ridge, labels 0.35", ">", "tuned ridge", on="test_mse", by=-0.005),
        ],
        title="Self-distillation of kernel ridge regression",
        question=(
            f"Kernel ridge regression with {ridge_share:g} of the best ridge is distilled into itself, on "
            f"{data if isinstance(data, str) else 'numbers'}."
        ),
        seeds=20,
    )


def _of_numbers(data: Any) -> bool:
    if isinstance(data, str):
        return data == "diabetes"
    return isinstance(data, tuple) and np.asarray(data[1]).dtype.kind == "f"


def _sine() -> Experiment:
    return Experiment(
        task=Measured("mse_at_step_6", higher_is_better=False),
        arms={f"labels {weight:g}": partial(run_sine, label_weight=weight) for weight in SINE_TABLE},
        baseline="labels 0",
        controls=("labels 1",),
        claims=[Claim(f"labels {weight:g}", "<", 6e-6, on="largest_difference") for weight in SINE_TABLE],
        title="Self-distillation on eleven points of a sine",
        question="Do the errors of six steps and of the limit agree with the published ones to five decimals?",
        seeds=3,
    )


def paper(
    data: Any = "cifar10",
    *,
    student: str = "torchvision/resnet18",
    steps: int = 5,
    epochs: float = 75,
    lr: float = 1e-4,
) -> Experiment:
    """CIFAR-10, five steps of ResNet-18: Adam at a constant 1e-4, batch 16, crop and flip; a grid and the estimate.

    A tenth of the training images is held out to choose weights by (the authors' code looks at the test images).
    There is no number to expect: the paper's tables could not be read. ResNet-34 and ResNet-50 are its other networks.
    With five steps a run is 1 + 4 * 11 trainings for the grid and 1 + 4 * 2 for the estimate.

    Args:
        data: a classification data set.
        student: the network of every step.
        steps: with the first one on the labels alone.
        epochs: of every training.
        lr: constant learning rate of Adam.
    """
    adam = Optim("adam", lr=lr, schedule="constant")
    training = Training(epochs=epochs, batch_size=16, optimizer=adam, augment="crop_flip")
    grid = tuple(round(0.1 * k, 1) for k in range(11))
    return network_experiment(data, student, training, steps=steps, grid=grid, validation_share=0.1)
