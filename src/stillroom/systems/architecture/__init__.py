"""Systems that search for or change a network's architecture. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = (
    System(
        slug="tas",
        title="Network Pruning via Transformable Architecture Search",
        arxiv="1905.09717",
        year=2019,
        kind="architecture",
        module="stillroom.systems.architecture.tas",
        needs="labels, the sizes of a residual network",
        gives="a smaller residual network, distilled from the larger one",
    ),
)
