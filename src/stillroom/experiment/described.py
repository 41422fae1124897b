"""What things are, as text that is the same in every process: arguments, models, arrays and data sets."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import bytes_of
from stillroom.checkpoint import random_state, set_random_state
from stillroom.data.batch import tensors_in
from stillroom.data.samples import Samples, Splits, TensorSamples

FETCHED = 32
"""Samples that are looked at of a data set whose samples are fetched one by one."""
LARGEST = 2**27
"""Numbers that are looked at of a data set in memory: all of them up to here, else some of its samples."""


def text_of(value: Any) -> str:
    """Write a value down so that two processes can compare it.

    Plain values, lists and dictionaries are written as Python does; functions and classes by their qualified names;
    dataclasses by their fields; modules, tensors, arrays and samples by their kind and a checksum of what they hold;
    anything else by its class.

    Args:
        value: of any type, nested as deep as it likes.
    """
    if value is None or isinstance(value, (str, int, float, complex, bytes, torch.dtype, torch.device)):
        return repr(value)
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{text_of(key)}: {text_of(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(text_of, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(text_of, value)))}}}"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"<{_name(type(value))} {tuple(value.shape)} {value.dtype} {_checksum([value])}>"
    if isinstance(value, nn.Module):
        return f"<{_name(type(value))} {_checksum(_state(value))}>"
    if isinstance(value, Samples):
        return f"<{_name(type(value))} {_checksum(_parts(value))}>"
    if isinstance(value, partial):
        named = [f"{name}={text_of(inner)}" for name, inner in sorted(value.keywords.items())]
        return f"functools.partial({', '.join([text_of(value.func), *map(text_of, value.args), *named])})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value))
        return f"{_name(type(value))}({', '.join(f'{name}={text_of(getattr(value, name))}' for name in fields)})"
    if hasattr(value, "__qualname__"):
        return _name(value)
    return f"<{_name(type(value))}>"


def data_checksum(data: Any) -> str:
    """Twelve hex digits that tell whether two runs had the same data.

    Counted are sizes, sample numbers, labels and inputs: of data in memory all inputs (of very large data some
    samples), of data whose samples are fetched 32 samples of each part. Inputs that differ between two readings are
    left out. Nothing random is used up.

    Args:
        data: `Splits`, or what a task loads in their place.
    """
    names = ("train", "test", "validation", "unlabelled", "classes", "kind")
    whole = [getattr(data, name) for name in names] if isinstance(data, Splits) else data
    before = random_state()
    try:
        return hashlib.sha256(text_of(whole).encode()).hexdigest()[:12]
    finally:
        set_random_state(before)


def _name(thing: Any) -> str:
    """Where a function or class is from; those of Python itself without their module."""
    module = getattr(thing, "__module__", None)
    return str(thing.__qualname__) if module in (None, "builtins") else f"{module}.{thing.__qualname__}"


def _checksum(parts: Any) -> str:
    """Twelve hex digits of a SHA-256 over text and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
            for stored in _stored(part.detach()):
                digest.update(bytes_of(stored))
        elif isinstance(part, np.ndarray) and part.dtype != object:
            digest.update(f"{part.shape}{part.dtype}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(text_of(part.tolist() if isinstance(part, np.ndarray) else part).encode())
    return digest.hexdigest()[:12]


def _stored(tensor: Tensor) -> list[Tensor]:
    """What is kept of a tensor: itself, or places and values of a sparse one."""
    if tensor.layout == torch.strided:
        return [tensor]
    sparse = tensor.to_sparse_coo().coalesce()
    return [sparse.indices(), sparse.values()]


def _state(network: nn.Module) -> Iterator[Any]:
    """Names and values of a network's weights and buffers; those that do not exist yet by their class."""
    for name, value in sorted(network.state_dict().items()):
        yield name
        yield type(value) if torch.nn.parameter.is_lazy(value) else value


def _parts(samples: Samples) -> Iterator[Any]:
    """What tells samples from others."""
    yield [len(samples), *samples.shape]
    yield samples.index
    yield from _values(samples.labels)
    for name, values in sorted(samples.fields.items()):
        yield name
        yield values
    settled = isinstance(samples, TensorSamples)
    read = list(_read(samples)) if not settled else []
    if settled:
        yield from _inputs(samples)
    elif _checksum(read) == _checksum(_read(samples)):
        yield from read


def _read(samples: Samples) -> Iterator[Any]:
    """Inputs and labels of some samples that are fetched, evenly spread."""
    for row in _spread(len(samples), FETCHED):
        batch = samples.batch([row])
        yield from _values(batch.inputs)
        yield from _values(batch.labels)


def _inputs(samples: Samples) -> Iterator[Any]:
    """Inputs of samples in memory: of all of them where they are not too many."""
    each = sum(tensor[0].numel() for tensor in tensors_in(samples.batch([0]).inputs)) if len(samples) else 0
    rows = _spread(len(samples), LARGEST // max(each, 1))
    for begin in range(0, len(rows), 256):
        yield from _values(samples.batch(rows[begin : begin + 256]).inputs)


def _spread(length: int, most: int) -> list[int]:
    """Row numbers from 0 to below `length`, evenly spread, at most so many."""
    count = min(length, max(most, 1))
    return [row * length // count for row in range(count)]


def _values(value: Any) -> Iterator[Any]:
    """The arrays in something nested, or itself where there are none."""
    found = list(tensors_in(value))
    yield from found or [value]
