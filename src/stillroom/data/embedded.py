"""Data that come with the installation: scikit-learn's 1,797 handwritten digits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stillroom.data.rows import hold_out
from stillroom.data.samples import Splits, TensorSamples

DIGITS_TEST = 600


def digits(*, seed: int = 0, labels: int | None = None) -> Splits:
    """Load 8x8 grey images of the digits 0 to 9: 1,197 to train on and 600 to report, the same cut for every seed.

    Args:
        seed: chooses which training images keep their label; 0 or more.
        labels: how many training images keep their label, 1 to 1,197, the shares of the classes kept; the others become
            `unlabelled`. None: all of them.

    Returns:
        Inputs `(1, 8, 8)` in [0, 1] (sixteenths), classes "0" to "9"; no validation split.

    Raises:
        ValueError: labels is out of range.

    Source: Alpaydin and Kaynak 1998, UCI machine learning repository, the test part as scikit-learn ships it.
    """
    pixels, classes = digit_pixels()
    images = pixels.div(16).view(-1, 1, 8, 8)
    samples = TensorSamples(images, classes)
    train_rows, test_rows = hold_out(len(samples), DIGITS_TEST, 0, classes)
    splits = Splits(
        samples.subset(train_rows),
        samples.subset(test_rows),
        classes=[str(digit) for digit in range(10)],
        name="digits",
    )
    return splits if labels is None else keep_labels(splits, labels, seed)


def digit_pixels() -> tuple[Tensor, Tensor]:
    """All 1,797 digits in their order: pixels `(1797, 64)` float32 in 0 to 16, and classes `(1797,)` int64."""
    package = find_spec("sklearn")
    file = Path(str(package.origin if package else "")).parent / "datasets" / "data" / "digits.csv.gz"
    if file.exists():  # importing scikit-learn takes seconds
        rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
        return rows[:, :-1], rows[:, -1].long()
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float(), torch.from_numpy(target).long()


def keep_labels(splits: Splits, labels: int, seed: int) -> Splits:
    """Let only so many training samples keep their label; the others join `unlabelled`.

    Args:
        splits: a data set whose training samples have labels and which has no pool yet.
        labels: how many keep their label, from 1 to all of them; stratified where labels are class numbers.
        seed: chooses which; 0 or more.

    Raises:
        ValueError: labels is out of range, the training samples have none, or there is a pool already.
    """
    train = splits.train
    if not 1 <= labels <= len(train):
        raise ValueError(f"labels must lie in [1, {len(train)}], the number of training samples, given {labels}")
    if splits.kind == "unlabelled" or (train.labels is None and not train.lazy):
        raise ValueError(f"labels={labels} asks to drop labels, but the training samples of {splits.name!r} have none")
    if splits.unlabelled is not None:
        raise ValueError(
            f"labels={labels} would make an unlabelled pool, but there is one already: use train_size={labels}"
        )
    rest, kept = hold_out(len(train), labels, seed, train.labels)
    pool = train.subset(rest).relabel(None) if len(rest) else None
    notes = [*splits.notes, f"{labels} of {len(train)} training samples keep their label, the others are unlabelled"]
    return Splits(
        train.subset(kept),
        splits.test,
        splits.validation,
        pool,
        classes=splits.classes,
        name=splits.name,
        notes=notes,
        kind=splits.kind,
        tokenizer=splits.tokenizer,
    )
