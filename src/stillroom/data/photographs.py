"""Photographs for super-resolution: two that come with scikit-learn, known test sets by name, folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stillroom.data.images import SUFFIXES
from stillroom.data.named import data_folder
from stillroom.data.pairs import ImagePairs, PatchPairs, check_pairs, make_pairs
from stillroom.data.parts import part_of
from stillroom.data.rows import choose, generator
from stillroom.data.samples import Samples, Splits

TEST_SETS = {"set5": ("Set5", "BSD100"), "set14": ("Set14", "BSD100"), "bsd100": ("BSD100", "")}
"""Name -> folder below STILLROOM_DATA/super-resolution that is reported on, and the one that is trained on ("": the
embedded photographs)."""
FOLDER = "super-resolution"
LOW_NAMES, HIGH_NAMES = ("lr", "low"), ("hr", "high")
STRIP = 8
"""Least width of a held-out strip, in pixels of the small image."""


@dataclass(frozen=True)
class Region:
    """A part of one of scikit-learn's two photographs, both 427 pixels high and 640 wide.

    Attributes:
        photograph: "china.jpg" or "flower.jpg".
        left: first column.
        right: one past the last column; all rows belong to the region.
    """

    photograph: str
    left: int
    right: int

    def overlaps(self, other: Region) -> bool:
        """Whether the two have a pixel in common."""
        return self.photograph == other.photograph and self.left < other.right and other.left < self.right


TRAIN_REGIONS = (Region("flower.jpg", 0, 640), Region("china.jpg", 0, 384))
TEST_REGIONS = (Region("china.jpg", 416, 640),)
"""Disjoint by 32 columns: the flower and the left 60% of the other picture train, its right 35% is reported."""


def photograph_regions(regions: Sequence[Region]) -> list[Tensor]:
    """Cut regions out of scikit-learn's photographs: uint8 `(3, 427, width)` each."""
    from sklearn.datasets import load_sample_image

    found = []
    for region in regions:
        picture = torch.from_numpy(np.array(load_sample_image(region.photograph))).permute(2, 0, 1)
        found.append(picture[:, :, region.left : region.right].contiguous())
    return found


def load_pairs(
    spec: Any = "photographs",
    *,
    scale: int = 2,
    patch_size: int = 24,
    seed: int = 0,
    train_size: int | None = None,
    test_size: int | None = None,
    validation_share: float = 0.1,
) -> Splits:
    """Load images for super-resolution; small ones are made by antialiased bicubic shrinking where there are none.

    Images are held in memory as bytes. The reported images are those that came along as such, else a fifth of the
    images, the same for every seed. The held-out part is the one that came along; else whole images; or, where there
    are too few for that, a strip at the right edge of every training image.

    Args:
        spec: what to load:

            - "photographs": two photographs that scikit-learn brings; what is trained on and what is reported are
              disjoint regions;
            - "set5", "set14" (trained on BSD100) or "bsd100" (trained on "photographs"): PNG files in the folders Set5,
              Set14 and BSD100 of `super-resolution` in the folder that STILLROOM_DATA names;
            - a folder of images, or one with folders train, test (and val); in each of them either images, or folders
              LR and HR with images of the same names;
            - a list of large images, uint8 arrays `(H, W, 3)` or tensors `(3, H, W)`, or a tuple of two such lists, to
              train on and to report; or `Splits`.
        scale: how many times smaller the input is.
        patch_size: side of the patches of the small image that are trained on.
        seed: chooses the held-out images and `train_size`.
        train_size: patches of an epoch; None for as many as cover the training images.
        test_size: how many images are reported on; None for all.
        validation_share: part of the training images held out, in [0, 1).

    Raises:
        FileNotFoundError: there is no such folder or data set; the message says what to put where.
        ValueError: images that cannot be used, or a number out of range.
    """
    if isinstance(spec, Splits):
        return spec
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share must lie in [0, 1), given {validation_share}")
    for name, number in (
        ("scale", scale),
        ("patch_size", patch_size),
        ("train_size", train_size),
        ("test_size", test_size),
    ):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be 1 or more, given {number}")
    name, parts, notes = _find(spec, scale)
    if "test" not in parts:
        _cut_test(parts, notes)
    if "validation" not in parts and validation_share:
        _hold_out(parts, validation_share, seed, scale, notes)
    test = parts["test"] if test_size is None else tuple(images[:test_size] for images in parts["test"])
    train = PatchPairs(*parts["train"], scale=scale, patch_size=patch_size)
    kept: Samples = train
    if train_size is not None:
        kept = train.subset(choose(len(train), min(train_size, len(train)), seed))
    first = len(train)
    held = parts.get("validation")
    validation = None if held is None else ImagePairs(*held, scale=scale, first=first)
    first += 0 if held is None else len(held[0])
    return Splits(
        kept,
        ImagePairs(*test, scale=scale, first=first),
        validation,
        name=name,
        notes=notes,
        kind="super-resolution",
    )


