"""Data that are there as Python objects: arrays, torch data sets and loaders, Hugging Face data sets, samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from stillroom.data.images import check_range
from stillroom.data.items import DatasetSamples, Keys, known_labels, take_apart
from stillroom.data.labels import own_tensor, read_labels
from stillroom.data.parts import PARTS, Part, SamplesPart, Source, part_of
from stillroom.data.samples import Samples, Splits, TensorSamples
from stillroom.data.tables import read_datasets

CHUNK = 256


def read_objects(
    spec: Any, *, task: str | None = None, image_column: str | None = None, label_column: str | None = None
) -> Source:
    """Take a data set that is there as Python objects.

    Args:
        spec: one part, that is `(X, y)`, `(X, None)`, X, a dict such as `{"inputs": X, "labels": y}` (further arrays
            become fields), `Samples`, a torch `Dataset` or `DataLoader`, a list of samples `(input, label)`, or a
            Hugging Face `Dataset`; or two parts `(train, test)`; or a dict of parts by their names train, validation,
            test and unlabelled; or `Splits`.
        task: what the labels shall be.
        image_column: key of the inputs in dicts; None to find it.
        label_column: key of the labels in dicts; None to find it.

    Raises:
        TypeError: it is none of these, or cannot be read by row.
        ValueError: inputs or labels have a form that cannot be used.
    """
    if isinstance(spec, Splits):
        return of_splits(spec)
    named = _parts_of(spec)
    if _is_hugging_face(spec) or all(map(_is_hugging_face, named.values())):
        whole = spec if _is_hugging_face(spec) else named
        return read_datasets(whole, "data", task=task, image_column=image_column, label_column=label_column)
    notes: list[str] = []
    keys = (image_column, label_column)
    found = {part: _read_part(value, part, keys, notes) for part, value in named.items()}
    masks = all(raw is _WITH_INPUTS for _, raw in found.values())
    raw = {part: None if masks else value for part, (_, value) in found.items()}
    if not masks and any(value is _WITH_INPUTS for value in raw.values()):
        raise ValueError("labels are masks in one part and something else in another: give the same in all parts")
    labels = read_labels(raw, task=task, masks=masks)
    parts: dict[str, Part] = {}
    for part, (samples, _) in found.items():
        of_part = labels.parts[part]
        if not masks and of_part is None:
            samples = samples.relabel(None)
        parts[part] = SamplesPart(samples, of_part, numbered=isinstance(spec, Samples))
    notes = list(dict.fromkeys([*notes, *labels.notes]))
    return Source(parts, labels.kind, labels.classes, "data", notes)


def of_splits(splits: Splits) -> Source:
    """Take a data set that was cut before; its samples keep their numbers."""
    given = {name: getattr(splits, name) for name in PARTS}
    parts: dict[str, Part] = {
        name: SamplesPart(samples, numbered=True) for name, samples in given.items() if samples is not None
    }
    return Source(parts, splits.kind, splits.classes, splits.name, list(splits.notes), splits.tokenizer)


class _WithInputs:
    """Says that labels are too large to keep and are read with the inputs."""


_WITH_INPUTS = _WithInputs()


def _is_hugging_face(spec: Any) -> bool:
    return type(spec).__module__.split(".")[0] == "datasets"


def _parts_of(spec: Any) -> dict[str, Any]:
    """Take pairs and dicts of parts apart; anything else is one part to train on."""
    if isinstance(spec, Mapping) and spec and all(isinstance(key, str) and part_of(key) for key in spec):
        named: dict[str, Any] = {}
        for key, value in spec.items():
            part = str(part_of(key))
            if part in named:
                raise ValueError(f"two keys of the dict mean {part}: leave one of them")
            named[part] = value
        return named
    if isinstance(spec, (tuple, list)) and len(spec) == 2 and all(_is_part(value) for value in spec):
        return {"train": spec[0], "test": spec[1]}
    return {"train": spec}


def _is_part(value: Any) -> bool:
    whole = isinstance(value, (Dataset, DataLoader, Mapping)) or _is_hugging_face(value)
    return whole or (isinstance(value, tuple) and len(value) == 2) or _is_list_of_samples(value)


def _is_list_of_samples(value: Any) -> bool:
    """Whether a list holds an image, a dict, or an input that is an array with its label, per sample."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, (tuple, list)) and 1 <= len(first) <= 2:
        return isinstance(first[0], (Image.Image, Mapping)) or (_is_array(first[0]) and bool(np.ndim(first[0])))
    return isinstance(first, (Image.Image, Mapping))


