"""Systems for networks that give every position a class. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = (
    System(
        slug="relative-difficulty",
        title="Relative Difficulty Distillation for Semantic Segmentation",
        arxiv="2407.03719",
        year=2024,
        kind="segmentation",
        module="stillroom.systems.segmentation.relative_difficulty",
        needs="teacher with an auxiliary head, masks",
        gives="a segmenter",
        methods=(("rdd", "RDD"),),
    ),
)
