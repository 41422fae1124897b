"""Systems that learn across modalities. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = (
    System(
        slug="mst-distill",
        title="Mixture of Specialized Teachers for Cross-Modal Knowledge Distillation",
        arxiv="2507.07015",
        year=2025,
        kind="multimodal",
        module="stillroom.systems.multimodal.mst_distill",
        needs="three networks, paired samples of two modalities, labels",
        gives="a student of one modality",
    ),
)
