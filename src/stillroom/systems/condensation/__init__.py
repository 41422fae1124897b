"""Systems that condense a data set into a few samples. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = (
    System(
        slug="ncfm",
        title="Dataset Distillation with Neural Characteristic Function: A Minmax Perspective",
        arxiv="2502.20653",
        year=2025,
        kind="condensation",
        module="stillroom.systems.condensation.ncfm",
        needs="labelled images",
        gives="a few synthetic images per class, as a data set",
    ),
)
