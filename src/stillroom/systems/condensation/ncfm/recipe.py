"""Does matching characteristic functions make better synthetic images than simpler ways?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stillroom.condense import DSA, CheckpointPairs, RealImages, Statistics, from_mixed, from_real, train_and_test
from stillroom.data import CondensedSet, Splits, load_data
from stillroom.data.rows import generator
from stillroom.experiment.arm import Context
from stillroom.experiment.claim import Claim
from stillroom.experiment.run import Experiment
from stillroom.losses import mean_discrepancy
from stillroom.systems.condensation.ncfm import two_sample
from stillroom.systems.condensation.ncfm.condenser import NCFM, PRETRAINING
from stillroom.task import Measured
from stillroom.training import Optim, Training

CHOICE = 36  # what a seed's random numbers are for


@dataclass(frozen=True)
class Setting:
    """What all arms of an experiment share; the fields are the arguments of `recipe`."""

    data: Any
    images_per_class: int
    factor: int
    network: str
    image_size: int | None
    train_size: int | None
    test_size: int | None
    iterations: int
    real_batch: int
    frequencies: int
    image_lr: float
    pretrained: int
    pretraining: Training
    evaluation: Training
    evaluations: int
    flip: bool
    on_validation: bool = False
    prepared: dict[tuple[int, bool], Prepared] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"prepared": {}}  # every process prepares its own

    def tiny(self) -> Setting:
        """The same with everything as small as can be."""
        return replace(
            self,
            images_per_class=1,
            train_size=200 if self.train_size is None else min(self.train_size, 200),
            test_size=32,
            iterations=2,
            real_batch=8,
            frequencies=32,
            pretrained=1,
            pretraining=self.pretraining.change(steps=2),
            evaluation=self.evaluation.change(steps=2),
            evaluations=1,
        )

    @property
    def augment(self) -> DSA:
        """What networks that are trained see; every arm's and the pretrained ones."""
        first = ("flip", "color") if self.flip else ("color",)
        return DSA(first=first, choose=("crop", "scale", "rotate"))


@dataclass(frozen=True)
class Prepared:
    """What the arms of one seed share: data and pretrained networks."""

    splits: Splits
    real: RealImages
    statistics: Statistics
    pairs: CheckpointPairs


def prepare(setting: Setting, seed: int, context: Context) -> Prepared:
    """Load the data and train the networks of a seed, once per process; the networks are kept beside the arms."""
    key = (seed, context.tiny)
    if key not in setting.prepared:
        splits = load_data(
            setting.data,
            image_size=setting.image_size,
            train_size=setting.train_size,
            test_size=setting.test_size,
            seed=seed,
        )
        real = RealImages(splits, seed=seed)
        statistics = Statistics.of(real.samples)
        pairs = CheckpointPairs.pretrain(
            setting.network,
            real.samples,
            classes=real.classes,
            count=setting.pretrained,
            training=setting.pretraining,
            augment=setting.augment,
            statistics=statistics,
            seed=seed,
            folder=context.folder.parents[1] / "pretrained" / context.folder.name,
            device=context.device,
        )
        setting.prepared.clear()  # seeds come one after the other
        setting.prepared[key] = Prepared(splits, real, statistics, pairs)
    return setting.prepared[key]


Make = Callable[[Setting, Prepared, int, Context], CondensedSet]


def random_real(setting: Setting, prepared: Prepared, seed: int, context: Context) -> CondensedSet:
    """Whole real images of every class, by chance: as many as there are stored synthetic ones."""
    real = prepared.real
    chosen = [
        from_real(real.of(number), setting.images_per_class, 1, generator(seed, CHOICE, number))
        for number in range(real.classes)
    ]
    return CondensedSet(torch.cat(chosen), torch.arange(real.classes).repeat_interleave(setting.images_per_class))


def random_tiles(setting: Setting, prepared: Prepared, seed: int, context: Context) -> CondensedSet:
    """The same storage filled with tiles of real images, by chance."""
    real, chosen = prepared.real, []
    for number in range(real.classes):
        numbers = generator(seed, CHOICE, number)
        images = real.of(number)
        shuffled = images[torch.randperm(len(images), generator=numbers)]
        chosen.append(from_mixed(shuffled, setting.images_per_class, setting.factor, numbers))
    labels = torch.arange(real.classes).repeat_interleave(setting.images_per_class)
    return CondensedSet(torch.cat(chosen), labels, setting.factor)


def condensed(setting: Setting, prepared: Prepared, seed: int, context: Context, **options: Any) -> CondensedSet:
    """A set that NCFM makes, with some of its options changed."""
    given: dict[str, Any] = {
        "images_per_class": setting.images_per_class,
        "factor": setting.factor,
        "initialise": from_mixed,
        "iterations": setting.iterations,
        "real_batch": setting.real_batch,
        "frequencies": setting.frequencies,
        "image_optimizer": partial(torch.optim.AdamW, lr=setting.image_lr, weight_decay=5e-4),
        "seed": seed,
        "device": context.device,
    }
    ncfm = NCFM(setting.network, **(given | options))
    return ncfm.condense(
        prepared.splits, pairs=prepared.pairs, folder=context.folder, resume=context.resume, progress=False
    )


