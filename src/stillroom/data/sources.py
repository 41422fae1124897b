"""Load data from wherever they lie, cut them once, and say what was done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stillroom.data.batch import UNLABELLED
from stillroom.data.boxes import gives_boxes, is_coco, read_boxes, read_coco, read_image_pool
from stillroom.data.condensed import is_condensed, read_condensed
from stillroom.data.cut import cut, decide_form, load
from stillroom.data.embedded import keep_labels
from stillroom.data.folder import read_folder
from stillroom.data.images import check_form, listed
from stillroom.data.labels import OTHER_TASKS, VOID
from stillroom.data.named import BUILT_IN, BY_HAND, ON_THE_HUB, data_folder, read_hub, read_torchvision
from stillroom.data.objects import of_splits, read_objects
from stillroom.data.parts import Source, without_labels
from stillroom.data.samples import KINDS, Samples, Splits
from stillroom.data.tables import read_datasets, read_parquet


def load_data(
    spec: Any,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    seed: int = 0,
    labels: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    validation_share: float = 0.1,
    unlabelled: Any = None,
    label_column: str | None = None,
    image_column: str | None = None,
    task: str | None = None,
) -> Splits:
    """Load a data set and cut it into what is trained on, chosen by and reported.

    The reported split never depends on `seed`: it is the one that came along (test, else validation), else a fifth of
    the data, stratified, the same for every seed. The validation split is the one that came along, else a share of the
    training data, stratified, by seed, and the same whatever `train_size` and `labels` are. Rows are chosen before they
    are decoded. `index` numbers the samples of the whole data set, its parts counted in the order train, validation,
    test, unlabelled, so that no two samples share a number.

    Args:
        spec: what to load:

            - a built-in name: "digits", "shapes" and "digit-grids" (multi-label), "scenes" and "digit-masks"
              (segmentation), "blobs" (regression),
              "digit-scenes" and "digit-scenes-shifted" (detection),
              "documentation" (language modelling);
            - "spoken-digits"; of two modalities "digit-halves", "spoken-and-written-digits", "av-mnist";
            - a name such as "cifar10": from the folder STILLROOM_DATA names, else from the hub;
            - "hf:OWNER/NAME" or "hf:OWNER/NAME:CONFIG" from the Hugging Face hub, "torchvision:CIFAR10";
            - a path: an image folder (see `stillroom.data.folder`), a Parquet file or folder, a `save_to_disk` folder,
              a condensed set (`stillroom.data.CondensedSet`), a COCO folder (see `stillroom.data.boxes`);
            - arrays `(X, y)`, `(X, None)`, `((X, y), (X_test, y_test))`, dicts of them, `Samples`, `Splits`;
            - a torch `Dataset` or `DataLoader` (its data set and collate_fn; iterable ones are refused), also of images
              with boxes, `(image, {"boxes", "labels"})`, as torchvision's detectors take them.
        image_size: side of the square that images are resized (short side) and cropped to; None: the size they all
            have, or 224 where sizes differ.
        channels: 1 for grey, 3 for colour; None: as they are.
        seed: chooses validation, `train_size` and `labels`; 0 or more.
        labels: how many training samples keep their label; the others become `unlabelled`. The validation samples keep
            theirs in addition.
        train_size: how many training samples there are, stratified; None for all.
        test_size: how many samples are reported on, stratified and the same for every seed; None for all.
        validation_share: part of the training data held out where no validation split came along, in [0, 1).
        unlabelled: a further `spec` whose training samples become the pool, its labels dropped.
        label_column: name of the labels in a table or dict; None to find it.
        image_column: name of the images in a table or dict; None to find it.
        task: "classification", "multi-label", "segmentation" or "regression" where the labels could mean several
            things, "unlabelled" to drop them; None to decide by the labels.

    Returns:
        The splits, with `notes` that say what was skipped, resized, cut and assumed.

    Raises:
        FileNotFoundError: no such path or local data set.
        ConnectionError: it cannot be downloaded.
        TypeError: a spec of another type.
        ValueError: an option out of range, or data that cannot be used; one sentence with the remedy.
    """
    check_form(image_size, channels)
    _check_options(seed, validation_share, train_size, test_size, labels)
    if labels is not None and unlabelled is not None:
        raise ValueError(
            f"labels={labels} makes an unlabelled pool, and unlabelled= is another: use train_size={labels}"
        )
    source = find_source(spec, task=task, label_column=label_column, image_column=image_column)
    if unlabelled is not None:
        _add_pool(source, unlabelled)
    picks = cut(source, seed, validation_share, train_size, test_size)
    form = decide_form(source, image_size, channels)
    found = load(source, picks, form)
    for split in ("train", "test"):
        if not len(found[split]):
            raise ValueError(f"no {split} sample of {source.name!r} can be read: see {'; '.join(source.notes)}")
    classes = source.classes
    if classes is None and source.kind == "segmentation":
        classes = [str(number) for number in range(_mask_classes(found))]
    if source.kind == "classification" and classes is not None:
        _note_unseen(found, classes, source.notes)
    splits = Splits(
        found["train"],
        found["test"],
        found.get("validation"),
        found.get("unlabelled"),
        classes=classes,
        name=source.name,
        notes=source.notes,
        kind=source.kind,
        tokenizer=source.tokenizer,
    )
    return splits if labels is None else keep_labels(splits, labels, seed)


def find_source(
    spec: Any, *, task: str | None = None, label_column: str | None = None, image_column: str | None = None
) -> Source:
    """Find a data set without decoding it; see `load_data`."""
    columns = {"image_column": image_column, "label_column": label_column}
    if isinstance(spec, str) and spec in BUILT_IN:
        _no_columns(columns, spec)
        return _retask(of_splits(BUILT_IN[spec]()), task)
    if not isinstance(spec, (str, Path)):
        boxed = not isinstance(spec, Splits) and (task == "detection" or (task is None and gives_boxes(spec)))
        source = read_boxes(spec) if boxed else read_objects(spec, task=task, **columns)
        return _retask(source, task) if isinstance(spec, Splits) else source
    text = str(spec)
    if text.startswith("hf:"):
        return read_hub(text.removeprefix("hf:"), task=task, **columns)
    if text.startswith("torchvision:"):
        _no_columns(columns, text)
        return read_torchvision(text.removeprefix("torchvision:"), task=task)
    folder = data_folder()
    known = text in ON_THE_HUB or text in BY_HAND
    places = [Path(text).expanduser()]
    if folder is not None and not Path(text).is_absolute():
        places.insert(0 if known else 1, folder / text)
    for place in places:
        if place.exists():
            return _read_path(place, task, columns)
    if text in ON_THE_HUB:
        return read_hub(ON_THE_HUB[text], task=task, **columns)
    if text in BY_HAND:
        raise FileNotFoundError(
            f"{text!r} is not in {str(folder) if folder else 'the folder that STILLROOM_DATA names'}: put there "
            f"{BY_HAND[text]}"
        )
    names = ", ".join([*BUILT_IN, *ON_THE_HUB, *BY_HAND])
    raise FileNotFoundError(
        f"there is no data set or path {text!r}: give a path, one of {names}, hf:OWNER/NAME or torchvision:NAME"
    )


def _read_path(path: Path, task: str | None, columns: dict[str, str | None]) -> Source:
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise ValueError(f"{str(path)!r} is a file of unknown type: expected a folder or a .parquet file")
        return read_parquet(path, task=task, **columns)
    if task == "detection" or (task is None and is_coco(path)):
        _no_columns(columns, str(path))
        return read_coco(path)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        import datasets

        return read_datasets(datasets.load_from_disk(str(path)), path.resolve().name, task=task, **columns)
    if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
        return read_parquet(path, task=task, **columns)
    _no_columns(columns, str(path))
    if is_condensed(path):
        return _retask(read_condensed(path), task)
    return read_folder(path, task=task)


def _no_columns(columns: dict[str, str | None], name: str) -> None:
    for option, column in columns.items():
        if column is not None:
            raise ValueError(f"{option}={column!r} names a column of a table, but {name!r} is none: leave it out")


def _retask(source: Source, task: str | None) -> Source:
    """Check a task against data whose kind is settled, and drop labels for "unlabelled"."""
    if task == "unlabelled":
        parts = {name: without_labels(part) for name, part in source.parts.items()}
        return Source(parts, "unlabelled", None, source.name, source.notes, source.tokenizer)
    if task is None or task in OTHER_TASKS or task == source.kind or source.kind == "unlabelled":
        return source
    known = "classification, multi-label, segmentation, regression, unlabelled or embeddings"
    raise ValueError(
        f"{source.name!r} is a {source.kind} data set, but task is {task!r}: "
        + ("give other data or another task" if task in KINDS else f"task must be {known}")
    )


def _check_options(
    seed: int, validation_share: float, train_size: int | None, test_size: int | None, labels: int | None
) -> None:
    if seed < 0:
        raise ValueError(f"seed must be a whole number of 0 or more, given {seed}")
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share must lie in [0, 1), given {validation_share}")
    for name, size in (("train_size", train_size), ("test_size", test_size), ("labels", labels)):
        if size is not None and size < 1:
            raise ValueError(f"{name} must be 1 or more, given {size}")


def _add_pool(source: Source, spec: Any) -> None:
    built_in = isinstance(spec, Splits) or (isinstance(spec, str) and spec in BUILT_IN)
    any_size = source.kind == "detection" and not built_in
    pool = read_image_pool(spec) if any_size else find_source(spec, task="unlabelled")
    if "unlabelled" in source.parts:
        source.notes.append("the data set's own unlabelled part is replaced by the pool given")
    part = pool.parts.get("unlabelled") or pool.parts.get("train")
    if part is None:
        raise ValueError(f"the unlabelled pool {pool.name!r} has no training part: pass the part to use by itself")
    source.parts["unlabelled"] = without_labels(part)
    source.parts["unlabelled"].numbers = None  # numbered after the labelled data
    source.notes += [f"unlabelled pool: {note}" for note in pool.notes]


def _mask_classes(found: dict[str, Samples]) -> int:
    """One more than the largest class in all masks, which are read for it where they are not in memory.

    Raises:
        ValueError: masks hold 255, which is no class, for no label.
    """
    largest, below = 1, 0
    for samples in (found[name] for name in ("train", "validation", "test") if name in found):
        for rows in torch.arange(len(samples)).split(64):
            labels = samples.labels[rows] if samples.labels is not None else samples.batch(rows).labels
            if labels is not None:
                largest = max(largest, int(labels.max()))
                below = max(below, int(torch.where(labels == VOID, 0, labels).max()))
    if largest == VOID and below < VOID - 1:
        raise ValueError(
            f"masks hold {VOID} beside the classes 0 to {below}: give {UNLABELLED} where there is no label, and number "
            "classes without gaps (0 and 1 for two)"
        )
    return largest + 1


def _note_unseen(found: dict[str, Samples], classes: list[str], notes: list[str]) -> None:
    """Say which classes are reported on that no training sample has."""
    seen, reported = found["train"].labels, found["test"].labels
    if not isinstance(seen, torch.Tensor) or not isinstance(reported, torch.Tensor):
        return
    unseen = [number for number in reported.unique().tolist() if number >= 0 and not bool((seen == number).any())]
    if unseen:
        what = "1 class occurs" if len(unseen) == 1 else f"{len(unseen)} classes occur"
        names = listed([classes[number] for number in unseen])
        notes.append(f"{what} in the test split, but not in the training samples: {names}")
