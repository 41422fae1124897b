"""Systems for networks that restore images: super-resolution, flare removal. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = (
    System(
        slug="imdn",
        title="Lightweight Image Super-Resolution with Information Multi-distillation Network",
        arxiv="1909.11856",
        year=2019,
        kind="restoration",
        module="stillroom.systems.restoration.imdn",
        needs="images",
        gives="a network that enlarges images",
    ),
)
