"""One batch: inputs, labels, sample indices, and whatever else a task carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

UNLABELLED = -100
"""The class number that says "no label here" (integer labels; NaN says it in float labels)."""


class Ragged(list[Any]):
    """One value per sample where shapes differ: images of several sizes, the boxes of each image.

    It is a list that rows are taken of as of a tensor: by slices, row numbers and masks. A sample without a label
    holds None.

    Example:
        >>> sizes = Ragged([torch.zeros(1), torch.zeros(2), torch.zeros(3)])
        >>> [len(value) for value in sizes[torch.tensor([2, 0])]]
        [3, 1]
    """

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return Ragged(super().__getitem__(rows))
        if isinstance(rows, Tensor) and rows.ndim:
            rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
            return Ragged([super(Ragged, self).__getitem__(row) for row in rows.tolist()])
        return super().__getitem__(int(rows))


class Batch:
    """Samples that go through the networks together.

    Args:
        inputs: what the networks are called with: a tensor `(N, ...)`, or a list, tuple or dict of them; `Ragged`
            where every sample has a shape of its own.
        labels: `(N, ...)` as the task says; None where there are none. Rows without a label hold -100 (integers) or NaN
            (floats). Or `Ragged`, one value per sample; a list becomes one, and so do inputs that are a list then, but
            for a list of plain numbers, which becomes a tensor.
        index: `(N,)` int64, the number of each sample in its data set: caches and per-sample memories use it.
        **fields: further named values, read as attributes; tensors of first size N are cut and moved with the rest.

    Raises:
        ValueError: labels or index have another number of rows than inputs.
    """

    def __init__(self, inputs: Any, labels: Any = None, index: Tensor | None = None, **fields: Any) -> None:
        if isinstance(labels, list) and labels and all(isinstance(one, (int, float)) for one in labels):
            labels = torch.tensor(labels)
        if isinstance(index, list):
            index = torch.tensor(index, dtype=torch.int64)
        if isinstance(labels, list):
            labels = labels if isinstance(labels, Ragged) else Ragged(labels)
            inputs = Ragged(inputs) if type(inputs) is list else inputs
        self.inputs = inputs
        self.labels = labels
        self.index = index
        self.fields = fields
        for name, value in (("labels", labels), ("index", index)):
            if value is not None and len(value) != len(self):
                raise ValueError(f"batch.{name} has {len(value)} rows, but batch.inputs has {len(self)}")

    def __len__(self) -> int:
        if isinstance(self.inputs, Ragged):
            return len(self.inputs)
        first = next(tensors_in(self.inputs), None)
        return 0 if first is None else len(first)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        given = ", ".join(("inputs", "labels", "index", *fields))
        raise AttributeError(f"this batch has no field {name!r}; it has {given}")

    def __repr__(self) -> str:
        parts = {"inputs": self.inputs, "labels": self.labels, "index": self.index, **self.fields}
        shown = (f"{k}={tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__}" for k, v in parts.items())
        return f"Batch({', '.join(shown)})"

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """Take some rows of every tensor that has one row per sample."""
        size = len(self)

        def taken(value: Any) -> Any:
            if isinstance(value, Ragged):
                return value[rows]
            return map_tensors(value, lambda tensor: tensor[rows] if tensor.ndim and len(tensor) == size else tensor)

        return self._each(taken)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply a function to every tensor in the batch."""
        return self._each(lambda value: map_tensors(value, function))

    def _each(self, function: Callable[[Any], Any]) -> Batch:
        return Batch(
            function(self.inputs),
            None if self.labels is None else function(self.labels),
            None if self.index is None else function(self.index),
            **{name: function(value) for name, value in self.fields.items()},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move every tensor to a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def replace(self, **changes: Any) -> Batch:
        """Return a copy with some fields exchanged."""
        parts = {"inputs": self.inputs, "labels": self.labels, "index": self.index, **self.fields, **changes}
        return Batch(parts.pop("inputs"), parts.pop("labels"), parts.pop("index"), **parts)

    @property
    def labelled(self) -> Tensor:
        """`(N,)` bool: the rows that carry a label (any of their positions)."""
        if self.labels is None:
            first = next(tensors_in(self.inputs))
            return torch.zeros(len(self), dtype=torch.bool, device=first.device)
        if isinstance(self.labels, Ragged):
            return torch.tensor([label is not None for label in self.labels], dtype=torch.bool)
        known = ~self.labels.isnan() if self.labels.is_floating_point() else self.labels != UNLABELLED
        return known.flatten(1).any(1) if known.ndim > 1 else known


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested list, tuple or dict."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors_in(inner)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the tensors of a nested list, tuple or dict and keep its form."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(inner, function) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [map_tensors(inner, function) for inner in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
