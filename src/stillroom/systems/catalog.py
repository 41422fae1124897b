"""The catalogue: what systems and methods there are, as plain data that costs no import."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class System:
    """One published system.

    Attributes:
        slug: its name on the command line.
        title: title of the paper (or what the entry collects).
        arxiv: arXiv number.
        year: of the first version.
        kind: the kind of work, which is its folder's name.
        module: where it lives; `recipe` and `paper` are functions there.
        needs: what it must be given.
        gives: what comes out.
        methods: name on the command line -> class in the module, for methods that `distill` and `compare` can use.
    """

    slug: str
    title: str
    arxiv: str
    year: int
    kind: str
    module: str
    needs: str
    gives: str
    methods: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"methods": [name for name, _ in self.methods]}


SYSTEMS: tuple[System, ...] = (
    System(
        slug="logit-kd",
        title="The standard distillation baselines: KD, DKD, DIST, LSKD, FitNets, AT, RKD, CRD, ReviewKD, MGD",
        arxiv="1503.02531",
        year=2015,
        kind="classification",
        module="stillroom.systems.classification.logit_kd",
        needs="teacher, data (labels for DKD; for the others where there are any)",
        gives="a student",
        methods=(
            ("dkd", "DKD"),
            ("dist", "DIST"),
            ("lskd", "LSKD"),
            ("lskd-dkd", "LSKDDKD"),
            ("fitnets", "FitNets"),
            ("fitnets-two-stage", "TwoStageFitNets"),
            ("at", "AT"),
            ("rkd", "RKD"),
            ("crd", "CRD"),
            ("reviewkd", "ReviewKD"),
            ("mgd", "MGD"),
        ),
    ),
    System(
        slug="pld",
        title="A Choice-Theoretic List-Wise Knowledge Distillation",
        arxiv="2506.12542",
        year=2025,
        kind="classification",
        module="stillroom.systems.classification.pld",
        needs="teacher, labels",
        gives="a student",
        methods=(("pld", "PLD"),),
    ),
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
