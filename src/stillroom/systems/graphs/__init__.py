"""Systems for graphs and recommendation. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = (
    System(
        slug="lightgnn",
        title="LightGNN: Simple Graph Neural Network for Recommendation",
        arxiv="2501.03228",
        year=2025,
        kind="graphs",
        module="stillroom.systems.graphs.lightgnn",
        needs="an interaction matrix of users and items",
        gives="a pruned recommender, masks of its edges and embedding entries",
    ),
)
