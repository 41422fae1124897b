"""Networks that a user's own function builds: `package.module:function` and `file.py:function`."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
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
    where, _, name = spec.rpartition(":")
    module = _run_file(where) if where.endswith(".py") else _import(where)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            offered = [other for other in vars(found) if callable(getattr(found, other)) and not other.startswith("_")]
            near = ", ".join(difflib.get_close_matches(part, offered, n=3, cutoff=0.3) or offered[:5]) or "none"
            raise ValueError(f"{where} has no function {part!r}, which {spec!r} names; it has {near}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{spec!r} names {type(found).__name__}, expected a function that returns a torch.nn.Module")
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
    path = Path(where).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {where}: a builder is named as file.py:function, relative to here")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    module_name = f"stillroom_file_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{where} cannot be run as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # so that the classes it defines can be pickled
    sys.path.insert(0, str(path.resolve().parent))  # as `python file.py` does, for the files beside it
    wrote = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # as for `python file.py`, nothing appears beside somebody's file
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    finally:
        sys.dont_write_bytecode = wrote
        sys.path.remove(str(path.resolve().parent))
    return module


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
