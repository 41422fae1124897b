"""Parquet files and Hugging Face data sets: tables with a column of encoded images and one of labels."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from stillroom.data.batch import UNLABELLED
from stillroom.data.images import UNREADABLE, ImagePart, is_void, listed, mask_table
from stillroom.data.labels import read_labels
from stillroom.data.parts import Part, Source, part_of

if TYPE_CHECKING:
    import pyarrow as pa

IN_MEMORY = (
    2 * 2**30
)  # bytes of Parquet files that are read whole; larger ones go through datasets' memory-mapped cache
IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "png")
LABEL_NAMES = ("label", "labels", "class", "target", "fine_label", "category", "y")
MASK_NAMES = ("mask", "masks", "label", "labels", "annotation", "segmentation_mask", "segmentation")


def read_parquet(
    path: Path, *, task: str | None = None, image_column: str | None = None, label_column: str | None = None
) -> Source:
    """Read a Parquet file, or a folder of them; images stay encoded.

    In a folder, the files' names (or their folders') begin with the part they belong to: train, validation, val, valid,
    dev, test, unlabelled. A file `classes.json` beside them (a list of names) names the classes.

    Raises:
        FileNotFoundError: there is no such file, or no Parquet file in the folder.
        ValueError: the columns cannot be told.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet")) if path.is_dir() else []
    if not files:
        raise FileNotFoundError(f"there is no Parquet file at {str(path)!r}: check the path")
    grouped: dict[str, list[Path]] = {}
    for file in files:
        part = part_of(re.split(r"[-_.]", file.name)[0]) or part_of(file.parent.name) or ""
        grouped.setdefault(part, []).append(file)
    notes: list[str] = []
    if set(grouped) == {""} or path.is_file():
        grouped = {"train": files}
    elif unknown := grouped.pop("", None):
        notes.append(f"not used, because the names do not say which part: {listed([file.name for file in unknown])}")
    tables: dict[str, pa.Table] = {}
    features: dict[str, Any] = {}
    for part, members in grouped.items():
        tables[part], found = _read_files(members)
        features = features or found
    listing = (path if path.is_dir() else path.parent) / "classes.json"
    classes = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else None
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"{str(listing)!r} must hold a list of class names")
    name = path.resolve().stem if path.is_file() else path.resolve().name
    return read_tables(
        tables, features, name, notes, task=task, image_column=image_column, label_column=label_column, classes=classes
    )


def read_datasets(
    found: Any, name: str, *, task: str | None = None, image_column: str | None = None, label_column: str | None = None
) -> Source:
    """Take a `datasets.Dataset`, or a dict of them; images stay encoded.

    Raises:
        ValueError: no part of it can be trained on, or the columns cannot be told.
        TypeError: it is a streaming data set, which has no length and no row numbers.
    """
    import datasets

    parts: dict[str, Any] = dict(found) if isinstance(found, Mapping) else {"train": found}
    if any(isinstance(part, datasets.IterableDataset) for part in parts.values()):
        raise TypeError("a streaming data set has no length and no row numbers: load it without streaming=True")
    notes: list[str] = []
    known: dict[str, Any] = {}
    for key, part in parts.items():
        place = part_of(str(key)) or ("train" if len(parts) == 1 else None)
        if place is None or place in known:
            notes.append(f"split {str(key)!r} is not used")
        else:
            known[place] = part
    if not known:
        raise ValueError(f"{name!r} has splits {', '.join(map(repr, parts))}, but none called 'train' or 'test'")
    tables = {}
    features: dict[str, Any] = {}
    for key, part in known.items():
        flat = part if part._indices is None else part.flatten_indices()
        tables[key] = flat.data.table
        features = features or part.features.to_dict()
    return read_tables(tables, features, name, notes, task=task, image_column=image_column, label_column=label_column)


