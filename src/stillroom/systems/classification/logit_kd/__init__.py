"""The standard distillation baselines, as published: DKD, DIST, LSKD; FitNets, AT, RKD, CRD, ReviewKD, MGD.

For whom: you distil a classifier and want the losses that every paper of the field compares with, in one harness and
with one recipe. The logit methods need nothing but outputs; the feature methods also read activations inside both
networks, by module name or chosen automatically, and train small adapters that are dropped afterwards.

Not for whom: the networks have different classes (only the feature methods apply then, with labels); the student must
not see the teacher's training data; language models (their divergences stand in `stillroom.losses`).

Citations: KD, Hinton et al. 2015, arXiv:1503.02531 (`stillroom.baselines.KD`). DKD, Zhao et al., CVPR 2022,
arXiv:2203.08679. DIST, Huang et al., NeurIPS 2022, arXiv:2205.10536. LSKD, Sun et al., CVPR 2024, arXiv:2403.01427.
FitNets, Romero et al., ICLR 2015, arXiv:1412.6550. AT, Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928. RKD, Park
et al., CVPR 2019, arXiv:1904.05068. CRD, Tian et al., ICLR 2020, arXiv:1910.10699. ReviewKD, Chen et al., CVPR 2021,
arXiv:2104.09044. MGD, Yang et al., ECCV 2022, arXiv:2205.01529.

Deviations from the papers, in all of them: warm-ups rise with the share of training that is done, 20 / 240 of it by
default, instead of by epoch number; activations are read where modules return them (usually behind the ReLU), where
some papers read them before it. Each class names its own.
"""

from __future__ import annotations

from stillroom.systems.classification.logit_kd.contrast import CRD
from stillroom.systems.classification.logit_kd.features import AT, MGD, RKD, FitNets, TwoStageFitNets
from stillroom.systems.classification.logit_kd.logits import DIST, DKD, LSKD, LSKDDKD
from stillroom.systems.classification.logit_kd.recipe import paper, recipe
from stillroom.systems.classification.logit_kd.review import ReviewKD

__all__ = [
    "AT",
    "CRD",
    "DIST",
    "DKD",
    "LSKD",
    "LSKDDKD",
    "MGD",
    "RKD",
    "FitNets",
    "ReviewKD",
    "TwoStageFitNets",
    "paper",
    "recipe",
]
