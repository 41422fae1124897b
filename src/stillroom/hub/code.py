"""Code of a user: functions that build networks and classes of methods, `package.module:NAME` and `file.py:NAME`."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

NAMES = {
    "classes": ("classes", "num_classes"),
    "channels": ("channels", "in_channels", "in_chans"),
    "image_size": ("image_size",),
}
"""What is offered to a builder, under the names it may use."""


def find_function(spec: str) -> Callable[..., Any]:
    """Find `package.module:function` or `file.py:function`, running the module or file that holds it.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the module cannot be imported.
        ValueError: it has no such function; the nearest names are given.
    """
    where, _, _ = spec.rpartition(":")
    found = _attribute(spec, _run_file(where) if where.endswith(".py") else _import(where), "function")
    if not callable(found):
        raise ValueError(f"{spec!r} names {type(found).__name__}, expected a function that returns a torch.nn.Module")
    return found


def find_method(spec: str) -> Any:
    """Find the method that `package.module:Class` or `file.py:Class` names.

    A file is run once and again when it has changed. Other processes find it by its module's name, so that the class
    can be sent to them.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the module cannot be imported.
        ValueError: it has no such class; the nearest names are given.
    """
    where, _, _ = spec.rpartition(":")
    return _attribute(spec, _module_of_file(where) if where.endswith(".py") else _import(where), "method class")


def _attribute(spec: str, module: ModuleType, what: str) -> Any:
    where, _, name = spec.rpartition(":")
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            offered = [other for other in vars(found) if callable(getattr(found, other)) and not other.startswith("_")]
            homes = {other: str(getattr(getattr(found, other), "__module__", "")) for other in offered}
            own = [other for other in offered if f"{homes[other]}.".startswith(f"{module.__name__}.")]
            near = ", ".join(difflib.get_close_matches(part, own, n=3, cutoff=0.3) or own[:5]) or "none"
            raise ValueError(f"{where} has no {what} {part!r}, which {spec!r} names; it has {near}")
        found = getattr(found, part)
    return found


def accepted(
    function: Callable[..., Any], name: str, *, classes: int | None, channels: int, image_size: int | None
) -> dict[str, Any]:
    """The part of what is offered that a builder has parameters for.

    Args:
        function: the builder.
        name: what it is called, for messages.
        classes: offered as `classes` or `num_classes`, where known.
        channels: offered as `channels`, `in_channels` or `in_chans`.
        image_size: offered as `image_size`, where known.

    Raises:
        ValueError: it requires an argument that is not offered.
    """
    offered = {"classes": classes, "channels": channels, "image_size": image_size}
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some builtins have no signature
        return {}
    options = {}
    for what, value in offered.items():
        for parameter in NAMES[what]:
            if parameter in parameters and value is not None:
                options[parameter] = value
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter, told in parameters.items():
        if told.default is inspect.Parameter.empty and told.kind not in kinds and parameter not in options:
            known = any(parameter in names for names in NAMES.values())
            remedy = f"pass it to load, or give {parameter} a default" if known else f"give {parameter} a default"
            raise ValueError(
                f"{name} requires the argument {parameter!r}, expected no others than classes, channels and image_size "
                f"that are known here: {remedy}"
            )
    return options


def call_builder(function: Callable[..., Any], name: str, options: dict[str, Any]) -> nn.Module:
    """Build a network with a user's function.

    Raises:
        TypeError: it returns no module.
    """
    net = function(**options)
    if not isinstance(net, nn.Module):
        raise TypeError(f"{name} returned {type(net).__name__}, expected a torch.nn.Module")
    return net


def _run_file(where: str) -> ModuleType:
    path = _file(where)
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    module_name = f"stillroom_file_{path.stem}_{digest}"
    module = importlib.util.module_from_spec(_spec_of(module_name, path))
    sys.modules[module_name] = module  # so that the classes it defines can be pickled
    try:
        _Loader(module_name, str(path)).exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _file(where: str) -> Path:
    path = Path(where).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {where}: code is named as file.py:NAME, relative to here")
    return path.resolve()


_PREFIX = "stillroom_method_"
"""Modules of files that are found again by their name, which holds the path."""

_ran: dict[str, tuple[int, int]] = {}
"""Time and size of each such file when it was run."""


def _module_of_file(where: str) -> ModuleType:
    path = _file(where)
    stem = re.sub(r"\W", "_", path.stem)  # a dot would make it a part of a package
    module_name = f"{_PREFIX}{stem}_{str(path).encode().hex()}"
    told = path.stat()
    if _ran.get(module_name) != (told.st_mtime_ns, told.st_size):
        sys.modules.pop(module_name, None)
    module = importlib.import_module(module_name)
    _ran[module_name] = (told.st_mtime_ns, told.st_size)
    return module


class _Finder(MetaPathFinder):
    """Lets workers import the file of a method that they are sent."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Say how to run a file whose path a module's name holds."""
        if not fullname.startswith(_PREFIX):
            return None
        return _spec_of(fullname, Path(bytes.fromhex(fullname.rpartition("_")[2]).decode()))


class _Loader(SourceFileLoader):
    """Runs a file as `python file.py` does: with the files beside it, and leaving nothing there."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the file."""
        beside = str(Path(self.path).parent)
        sys.path.insert(0, beside)
        wrote = sys.dont_write_bytecode
        sys.dont_write_bytecode = True
        try:
            super().exec_module(module)
        finally:
            sys.dont_write_bytecode = wrote
            sys.path.remove(beside)


def _spec_of(name: str, path: Path) -> ModuleSpec:
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path)))
    if spec is None:
        raise ImportError(f"{path} cannot be run as a Python file")
    return spec


sys.meta_path.append(_Finder())


def _import(where: str) -> ModuleType:
    sys.path.append(os.getcwd())  # last: the command line starts without it, and nothing installed is hidden
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not (where == error.name or where.startswith(f"{error.name}.")):
            raise  # the module is there, and something that it imports is not
        raise ImportError(
            f"there is no module {where!r}: install it, or start where it can be imported, or write file.py:function"
        ) from error
    finally:
        sys.path.remove(os.getcwd())
