"""Interactions from where they lie: data sets by name, CSV files, SciPy matrices; and subsets of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.data.embedded import digit_pixels
from stillroom.data.interactions import Interactions, InteractionSplits
from stillroom.data.named import data_folder

BY_NAME = {
    "lastfm": "data1.txt and test1.txt, lines of user, artist and count separated by tabs, numbered from 1 "
    "(github.com/gusye1234/LightGCN-PyTorch, data/lastfm)",
    "yelp": "trn.npz, val.npz and tst.npz, SciPy sparse matrices of users x items (github.com/HKUDS/LightGNN, saved "
    "with scipy.sparse.save_npz)",
}


TEST_SHARE = 0.2
"""Part of each user's items that is reported on, where the data come without a test part."""


@dataclass(frozen=True)
class Table:
    """Interactions read from a file with names of its own.

    Attributes:
        interactions: the pairs, numbered.
        users: name of each user number.
        items: name of each item number.
    """

    interactions: Interactions
    users: list[str]
    items: list[str]


def read_interactions_csv(path: str | Path, *, user_column: str = "user", item_column: str = "item") -> Table:
    """Read pairs from a CSV file with a header; users and items may have any names.

    Args:
        path: of the file.
        user_column: header of the column of users.
        item_column: header of the column of items.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for column in (user_column, item_column):
            if column not in (reader.fieldnames or ()):
                raise ValueError(f"{path} has no column {column!r}; it has {', '.join(reader.fieldnames or ())}")
        pairs = [(row[user_column], row[item_column]) for row in reader]
    users, items = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    user_number, item_number = ({name: number for number, name in enumerate(names)} for names in (users, items))
    numbers = [(user_number[user], item_number[item]) for user, item in pairs]
    found = torch.tensor(numbers, dtype=torch.int64).reshape(-1, 2)
    return Table(Interactions(found[:, 0], found[:, 1], len(users), len(items)), users, items)


def digits_interactions() -> Interactions:
    """Scikit-learn's 1,797 handwritten digits as implicit feedback: an image "takes" its pixels of 8 or more (of 16).

    Returns:
        1,797 users (images) and 64 items (pixels).
    """
    pixels, _ = digit_pixels()
    return Interactions.from_matrix(pixels >= 8)


def load_interactions(
    data: Any, *, users: int | None = None, items: int | None = None, validation: float = 0.1, seed: int = 0
) -> InteractionSplits:
    """Load interactions, cut into training, validation and test.

    Args:
        data: "digits", or "lastfm" or "yelp" below the folder that STILLROOM_DATA names; a `.csv` or `.npz` file; a
            matrix `(U, I)`, `Interactions` or `InteractionSplits`. What has no test part gives 20 % of each user's
            items to one.
        users: keep the users with most interactions, at most so many (`most_active` of the training part, or of all
            where there is no test part); None for all. Users without any are left out where a number is given.
        items: keep the items with most interactions, in the same way; None for all.
        validation: share of each user's training items that is held out where the data have no validation part.
        seed: of the cuts.

    Raises:
        FileNotFoundError: the files are not there; the message says what to put where.
        ValueError: an unknown name, or a user without training interactions where no number of users is given.
    """
    train, held_out, test = _read(data)
    if users is not None or items is not None:
        chosen = most_active(train, users or train.user_count, items or train.item_count)
        train = train.keep_nodes(*chosen)
        held_out, test = (None if part is None else part.keep_nodes(*chosen) for part in (held_out, test))
    if test is None:
        return train.split(validation=validation, test=TEST_SHARE, seed=seed)
    if held_out is None and validation > 0:
        cut = train.split(validation=validation, test=0.0, seed=seed)
        train, held_out = cut.train, cut.validation
    return InteractionSplits(train, held_out, test)


Parts = tuple[Interactions, Interactions | None, Interactions | None]


def _read(data: Any) -> Parts:
    if isinstance(data, InteractionSplits):
        return data.train, data.validation, data.test
    if isinstance(data, Interactions):
        return data, None, None
    if not isinstance(data, (str, Path)):
        return Interactions.from_matrix(data), None, None
    name = str(data)
    if name == "digits":
        return digits_interactions(), None, None
    if name in BY_NAME:
        return _read_named(name)
    if name.endswith(".csv"):
        return read_interactions_csv(name).interactions, None, None
    if name.endswith(".npz"):
        from scipy.sparse import load_npz

        return Interactions.from_matrix(load_npz(name)), None, None
    known = ", ".join(("digits", *BY_NAME))
    raise ValueError(f"unknown interactions {name!r}: known are {known}, a .csv file or a .npz file of SciPy")


def _read_named(name: str) -> Parts:
    from scipy.sparse import load_npz

    folder = (data_folder() or Path()) / name
    files = ["data1.txt", "test1.txt"] if name == "lastfm" else ["trn.npz", "val.npz", "tst.npz"]
    missing = files if data_folder() is None else [file for file in files if not (folder / file).exists()]
    if missing:
        raise FileNotFoundError(
            f"{name} needs {', '.join(missing)} in the folder {name} below the one that the environment variable "
            f"STILLROOM_DATA names: {BY_NAME[name]}"
        )
    if name == "yelp":
        train, held_out, test = (Interactions.from_matrix(load_npz(folder / file)) for file in files)
        return train, held_out, test
    train_pairs, test_pairs = (_numbers(folder / file) - 1 for file in files)
    counts = torch.cat([train_pairs, test_pairs]).amax(0) + 1
    users, items = int(counts[0]), int(counts[1])
    train, test = (Interactions(pairs[:, 0], pairs[:, 1], users, items) for pairs in (train_pairs, test_pairs))
    return train, None, test


def _numbers(file: Path) -> Tensor:
    rows = [line.split()[:2] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return torch.tensor([[int(user), int(item)] for user, item in rows])


def most_active(interactions: Interactions, users: int, items: int) -> tuple[Tensor, Tensor]:
    """The items that most users took, and then the users who took most of those (ties: the lower number first).

    Args:
        interactions: what is counted.
        users: how many at most.
        items: how many at most.

    Returns:
        Numbers of users and items, each in order; users who took none of these items are left out.
    """
    top_items = (-interactions.item_degrees()).argsort(stable=True)[:items].sort().values
    taken = interactions.users[torch.isin(interactions.items, top_items)].bincount(minlength=interactions.user_count)
    order = (-taken).argsort(stable=True)[:users]
    return order[taken[order] > 0].sort().values, top_items
