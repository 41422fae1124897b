"""Data that are there as Python objects: arrays, torch data sets and loaders, Hugging Face data sets, samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from stillroom.data.batch import map_tensors, tensors_in
from stillroom.data.images import to_pixels
from stillroom.data.labels import own_tensor, read_labels
from stillroom.data.parts import PARTS, Part, SamplesPart, Source, part_of
from stillroom.data.samples import Samples, Splits, TensorSamples, as_input
from stillroom.data.tables import read_datasets

INPUT_KEYS = ("inputs", "input", "image", "images", "pixel_values", "img", "x", "X", "data")
LABEL_KEYS = ("labels", "label", "y", "target", "targets", "mask")
CHUNK = 256


def read_objects(
    spec: Any, *, task: str | None = None, image_column: str | None = None, label_column: str | None = None
) -> Source:
    """Take a data set that is there as Python objects.

    Args:
        spec: one part, that is `(X, y)`, `(X, None)`, X, a dict such as `{"inputs": X, "labels": y}` (further arrays
            become fields), `Samples`, a torch `Dataset` or `DataLoader`, or a Hugging Face `Dataset`; or two parts
            `(train, test)`; or a dict of parts by their names train, validation, test and unlabelled; or `Splits`.
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


class DatasetSamples(Samples):
    """The items of a torch data set, asked for whenever a batch needs them (so that its random transforms stay random).

    Args:
        dataset: gives `(input, label)`, an input alone, or a dict, by row number.
        collate: joins a list of items to a batch of the same form; None: torch's way, images becoming tensors first.
        keys: which keys of a dict are inputs and labels; None to find them.
    """

    lazy = True

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any] | None = None,
        keys: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self.dataset, self.collate, self.keys = dataset, collate or _collate, keys
        self._own_labels = True
        inputs, _, _ = self.items(torch.tensor([0]))
        first = next(iter(tensors_in(inputs)), None)
        if first is None or not first.ndim:
            raise TypeError(f"items of {type(dataset).__name__} hold no tensor, array or image: give it a transform")
        super().__init__(len(dataset), first.shape[1:])

    def _drop_labels(self) -> None:
        super()._drop_labels()
        self._own_labels = False

    def items(self, rows: Tensor) -> tuple[Any, Any, dict[str, Any]]:
        """Read inputs, labels as they come (words, too) and further fields of some rows, at least one."""
        return _take_apart(self.collate([self.dataset[row] for row in rows.tolist()]), self.keys)

    def _read(self, rows: Tensor) -> tuple[Any, Tensor | None, Mapping[str, Tensor]]:
        if not len(rows):
            return torch.zeros(0, *self.shape), None, {}
        inputs, labels, fields = self.items(rows)
        inputs = map_tensors(inputs, lambda t: t.float() if t.dtype == torch.float64 else as_input(t))
        return inputs, labels if self._own_labels and isinstance(labels, Tensor) else None, fields


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
    return whole or (isinstance(value, tuple) and len(value) == 2)


def _read_part(spec: Any, part: str, keys: tuple[str | None, str | None], notes: list[str]) -> tuple[Samples, Any]:
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
        inputs, labels, fields = _take_apart(spec, keys)
        tensors = {name: array_inputs(value, name, []) for name, value in fields.items()}
        return TensorSamples(array_inputs(inputs, part, notes), fields=tensors), labels
    if isinstance(spec, (tuple, list)) and len(spec) == 2 and (_is_array(spec[0]) or isinstance(spec, tuple)):
        inputs = array_inputs(spec[0], part, notes)
        if spec[1] is not None and len(spec[1]) != len(inputs):
            raise ValueError(f"X has {len(inputs)} rows, but y has {len(spec[1])}: give one label per row")
        return TensorSamples(inputs), spec[1]
    if _is_array(spec) or isinstance(spec, list):
        return TensorSamples(array_inputs(spec, part, notes)), None
    if hasattr(spec, "__getitem__") and hasattr(spec, "__len__") and not isinstance(spec, str):
        return _read_dataset(spec, None, part, keys, notes)
    raise TypeError(
        f"data of type {type(spec).__name__} cannot be used: give a name, a folder, arrays (X, y), or a data set with "
        "__getitem__ and __len__"
    )


def _read_loader(
    loader: DataLoader[Any], part: str, keys: tuple[str | None, str | None], notes: list[str]
) -> tuple[Samples, Any]:
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
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    if collate is None:
        return _read_part(loader.dataset, part, keys, notes)
    return _read_dataset(loader.dataset, collate, part, keys, notes)


