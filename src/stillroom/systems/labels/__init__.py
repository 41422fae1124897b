"""Systems that spend few labels well: active learning, noisy labels. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = (
    System(
        slug="bual",
        title="Bidirectional Uncertainty-Based Active Learning for Open-Set Annotation",
        arxiv="2402.15198",
        year=2024,
        kind="labels",
        module="stillroom.systems.labels.bual",
        needs="a pool, somebody who labels, a network that is trained again each round",
        gives="which samples to label, and a classifier",
    ),
    System(
        slug="dpc",
        title="Dirichlet-Based Prediction Calibration for Learning with Noisy Labels",
        arxiv="2401.07062",
        year=2024,
        kind="labels",
        module="stillroom.systems.labels.dpc",
        needs="labels of which many may be wrong, two networks",
        gives="a classifier, and for every label how probably it is right",
    ),
)
