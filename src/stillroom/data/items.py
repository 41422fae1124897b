"""Torch data sets as samples: items read when a batch needs them, joined to batches, brought to one form."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, default_collate

from stillroom.data.batch import map_tensors, tensors_in
from stillroom.data.images import Form, fit_tensor, to_pixels
from stillroom.data.labels import item_masks, own_tensor
from stillroom.data.samples import Samples, as_input

INPUT_KEYS = ("inputs", "input", "image", "images", "pixel_values", "img", "x", "X", "data")
LABEL_KEYS = ("labels", "label", "y", "target", "targets", "mask")
Keys = tuple[str | None, str | None]
"""Which keys of a dict are inputs and labels; None to find them."""


class DatasetSamples(Samples):
    """The items of a torch data set, asked for whenever a batch needs them (so that its random transforms stay random).

    Args:
        dataset: gives `(input, label)`, an input alone, or a dict, by row number. Images may be PIL images, tensors
            `(C, H, W)` or arrays, also with their channels last.
        collate: joins a list of items to a batch of the same form; None: torch's way, images becoming tensors first.
        keys: which keys of a dict are inputs and labels; None to find them.

    Attributes:
        notes: sentences for the user.

    Raises:
        TypeError: the first item holds no tensor, array or image.
    """

    lazy = True
    shapes: Counter[tuple[int, ...]]

    def __init__(
        self, dataset: Any, collate: Callable[[list[Any]], Any] | None = None, keys: Keys = (None, None)
    ) -> None:
        self.dataset, self.collate, self.keys = dataset, collate, keys
        self.form: Form | None = None
        self.notes: list[str] = []
        self._own_labels = True
        inputs, _, _ = self.items(torch.tensor([0]))
        first = next(iter(tensors_in(inputs)), None)
        if first is None or not first.ndim:
            raise TypeError(f"items of {type(dataset).__name__} hold no tensor, array or image: give it a transform")
        super().__init__(len(dataset), first.shape[1:])
        self.shapes = Counter()

    def _drop_labels(self) -> None:
        super()._drop_labels()
        self._own_labels = False

    def fitted(self, form: Form) -> DatasetSamples:
        """Return the same samples, their images brought to a form whenever they are read."""
        other = copy.copy(self)
        other.form, other.shape, other.shapes = form, form.shape, Counter()
        return other

    def items(self, rows: Tensor) -> tuple[Any, Any, dict[str, Any]]:
        """Read inputs, labels as they come (words, too) and further fields of some rows, at least one.

        Raises:
            ValueError: inputs differ in shape and are brought to no form.
        """
        found = [self.dataset[row] for row in rows.tolist()]
        if self.collate is not None:
            joined = self.collate(found)
            return take_apart(_with_input(joined, self.keys, self._fit), self.keys)
        items = [_with_input(self._tensors(item), self.keys, self._fit) for item in found]
        try:
            return take_apart(default_collate(items), self.keys)
        except RuntimeError as error:
            shapes = sorted({_shape_of(take_apart(item, self.keys)[0]) for item in items})
            if len(shapes) < 2:
                raise
            raise ValueError(
                f"items of {type(self.dataset).__name__} have inputs of different shapes, {shapes[0]} and "
                f"{shapes[-1]}: pass image_size= (and channels=) to bring images to one, or give it a transform"
            ) from error

    def look(self, rows: Tensor) -> Any:
        """Read some rows one by one, and count the shapes of their inputs in `shapes`.

        Args:
            rows: `(N,)` int64 row numbers, N of 1 or more.

        Returns:
            Their labels: a list of N, or what `collate` made of them.
        """
        if self.collate is not None:
            return self.items(rows)[1]
        labels = []
        for row in rows.tolist():
            inputs, label, _ = take_apart(self._tensors(self.dataset[row]), self.keys)
            self.shapes[_shape_of(inputs)] += 1
            labels.append(label)
        return labels

    def _read(self, rows: Tensor) -> tuple[Any, Tensor | None, Mapping[str, Tensor]]:
        if not len(rows):
            return torch.zeros(0, *self.shape), None, {}
        inputs, labels, fields = self.items(rows)
        inputs = map_tensors(inputs, lambda t: t.float() if t.dtype == torch.float64 else as_input(t))
        return inputs, item_masks(labels) if self._own_labels and isinstance(labels, Tensor) else None, fields

    def _tensors(self, item: Any) -> Any:
        """An item with its images and its input as tensors, channels first."""
        return _with_input(_tensors(item), self.keys, self._as_image)

    def _as_image(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "buif":
            return value
        if value.ndim == 3 and value.shape[-1] in (1, 3) and value.shape[0] not in (1, 3):
            self.notes = [f"inputs of shape {value.shape} are taken as images with the channels last"]
            value = value.transpose(2, 0, 1)
        return own_tensor(value)

    def _fit(self, value: Any) -> Any:
        form = self.form
        if form is None:
            return value
        plane = self.collate is None and isinstance(value, Tensor) and value.ndim == 2  # a grey image without a channel
        value = value.unsqueeze(0) if plane else value
        return map_tensors(value, lambda images: fit_tensor(as_input(images), form))


def known_labels(dataset: Any) -> Tensor | None:
    """Find the labels of a data set without reading its items, where it keeps them as torchvision does."""
    if isinstance(dataset, Subset):
        whole = known_labels(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        several = [known_labels(one) for one in dataset.datasets]
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


def take_apart(item: Any, keys: Keys) -> tuple[Any, Any, dict[str, Any]]:
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


def _with_input(item: Any, keys: Keys, function: Callable[[Any], Any]) -> Any:
    """The same item, or batch of items, with a function applied to its input."""
    if isinstance(item, Mapping):
        key = keys[0] or next((key for key in INPUT_KEYS if key in item), None)
        return {**item, key: function(item[key])} if key in item else item
    if isinstance(item, (tuple, list)):
        return (function(item[0]), *item[1:]) if item else item
    return function(item)


def _shape_of(inputs: Any) -> tuple[int, ...]:
    return tuple(next((tensor.shape for tensor in tensors_in(inputs)), ()))


def _tensors(item: Any) -> Any:
    if isinstance(item, Image.Image):
        return to_pixels(item)
    if isinstance(item, Mapping):
        found = {key: value for key, value in item.items() if value is not None}
        return {key: _numbers(value) if key in LABEL_KEYS else _tensors(value) for key, value in found.items()}
    if isinstance(item, (tuple, list)):
        if len(item) == 2 and item[1] is None:
            return (_tensors(item[0]),)
        return tuple(_numbers(value) if place else _tensors(value) for place, value in enumerate(item))
    return item


def _numbers(label: Any) -> Any:
    """What a label says; of a mask the class numbers, not the colours that a palette gives them."""
    if isinstance(label, Image.Image) and label.mode in ("1", "L", "P"):
        return torch.from_numpy(np.array(label, dtype=np.uint8))
    return _tensors(label)
