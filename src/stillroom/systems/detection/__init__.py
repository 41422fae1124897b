"""Systems for networks that find objects, landmarks and poses. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = (
    System(
        slug="lpld",
        title="Enhancing Source-Free Domain Adaptive Object Detection with Low-confidence Pseudo Label Distillation",
        arxiv="2407.13524",
        year=2024,
        kind="detection",
        module="stillroom.systems.detection.lpld",
        needs="a detector trained on another domain, unlabelled images",
        gives="the detector, adapted",
    ),
)
