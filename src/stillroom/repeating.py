"""What repeats a run: the command line, or the call in Python, and options as values that can be written down."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOT_REPEATED = ("progress", "resume", "out")
"""Options that change nothing in what comes out."""


def command_of(command: str, options: Mapping[str, Any]) -> str:
    """The command line that repeats a run."""
    parts = ["stillroom", command]
    for name, value in _given(options).items():
        if name == "method_options":
            for owner, arguments in (value if command == "compare" else {"method": value}).items():
                for key, inner in arguments.items():
                    parts += [f"--{owner}.{key}", str(plain(inner))]
            continue
        shown = ",".join(value) if name == "methods" else str(plain(value))
        flag = "--" + name.replace("_", "-")
        parts += [flag] if value is True else [flag, shown]
    return " ".join(shlex.quote(part) for part in parts)


def call_of(command: str, options: Mapping[str, Any]) -> str:
    """The call in Python that repeats a run; what is no plain value is shown by its name, as `<package.Class>`."""
    given = {name: plain(value) for name, value in _given(options).items()}
    return f"stillroom.{command}({', '.join(f'{name}={_written(value)}' for name, value in given.items())})"


def _written(value: Any) -> str:
    """A plain value as Python writes it, names of what is not plain without quotes."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_written(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return str(value) if isinstance(value, Named) else repr(value)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from their defaults and that change what comes out."""
    from stillroom.distill import distill

    defaults = {name: p.default for name, p in inspect.signature(distill).parameters.items()}
    found = {}
    for name, value in options.items():
        if name in NOT_REPEATED or name not in (*defaults, "methods") or value is None:
            continue
        usual = isinstance(value, (str, int, float)) and value == defaults.get(name)
        if not usual and not (name == "method_options" and not value):
            found[name] = value
    return found


class Named(str):
    """The name of something that cannot be written down."""


def plain(value: Any) -> Any:
    """Something that can be written down: plain values as they are, anything else by its name."""
    from functools import partial

    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)) and (len(value) < 10 or isinstance(value[0], (str, int, float))):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, partial):
        from stillroom.experiment.described import text_of

        return Named(f"<{text_of(value)}>")
    kind = value if hasattr(value, "__qualname__") else type(value)
    return Named(f"<{kind.__module__}.{kind.__qualname__}>")
