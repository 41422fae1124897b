"""Who a teacher is: all that its answers follow from, as far as it can be read off."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import UNKNOWN, Frozen, bytes_of, is_memory

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, slice, range)
_OF_TORCH = frozenset(vars(nn.Module()))


def identity(teacher: Any) -> str:
    """Sixteen hex digits that differ between teachers whose answers may.

    Read are, of every module, also inside a `Frozen` or a cache: its class, its parameters and buffers (those outside
    of the state dict too), and attributes that are plain values, tensors, arrays, functions, or collections of them.
    Of other objects only the class is seen. A module or function with a `fingerprint()` of its own is asked instead,
    and read no further. Attributes that a class names in `beside_the_answers` are left out.

    Args:
        teacher: a network, a teacher provider, or a `Frozen` of one.

    Raises:
        ValueError: a function in it has no `fingerprint()`.
    """
    reader = _Reader(values=True)
    reader.read_teacher(teacher)
    return reader.digest.hexdigest()[:16]


def check_identity(teacher: Any) -> None:
    """Refuse a teacher that cannot be told from others; its weights are not looked at.

    Raises:
        ValueError: a function in it has no `fingerprint()`.
    """
    _Reader(values=False).read_teacher(teacher)


class _Reader:
    """Goes through a teacher and hashes what it finds.

    Args:
        values: whether the values of tensors and arrays count.
    """

    def __init__(self, *, values: bool) -> None:
        self.digest = hashlib.sha256()
        self.values = values
        self.numbers: dict[int, int] = {}  # of the modules and functions met, by their id
        self.around: list[int] = []  # ids of the collections that the reader stands in

    def say(self, *words: Any) -> None:
        self.digest.update(repr(words).encode())

    def read_teacher(self, teacher: Any) -> None:
        if isinstance(teacher, nn.Module):
            self.read_module(teacher)
            return
        own = own_fingerprint(teacher)
        if own is None:
            raise ValueError(
                f"a cache finds answers by who gave them, but the function {_called(teacher)} does not say who it is, "
                "expected a fingerprint() of its own, a text that changes whenever its answers do: "
                'FunctionTeacher(..., version="forest of May"), or predict.fingerprint = lambda: "forest of May"; or '
                "use the teacher without a cache"
            )
        self.say("function", own)

    def read_module(self, module: nn.Module) -> None:
        if isinstance(module, Frozen):
            self.say("mode", module.batch_norm)
            self.read_teacher(module.network)
            return
        if self._met(module):
            return
        self.say("module", _path_of(type(module)))
        if is_memory(module):
            self.say("kept", str(getattr(module, "keep", getattr(module, "dtype", ""))))
            self.read_teacher(module.provider)
            return
        own = own_fingerprint(module)
        if own is not None:
            self.say(own)
            return
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            self.say(name)
            self.read(tensor)
        beside = getattr(module, "beside_the_answers", ())
        for name, value in sorted(vars(module).items()):
            if name not in _OF_TORCH and name not in beside:
                self.say(name)
                self.read(value)
        for name, child in module.named_children():
            self.say(name)
            self.read_module(child)
        self.say("end")

    def read(self, value: Any) -> None:
        """Read an attribute of a module, or what it holds."""
        if isinstance(value, nn.Module):
            self.read_module(value)
        elif isinstance(value, Tensor):
            self.say("tensor", tuple(value.shape), str(value.dtype))
            if self.values:
                self.digest.update(bytes_of(value))
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self.say("array", value.shape, str(value.dtype))
            if self.values:
                self.digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Enum):
            self.say(_path_of(type(value)), value.name)
        elif isinstance(value, _PLAIN):
            self.say(value)
        elif isinstance(value, np.generic):
            self.say(value.item())
        elif isinstance(value, Path):
            self.say("path", str(value))
        elif isinstance(value, (Mapping, list, tuple, set, frozenset)):
            self._read_collection(value)
        elif isinstance(value, (FunctionType, MethodType, partial)):
            self._read_function(value)
        elif isinstance(value, (type, BuiltinFunctionType)):
            self.say(_path_of(value))
        elif not isinstance(value, torch.device):  # where a teacher is does not count
            self.say("object", _path_of(type(value)))

    def _read_collection(self, value: Any) -> None:
        if id(value) in self.around:
            self.say("around")
            return
        self.around.append(id(value))
        self.say(_path_of(type(value)), len(value))
        parts: Iterable[Any] = value
        if isinstance(value, Mapping):
            parts = [part for pair in value.items() for part in pair]
        elif isinstance(value, (set, frozenset)):
            parts = sorted(map(repr, value))
        for part in parts:
            self.read(part)
        self.around.pop()

    def _read_function(self, value: Any) -> None:
        if self._met(value):
            return
        if isinstance(value, partial):
            parts: tuple[Any, ...] = (value.func, value.args, value.keywords)
        elif isinstance(value, MethodType):
            parts = (value.__func__, value.__self__)
        else:
            cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
            parts = (*_code_of(value.__code__), value.__defaults__, value.__kwdefaults__, *cells)
            self.say("function", value.__module__, value.__qualname__)
        for part in parts:
            self.read(part)

    def _met(self, part: Any) -> bool:
        if id(part) in self.numbers:
            self.say("again", self.numbers[id(part)])
            return True
        self.numbers[id(part)] = len(self.numbers)
        return False


def own_fingerprint(part: Any) -> str | None:
    """What a module or function says of itself; None where it has no `fingerprint()`, or that knows nothing."""
    own = getattr(part, "fingerprint", None)
    said = str(own()) if callable(own) else UNKNOWN
    return None if said == UNKNOWN else said


def _code_of(code: CodeType) -> list[Any]:
    inner = [part for const in code.co_consts if isinstance(const, CodeType) for part in _code_of(const)]
    return [code.co_code, code.co_names, [c for c in code.co_consts if not isinstance(c, CodeType)], *inner]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _path_of(kind: Any) -> str:
    return f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', kind)}"


def _called(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
