"""Systems that distil classifiers. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = (
    System(
        slug="logit-kd",
        title="The standard distillation baselines: KD, DKD, DIST, LSKD, FitNets, AT, RKD, CRD, ReviewKD, MGD",
        arxiv="1503.02531",
        year=2015,
        kind="classification",
        module="stillroom.systems.classification.logit_kd",
        needs="teacher, data (labels for DKD; for the others where there are any)",
        gives="a student",
        methods=(
            ("dkd", "DKD"),
            ("dist", "DIST"),
            ("lskd", "LSKD"),
            ("lskd-dkd", "LSKDDKD"),
            ("fitnets", "FitNets"),
            ("fitnets-two-stage", "TwoStageFitNets"),
            ("at", "AT"),
            ("rkd", "RKD"),
            ("crd", "CRD"),
            ("reviewkd", "ReviewKD"),
            ("mgd", "MGD"),
        ),
    ),
    System(
        slug="pld",
        title="A Choice-Theoretic List-Wise Knowledge Distillation",
        arxiv="2506.12542",
        year=2025,
        kind="classification",
        module="stillroom.systems.classification.pld",
        needs="teacher, labels",
        gives="a student",
        methods=(("pld", "PLD"),),
    ),
    System(
        slug="bd-kd",
        title="BD-KD: Balancing the Divergences for Online Knowledge Distillation",
        arxiv="2212.12965",
        year=2022,
        kind="classification",
        module="stillroom.systems.classification.bd_kd",
        needs="labels, a second network to train beside the student",
        gives="a student",
        methods=(("bd-kd", "BDKD"),),
    ),
    System(
        slug="mix-kd",
        title="Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study",
        arxiv="2211.03946",
        year=2022,
        kind="classification",
        module="stillroom.systems.classification.mix_kd",
        needs="teacher, labels",
        gives="a student",
        methods=(("mix-kd", "MixKD"), ("mixup-kd", "MixupKD")),
    ),
)