Parts = dict[str, tuple[list[Tensor], list[Tensor]]]


def _find(spec: Any, scale: int) -> tuple[str, Parts, list[str]]:
    if isinstance(spec, str) and spec == "photographs":
        regions = {"train": TRAIN_REGIONS, "test": TEST_REGIONS}
        return spec, {part: make_pairs(photograph_regions(those), scale) for part, those in regions.items()}, []
    if isinstance(spec, str) and spec in TEST_SETS:
        return _named(spec, scale)
    if isinstance(spec, (str, Path)):
        return _folder(Path(spec).expanduser(), scale)
    if isinstance(spec, tuple) and len(spec) == 2 and all(isinstance(part, list) for part in spec):
        parts = dict(zip(("train", "test"), spec, strict=True))
        return "", {part: make_pairs([_image(one) for one in images], scale) for part, images in parts.items()}, []
    if isinstance(spec, list) and spec:
        return "", {"train": make_pairs([_image(one) for one in spec], scale)}, []
    raise TypeError(
        "images for super-resolution are named by photographs, set5, set14, bsd100 or a folder, or given as lists of "
        f"arrays; given {type(spec).__name__}"
    )


def _named(name: str, scale: int) -> tuple[str, Parts, list[str]]:
    reported, trained = TEST_SETS[name]
    root = data_folder()
    parts: Parts = {}
    for part, folder in (("train", trained), ("test", reported)):
        if not folder:
            parts[part] = make_pairs(photograph_regions(TRAIN_REGIONS + TEST_REGIONS), scale)
            continue
        place = None if root is None else root / FOLDER / folder
        if place is None or not place.is_dir():
            raise FileNotFoundError(
                f"{name!r} is not in {str(root) if root else 'the folder that STILLROOM_DATA names'}: put the PNG "
                f"files of {folder} into {FOLDER}/{folder} there (github.com/jbhuang0604/SelfExSR has them)"
            )
        parts[part] = make_pairs([read_image(file) for file in _files(place)], scale)
    note = f"trained on {trained or 'the embedded photographs'}, reported on {reported}"
    return name, parts, [note]


def _folder(root: Path, scale: int) -> tuple[str, Parts, list[str]]:
    home = data_folder()
    if not root.is_dir() and home is not None and (home / FOLDER / root).is_dir():
        root = home / FOLDER / root
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(root)!r}, and none of that name in {FOLDER} of STILLROOM_DATA: give a folder of "
            "images or one with folders train and test, photographs, set5, set14 or bsd100"
        )
    inner = {part_of(folder.name): folder for folder in sorted(root.iterdir()) if folder.is_dir()}
    named = {part: folder for part, folder in inner.items() if part in ("train", "validation", "test")}
    if named and "train" not in named:
        raise ValueError(f"{str(root)!r} has a folder {next(iter(named.values())).name!r}, but none called 'train'")
    parts: Parts = {}
    for part, folder in (named or {"train": root}).items():
        parts[str(part)] = _pairs(folder, scale)
    return root.resolve().name, parts, []


