"""Data of detectors: images of any sizes with boxes and classes, from data sets as torchvision has them and from COCO.

Boxes are x1, y1, x2, y2 in pixels of the image as it comes; classes are numbered from 1, since 0 is the background.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from stillroom.data.batch import Ragged
from stillroom.data.images import SUFFIXES, to_pixels
from stillroom.data.parts import Part, SamplesPart, Source, part_of
from stillroom.data.samples import Samples, as_input

ANNOTATIONS = "annotations.json"


class BoxSamples(Samples):
    """Images of any sizes, fetched one by one, each with its boxes.

    Args:
        fetch: `fetch(row) -> (image, target)`: an image `(C, H, W)`, uint8 or floats in [0, 1], and
            `{"boxes": (n, 4), "labels": (n,)}`, or None for an image without annotations.
        length: number of images.
        targets: what is known of the boxes up front; what comes with the image goes before (a data set may turn both).
        shape: `(C, H, W)` where all images have one size, else `(C,)`.
    """

    lazy = True
    largest_batch = 4

    def __init__(
        self, fetch: Callable[[int], tuple[Tensor, Any]], length: int, targets: Ragged | None, shape: Sequence[int]
    ) -> None:
        super().__init__(length, shape, targets)
        self._fetch = fetch
        self.reads_labels = True

    def _drop_labels(self) -> None:
        super()._drop_labels()
        self.reads_labels = False

    def _read(self, rows: Tensor) -> tuple[Any, Any, Mapping[str, Tensor]]:
        pairs = [self._fetch(row) for row in rows.tolist()]
        inputs = Ragged([as_input(image) for image, _ in pairs])
        return inputs, Ragged([target for _, target in pairs]) if self.reads_labels else None, {}


def gives_boxes(spec: Any) -> bool:
    """Whether a Python object holds images with boxes: `(image, {"boxes", "labels"})`, or lists of both."""
    from stillroom.data.objects import _parts_of

    first = next(iter(_parts_of(spec).values()))
    if isinstance(first, (tuple, list)) and len(first) == 2 and isinstance(first[1], list) and first[1]:
        return _is_target(first[1][0])
    dataset = first.dataset if isinstance(first, DataLoader) else first
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or isinstance(dataset, (Mapping, str)):
        return False
    if isinstance(dataset, (Tensor, np.ndarray, list, tuple, Samples)) or not len(dataset):
        return False
    item = dataset[0]
    return isinstance(item, (tuple, list)) and len(item) == 2 and _is_target(item[1])


def _is_target(value: Any) -> bool:
    return isinstance(value, Mapping) and "boxes" in value and "labels" in value


def read_image_pool(spec: Any) -> Source:
    """Take images of any sizes without looking at boxes: a folder, or a data set of images or of images with boxes.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no images.
    """
    if isinstance(spec, (str, Path)):
        root = Path(spec).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {str(root)!r}: check the path")
        files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"{str(root)!r} holds no images, with a suffix such as .jpg or .png")
        samples, name = BoxSamples(_Files(files, None), len(files), None, (3,)), root.resolve().name
    else:
        dataset: Any = spec.dataset if isinstance(spec, DataLoader) else spec
        fetch = _Fetch(dataset)
        samples, name = BoxSamples(fetch, len(dataset), None, fetch(0)[0].shape[:1]), "data"
    return Source({"train": SamplesPart(samples)}, "detection", None, name)


def read_boxes(spec: Any) -> Source:
    """Take data sets of `(image, {"boxes", "labels"})`, their loaders, `(images, targets)`, or parts of such.

    Classes are those that occur, from 1 to the largest number, under the names in the data set's `classes` where it has
    some (with or without the background in front). Where a data set has no list `targets`, every item is read once.

    Raises:
        ValueError: a target of another form, or no box at all.
    """
    from stillroom.data.objects import _parts_of

    notes: list[str] = []
    parts: dict[str, Part] = {}
    largest, names = 0, None
    for part, given in _parts_of(spec).items():
        dataset = given.dataset if isinstance(given, DataLoader) else given
        if isinstance(given, DataLoader):
            notes.append("of a DataLoader of images with boxes the data set is taken, without its collate_fn")
        if isinstance(dataset, (tuple, list)) and len(dataset) == 2 and not hasattr(dataset, "classes"):
            dataset = _Pairs(*dataset)
        samples, highest = _from_dataset(dataset, part, notes)
        largest, names = max(largest, highest), names or getattr(dataset, "classes", None)
        parts[part] = SamplesPart(samples)
    if not largest:
        raise ValueError("the data set holds no box at all: give targets with boxes, or another task")
    return Source(parts, "detection", _class_names(names, largest), "data", notes)


class _Pairs:
    """Images and their targets in two lists (or a tensor of images and a list)."""

    def __init__(self, images: Any, targets: Sequence[Any]) -> None:
        if len(images) != len(targets):
            raise ValueError(f"there are {len(images)} images, but {len(targets)} targets: give one for each image")
        self.images, self.targets = images, list(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.images[row], self.targets[row]


class _Fetch:
    """Fetches an item of somebody's data set as tensors."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, row: int) -> tuple[Tensor, Any]:
        item = self.dataset[row]
        image, target = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)
        return _image(image, row), None if target is None else as_target(target, row)


