"""Samples of several modalities at once: data sets paired by class, and one image seen as two halves."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.data.embedded import digits
from stillroom.data.rows import hold_out
from stillroom.data.samples import Samples, Splits, TensorSamples
from stillroom.data.sound import spoken_digits

HALVES_TEST = 897


def digit_halves() -> Splits:
    """Load scikit-learn's digits as two modalities: the upper four rows and the lower four rows of each image.

    Returns:
        Inputs `{"upper": (32,), "lower": (32,)}` in [0, 1], classes "0" to "9": 900 to train on, 897 to report, the
        same cut for every seed; no validation split.
    """
    whole = digits()
    train, test = (part.batch(torch.arange(len(part))) for part in (whole.train, whole.test))
    images = torch.cat([train.inputs, test.inputs]).flatten(1)
    labels = torch.cat([train.labels, test.labels])  # type: ignore[list-item]
    samples = TensorSamples({"upper": images[:, :32], "lower": images[:, 32:]}, labels)
    train_rows, test_rows = hold_out(len(samples), HALVES_TEST, 0, labels)
    return Splits(samples.subset(train_rows), samples.subset(test_rows), classes=whole.classes, name="digit-halves")


def spoken_and_written_digits(*, seed: int = 0) -> Splits:
    """Load spoken digits, each with an image of the same digit beside it (from scikit-learn's digits).

    Training recordings get training images, reported ones reported images, so that no image is in both.

    Args:
        seed: chooses the images; 0 or more.

    Returns:
        Inputs `{"sound": (1, 32, 40), "image": (1, 8, 8)}`, classes "0" to "9": 2,700 to train on, 300 to report.

    Raises:
        FileNotFoundError: there are no recordings; the message says what to put where.
    """
    return pair_by_class(spoken_digits(), digits(), names=("sound", "image"), seed=seed)


def av_mnist(*, seed: int = 0) -> Splits:
    """Load MNIST, each image with a recording of the same spoken digit beside it (AV-MNIST, without its noise).

    Args:
        seed: chooses the recordings; 0 or more.

    Returns:
        Inputs `{"image": (1, 28, 28), "sound": (1, 32, 40)}`, classes "0" to "9".

    Raises:
        FileNotFoundError: there are no recordings; the message says what to put where.
        ConnectionError: MNIST is not there and cannot be fetched.

    Source: Vielzeuf et al. 2018, arXiv:1808.07275 (the idea of the pairs).
    """
    from stillroom.data.sources import load_data  # which lists this data set by name

    sounds = spoken_digits()
    images = load_data("mnist", validation_share=0.0)
    images.classes = sounds.classes
    return pair_by_class(images, sounds, names=("image", "sound"), seed=seed)


def pair_by_class(first: Splits, second: Splits, *, names: tuple[str, str], seed: int = 0) -> Splits:
    """Put beside every sample of one data set a sample of the same class of another.

    Parts are paired with the same parts. Within a class the partners are drawn without repetition for as long as there
    are any, then again from the beginning, in one random order.

    Args:
        first: decides how many pairs there are; its numbers, fields and labels are kept.
        second: where partners come from.
        names: of the two modalities in the paired inputs.
        seed: chooses the partners; 0 or more.

    Returns:
        Inputs `{name of first: ..., name of second: ...}`, in memory.

    Raises:
        ValueError: the names are equal, the classes differ, a part has no class numbers, or the second data set lacks a
            part or a class that the first has.

    Example:
        >>> from stillroom.data import digits
        >>> pairs = pair_by_class(digits(), digits(), names=("left", "right"))
        >>> {name: tuple(part.shape) for name, part in pairs.test.batch([0, 1]).inputs.items()}
        {'left': (2, 1, 8, 8), 'right': (2, 1, 8, 8)}
    """
    if names[0] == names[1]:
        raise ValueError(f"the two modalities need different names, given {names[0]!r} twice")
    if first.classes != second.classes:
        raise ValueError(
            f"{first.name!r} has the classes {first.classes}, but {second.name!r} has {second.classes}: pair data sets "
            "of the same classes, in the same order"
        )
    paired: dict[str, Samples] = {}
    for number, part in enumerate(("train", "test", "validation")):
        ours: Samples | None = getattr(first, part)
        theirs: Samples | None = getattr(second, part)
        if ours is None:
            continue
        if theirs is None:
            raise ValueError(f"{second.name!r} has no {part} part to pair with that of {first.name!r}: give it one")
        generator = torch.Generator().manual_seed(1000 * seed + number)
        rows = _partners(_labels(ours, first.name), _labels(theirs, second.name), generator)
        mine, other = ours.batch(torch.arange(len(ours))), theirs.batch(rows)
        paired[part] = TensorSamples(
            {names[0]: mine.inputs, names[1]: other.inputs}, mine.labels, ours.index, fields=ours.fields
        )
    return Splits(
        paired["train"],
        paired["test"],
        paired.get("validation"),
        classes=first.classes,
        name=f"{first.name} with {second.name}",
        notes=[*first.notes, *second.notes],
    )


def _labels(samples: Samples, name: str) -> Tensor:
    labels = samples.labels
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"{name!r} has no class number for every sample, by which it could be paired")
    return labels


def _partners(ours: Tensor, theirs: Tensor, generator: torch.Generator) -> Tensor:
    rows = torch.empty(len(ours), dtype=torch.int64)
    for label in ours.unique():
        mine = (ours == label).nonzero().flatten()
        there = (theirs == label).nonzero().flatten()
        if not len(there):
            raise ValueError(f"the second data set has no sample of class {int(label)} to pair with: leave it out")
        shuffled = there[torch.randperm(len(there), generator=generator)]
        rows[mine] = shuffled.repeat(-(-len(mine) // len(shuffled)))[: len(mine)]
    return rows