def _refuse_batches(items: list[Any], keys: Keys) -> None:
    """Refuse a list of batches: in every item as many labels as rows of the input."""
    lengths = set()
    for item in items:
        inputs, labels, _ = take_apart(item, keys)
        if not _is_array(inputs) or not _is_array(labels):
            return
        image = np.ndim(inputs) == 3 and len(inputs) in (1, 3)  # with a label per channel by chance
        if image or np.ndim(inputs) < 2 or np.ndim(labels) != 1 or len(labels) != len(inputs):
            return
        lengths.add(len(labels))
    classes = not torch.as_tensor(labels).is_floating_point()
    if len(lengths) > 1 or classes or np.ndim(inputs) > 3:  # else one number per row of a single input
        first = len(take_apart(items[0], keys)[1])
        raise ValueError(
            f"the list holds {len(items)} batches, the first of {first} samples, not samples: pass the data set or the "
            "DataLoader they come from, or arrays (X, y)"
        )


def _read_part(spec: Any, part: str, keys: Keys, notes: list[str]) -> tuple[Samples, Any]:
    """Read one part: its samples, and its labels as they come."""
    if isinstance(spec, Samples):
        return spec, _WITH_INPUTS if spec.labels is None and spec.lazy else spec.labels
    if isinstance(spec, DataLoader):
        return _read_loader(spec, part, keys, notes)
    if isinstance(spec, IterableDataset):
        raise TypeError(
            f"{type(spec).__name__} is an iterable data set, without row numbers: pass a data set with __getitem__ and "
            "__len__, or arrays"
        )
    if isinstance(spec, TensorDataset) and len(spec.tensors) <= 2:
        spec = (spec.tensors[0], spec.tensors[1] if len(spec.tensors) == 2 else None)
    if isinstance(spec, Mapping):
        inputs, labels, fields = take_apart(spec, keys)
        tensors = {name: array_inputs(value, name, []) for name, value in fields.items()}
        return TensorSamples(array_inputs(inputs, part, notes), fields=tensors), labels
    if isinstance(spec, (tuple, list)) and len(spec) == 2 and (_is_array(spec[0]) or isinstance(spec, tuple)):
        inputs = array_inputs(spec[0], part, notes)
        if spec[1] is not None and len(spec[1]) != len(inputs):
            raise ValueError(f"X has {len(inputs)} rows, but y has {len(spec[1])}: give one label per row")
        return TensorSamples(inputs), spec[1]
    if _is_list_of_samples(spec):
        _refuse_batches(spec, keys)
        return _read_dataset(spec, None, part, keys, notes)
    if _is_array(spec) or isinstance(spec, list):
        return TensorSamples(array_inputs(spec, part, notes)), None
    if hasattr(spec, "__getitem__") and hasattr(spec, "__len__") and not isinstance(spec, str):
        return _read_dataset(spec, None, part, keys, notes)
    raise TypeError(
        f"data of type {type(spec).__name__} cannot be used: give a name, a folder, arrays (X, y), or a data set with "
        "__getitem__ and __len__"
    )


