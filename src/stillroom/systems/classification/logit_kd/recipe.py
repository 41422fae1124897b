"""The comparison of the baselines: every loss under one recipe, and the paper-scale settings."""

from __future__ import annotations

from functools import partial
from typing import Any

from stillroom.baselines import KD, alone, with_constant_teacher
from stillroom.experiment.claim import Claim
from stillroom.experiment.run import Experiment
from stillroom.systems.classification.logit_kd.contrast import CRD
from stillroom.systems.classification.logit_kd.features import AT, MGD, RKD, FitNets
from stillroom.systems.classification.logit_kd.logits import DIST, DKD, LSKD, LSKDDKD
from stillroom.systems.classification.logit_kd.review import ReviewKD
from stillroom.task import Classification
from stillroom.training import Optim, Training


def recipe(
    data: Any = "digits",
    *,
    labelled: int | None = 200,
    teacher: str = "conv-32-64",
    student: str = "conv-8-16",
    teacher_epochs: float = 20,
    epochs: float = 40,
    batch_size: int = 32,
    lr: float = 0.03,
    test_size: int | None = None,
) -> Experiment:
    """Which of the standard losses help a small convolutional student that sees few labels?

    Every loss runs at the defaults its authors publish, with one optimizer, one schedule and one number of steps for
    all. The control is KD with a teacher that says the same for every image: it keeps the softening and the weights and
    teaches nothing.

    How the rate and the epochs came about: the comparison first ran on seeds 0 to 4 at rate 0.01, with 60 epochs and
    then 40, where KD did not beat its control and at 40 epochs not the student alone either. Rate 0.03 with 40 epochs
    was then chosen of three settings on seeds 100 to 103, where the arms alone, kd, dkd, crd and the control were
    looked at. Seeds 0 to 4 are therefore no fresh evidence; the reported ones, 200 to 204, were not run before.

    Args:
        data: a classification data set.
        labelled: training images the student sees; None for all. The teacher has seen all of them.
        teacher: a model for the teacher.
        student: a model for the student.
        teacher_epochs: passes of the teacher over all training images.
        epochs: passes of the student over its images, the same for every arm.
        batch_size: images per step.
        lr: highest learning rate of AdamW, cosine to 0, the same for every arm.
        test_size: reported images; None for all.
    """
    training = Training(epochs=epochs, batch_size=batch_size, optimizer=Optim(lr=lr))
    return Experiment(
        task=Classification(data, train_size=labelled, test_size=test_size),
        student=student,
        teacher=teacher,
        training=training,
        teacher_training=training.change(epochs=teacher_epochs, optimizer=Optim(lr=5e-3)),
        arms={
            "alone": alone,
            "kd": KD,
            "dkd": DKD,
            "dist": DIST,
            "lskd": LSKD,
            "lskd-dkd": LSKDDKD,
            "fitnets": FitNets,
            "at": AT,
            "rkd": RKD,
            "crd": partial(CRD, negatives=64),
            "reviewkd": ReviewKD,
            "mgd": MGD,
            "kd, constant teacher": with_constant_teacher(KD),  # control: softness and weights without knowledge
        },
        claims=[
            *(Claim(name, ">", "alone", on="accuracy") for name in ("kd", "dkd", "dist", "lskd", "lskd-dkd")),
            Claim("kd", ">", "kd, constant teacher", on="accuracy"),
            *(Claim(name, ">", "alone", on="accuracy") for name in ("fitnets", "at", "rkd", "crd", "reviewkd", "mgd")),
        ],
        title="The standard distillation losses side by side",
        question=(
            f"A {student} learns to sort {data if isinstance(data, str) else 'the data'} from "
            f"{labelled or 'all'} labelled images; its teacher, a {teacher}, has learned from all of them."
        ),
        seeds=5,
    )


def paper(
    data: Any = "torchvision:CIFAR100",
    *,
    teacher: str = "resnet32x4",
    student: str = "resnet8x4",
    teacher_epochs: float | None = 240,
    epochs: float = 240,
) -> Experiment:
    """CIFAR-100, ResNet-32x4 to ResNet-8x4, as the field's tables have it: SGD 0.05, 240 epochs, batch 64.

    Expected top-1, each within 0.3: alone 72.50, KD 73.33, DKD 76.32, DIST 76.31, LSKD + KD 76.62, CRD 75.51, AT 73.44,
    RKD 71.90, FitNets 73.50, with the public teacher of 79.42.

    Args:
        data: a classification data set.
        teacher: a model for the teacher, or a folder that holds a trained one.
        student: a model for the student.
        teacher_epochs: passes to train the teacher first; None takes it as it is.
        epochs: passes of every arm.
    """
    sgd = Optim("sgd", lr=0.05, weight_decay=5e-4, schedule="step", milestones=(150 / 240, 180 / 240, 210 / 240))
    training = Training(epochs=epochs, batch_size=64, optimizer=sgd, augment="crop_flip", keep="last")
    return Experiment(
        task=Classification(data, validation_share=0.0),
        student=student,
        teacher=teacher,
        training=training,
        teacher_training=None if teacher_epochs is None else training.change(epochs=teacher_epochs),
        arms={
            "alone": alone,
            "kd": KD,
            "dkd": DKD,
            "dist": DIST,
            "lskd": LSKD,
            "lskd-dkd": LSKDDKD,
            "fitnets": FitNets,
            "at": AT,
            "rkd": RKD,
            "crd": CRD,
            "reviewkd": ReviewKD,
        },
        claims=[Claim(name, ">", "alone", on="accuracy") for name in ("kd", "dkd", "dist", "lskd", "lskd-dkd", "crd")],
        title="The standard distillation losses on CIFAR-100",
        question=f"A {student} learns CIFAR-100 from a {teacher}.",
        seeds=3,
    )