def _read_dataset(
    dataset: Any,
    collate: Callable[[list[Any]], Any] | None,
    part: str,
    keys: tuple[str | None, str | None],
    notes: list[str],
) -> tuple[Samples, Any]:
    if not len(dataset):
        raise ValueError(f"the {part} data set is empty: give at least one sample")
    samples = DatasetSamples(dataset, collate, keys)
    inputs, labels, _ = samples.items(torch.tensor([0]))
    if isinstance(inputs, Tensor):
        _check_range(inputs, "the first input", notes)
    if labels is None:
        return samples, None
    if isinstance(labels, Tensor) and labels.ndim > 2:
        return samples, _WITH_INPUTS
    known = None if collate is not None else _known_labels(dataset)
    if known is not None and _agrees(known, samples):
        return samples, known
    notes.append(f"all {len(dataset)} items of the {part} data set were read once, to learn their labels")
    chunks = [samples.items(rows)[1] for rows in torch.arange(len(samples)).split(CHUNK)]
    if all(isinstance(chunk, Tensor) for chunk in chunks):
        return samples, torch.cat(chunks)
    return samples, [label for chunk in chunks for label in chunk]


def _known_labels(dataset: Any) -> Tensor | None:
    """Find the labels of a data set without reading its items, where it keeps them as torchvision does."""
    if isinstance(dataset, Subset):
        whole = _known_labels(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        several = [_known_labels(one) for one in dataset.datasets]
        return None if any(one is None for one in several) else torch.cat([one for one in several if one is not None])
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if (
            isinstance(found, (Tensor, np.ndarray, Sequence))
            and not isinstance(found, str)
            and len(found) == len(dataset)
        ):
            try:
                return torch.as_tensor(found)
            except (TypeError, ValueError):
                continue
    return None


def _agrees(known: Tensor, samples: DatasetSamples) -> bool:
    """Whether known labels are what the items carry, on a few rows (a transform may change them)."""
    rows = torch.linspace(0, len(samples) - 1, min(len(samples), 8)).long()
    labels = samples.batch(rows).labels
    return labels is not None and labels.shape == known[rows].shape and bool((labels == known[rows]).all())


def _take_apart(item: Any, keys: tuple[str | None, str | None]) -> tuple[Any, Any, dict[str, Any]]:
    """Split an item, or a batch of them, into inputs, labels and further fields."""
    if isinstance(item, Mapping):
        for given in keys:
            if given is not None and given not in item:
                raise ValueError(f"{given!r} is not among the keys {', '.join(map(str, item))}")
        input_key = keys[0] or next((key for key in INPUT_KEYS if key in item), None)
        label_key = keys[1] or next((key for key in LABEL_KEYS if key in item and key != input_key), None)
        labels = None if label_key is None else item[label_key]
        rest = {str(key): value for key, value in item.items() if key not in (input_key, label_key)}
        if input_key is None:  # a model that takes a dict, as those for language do
            return rest, labels, {}
        fields = {key: value for key, value in rest.items() if isinstance(value, (Tensor, np.ndarray))}
        return item[input_key], labels, fields
    if isinstance(item, (tuple, list)):
        if not 1 <= len(item) <= 2:
            raise ValueError(f"items hold {len(item)} values: expected (input, label), an input alone, or a dict")
        return item[0], item[1] if len(item) == 2 else None, {}
    return item, None, {}


def _collate(items: list[Any]) -> Any:
    return default_collate([_tensors(item) for item in items])


def _tensors(item: Any) -> Any:
    if isinstance(item, Image.Image):
        return to_pixels(item)
    if isinstance(item, Mapping):
        return {key: _tensors(value) for key, value in item.items() if value is not None}
    if isinstance(item, (tuple, list)):
        if len(item) == 2 and item[1] is None:
            return (_tensors(item[0]),)
        return tuple(_tensors(value) for value in item)
    return item


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
        array = np.asarray(value)
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
    _check_range(tensor, f"{name} inputs", notes)
    return tensor


def _check_range(tensor: Tensor, name: str, notes: list[str]) -> None:
    if tensor.ndim != 4 or not tensor.is_floating_point() or tensor.shape[1] not in (1, 3) or not tensor.numel():
        return
    low, high = float(tensor.min()), float(tensor.max())
    if low >= 0 and high > 2:
        raise ValueError(f"float images must lie in [0, 1], given {name} up to {high:g}: divide by 255, or pass uint8")
    if low < 0 or high > 1:
        notes.append(
            f"{name} run from {low:.3g} to {high:.3g}: networks that are loaded by name expect [0, 1] and normalise by "
            "themselves"
        )
