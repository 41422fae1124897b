"""BD-KD: two networks train together, and each sample decides in which direction the student is pulled to the teacher.

For whom: you ship a small classifier whose confidence decides something (a threshold, a hand-over to a person), you
have no trained teacher, and you can afford to train a larger network beside the small one.

Not for whom: there is a good trained teacher already (the offline methods are cheaper); memory and time allow only the
student; outputs are not one class of many.

Citation: Ibtihel Amara, Nazanin Sepahvand, Brett H. Meyer, Warren J. Gross, James J. Clark. BD-KD: Balancing the
Divergences for Online Knowledge Distillation. 2022. arXiv:2212.12965.

Deviations from the paper: its equations could not be read and there is no code of the authors. Confirmed are: both
networks train at once, the student's term holds both directions of the KL divergence, the two are weighted per sample
by the gap between both entropies, the teacher's term is the KL divergence from the student to it, and nothing is
calibrated afterwards. Unconfirmed, and therefore arguments with this library's defaults: the rule (a step at gap 0) and
the size of the weights (2 against 1), the temperature of the divergences (3; 4 for CIFAR) and of the entropies (1), the
weight of the distillation terms (1), the update (simultaneous), and how more than two networks learn (every student
from the teacher, on request also from each other; the teacher's term is the mean over the students).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.baselines import Alone
from stillroom.blocks import Tempered, fit_temperature
from stillroom.checkpoint import seed_everything
from stillroom.data import hold_out, load_data
from stillroom.data.batch import Batch
from stillroom.data.samples import Samples, Splits
from stillroom.experiment.arm import Context, load_model, own_augmentation
from stillroom.experiment.claim import Claim
from stillroom.experiment.run import Experiment
from stillroom.fit import fit
from stillroom.losses import balance_weights, entropy_gap, kd_loss, two_way_kd_loss
from stillroom.losses._shared import check_not_negative, check_positive
from stillroom.losses.balance import check_boost
from stillroom.method import Losses, Method
from stillroom.online import MutualLearning, OnlineDistillation, own_terms
from stillroom.task import Classification, Measured, confidence_metrics, logits_on
from stillroom.training import Optim, Training


class BDKD(OnlineDistillation):
    """Trains a student and a larger teacher together, with balanced divergences for the student.

    Where the student is less certain than the teacher, the reverse divergence counts `boost` times (it sharpens);
    elsewhere the forward one does (it spreads).

    Args:
        student: inputs -> logits `(N, C)`; ships.
        teacher: inputs -> logits over the same classes; trained too (a frozen one is copied and goes on learning).
        peers: further students, taught as the first.
        temperature: T of the divergences, above 0 (unconfirmed; 4 for CIFAR).
        kd_weight: weight of the divergences, 0 or more (unconfirmed).
        boost: b, 1 or more (unconfirmed); 1 is the symmetric divergence.
        entropy_temperature: T_e of the compared entropies, above 0 (unconfirmed).
        softness: 0 for a step between the weights, above 0 for a slope of that width (unconfirmed).
        pair_weight: weight of what students learn from each other, 0 or more; needs peers (unconfirmed).
        update: "simultaneous", or "alternating" with the outputs of whoever has stepped renewed.

    Losses:
        label: cross-entropy over the labelled rows; teacher_label for the teacher, peer-1_label, ... for peers.
        balance: `two_way_kd_loss`, for every student; teacher_balance: the mean over students of `T^2 KL(student ||
            teacher)`.
        pairs: with peers, the mean over the other students of `T^2 KL(other || own)`.
        less_certain: share of samples with an entropy gap above 0; shown, never counted.

    Source: Amara et al. 2022, arXiv:2212.12965.

    Example:
        >>> student, teacher = nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        >>> method = BDKD(student, teacher, boost=2.0)
        >>> optimizers = {name: torch.optim.Adam(group) for name, group in method.players().items()}
        >>> for player, losses in method.turns(Batch(torch.randn(8, 4), torch.randint(3, (8,)))):
        ...     losses.total.backward()
        ...     optimizers[player].step()
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        peers: Sequence[nn.Module] = (),
        temperature: float = 3.0,
        kd_weight: float = 1.0,
        boost: float = 2.0,
        entropy_temperature: float = 1.0,
        softness: float = 0.0,
        pair_weight: float = 0.0,
        update: Literal["simultaneous", "alternating"] = "simultaneous",
    ) -> None:
        super().__init__(student, teacher, peers=peers, update=update)
        check_positive(temperature=temperature, entropy_temperature=entropy_temperature)
        check_not_negative(kd_weight=kd_weight, softness=softness, pair_weight=pair_weight)
        check_boost(boost)
        self.temperature, self.kd_weight, self.boost = temperature, kd_weight, boost
        self.entropy_temperature, self.softness, self.pair_weight = entropy_temperature, softness, pair_weight

    def weights(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Forward and reverse weights `(N,)` for entropy gaps `(N,)`."""
        return balance_weights(gap, boost=self.boost, softness=self.softness)

    def losses_of(self, player: str, outputs: Mapping[str, Tensor], batch: Batch) -> Losses:
        """The balanced loss of a student, or the teacher's."""
        own, teacher = outputs[player], outputs["teacher"]
        students = [logits for name, logits in outputs.items() if name not in ("teacher", player)]
        if player == "teacher":
            back = torch.stack([kd_loss(teacher, student, temperature=self.temperature) for student in students])
            return own_terms(player, own, batch, {"balance": (back.mean(), self.kd_weight)})
        gap = entropy_gap(own, teacher, entropy_temperature=self.entropy_temperature)
        balance = two_way_kd_loss(own, teacher, *self.weights(gap), temperature=self.temperature)
        terms = {"balance": (balance, self.kd_weight)}
        if students:
            pairs = torch.stack([kd_loss(own, other, temperature=self.temperature) for other in students])
            terms["pairs"] = (pairs.mean(), self.pair_weight)
        terms["less_certain"] = ((gap > 0).to(gap.dtype).mean(), 0.0)
        return own_terms(player, own, batch, terms)


class Inverted(BDKD):
    """A control: BD-KD with its rule turned round, so that an uncertain student is spread and a sharp one sharpened."""

    def weights(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of the rule, exchanged."""
        forward, reverse = super().weights(gap)
        return reverse, forward


class ReverseOnly(BDKD):
    """The student learns from the reverse divergence alone; mutual learning is its counterpart with the forward one."""

    def weights(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Weights 0 and 1 for every sample."""
        return torch.zeros_like(gap), torch.ones_like(gap)


@dataclass(frozen=True)
class Setting:
    """The data, the networks and how they train; the same for every arm.

    Attributes:
        data: a classification data set.
        train_size: training samples; None for all.
        test_size: reported samples; None for all.
        label_noise: share of the training labels that are exchanged for another class, in [0, 1].
        student: a model for the student.
        teacher: a model for the teacher.
        training: of every network of every arm.
    """

    data: Any
    train_size: int | None
    test_size: int | None
    label_noise: float
    student: Any
    teacher: Any
    training: Training

    def load(self, seed: int, tiny: bool) -> Splits:
        """Load the data and exchange labels, by the seed; the reported labels stay as they are."""
        splits = load_data(
            self.data,
            seed=seed,
            train_size=100 if tiny else self.train_size,
            test_size=50 if tiny else self.test_size,
            validation_share=0.0,
            task="classification",
        )
        if not self.label_noise:
            return splits
        classes, draw = len(splits.classes or []), torch.Generator().manual_seed(seed)
        labels = splits.train.labels.clone()
        rows = torch.randperm(len(labels), generator=draw)[: round(self.label_noise * len(labels))]
        labels[rows] = (labels[rows] + torch.randint(1, classes, (len(rows),), generator=draw)) % classes
        return replace(splits, train=splits.train.relabel(labels))


def run_arm(
    seed: int, context: Context, *, setting: Setting, method: Callable[..., Method], tempered: bool = False
) -> dict[str, float]:
    """Train a student, with a teacher beside it where the method has one, and measure what ships.

    Args:
        seed: of data, networks and batches.
        context: of the run.
        setting: what is the same for all arms.
        method: `(student, teacher) -> Method`.
        tempered: hold a tenth of the training samples out and scale the student's temperature on it afterwards.

    Returns:
        On the reported samples: accuracy, calibration error (15 bins), nll and entropy of the student; with a teacher
        beside it the mean size of the entropy gap, its mean, the teacher's accuracy and calibration error, and the
        share of training samples on which the student was less certain.
    """
    splits = setting.load(seed, context.tiny)
    width = len(splits.classes or [])
    seed_everything(seed)
    student, teacher = (load_model(spec, splits, width) for spec in (setting.student, setting.teacher))
    train: Samples = splits.train
    held: Samples | None = None
    if tempered:
        kept, apart = hold_out(len(train), len(train) // 10, seed, train.labels)
        train, held = train.subset(kept), train.subset(apart)
    training = setting.training.change(steps=4) if context.tiny else setting.training
    if training.augment is None:
        training = training.change(augment=own_augmentation(splits))
    made = method(student, teacher)
    fitted = fit(
        made,
        replace(splits, train=train),
        training,
        task=Classification(),
        seed=seed,
        folder=context.folder,
        resume=context.resume,
        device=context.device,
        workers=context.workers,
        trackers=(),
        progress=False,
    )
    context.extra.update(steps=fitted.steps, train_seconds=round(fitted.seconds, 3), terms=fitted.terms)
    product = fitted.product
    if held is not None:
        logits, labels = logits_on(product, held)
        product = Tempered(product, fit_temperature(logits, labels))
    logits, labels = logits_on(product, splits.test)
    found = confidence_metrics(logits, labels)
    if isinstance(made, OnlineDistillation):
        beside, _ = logits_on(made.networks["teacher"], splits.test)
        gap = entropy_gap(logits, beside)
        found |= {"entropy_gap": float(gap.abs().mean()), "mean_entropy_gap": float(gap.mean())}
        found |= {f"teacher_{name}": value for name, value in confidence_metrics(beside, labels).items()}
        shares = [terms["less_certain"] for _, terms, _ in fitted.terms if "less_certain" in terms]
        found |= {"less_certain": sum(shares) / len(shares)} if shares else {}
    return found


def recipe(
    data: Any = "digits",
    *,
    train_size: int | None = 898,
    test_size: int | None = None,
    label_noise: float = 0.2,
    student: str = "mlp-24",
    teacher: str = "mlp-256-256",
    steps: int = 800,
    batch_size: int = 64,
    lr: float = 1e-3,
    temperature: float = 3.0,
    boost: float = 2.0,
) -> Experiment:
    """Does balancing the divergences by the entropy gap give a small student a more honest confidence?

    A fifth of the training labels is wrong, so that networks trained by labels alone become over-confident; the
    reported labels are right. What counts is the balance: BD-KD against the inverted rule and the symmetric
    divergence, since any distillation softens a student. The tempered arm scales its temperature on a tenth of the
    training samples, whose labels are as noisy as the others.

    All settings were fixed beforehand, without a search, and are the same for every arm. What was seen: with noisy
    training labels all students are less sure of clean samples than they may be. BD-KD is better calibrated than the
    student alone, mutual learning and the symmetric divergence, whose weights sum to less; but so, just as much, is the
    inverted rule, whose weights sum to the same. The direction of the balance is not shown to matter here.

    Args:
        data: a classification data set.
        train_size: training samples, half of scikit-learn's digits; None for all.
        test_size: reported samples; None for all.
        label_noise: share of the training labels exchanged for another class.
        student: a model for the student.
        teacher: a model for the teacher, which begins anew with every seed and trains beside the student.
        steps: optimizer steps of every network.
        batch_size: samples per step.
        lr: constant learning rate of Adam, for both networks.
        temperature: T of all divergences.
        boost: b of BD-KD and the inverted rule.
    """
    adam = Optim("adam", lr=lr, schedule="constant")
    training = Training(steps=steps, batch_size=batch_size, optimizer=adam, keep="last", evaluate_every=steps)
    setting = Setting(data, train_size, test_size, label_noise, student, teacher, training)
    return Experiment(
        task=Measured("calibration_error", higher_is_better=False),
        arms={
            **_arms(setting, temperature, boost),
            "reverse only": _arm(setting, partial(ReverseOnly, temperature=temperature)),
            "symmetric": _arm(setting, partial(BDKD, temperature=temperature, boost=1.0)),
            "bd-kd, twice the boost": _arm(setting, partial(BDKD, temperature=temperature, boost=2 * boost)),
            "inverted": _arm(setting, partial(Inverted, temperature=temperature, boost=boost)),
            "alone, tempered": partial(run_arm, setting=setting, method=_alone, tempered=True),
        },
        claims=[
            Claim("bd-kd", "<", "alone", on="calibration_error"),
            Claim("bd-kd", "<", "alone", on="nll"),
            Claim("bd-kd", "<", "inverted", on="entropy_gap"),
            Claim("bd-kd", "<", "inverted", on="calibration_error"),
            Claim("bd-kd", "<", "symmetric", on="calibration_error"),
            Claim("bd-kd", "<", "mutual", on="calibration_error"),
            Claim("bd-kd", ">", 0.05, on="less_certain"),
            Claim("bd-kd", "<", 0.95, on="less_certain"),
        ],
        controls=("inverted", "symmetric"),
        rivals=("mutual", "reverse only", "alone, tempered"),
        title="Balanced divergences for online distillation (BD-KD)",
        question=(
            f"A {student} and a {teacher} learn {data if isinstance(data, str) else 'the data'} together from "
            f"{train_size or 'all'} samples, {label_noise:.0%} of them with a wrong label: how honest is the small "
            "one's confidence on clean samples?"
        ),
        seeds=5,
    )


def paper(
    data: Any = "torchvision:CIFAR100",
    *,
    student: str = "resnet8x4",
    teacher: str = "resnet32x4",
    epochs: float = 240,
    lr: float = 0.05,
    temperature: float = 4.0,
    boost: float = 2.0,
) -> Experiment:
    """CIFAR-100 beside mutual learning: SGD 0.05, weight decay 5e-4, batch 64, 240 epochs, 3 seeds.

    The optimizer's settings are the field's usual ones (unconfirmed for this paper; 0.01 is usual for MobileNet and
    ShuffleNet). There is no number to expect: the paper's tables could not be read. Both networks train in every arm
    but the student alone, so that one run takes as long as training a ResNet-32x4 and a ResNet-8x4.

    Args:
        data: a classification data set.
        student: a model for the student; "wrn-16-2" is the other pair's.
        teacher: a model for the teacher; "wrn-40-2" is the other pair's.
        epochs: passes of every network.
        lr: highest learning rate.
        temperature: T of all divergences.
        boost: b of BD-KD.
    """
    milestones = (150 / 240, 180 / 240, 210 / 240)
    sgd = Optim("sgd", lr=lr, weight_decay=5e-4, schedule="step", milestones=milestones, nesterov=False)
    training = Training(epochs=epochs, batch_size=64, optimizer=sgd, augment="crop_flip", keep="last")
    setting = Setting(data, None, None, 0.0, student, teacher, training)
    return Experiment(
        task=Measured("calibration_error", higher_is_better=False),
        arms=_arms(setting, temperature, boost),
        claims=[
            Claim("bd-kd", "<", "mutual", on="calibration_error"),
            Claim("bd-kd", ">", "mutual", on="accuracy"),
        ],
        rivals=("mutual",),
        title="Balanced divergences (BD-KD) on CIFAR-100",
        question=f"A {student} and a {teacher} learn CIFAR-100 together.",
        seeds=3,
    )


def _arms(setting: Setting, temperature: float, boost: float) -> dict[str, Any]:
    return {
        "alone": _arm(setting, _alone),
        "mutual": _arm(setting, partial(MutualLearning, temperature=temperature)),
        "bd-kd": _arm(setting, partial(BDKD, temperature=temperature, boost=boost)),
    }


def _arm(setting: Setting, method: Callable[..., Method]) -> Any:
    return partial(run_arm, setting=setting, method=method)


def _alone(student: nn.Module, teacher: nn.Module) -> Method:
    return Alone(student)