def _from_dataset(dataset: Any, part: str, notes: list[str]) -> tuple[BoxSamples, int]:
    fetch, length = _Fetch(dataset), len(dataset)
    if not length:
        raise ValueError(f"the {part} data set is empty: give at least one image")
    first = fetch(0)[0]
    known = getattr(dataset, "targets", None)
    sizes = {tuple(first.shape)}
    if isinstance(known, list) and len(known) == length and all(map(_is_target, known)):
        targets = Ragged([as_target(target, row) for row, target in enumerate(known)])
        sizes |= {tuple(fetch(row)[0].shape) for row in (length // 2, length - 1)}
    else:
        targets = Ragged()
        for row in range(length):
            image, target = fetch(row)
            sizes.add(tuple(image.shape))
            targets.append(target)
        notes.append(f"all {length} items of the {part} data set were read once, to learn their boxes")
    labels = [target["labels"] for target in targets if target is not None]
    whole = torch.cat(labels) if labels else torch.zeros(0)
    highest = int(whole.max()) if len(whole) else 0
    shape = tuple(first.shape) if len(sizes) == 1 else first.shape[:1]
    return BoxSamples(fetch, length, targets if labels else None, shape), highest


def _class_names(names: Any, largest: int) -> list[str]:
    if names is not None and len(names) == largest + 1 and "background" in str(names[0]):
        names = names[1:]
    if names is not None and len(names) >= largest:
        return [str(name) for name in names]
    return [str(number) for number in range(1, largest + 1)]


def as_target(target: Any, row: int) -> dict[str, Tensor]:
    """Bring a target to `boxes` `(n, 4)` float32 and `labels` `(n,)` int64; other keys are left out.

    Raises:
        ValueError: boxes or labels of another form; `row` names the image.
    """
    if not _is_target(target):
        given = f"a dict of {', '.join(map(str, target))}" if isinstance(target, Mapping) else type(target).__name__
        raise ValueError(f'the target of image {row} must be a dict with "boxes" and "labels", given {given}')
    boxes = torch.as_tensor(target["boxes"]).detach().as_subclass(Tensor).float()
    labels = torch.as_tensor(target["labels"]).detach().as_subclass(Tensor)
    boxes = boxes.reshape(0, 4) if not boxes.numel() else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"the boxes of image {row} must have shape (n, 4), given {tuple(boxes.shape)}")
    if labels.numel() and labels.is_floating_point():
        raise ValueError(f"the labels of image {row} must be whole class numbers from 1, given dtype {labels.dtype}")
    if labels.shape != boxes.shape[:1]:
        raise ValueError(f"image {row} has {len(boxes)} boxes, but labels of shape {tuple(labels.shape)}: one per box")
    return {"boxes": boxes, "labels": labels.long()}


def _image(image: Any, row: int) -> Tensor:
    tensor = to_pixels(image) if isinstance(image, Image.Image) else torch.as_tensor(image).as_subclass(Tensor)
    if tensor.ndim != 3:
        raise ValueError(f"image {row} must have shape (C, H, W), given {tuple(tensor.shape)}")
    return tensor.float() if tensor.dtype == torch.float64 else tensor


# ---- COCO ------------------------------------------------------------------------------------------------------------


def is_coco(root: Path) -> bool:
    """Whether a folder holds annotations.json, itself or in a folder per split."""
    return (root / ANNOTATIONS).is_file() or any(root.glob(f"*/{ANNOTATIONS}"))


def read_coco(root: Path) -> Source:
    """Read images and boxes of a COCO folder; images are decoded when needed.

    Layouts: `root/annotations.json` and its images in `root/images/` or `root/`; or such folders per split,
    `root/train/`, `root/val/`, `root/test/`; `root/unlabelled/` may hold images only. Categories are numbered from 1 in
    the order of their ids. Crowds are left out, and boxes without an area are, with a note.

    Raises:
        FileNotFoundError: an image that the annotations name is missing.
        ValueError: no COCO annotations, or splits whose categories differ.
    """
    folders: dict[str, Path] = {}
    if (root / ANNOTATIONS).is_file():
        folders["train"] = root
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        part = part_of(folder.name)
        if part is not None and ((folder / ANNOTATIONS).is_file() or part == "unlabelled"):
            folders[part] = folder
    if "train" not in folders:
        raise ValueError(
            f"{str(root)!r} has no {ANNOTATIONS}, neither itself nor in a folder 'train': put the images into images/ "
            "and the COCO annotations beside it"
        )
    notes: list[str] = []
    parts: dict[str, Part] = {}
    classes: list[str] = []
    for part, folder in folders.items():
        if part == "unlabelled" and not (folder / ANNOTATIONS).is_file():
            files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
            parts[part] = SamplesPart(BoxSamples(_Files(files, None), len(files), None, (3,)))
            continue
        names, files, targets, size = _annotations(folder, notes)
        if classes and names != classes:
            raise ValueError(
                f"the categories of {folder.name!r} are {', '.join(names[:5])}, but those before are "
                f"{', '.join(classes[:5])}: use one list in all splits"
            )
        classes = names
        parts[part] = SamplesPart(BoxSamples(_Files(files, targets), len(files), targets, (3, *size)))
    return Source(parts, "detection", classes, root.resolve().name, list(dict.fromkeys(notes)))


def _annotations(folder: Path, notes: list[str]) -> tuple[list[str], list[Path], Ragged, tuple[int, ...]]:
    content = json.loads((folder / ANNOTATIONS).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        raise ValueError(
            f"{folder / ANNOTATIONS} is no COCO file: expected the keys images, annotations and categories"
        )
    ids = sorted(category["id"] for category in content["categories"])
    number = {identity: place + 1 for place, identity in enumerate(ids)}
    name = {category["id"]: str(category["name"]) for category in content["categories"]}
    found: dict[Any, list[tuple[list[float], int]]] = {image["id"]: [] for image in content["images"]}
    crowds = flat = 0
    for one in content["annotations"]:
        x, y, width, height = one["bbox"]
        if one.get("iscrowd"):
            crowds += 1
        elif width <= 0 or height <= 0:
            flat += 1
        else:
            found[one["image_id"]].append(([x, y, x + width, y + height], number[one["category_id"]]))
    if crowds:
        notes.append(f"{crowds} crowd annotations in {folder.name!r} are left out")
    if flat:
        notes.append(f"{flat} boxes without an area in {folder.name!r} are left out")
    files = [_file(folder, image["file_name"]) for image in content["images"]]
    targets = Ragged(
        {
            "boxes": torch.tensor([box for box, _ in found[image["id"]]]).float().reshape(-1, 4),
            "labels": torch.tensor([label for _, label in found[image["id"]]], dtype=torch.int64),
        }
        for image in content["images"]
    )
    sizes = {(image.get("height"), image.get("width")) for image in content["images"]}
    size = tuple(side for side in sizes.pop() if side is not None) if len(sizes) == 1 else ()
    return [name[identity] for identity in ids], files, targets, size if len(size) == 2 else ()


def _file(folder: Path, name: str) -> Path:
    places = [folder / "images" / name, folder / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{folder / ANNOTATIONS} names the image {name!r}, which is not in {places[0].parent}")


class _Files:
    """Decodes an image to RGB, its pixels as they are stored (boxes are counted on those, whatever EXIF says)."""

    def __init__(self, files: Sequence[Path], targets: Ragged | None) -> None:
        self.files, self.targets = files, targets

    def __call__(self, row: int) -> tuple[Tensor, Any]:
        with Image.open(self.files[row]) as image:
            pixels = np.array(image.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1), None if self.targets is None else self.targets[row]
