"""Methods by their names, by classes and functions of a user: what they are called, and the arms they become."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stillroom.command_line import expectation, fits


def method_name(method: Any) -> str:
    """What a method is called in results: its name in the library; of somebody's own, that of its class in lower case.

    Args:
        method: a name, `package.module:Class`, `file.py:Class`, a class, a partial of one, or a function.
    """
    from functools import partial

    if isinstance(method, str):
        return method if ":" not in method else re.split(r"[:.]", method)[-1].lower()
    from stillroom.experiment.arm import method_class

    while isinstance(method, partial) and method_class(method) is None:
        method = method.func
    found = method_class(method) or method
    return str(getattr(found, "__name__", type(found).__name__)).lower()


def named_methods(methods: Any) -> dict[str, Any]:
    """What each of several methods is called in results -> the method.

    Args:
        methods: names separated by commas, a list of names, classes and partials, or a dict of them by name.

    Raises:
        ValueError: there are none, or two of one name.
    """
    if isinstance(methods, Mapping):
        return {str(name): method for name, method in methods.items()}
    given = methods.split(",") if isinstance(methods, str) else [methods] if callable(methods) else list(methods)
    given = [one.strip() if isinstance(one, str) else one for one in given]
    given = [one for one in given if one != ""]
    names = [method_name(one) for one in given]
    if not names:
        raise ValueError("no methods were given: name some, separated by commas (--methods kd,dkd)")
    if len(set(names)) < len(names):
        raise ValueError(
            f"every method must be named once, given {', '.join(names)}: leave one out, or in Python give a dict of "
            "names and methods"
        )
    return dict(zip(names, given, strict=True))


def arm_of(name: str, method: Any, arguments: Mapping[str, Any]) -> Any:
    """The arm of a method, its arguments checked against its constructor.

    Args:
        name: what it is called in messages.
        method: a name, a class, a partial of one, or a function `(student, teacher) -> Method`.
        arguments: of the method.

    Raises:
        TypeError: it is none of these.
        ValueError: an unknown name or argument, or an argument of another type.
    """
    import inspect
    from functools import partial

    from torch import nn

    from stillroom.experiment.arm import method_class
    from stillroom.systems import catalog

    build = _found(method) if isinstance(method, str) else method
    shown = getattr(build, "__name__", type(build).__name__)
    if isinstance(build, nn.Module):
        raise TypeError(
            f"method was given as a {shown} that is built already, expected its class, for the method is built anew "
            f"for every seed: give {shown}, or functools.partial({shown}, ...) with its arguments"
        )
    if not callable(build):
        raise TypeError(f"method must be a name or a Method class, given {shown}")
    if isinstance(build, type) and method_class(build) is None:
        raise TypeError(f"method must be a subclass of stillroom.Method or a function that returns one, given {shown}")
    own = {"self", "student", "teacher", "task", "probe", "train_labels", "train_size", "train_samples", "classes"}
    maker = method_class(build) or build
    known = [key for key in inspect.signature(maker).parameters if key not in own]
    kinds = _kinds(maker)
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(catalog.unknown(f"argument of method {name}", key, known))
        if not fits(value, kinds.get(key, Any)):
            raise ValueError(f"{key} of method {name} must be {expectation(kinds[key])}, given {value!r}")
    return partial(build, **arguments) if arguments else build


def _found(name: str) -> Any:
    """The method that a name of the library, `package.module:Class` or `file.py:Class` stands for."""
    from stillroom.hub.code import find_method
    from stillroom.systems import catalog

    if name.endswith(".py"):
        raise ValueError(f"{name} is a file, expected file.py:Class: name the class of the method in it")
    return find_method(name) if ":" in name else catalog.method(name)


def _kinds(maker: Any) -> dict[str, Any]:
    """The types of a method's arguments; empty where they cannot be told."""
    import typing

    function: Any = vars(maker).get("__init__", maker) if isinstance(maker, type) else maker
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # somebody's own, with names that only a type checker sees
        return {}


def check_fits(name: str, arm: Any, task: Any) -> None:
    """Refuse a method that does not work for the task."""
    from stillroom.experiment.arm import method_class

    kind = method_class(arm)
    if kind is None:
        return
    if task.name not in kind.needs.tasks:
        raise ValueError(
            f"method {name!r} works for {', '.join(kind.needs.tasks)}, but the task is {task.name}: choose another "
            "method, or name the task"
        )
