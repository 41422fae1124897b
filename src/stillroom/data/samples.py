"""Data sets as the training loop reads them: any rows at any time, numbered for ever, in memory or fetched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stillroom.data.batch import UNLABELLED, Batch, Ragged, map_tensors, tensors_in

Kind = Literal[
    "classification",
    "multi-label",
    "segmentation",
    "detection",
    "regression",
    "language-modelling",
    "super-resolution",
    "unlabelled",
]
KINDS: tuple[str, ...] = (
    *("classification", "multi-label", "segmentation", "detection", "regression", "language-modelling"),
    *("super-resolution", "unlabelled"),
)


FINITE_CHUNK = 256  # rows that are looked at together


class Samples(Dataset[Any]):
    """Base of data sets: a length, and a batch of any rows.

    A subset keeps the data where they are and the numbers in `index` as they were, so that caches and per-sample
    memories of the whole data set stay right. A subclass writes `_read`.

    Args:
        length: number of samples in the whole data set.
        shape: shape of one input.
        labels: `(length, ...)`, integers or floats, or `Ragged`, where they are known without reading the inputs;
            else None.
        index: `(length,)` int64, a number per sample; by default 0, 1, 2, ...
        fields: further tensors of `length` rows, carried along to every batch under their names.

    Raises:
        ValueError: labels, index or a field have another number of rows; index is not int64.
    """

    lazy: bool = False
    """Whether a batch costs decoding or reading, so that reading ahead pays."""

    largest_batch: int | None = None
    """Most rows that are read together; 1 where inputs differ in size."""

    reads_labels: bool = False
    """Whether labels that come with the inputs go before those known up front (boxes that move with their image)."""

    shapes: Mapping[tuple[int, ...], int] | None = None
    """Shapes that inputs were found to have, and how often, where they need not be all one; None: all have `shape`."""

    draws: int = 0
    """Random numbers that a row takes each time it is trained on (where to cut a patch); see `_read_drawn`."""

    def __init__(
        self,
        length: int,
        shape: Sequence[int],
        labels: Tensor | Ragged | None = None,
        index: Tensor | None = None,
        fields: Mapping[str, Tensor] | None = None,
    ) -> None:
        named: dict[str, Any] = {"labels": labels, "index": index, **(fields or {})}
        for name, value in named.items():
            if value is not None and len(value) != length:
                raise ValueError(f"{name} has {len(value)} rows, but there are {length} samples: give one row each")
        if index is not None and index.dtype != torch.int64:
            raise ValueError(f"index must be int64 sample numbers, given dtype {index.dtype}")
        self.shape = tuple(int(size) for size in shape)
        self._labels: Any = labels
        self._index = torch.arange(length) if index is None else index
        self._fields = dict(fields or {})
        self._rows: Tensor | None = None  # None: all of them, in order

    def _read(self, rows: Tensor) -> tuple[Any, Tensor | None, Mapping[str, Tensor]]:
        """Read rows of the whole data set: inputs, labels where they are not in `self._labels`, further fields."""
        raise NotImplementedError(f"{type(self).__name__} must define _read(rows)")

    def _read_drawn(self, rows: Tensor, uniform: Tensor) -> tuple[Any, Tensor | None, Mapping[str, Tensor]]:
        """Read rows for training, where `draws` is above 0: as `_read`, by numbers `(N, draws)` in [0, 1)."""
        raise NotImplementedError(f"{type(self).__name__} must define _read_drawn(rows, uniform)")

    def batch(self, rows: Tensor | Sequence[int], uniform: Tensor | None = None) -> Batch:
        """Read some rows.

        Args:
            rows: `(N,)` int64 row numbers in [0, len(self)), in any order, repeated or not.
            uniform: `(N, draws)` in [0, 1), where rows are drawn anew each time; None for the rows as they are.

        Returns:
            A batch whose integer labels are int64 and whose float labels are float32.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64)
        taken = rows if self._rows is None else self._rows[rows]
        inputs, labels, fields = self._read(taken) if uniform is None else self._read_drawn(taken, uniform)
        if self._labels is not None and not (self.reads_labels and labels is not None):
            labels = self._labels[taken]
        if isinstance(labels, Tensor):
            labels = labels.float() if labels.is_floating_point() else labels.long()
        kept = {name: value[taken] for name, value in self._fields.items()}
        return Batch(inputs, labels, self._index[taken], **kept, **fields)

    def subset(self, rows: Tensor | Sequence[int]) -> Samples:
        """Keep some rows, in the order given; nothing is copied and `index` stays what it was."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise ValueError(
                f"rows must lie in [0, {len(self)}), given rows from {int(rows.min())} to {int(rows.max())}"
            )
        part = copy.copy(self)
        part._rows = rows if self._rows is None else self._rows[rows]
        return part

    def relabel(self, labels: Tensor | Ragged | None) -> Samples:
        """Exchange the labels of these samples, one row each, or drop them (None)."""
        if labels is not None and len(labels) != len(self):
            raise ValueError(f"labels has {len(labels)} rows, but there are {len(self)} samples: give one row each")
        other = copy.copy(self)
        other._drop_labels()
        if isinstance(labels, Ragged) and self._rows is not None:
            spread = Ragged([None] * len(self._index))
            for row, label in zip(self._rows.tolist(), labels, strict=True):
                spread[row] = label
            labels = spread
        elif isinstance(labels, Tensor) and self._rows is not None:
            nothing = float("nan") if labels.is_floating_point() else UNLABELLED
            whole = labels.new_full((len(self._index), *labels.shape[1:]), nothing)
            whole[self._rows] = labels
            labels = whole
        other._labels = labels
        return other

    def renumber(self, index: Tensor) -> Samples:
        """Exchange the numbers of these samples (a pool from elsewhere that joins another data set)."""
        if index.shape != (len(self),) or index.dtype != torch.int64:
            raise ValueError(f"index must be ({len(self)},) int64, given {tuple(index.shape)} {index.dtype}")
        other = copy.copy(self)
        other._index = self._index.clone()
        other._index[slice(None) if self._rows is None else self._rows] = index
        return other

    def _drop_labels(self) -> None:
        self._labels = None

    @property
    def labels(self) -> Any:
        """`(len(self), ...)` labels of these samples; None where there are none or they come with the inputs only."""
        return self._labels if self._labels is None or self._rows is None else self._labels[self._rows]

    @property
    def has_labels(self) -> bool:
        """Whether rows carry labels, known up front or read with the inputs."""
        return self._labels is not None

    @property
    def index(self) -> Tensor:
        """`(len(self),)` int64: the number of each sample in the original data set."""
        return self._index if self._rows is None else self._index[self._rows]

    @property
    def fields(self) -> dict[str, Tensor]:
        """Further tensors of these samples, by name."""
        return {name: value if self._rows is None else value[self._rows] for name, value in self._fields.items()}

    @property
    def population(self) -> int:
        """One more than the largest number in `index`: how many rows a per-sample memory needs."""
        return int(self.index.max()) + 1 if len(self) else 0

    def __len__(self) -> int:
        return len(self._index) if self._rows is None else len(self._rows)

    def __getitem__(self, row: int) -> Any:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} samples")
        batch = self.batch(torch.tensor([row % len(self)]))
        ragged = isinstance(batch.inputs, Ragged)
        inputs = batch.inputs[0] if ragged else map_tensors(batch.inputs, lambda tensor: tensor[0])
        return inputs if batch.labels is None else (inputs, batch.labels[0])

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else "labels of any shape"
        if isinstance(self.labels, Tensor):
            labels = f"labels {tuple(self.labels.shape[1:])} {self.labels.dtype}"
        return f"{type(self).__name__}({len(self)} of {self.shape}, {labels})"


class TensorSamples(Samples):
    """Samples held in memory.

    Args:
        inputs: a tensor `(N, ...)`, or a dict, list or tuple of them. uint8 images are kept as they are and become
            float32 in [0, 1] in `batch`; float64 becomes float32; other integers (token numbers) stay.
        labels: `(N, ...)`; class numbers (any integers), class masks, or floats; or `Ragged` of N values.
        index: `(N,)` int64; by default 0, 1, 2, ...
        fields: further tensors of N rows, carried along.

    Raises:
        ValueError: there is no tensor in `inputs`, or the number of rows differs.
    """

    def __init__(
        self,
        inputs: Any,
        labels: Tensor | Ragged | None = None,
        index: Tensor | None = None,
        *,
        fields: Mapping[str, Tensor] | None = None,
    ) -> None:
        tensors = list(tensors_in(inputs))
        if not tensors or not tensors[0].ndim:
            raise ValueError(f"inputs must be tensors of N rows, given {type(inputs).__name__} without one")
        for tensor in tensors:
            if len(tensor) != len(tensors[0]):
                raise ValueError(
                    f"inputs has tensors of {len(tensors[0])} and of {len(tensor)} rows: give one row each"
                )
        super().__init__(len(tensors[0]), tensors[0].shape[1:], labels, index, fields)
        self._inputs = map_tensors(inputs, lambda t: t.float() if t.dtype == torch.float64 else t)

    def change_inputs(self, function: Callable[[Any], Any]) -> TensorSamples:
        """Apply a function to the inputs of these samples (uint8 where they are kept so); the rest stays."""
        inputs = map_tensors(self._inputs, lambda tensor: tensor if self._rows is None else tensor[self._rows])
        return TensorSamples(function(inputs), self.labels, self.index, fields=self.fields)

    def not_finite(self) -> Tensor:
        """Row numbers, int64 and rising, of the samples whose inputs hold NaN or infinite values."""
        found = []
        for part in torch.arange(len(self)).split(FINITE_CHUNK):
            rows = part if self._rows is None else self._rows[part]
            spoiled = torch.zeros(len(rows), dtype=torch.bool)
            for tensor in tensors_in(self._inputs):
                if tensor.is_floating_point():
                    spoiled |= ~tensor[rows].isfinite().reshape(len(rows), -1).all(1)
            found.append(part[spoiled])
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)

    def _read(self, rows: Tensor) -> tuple[Any, None, Mapping[str, Tensor]]:
        return map_tensors(self._inputs, lambda tensor: as_input(tensor[rows])), None, {}


class LazySamples(Samples):
    """Samples that are fetched one by one when a batch asks for them.

    Args:
        fetch: `fetch(row) -> (input, label)`: tensors of equal shapes for all rows; label None where there is none. It
            is called from several threads when a stream has workers.
        length: number of samples.
        labels: `(length, ...)` where they are known up front; the label that `fetch` returns is then not used.
        shape: shape of one input.
        index: `(length,)` int64; by default 0, 1, 2, ...
        fields: further tensors of `length` rows, carried along.
    """

    lazy = True

    def __init__(
        self,
        fetch: Callable[[int], tuple[Tensor, Any]],
        length: int,
        labels: Tensor | None,
        shape: Sequence[int],
        index: Tensor | None = None,
        *,
        fields: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(length, shape, labels, index, fields)
        self._fetch = fetch
        self._fetched_labels = True

    def _drop_labels(self) -> None:
        super()._drop_labels()
        self._fetched_labels = False

    def _read(self, rows: Tensor) -> tuple[Any, Tensor | None, Mapping[str, Tensor]]:
        pairs = [self._fetch(row) for row in rows.tolist()]
        inputs = torch.stack([pair[0] for pair in pairs]) if pairs else torch.zeros(0, *self.shape)
        labels = None
        if self._labels is None and self._fetched_labels and pairs and pairs[0][1] is not None:
            labels = torch.stack([torch.as_tensor(pair[1]) for pair in pairs])
        return as_input(inputs), labels, {}


@dataclass
class Splits:
    """A data set, cut into what is trained on, chosen by and reported.

    Attributes:
        train: what is trained on.
        test: what is reported; never looked at before.
        validation: what choices (early stopping, tuning) are made by; cut from the training data where none came along.
        unlabelled: a pool without labels, beside `train`.
        classes: names of the classes, in the order of their numbers.
        name: what the data set is called.
        notes: sentences for the user: what was skipped, resized, split, assumed.
        kind: "classification", "multi-label", "segmentation", "detection", "regression", "language-modelling",
            "super-resolution" or "unlabelled".
        tokenizer: what turned text into the tokens of the inputs; None where they are no text.
    """

    train: Samples
    test: Samples
    validation: Samples | None = None
    unlabelled: Samples | None = None
    classes: list[str] | None = None
    name: str = ""
    notes: list[str] = field(default_factory=list)
    kind: Kind = "classification"
    tokenizer: Any = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, given {self.kind!r}")


def as_input(tensor: Tensor) -> Tensor:
    """Turn uint8 images into float32 in [0, 1]; leave everything else as it is."""
    return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor
