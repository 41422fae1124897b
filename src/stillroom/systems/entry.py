"""An entry of the catalogue: what is known of a system before any of it is imported."""

from __future__ import annotations

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
