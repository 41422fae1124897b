"""Image folders: a folder per class, with or without folders per split, or just images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from stillroom.data.images import SUFFIXES, ImagePart, listed
from stillroom.data.labels import read_labels
from stillroom.data.parts import Part, Source, part_of

LITTER = frozenset(("thumbs.db", "desktop.ini", "__macosx"))


def read_folder(root: Path, *, task: str | None = None) -> Source:
    """Find the images of a folder and the classes that its folders name; nothing is decoded.

    Layouts:
        `root/train/CLASS/*` with any of `root/val`, `root/valid`, `root/validation`, `root/test`, `root/unlabelled`;
        `root/CLASS/*`; `root/*` (no labels). Folders below a class folder belong to it. Files whose name begins with a
        dot are ignored, and so are files that are no images (these are noted). Classes are numbered in the order of
        their names, also those without images.

    Args:
        root: the folder.
        task: "unlabelled" takes every image below `root` (or `root/train`), whatever its folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no images, one class only, a class in the test folder that is not in the training folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}: check the path")
    notes: list[str] = []
    splits: dict[str, Path] = {}
    for folder in _folders(root):
        part = part_of(folder.name)
        if part in splits:
            raise ValueError(
                f"folders {splits[part].name!r} and {folder.name!r} in {str(root)!r} both mean {part}: keep one"
            )
        if part is not None:
            splits[part] = folder
    if not splits:
        splits = {"train": root}
    elif "train" not in splits:
        raise ValueError(f"{str(root)!r} has a folder {next(iter(splits.values())).name!r}, but none called 'train'")
    if task == "unlabelled":
        pool = splits.get("unlabelled", splits["train"])
        return _source(root, {"train": [(path, None) for path in _images(pool, notes)]}, None, task, notes)

    classes = [folder.name for folder in _folders(splits["train"])]
    found: dict[str, list[tuple[Path, str | None]]] = {}
    for part, folder in splits.items():
        classed = [(path, name.name) for name in _folders(folder) for path in _images(name, notes)]
        flat = list(_images(folder, notes, deep=False))
        if part == "unlabelled" or not classes:
            found[part] = [(path, None) for path in _images(folder, [])]
        elif not classed:
            if part == "train" and flat:
                classes, found[part] = [], [(path, None) for path in flat]
            elif flat:
                notes.append(f"the {len(flat)} images in {folder.name!r} are in no class folder, so they are not used")
        else:
            found[part] = [(path, name) for path, name in classed]
            if flat:
                notes.append(
                    f"{len(flat)} images in {folder.name!r} are in no class folder and are left out: "
                    f"{listed([path.name for path in flat])}"
                )
            if strange := sorted({name for _, name in classed} - set(classes)):
                raise ValueError(
                    f"class {strange[0]!r} is in {folder.name!r}, but not in {splits['train'].name!r}: "
                    "both must have the same class folders"
                )
    found = {part: files for part, files in found.items() if files}
    if not classes and found.get("train"):
        notes.append(f"{splits['train'].name!r} has no folder per class: the data are taken as unlabelled")
    return _source(root, found, classes or None, task, notes)


def _source(
    root: Path,
    found: dict[str, list[tuple[Path, str | None]]],
    classes: list[str] | None,
    task: str | None,
    notes: list[str],
) -> Source:
    if not found.get("train"):
        raise ValueError(
            f"{str(root)!r} holds no images to train on: expected train/CLASS/*, CLASS/* or "
            f"images, with a suffix such as .jpg or .png"
        )
    if classes is not None:
        used = {name for files in found.values() for _, name in files}
        for name in classes:
            if name not in used:
                notes.append(f"class folder {name!r} holds no images; the class keeps its number")
        if len(filled := used - {None}) < 2:
            raise ValueError(
                f"{str(root)!r} holds one class only ({min(filled, key=str)!r}): a classification needs two or more; "
                "if the classes lie deeper, pass that folder; without classes, put the images into the folder itself"
            )
    number = {name: position for position, name in enumerate(classes or [])}
    raw = {
        part: None if classes is None or files[0][1] is None else torch.tensor([number[str(name)] for _, name in files])
        for part, files in found.items()
    }
    labels = read_labels(raw, task=task, classes=classes)
    parts: dict[str, Part] = {}
    for part, files in found.items():
        paths = [path for path, _ in files]
        parts[part] = ImagePart(len(paths), _Opener(paths), _Namer(paths, root), labels.parts[part])
    return Source(parts, labels.kind, labels.classes, root.resolve().name, [*notes, *labels.notes])


class _Opener:
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __call__(self, row: int) -> Image.Image:
        return Image.open(self.paths[row])


class _Namer:
    def __init__(self, paths: list[Path], root: Path) -> None:
        self.paths, self.root = paths, root

    def __call__(self, row: int) -> str:
        return self.paths[row].relative_to(self.root).as_posix()


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _ignored(path))


def _images(folder: Path, notes: list[str], *, deep: bool = True) -> Iterator[Path]:
    """Yield image files in the order of their paths and note the other files."""
    others = []
    paths = sorted(folder.rglob("*") if deep else folder.iterdir())
    for path in paths:
        if any(_ignored(step) for step in (path, *path.relative_to(folder).parents)) or path.is_dir():
            continue
        if path.suffix.lower() in SUFFIXES:
            yield path
        else:
            others.append(path.name)
    if others:
        notes.append(f"{len(others)} files in {folder.name!r} are no images and are ignored: {listed(others)}")


def _ignored(path: Path) -> bool:
    return (path.name.startswith(".") and path.name not in (".", "")) or path.name.lower() in LITTER
