"""Bidirectional uncertainty for open-set annotation: buy labels where they teach, in a pool full of unwanted classes.

For whom: you have a budget for labels, a pool of which a large part belongs to no class that you want, and a network
that is trained again after each round.

Not for whom: the pool holds wanted classes only (plain uncertainty sampling does as well, without two more trainings a
round); labels must be bought one by one; you cannot afford three trainings of the network per round.

Citation: Chen-Chen Zong, Ye-Wen Wang, Kun-Peng Ning, Haibo Ye, Sheng-Jun Huang. Bidirectional Uncertainty-Based Active
Learning for Open-Set Annotation. ECCV 2024. arXiv:2402.15198.

Deviations from the paper: the authors' code stops negative learning by looking at which queried samples truly are
known, and draws the unlabelled part of its training set with the true proportions; both read labels that nobody has
paid for, so that epochs are fixed here and the subset is uniform. Snapshots of the negative head are averaged (the code
sums them, which changes its entropy only) and begin after the first `snapshot_every` epochs. The pool is scored without
augmentation. The ratio of known samples is kept at 0.001 or more, so that the positive term never vanishes for good.
Queried are the smallest confidences as in the published code (`form="confidence"`); the paper's equation 3
(`form="paper"`) is another order. The negative head is the last linear layer initialised anew.
"""

from stillroom.systems.labels.bual.query import (
    BUAL,
    NegativeLearning,
    bidirectional_score,
    bidirectional_uncertainty,
)
from stillroom.systems.labels.bual.recipe import paper, recipe

__all__ = ["BUAL", "NegativeLearning", "bidirectional_score", "bidirectional_uncertainty", "paper", "recipe"]
