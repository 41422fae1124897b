"""The study on few images: teachers with and without mixup, two temperatures, and the recipe that needs none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from stillroom.baselines import Alone, with_constant_teacher
from stillroom.blocks.frozen import Frozen
from stillroom.checkpoint import seed_everything
from stillroom.data import load_data
from stillroom.data.samples import Splits
from stillroom.experiment.arm import Context, load_model, own_augmentation
from stillroom.experiment.claim import Claim
from stillroom.experiment.run import Experiment
from stillroom.fit import fit
from stillroom.losses import unit_deviation_logits
from stillroom.method import Method
from stillroom.systems.classification.mix_kd.methods import MixKD, Mixup, MixupKD
from stillroom.task import Classification, Measured, confidence_metrics, logits_on
from stillroom.training import Optim, Training
from stillroom.tripwires import require_teacher


@dataclass(frozen=True)
class Setting:
    """The data, the networks and how they train; the same for every arm.

    Attributes:
        data: a classification data set.
        train_size: training samples of teacher and student; None for all.
        validation_share: part of the other samples by which a learning rate is chosen.
        student: a model for the student.
        teacher: a model for the teacher.
        training: of every student.
        teacher_training: of every teacher; None takes the model as it is, but for mixup teachers.
        lrs: learning rates to choose from, where an arm chooses.
    """

    data: Any
    train_size: int | None
    validation_share: float
    student: Any
    teacher: Any
    training: Training
    teacher_training: Training | None
    lrs: tuple[float, ...] = ()

    def load(self, seed: int, tiny: bool) -> Splits:
        """Load the data of a seed."""
        return load_data(
            self.data,
            seed=seed,
            train_size=60 if tiny else self.train_size,
            test_size=40 if tiny else None,
            validation_share=self.validation_share,
            task="classification",
        )


_teachers: dict[tuple[str, int, bool, bool], nn.Module] = {}


def teacher_of(setting: Setting, splits: Splits, seed: int, context: Context, *, mixed: bool) -> nn.Module:
    """Train the teacher of a seed, with full mixup or without; the last two are kept for the next arms."""
    key = (str(setting), seed, context.tiny, mixed)
    if key not in _teachers:
        while len(_teachers) >= 2:
            del _teachers[next(iter(_teachers))]
        seed_everything(seed)
        network = load_model(setting.teacher, splits, len(splits.classes or []))
        training = setting.teacher_training or (setting.training if mixed else None)
        if training is not None:
            method = Mixup(network) if mixed else Alone(network)
            network = _train(method, splits, training, seed, context, f"teacher-{'mixed' if mixed else 'plain'}")
        if not context.tiny:
            require_teacher(Frozen(network), Classification(), splits.train, next(network.parameters()).device)
        _teachers[key] = network.eval()
    return _teachers[key]


def _train(
    method: Method, splits: Splits, training: Training, seed: int, context: Context, name: str = ""
) -> nn.Module:
    training = training.change(steps=4) if context.tiny else training
    if training.augment is None:
        training = training.change(augment=own_augmentation(splits))
    fitted = fit(
        method,
        replace(splits, validation=None),
        training,
        task=Classification(),
        seed=seed,
        folder=context.folder / name,
        resume=context.resume,
        device=context.device,
        workers=context.workers,
        trackers=(),
        progress=False,
        check_teacher=False,  # it was, once
    )
    context.extra.update(steps=fitted.steps)
    return fitted.product


def _student(
    method: Callable[..., Method],
    setting: Setting,
    splits: Splits,
    seed: int,
    context: Context,
    *,
    mixed_teacher: bool,
    lr: float,
    name: str = "student",
) -> nn.Module:
    """Train the student of a seed with a rate, from the same start and on the same order of batches."""
    teacher = teacher_of(setting, splits, seed, context, mixed=mixed_teacher)
    seed_everything(seed)
    student = load_model(setting.student, splits, len(splits.classes or []))
    training = setting.training.change(optimizer=replace(setting.training.optimizer, lr=lr))
    return _train(method(student, Frozen(teacher)), splits, training, seed, context, name)


def distilled_arm(
    seed: int,
    context: Context,
    *,
    setting: Setting,
    method: Callable[..., Method],
    mixed_teacher: bool = False,
    divided: bool = False,
) -> dict[str, float]:
    """Train a student and measure it on clean samples, its logits as they are and divided by their deviation.

    Args:
        seed: of data, networks, batches and mixtures.
        context: of the run.
        setting: what is the same for all arms.
        method: `(student, teacher) -> Method`.
        mixed_teacher: whether the teacher was trained with mixup.
        divided: whether the method trains by divided logits.

    Returns:
        What `confidence_metrics` gives, and the same of the divided logits with "divided_" before the names;
        nll_trained is the nll of whichever of both the student was trained by.
    """
    splits, lr = setting.load(seed, context.tiny), setting.training.optimizer.lr
    network = _student(method, setting, splits, seed, context, mixed_teacher=mixed_teacher, lr=lr)
    logits, labels = logits_on(network, splits.test)
    found = confidence_metrics(logits, labels)
    if logits.shape[1] > 2:
        by_deviation = confidence_metrics(unit_deviation_logits(logits), labels)
        found |= {f"divided_{name}": value for name, value in by_deviation.items()}
    return {**found, "nll_trained": found["divided_nll" if divided else "nll"]}


def teacher_arm(seed: int, context: Context, *, setting: Setting, mixed: bool) -> dict[str, float]:
    """Measure a teacher on clean samples: how smooth it is, by the entropy and the deviation of its logits."""
    splits = setting.load(seed, context.tiny)
    logits, labels = logits_on(teacher_of(setting, splits, seed, context, mixed=mixed), splits.test)
    found = confidence_metrics(logits, labels)
    return {
        **found,
        "log_entropy": math.log(max(found["entropy"], 1e-12)),
        "logit_deviation": float(logits.std(dim=1).mean()),
    }


def temperature_arm(
    seed: int, context: Context, *, setting: Setting, mixed_teacher: bool, low: float = 1.0, high: float = 8.0
) -> dict[str, float]:
    """Distil the same student at a low and a high temperature and measure what the low one gains.

    Students are mixed fully. Returns accuracy and nll at the low temperature, the gains in both (low minus high, and
    high minus low for the nll), and, with learning rates to choose from, the same with each temperature's best rate by
    the held-out nll.
    """
    splits = setting.load(seed, context.tiny)
    own = setting.training.optimizer.lr
    rates = (own,) if context.tiny or not setting.lrs else setting.lrs
    best: dict[float, dict[str, float]] = {}
    fixed: dict[float, dict[str, float]] = {}
    for temperature in (low, high):
        tried = []
        for lr in rates:
            method = partial(MixupKD, temperature=temperature)
            name = f"student-{temperature:g}-{lr:g}"
            network = _student(method, setting, splits, seed, context, mixed_teacher=mixed_teacher, lr=lr, name=name)
            reported = confidence_metrics(*logits_on(network, splits.test))
            if lr == own:
                fixed[temperature] = reported
            held = confidence_metrics(*logits_on(network, splits.validation))["nll"] if splits.validation else 0.0
            tried.append((held, lr, reported))
        best[temperature] = min(tried, key=lambda one: one[:2])[2]
    found = {"accuracy": fixed[low]["accuracy"], "nll": fixed[low]["nll"]}
    for prefix, pair in (("", fixed), ("tuned_", best)):
        found[f"{prefix}accuracy_gain"] = pair[low]["accuracy"] - pair[high]["accuracy"]
        found[f"{prefix}nll_gain"] = pair[high]["nll"] - pair[low]["nll"]
    return found


def recipe(
    data: Any = "digits",
    *,
    train_size: int | None = 300,
    student: str = "mlp-24",
    teacher: str = "mlp-256-256",
    steps: int = 400,
    batch_size: int = 64,
    lr: float = 3e-3,
    mixed_share: float = 0.1,
    low_temperature: float = 1.0,
    high_temperature: float = 8.0,
) -> Experiment:
    """Does a mixup teacher speak too softly for a high temperature, and does partial mixup do without one?

    Teacher and student see the same few images; teachers are trained anew with every seed. The temperature arms give
    the gain of the low temperature over the high one, at one learning rate and with the best of three for each
    temperature (names with "tuned"), so that it is not the step size that is measured. All settings were fixed
    beforehand, without a search. What was seen: mixup makes a teacher much smoother in every seed; the low temperature
    gains less, not more, with such a teacher at the common rate, and nothing is to be told apart once rates are chosen;
    partial mixup without a temperature beats distillation with full mixup in accuracy, and is far from it in nll, since
    divided logits bound the confidence. Plain distillation at temperature 4 stays below the student alone here, so it
    is a weak baseline: no difference in accuracy is shown between partial mixup and the student alone.

    Args:
        data: a classification data set.
        train_size: training images of teacher and student; None for all.
        student: a model for the student.
        teacher: a model for the teacher.
        steps: optimizer steps of every network.
        batch_size: images per step.
        lr: highest learning rate of Adam, cosine to 0; a third and three times of it are tried where one is chosen.
        mixed_share: part of a batch that the recipe without a temperature mixes.
        low_temperature: of the temperature arms.
        high_temperature: of the temperature arms.
    """
    training = Training(
        steps=steps, batch_size=batch_size, optimizer=Optim("adam", lr=lr), keep="last", evaluate_every=steps
    )
    setting = Setting(data, train_size, 0.1, student, teacher, training, training, (lr / 3, lr, 3 * lr))
    mix_kd = partial(MixKD, mixed_share=mixed_share)
    arm = partial(distilled_arm, setting=setting)
    temperatures = partial(temperature_arm, setting=setting, low=low_temperature, high=high_temperature)
    return Experiment(
        task=Measured("accuracy"),
        arms={
            "alone": partial(arm, method=Alone),
            "teacher, plain": partial(teacher_arm, setting=setting, mixed=False),
            "teacher, mixed": partial(teacher_arm, setting=setting, mixed=True),
            "kd": partial(arm, method=partial(MixupKD, mixed_share=0.0)),
            "kd, student mixed": partial(arm, method=MixupKD),
            "kd, teacher mixed": partial(arm, method=partial(MixupKD, mixed_share=0.0), mixed_teacher=True),
            "kd, both mixed": partial(arm, method=MixupKD, mixed_teacher=True),
            "mix-kd": partial(arm, method=mix_kd, divided=True),
            "mix-kd, constant teacher": partial(arm, method=with_constant_teacher(mix_kd), divided=True),
            "temperatures, plain teacher": partial(temperatures, mixed_teacher=False),
            "temperatures, mixed teacher": partial(temperatures, mixed_teacher=True),
        },
        claims=[
            Claim("teacher, mixed", ">", "teacher, plain", on="log_entropy", by=math.log(1.5)),
            Claim("teacher, mixed", "<", "teacher, plain", on="logit_deviation"),
            *(
                Claim("temperatures, mixed teacher", ">", "temperatures, plain teacher", on=name)
                for name in ("accuracy_gain", "nll_gain", "tuned_accuracy_gain", "tuned_nll_gain")
            ),
            Claim("mix-kd", ">", "kd, student mixed", on="accuracy"),
            Claim("mix-kd", "<", "kd, student mixed", on="nll_trained"),
            Claim("mix-kd", ">", "mix-kd, constant teacher", on="accuracy"),
        ],
        controls=("mix-kd, constant teacher",),
        rivals=("kd", "kd, student mixed", "kd, teacher mixed", "kd, both mixed", "teacher, plain", "teacher, mixed"),
        title="Mixup in distillation (MIX-KD)",
        question=(
            f"A {student} learns to sort {data if isinstance(data, str) else 'the data'} from {train_size or 'all'} "
            f"images and from a {teacher} that was trained on the same ones, with mixup or without."
        ),
        seeds=5,
    )


def paper(
    data: Any = "torchvision:CIFAR100",
    *,
    student: str = "resnet8x4",
    teacher: str = "resnet32x4",
    teacher_epochs: float | None = 240,
    epochs: float = 240,
    lr: float = 0.05,
) -> Experiment:
    """CIFAR-100, ResNet-32x4 to ResNet-8x4: SGD 0.05, weight decay 5e-4, batch 64, 240 epochs, last epoch, 3 seeds.

    Expected of plain distillation: 73.33 (74.92 for WRN-40-2 to WRN-16-2). With a mixup teacher the paper's figure lies
    higher at temperature 1 than at 4.

    Args:
        data: a classification data set.
        student: a model for the student; "wrn-16-2" is the other pair's. MobileNet and ShuffleNet take lr 0.01.
        teacher: a model for the teacher, or a folder that holds one trained without mixup; "wrn-40-2".
        teacher_epochs: passes of the teachers; None takes the plain one as it is and trains the mixup teacher as long
            as a student.
        epochs: passes of every student.
        lr: highest learning rate.
    """
    milestones = (150 / 240, 180 / 240, 210 / 240)
    sgd = Optim("sgd", lr=lr, weight_decay=5e-4, schedule="step", milestones=milestones, nesterov=False)
    training = Training(epochs=epochs, batch_size=64, optimizer=sgd, augment="crop_flip", keep="last")
    first = None if teacher_epochs is None else training.change(epochs=teacher_epochs)
    arm = partial(distilled_arm, setting=Setting(data, None, 0.0, student, teacher, training, first))
    return Experiment(
        task=Measured("accuracy"),
        arms={
            "alone": partial(arm, method=Alone),
            "kd": partial(arm, method=partial(MixupKD, mixed_share=0.0)),
            "kd, both mixed, T = 1": partial(arm, method=partial(MixupKD, temperature=1.0), mixed_teacher=True),
            "kd, both mixed, T = 4": partial(arm, method=partial(MixupKD, temperature=4.0), mixed_teacher=True),
            "mix-kd": partial(arm, method=MixKD, divided=True),
        },
        claims=[
            Claim("mix-kd", ">", "kd", on="accuracy"),
            Claim("kd, both mixed, T = 1", ">", "kd, both mixed, T = 4", on="accuracy"),
        ],
        rivals=("kd", "kd, both mixed, T = 1", "kd, both mixed, T = 4"),
        title="Mixup in distillation (MIX-KD) on CIFAR-100",
        question=f"A {student} learns CIFAR-100 from a {teacher}, with mixup in either or neither.",
        seeds=3,
    )
