"""The catalogue: what systems and methods there are, as plain data that costs no import.

The entries stand in the `__init__.py` of each kind's folder.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from stillroom.systems import (
    architecture,
    classification,
    condensation,
    detection,
    exploration,
    generation,
    graphs,
    labels,
    language,
    multimodal,
    restoration,
    segmentation,
)
from stillroom.systems.entry import System

__all__ = ["BASELINES", "SYSTEMS", "System", "method", "methods", "recipe", "system", "unknown"]

SYSTEMS: tuple[System, ...] = (
    *classification.SYSTEMS,
    *segmentation.SYSTEMS,
    *detection.SYSTEMS,
    *restoration.SYSTEMS,
    *generation.SYSTEMS,
    *language.SYSTEMS,
    *multimodal.SYSTEMS,
    *graphs.SYSTEMS,
    *condensation.SYSTEMS,
    *exploration.SYSTEMS,
    *labels.SYSTEMS,
    *architecture.SYSTEMS,
)

BASELINES = {"alone": "stillroom.baselines:Alone", "kd": "stillroom.baselines:KD"}


def system(slug: str) -> System:
    """Find a system.

    Raises:
        ValueError: unknown slug, with the nearest ones.
    """
    for entry in SYSTEMS:
        if entry.slug == slug:
            return entry
    raise ValueError(unknown("system", slug, [entry.slug for entry in SYSTEMS]))


def methods() -> dict[str, str]:
    """Name on the command line -> `module:Class` of every method that distils a teacher into a student."""
    found = dict(BASELINES)
    for entry in SYSTEMS:
        found |= {name: f"{entry.module}:{attribute}" for name, attribute in entry.methods}
    return found


def method(name: str) -> Any:
    """Import a method class by its name.

    Raises:
        ValueError: unknown name, with the nearest ones.
    """
    known = methods()
    if name not in known:
        raise ValueError(unknown("method", name, list(known)))
    module, attribute = known[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def recipe(slug: str, *, paper: bool = False) -> Any:
    """Import a system's `recipe`, or its `paper` settings."""
    return getattr(importlib.import_module(system(slug).module), "paper" if paper else "recipe")


def unknown(what: str, given: str, known: list[str]) -> str:
    """Say that a name is unknown and which ones are near it."""
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
    return f"unknown {what} {given!r}: {hint}"