def read_tables(
    tables: Mapping[str, pa.Table],
    features: Mapping[str, Any],
    name: str,
    notes: list[str],
    *,
    task: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """Find the columns of images and labels in Arrow tables.

    Args:
        tables: by part.
        features: what Hugging Face's metadata say about the columns; may be empty.
        name: what to call the data set.
        notes: sentences for the user so far.
        task: what the labels shall be.
        image_column: None to find it.
        label_column: None to find it.
        classes: names of the classes, where the columns do not say.
    """
    first = next(iter(tables.values()))
    columns = list(first.column_names)
    for given, what in ((image_column, "image_column"), (label_column, "label_column")):
        if given is not None and given not in columns:
            raise ValueError(f"{what} {given!r} is not in {name!r}: its columns are {', '.join(columns)}")
    images = [column for column in columns if _holds_images(first, column, features)]
    if label_column is None and task != "unlabelled":
        label_column = _label_column(columns, images, image_column, features, task)
        if label_column is None:
            notes.append(
                f"no label column was found among {', '.join(columns)} (name it with label_column=): the data are "
                "taken as unlabelled"
            )
    if image_column is None:
        free = [column for column in images if column != label_column]
        image_column = next((column for column in IMAGE_NAMES if column in free), free[0] if len(free) == 1 else None)
        if image_column is None:
            what = "several image columns" if free else "no image column"
            raise ValueError(
                f"{name!r} has {what} among {', '.join(columns)}: name one with image_column=, or load the table "
                "yourself and pass arrays (X, y)"
            )
    masks = label_column is not None and label_column in images
    raw: dict[str, Any] = dict.fromkeys(tables)
    if label_column is not None and not masks:
        kind = features.get(label_column) or {}
        classes = kind.get("names", classes) if isinstance(kind, Mapping) else classes
        for part, table in tables.items():
            if label_column in table.column_names:
                raw[part] = _values(table, label_column)
                if isinstance(kind, Mapping) and kind.get("_type") == "ClassLabel":
                    raw[part] = np.where(raw[part] == -1, UNLABELLED, raw[part])
    labels = read_labels(raw, task=task, classes=classes, masks=masks)
    parts: dict[str, Part] = {}
    for part, table in tables.items():
        open_mask = _Cell(table, str(label_column)) if masks and label_column in table.column_names else None
        parts[part] = ImagePart(
            len(table), _Cell(table, image_column), _Namer(table, image_column), labels.parts[part], open_mask
        )
        if open_mask is not None:
            parts[part].table = mask_table(classes)  # type: ignore[attr-defined]
    names = labels.classes
    if masks and names is not None:
        if any(is_void(name) for name in names):
            notes.append(f"mask pixels of class {next(filter(is_void, names))!r} carry no label (-100)")
        names = [name for name in names if not is_void(name)]
    return Source(parts, labels.kind, names, name, [*notes, *labels.notes])


class _Cell:
    """Opens the image in one cell of a column: bytes, or a struct of bytes and path."""

    def __init__(self, table: pa.Table, column: str) -> None:
        self.column = table.column(column)

    def __call__(self, row: int) -> Image.Image:
        value = self.column[row].as_py()
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if not value:
            raise ValueError("the cell is empty")
        return Image.open(io.BytesIO(value) if isinstance(value, bytes) else value)


class _Namer:
    def __init__(self, table: pa.Table, column: str) -> None:
        self.column = table.column(column)

    def __call__(self, row: int) -> str:
        value = self.column[row].as_py()
        path = value.get("path") if isinstance(value, Mapping) else None
        return f"row {row}" + (f" ({path})" if path else "")


def _read_files(files: Sequence[Path]) -> tuple[pa.Table, dict[str, Any]]:
    if sum(file.stat().st_size for file in files) > IN_MEMORY:
        import datasets

        mapped = datasets.Dataset.from_parquet([str(file) for file in files])
        return mapped.data.table, mapped.features.to_dict()
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pa.concat_tables([pyarrow.parquet.read_table(file, partitioning=None) for file in files])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{str(files[0])!r} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    return table, metadata.get("info", {}).get("features", {})


def _holds_images(table: pa.Table, column: str, features: Mapping[str, Any]) -> bool:
    kind = features.get(column)
    if isinstance(kind, Mapping) and "_type" in kind:
        return kind["_type"] == "Image"
    import pyarrow as pa

    stored = table.schema.field(column).type
    encoded = pa.types.is_binary(stored) or pa.types.is_large_binary(stored)
    if pa.types.is_struct(stored):
        encoded = "bytes" in {stored.field(number).name for number in range(stored.num_fields)}
    if not encoded:
        return False
    cell = _Cell(table, column)
    for row in range(min(len(table), 20)):
        try:
            cell(row).close()
            return True
        except UNREADABLE:
            continue
    return False


def _label_column(
    columns: Sequence[str],
    images: Sequence[str],
    image_column: str | None,
    features: Mapping[str, Any],
    task: str | None,
) -> str | None:
    masks = [name for name in MASK_NAMES if name in images and name != image_column]
    if task == "segmentation" and masks:
        return masks[0]
    named = [name for name in LABEL_NAMES if name in columns and name != image_column]
    if named:
        return named[0]
    numbered = [
        name for name, kind in features.items() if isinstance(kind, Mapping) and kind.get("_type") == "ClassLabel"
    ]
    if len(numbered) > 1:
        raise ValueError(f"there are several columns of classes ({', '.join(numbered)}): name one with label_column=")
    return numbered[0] if numbered else masks[0] if masks else None


def _values(table: pa.Table, column: str) -> Any:
    """Read a column as a NumPy array where it has no gaps, else as a list."""
    import pyarrow as pa

    values = table.column(column)
    stored = values.type
    plain = pa.types.is_integer(stored) or pa.types.is_floating(stored) or pa.types.is_boolean(stored)
    if plain and not values.null_count:
        return values.to_numpy()
    found = values.to_pylist()
    if plain and pa.types.is_integer(stored):
        return np.array([UNLABELLED if value is None else value for value in found])
    return found