def _read_loader(loader: DataLoader[Any], part: str, keys: Keys, notes: list[str]) -> tuple[Samples, Any]:
    if isinstance(loader.dataset, IterableDataset):
        return _read_part(loader.dataset, part, keys, notes)
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        raise ValueError("a DataLoader that makes its batches in its own way cannot be taken apart: pass its data set")
    sampler, samples = loader.sampler, cast(Sized, loader.dataset)
    plain = isinstance(sampler, (SequentialSampler, RandomSampler)) and len(sampler) == len(samples)
    if not plain and not isinstance(sampler, DistributedSampler):
        raise ValueError(
            f"the DataLoader draws through a {type(sampler).__name__}, which would be lost: pass the rows that it "
            "draws from as a torch.utils.data.Subset"
        )
    notes.append(
        f"of the DataLoader its data set is taken: its batch size of {loader.batch_size} is not used (choose with "
        "batch_size=)"
    )
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    if collate is None:
        return _read_part(loader.dataset, part, keys, notes)
    return _read_dataset(loader.dataset, collate, part, keys, notes)


def _read_dataset(
    dataset: Any,
    collate: Callable[[list[Any]], Any] | None,
    part: str,
    keys: Keys,
    notes: list[str],
) -> tuple[Samples, Any]:
    if not len(dataset):
        raise ValueError(f"the {part} data set is empty: give at least one sample")
    samples = DatasetSamples(dataset, collate, keys)
    notes.extend(samples.notes)
    inputs, labels, _ = samples.items(torch.tensor([0]))
    if isinstance(inputs, Tensor):
        check_range(inputs, "the first input", notes)
    few = torch.linspace(0, len(samples) - 1, min(len(samples), 8)).long()
    if labels is None or (isinstance(labels, Tensor) and labels.ndim > 2):
        samples.look(few)
        return samples, None if labels is None else _WITH_INPUTS
    known = None if collate is not None else known_labels(dataset)
    if known is not None and _agree(known[few], _joined(samples.look(few))):
        return samples, known
    notes.append(f"all {len(dataset)} items of the {part} data set were read once, to learn their labels")
    chunks = [_joined(samples.look(rows)) for rows in torch.arange(len(samples)).split(CHUNK)]
    if all(isinstance(chunk, Tensor) for chunk in chunks):
        return samples, torch.cat(chunks)
    return samples, [label for chunk in chunks for label in chunk]


def _joined(labels: Any) -> Any:
    return default_collate(labels) if isinstance(labels, list) else labels


def _agree(known: Tensor, found: Any) -> bool:
    """Whether known labels are what the items carry (a transform may change them)."""
    return isinstance(found, Tensor) and found.shape == known.shape and bool((found == known).all())


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) or (hasattr(value, "__array__") and not isinstance(value, Samples))


def array_inputs(value: Any, name: str, notes: list[str]) -> Tensor:
    """Turn an array into inputs.

    uint8 `(N, H, W)` and `(N, H, W, 1, 3 or 4)` are images and become `(N, C, H, W)`; float64 becomes float32.

    Raises:
        TypeError: it is no array of numbers.
        ValueError: images are not uint8 or floats in [0, 1], or there is no row.
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(
                f"{name} inputs are a {type(value).__name__} of {len(value)} values of different shapes: give an array "
                "(N, ...), or a data set or list of samples (input, label)"
            ) from error
        if array.dtype.kind not in "buif":
            raise TypeError(f"{name} inputs must be numbers, given an array of dtype {array.dtype}")
        tensor = own_tensor(array)
    if not tensor.ndim or not len(tensor):
        raise ValueError(f"{name} inputs have shape {tuple(tensor.shape)}: expected (N, ...) with N of 1 or more")
    if tensor.dtype == torch.uint8 and tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    if tensor.ndim == 4 and tensor.shape[-1] in (1, 3, 4) and tensor.shape[1] not in (1, 3):
        notes.append(f"inputs of shape {tuple(tensor.shape[1:])} are taken as images with the channels last")
        tensor = tensor.permute(0, 3, 1, 2).contiguous()
    if tensor.ndim == 4 and not tensor.is_floating_point() and tensor.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 in [0, 255] or floats in [0, 1], given dtype {tensor.dtype}: convert them"
        )
    if tensor.dtype in (torch.bool, torch.float64, torch.float16, torch.bfloat16):
        tensor = tensor.float()
    check_range(tensor, f"{name} inputs", notes)
    return tensor