def mean_matching(synthetic_features: Tensor, real_features: Tensor, frequencies: Tensor) -> Tensor:
    """What the discrepancy is exchanged for: the squared distance of the means of normalised features, times 300."""
    normalise = partial(torch.nn.functional.normalize, dim=1)
    return 300 * mean_discrepancy(normalise(synthetic_features), normalise(real_features), reduction="sum")


def measure(
    seed: int, context: Context, *, setting: Setting, make: Make, tell: two_sample.Tell | None = None
) -> dict[str, float]:
    """Make a set, train fresh networks on it and report the last step's accuracy on real images."""
    setting = setting.tiny() if context.tiny else setting
    prepared = prepare(setting, seed, context)
    made = make(setting, prepared, seed, context)
    if not (context.folder / "condensed").exists():
        made.save(context.folder / "condensed")
    reported = prepared.splits.validation if setting.on_validation else prepared.splits.test
    if reported is None:
        raise ValueError("there is no validation split to choose settings by: load data that has one")
    results = [
        train_and_test(
            setting.network,
            made.samples,
            reported,
            classes=prepared.real.classes,
            training=setting.evaluation,
            augment=setting.augment,
            statistics=prepared.statistics,
            seed=1000 * seed + number,
            device=context.device,
        )
        for number in range(setting.evaluations)
    ]
    metrics = {name: sum(one[name] for one in results) / len(results) for name in results[0]}
    context.extra["steps"] = setting.evaluation.total_steps(1)
    return metrics if tell is None else metrics | two_sample.measure(tell, seed, pairs=4 if context.tiny else 150)


def recipe(
    data: Any = "digits",
    *,
    images_per_class: int = 1,
    factor: int = 2,
    network: str = "convnet-2-32",
    image_size: int | None = 16,
    train_size: int | None = None,
    test_size: int | None = None,
    iterations: int = 40,
    real_batch: int = 64,
    frequencies: int = 256,
    image_lr: float = 0.01,
    pretrained: int = 3,
    pretraining_epochs: float = 5,
    evaluation_steps: int = 200,
    flip: bool = False,
    on_validation: bool = False,
) -> Experiment:
    """Do images made by matching characteristic functions train a network better than real or simpler ones?

    All arms store equally many images of one size and are measured alike: a fresh network, equal steps and
    augmentation, the last step's weights on real images. "random-real" stores whole real images taken by chance,
    "random-tiles" tiles of such, "init-only" the tiles that all ways of condensing begin from: the first of each class,
    which on the digits are by few writers. "calibration-only" leaves the matching out, "matching-only" the calibration,
    "mean-matching" exchanges the discrepancy for the squared distance of the means, "normal-frequencies" has no
    sampler. Beside it each discrepancy is asked to tell 500 points of a normal distribution from 500 of a Laplace
    distribution of the same mean and covariance in eight dimensions.

    The settings are the smallest that fit some two minutes, with ten times the paper's learning rate for the images;
    they were chosen on seeds 100 and 101 by held-out training images and are the same for every arm. "random-tiles" was
    added after the first seeds had shown that the first images of a class are poor ones. Three seeds left some
    intervals wide, so three more were run with the same settings. What was seen on the digits: every way of matching
    ends within half a point of the others, 6 points above random tiles and 9 above calibration alone; the sampler adds
    nothing to the accuracy, though its frequencies find more difference between two distributions than normal ones do.
    With ten whole images per class random real images are as good; on CIFAR-10 at this size calibration alone is.

    Args:
        data: a classification data set of images.
        images_per_class: stored images of each class.
        factor: tiles per side of a stored image.
        network: what is pretrained, matched with and tested: a name of `stillroom.blocks.build`.
        image_size: side that images are brought to; None for their own.
        train_size: real training images; None for all.
        test_size: reported images; None for all.
        iterations: passes of the condensation over all classes.
        real_batch: real images of a class per step.
        frequencies: per step.
        image_lr: learning rate of the images: ten times the paper's, for a five-hundredth of its iterations.
        pretrained: how many networks are trained on the real data first.
        pretraining_epochs: of each.
        evaluation_steps: of each network that is trained on a set.
        flip: whether networks see images mirrored (not for digits).
        on_validation: report on held-out training images instead of the test images: for choosing settings.
    """
    setting = Setting(
        data,
        images_per_class,
        factor,
        network,
        image_size,
        train_size,
        test_size,
        iterations,
        real_batch,
        frequencies,
        image_lr,
        pretrained,
        PRETRAINING.change(epochs=pretraining_epochs, batch_size=64, optimizer=replace(PRETRAINING.optimizer, lr=0.05)),
        Training(steps=evaluation_steps, batch_size=128, optimizer=halving(3e-3), keep="last"),
        1,
        flip,
        on_validation,
    )
    arm = partial(measure_by, setting)
    return Experiment(
        task=Measured("accuracy"),
        arms={
            "random-real": arm(random_real),
            "random-tiles": arm(random_tiles),
            "init-only": arm(partial(condensed, iterations=0)),
            "mean-matching": arm(
                partial(condensed, matching=mean_matching, learned_frequencies=False), two_sample.tell_by_mean
            ),
            "calibration-only": arm(partial(condensed, matching_weight=0.0)),
            "matching-only": arm(partial(condensed, calibration_weight=0.0)),
            "normal-frequencies": arm(partial(condensed, learned_frequencies=False), two_sample.tell_by_normal),
            "ncfm": arm(condensed, two_sample.tell_by_learned),
        },
        claims=[
            Claim("ncfm", ">", "random-real", on="accuracy", by=0.05),
            Claim("ncfm", ">", "init-only", on="accuracy", by=0.05),
            Claim("ncfm", ">", "random-tiles", on="accuracy"),
            Claim("ncfm", ">", "calibration-only", on="accuracy"),
            Claim("ncfm", ">", "mean-matching", on="accuracy", by=-0.01),
            Claim("ncfm", ">", "normal-frequencies", on="accuracy"),
            Claim("mean-matching", "==", 0.5, on="two_sample_auc", within=0.1),
            Claim("normal-frequencies", ">", 0.95, on="two_sample_auc"),
            Claim("ncfm", ">", 0.95, on="two_sample_auc"),
            Claim("ncfm", ">", "normal-frequencies", on="two_sample_distance"),
        ],
        baseline="random-real",
        controls=("calibration-only",),
        rivals=("random-real", "random-tiles", "init-only", "mean-matching"),
        title="Neural characteristic function matching (NCFM)",
        question=(
            f"{images_per_class} stored image{'s' * (images_per_class > 1)} per class, {factor} x {factor} tiles each, "
            f"are to train a {network} on {data if isinstance(data, str) else 'the data'}."
        ),
        seeds=3,
    )


