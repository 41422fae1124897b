"""Systems that make generators faster, or use them as teachers. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = (
    System(
        slug="swiftbrush",
        title="SwiftBrush: One-Step Text-to-Image Diffusion Model with Variational Score Distillation",
        arxiv="2312.05239",
        year=2023,
        kind="generation",
        module="stillroom.systems.generation.swiftbrush",
        needs="a diffusion teacher, prompts",
        gives="a one-step generator",
    ),
)