def _pairs(folder: Path, scale: int) -> tuple[list[Tensor], list[Tensor]]:
    """Images of a folder as pairs: those of LR and HR inside it, or made from the images that lie in it."""
    inside = {one.name.lower(): one for one in folder.iterdir() if one.is_dir()}
    low = next((inside[name] for name in LOW_NAMES if name in inside), None)
    high = next((inside[name] for name in HIGH_NAMES if name in inside), None)
    if low is None and high is None:
        return make_pairs([read_image(file) for file in _files(folder)], scale)
    if low is None or high is None:
        raise ValueError(f"{str(folder)!r} has only one of the folders LR and HR: give both, or large images alone")
    small, large = ({file.stem: file for file in _files(place)} for place in (low, high))
    if small.keys() != large.keys():
        odd = sorted(small.keys() ^ large.keys())
        raise ValueError(f"{str(folder)!r} has {odd[0]!r} in only one of LR and HR ({len(odd)} such): name pairs alike")
    pairs = [read_image(small[name]) for name in small], [read_image(large[name]) for name in small]
    check_pairs(*pairs, scale)
    return pairs


def _files(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    if not found:
        raise ValueError(f"{str(folder)!r} holds no images: expected files ending in {', '.join(sorted(SUFFIXES))}")
    return found


def read_image(file: Path) -> Tensor:
    """Read an image as RGB, uint8 `(3, H, W)`.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(file) as opened:
            return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1).contiguous()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{str(file)!r} cannot be read as an image ({error}): remove it") from error


def _image(given: Any) -> Tensor:
    if isinstance(given, Image.Image):
        given = np.array(given.convert("RGB"))
    image = torch.as_tensor(np.array(given)) if not isinstance(given, Tensor) else given
    if image.ndim == 3 and image.shape[0] != 3 and image.shape[-1] == 3:
        image = image.permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 (H, W, 3) or (3, H, W), given {tuple(image.shape)} {image.dtype}")
    return image.contiguous()


def _cut_test(parts: Parts, notes: list[str]) -> None:
    """Report on a fifth of the images, the same for every seed."""
    low, high = parts["train"]
    count = max(len(low) // 5, 1)
    if len(low) < 2:
        raise ValueError(
            "one image cannot be both trained on and reported: give two or more, or folders train and test"
        )
    reported = set(choose(len(low), count, 0).tolist())
    for part, wanted in (("train", False), ("test", True)):
        rows = [row for row in range(len(low)) if (row in reported) == wanted]
        parts[part] = ([low[row] for row in rows], [high[row] for row in rows])
    notes.append(f"{count} of {len(low)} images are reported on, the same for every seed")


def _hold_out(parts: Parts, share: float, seed: int, scale: int, notes: list[str]) -> None:
    """Hold out whole training images, or a strip of each where they are too few."""
    low, high = parts["train"]
    count = int(share * len(low) + 0.5)
    if count:
        order = torch.randperm(len(low), generator=generator(seed, 1)).tolist()
        for part, rows in (("validation", order[:count]), ("train", sorted(order[count:]))):
            parts[part] = ([low[row] for row in rows], [high[row] for row in rows])
        return
    held_low, held_high, kept_low, kept_high = [], [], [], []
    for small, large in zip(low, high, strict=True):
        edge = small.shape[-1] - max(round(share * small.shape[-1]), STRIP)
        if edge < STRIP:
            raise ValueError(
                f"no strip can be held out of an image of {large.shape[-2]}x{large.shape[-1]} pixels: give a folder "
                "val, or validation_share=0"
            )
        kept_low.append(small[:, :, :edge])
        kept_high.append(large[:, :, : scale * edge])
        held_low.append(small[:, :, edge:])
        held_high.append(large[:, :, scale * edge :])
    parts["train"], parts["validation"] = (kept_low, kept_high), (held_low, held_high)
    notes.append("a strip at the right edge of every training image is held out")