def measure_by(setting: Setting, make: Make, tell: two_sample.Tell | None = None) -> Any:
    """An arm."""
    return partial(measure, setting=setting, make=make, tell=tell)


def halving(lr: float) -> Optim:
    """AdamW whose rate halves after every fifth of the training."""
    return Optim("adamw", lr=lr, schedule="step", milestones=(0.2, 0.4, 0.6, 0.8), gamma=0.5)


def paper(
    data: Any = "torchvision:CIFAR10",
    *,
    images_per_class: int = 10,
    network: str = "convnet-3-128",
    iterations: int = 20000,
    pretrained: int = 20,
    pretraining_epochs: float = 60,
    evaluation_epochs: float = 2000,
    evaluations: int = 10,
) -> Experiment:
    """CIFAR-10 with ten stored images per class: 20 pretrained networks, 20,000 iterations, ten evaluations.

    Expected accuracy: NCFM with the sampler 68.9 and without it 65.6, DM 48.9, MTT 65.3; 71.8 +- 0.3 with the authors'
    further curation, which is not described and not done here; 84.8 from the whole set. Theirs are the best of each
    evaluation's epochs on the test images, ours the last. About six hours per arm on a large GPU.

    Args:
        data: a classification data set of images.
        images_per_class: stored images of each class.
        network: a name of `stillroom.blocks.build`.
        iterations: passes over all classes.
        pretrained: how many networks are trained first.
        pretraining_epochs: of each.
        evaluation_epochs: of each network that is trained on a set.
        evaluations: networks that a set is measured with; their mean counts.
    """
    setting = Setting(
        data,
        images_per_class,
        2,
        network,
        None,
        None,
        None,
        iterations,
        1024,
        1024,
        1e-3,
        pretrained,
        PRETRAINING.change(epochs=pretraining_epochs),
        Training(epochs=evaluation_epochs, batch_size=128, optimizer=halving(1e-3), keep="last"),
        evaluations,
        True,
    )
    arm = partial(measure_by, setting)
    return Experiment(
        task=Measured("accuracy"),
        arms={
            "random-real": arm(random_real),
            "random-tiles": arm(random_tiles),
            "init-only": arm(partial(condensed, iterations=0)),
            "calibration-only": arm(partial(condensed, matching_weight=0.0)),
            "normal-frequencies": arm(partial(condensed, learned_frequencies=False)),
            "ncfm": arm(condensed),
        },
        claims=[
            Claim("ncfm", ">", "init-only", on="accuracy"),
            Claim("ncfm", ">", "random-tiles", on="accuracy"),
            Claim("ncfm", ">", "normal-frequencies", on="accuracy"),
        ],
        baseline="random-real",
        controls=("calibration-only",),
        rivals=("random-real", "random-tiles", "init-only"),
        title="Neural characteristic function matching (NCFM) on CIFAR-10",
        question=f"{images_per_class} stored images per class are to train a {network} on CIFAR-10.",
        seeds=3,
    )
