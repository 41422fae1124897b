"""LSSKD: one network trained without a teacher, whose stages say class and rotation and learn from each other.

For whom: you train one conv net for images, you have no teacher, and training may cost several times as much as long as
what ships stays the same network. The parent method's code reports gains of about four points on CIFAR-100, from the
rotated joint labels alone, for networks and trainings that are large enough to learn them; try those labels first
(`kd_weight=0, feature_weight=0`), and compare with the student alone.

Not for whom: a network of a few thousand parameters, trained for a few hundred steps: on scikit-learn's digits the
network that ships lost a point by LSSKD, and the joint labels alone did not help either, although they do far better
than the same rotations as mere augmentation; only the likelihood of the shallow heads gained. Images whose meaning
changes when they are turned into one another (6 and 9), or that look alike turned (textures, satellite images): take
other transforms, or none. Images that are not square, with rotations. There is a good teacher already; outputs are not
one class of many. Nothing here is multimodal or about language models.

Citation: Dahri, Memon, Yu, Idris, Khan, Ahmad, Shoman, Aziz, Qureshi. A Layered Self-Supervised Knowledge Distillation
Framework for Efficient Multimodal Learning on the Edge. 2025. arXiv:2506.07055.

Deviations from the paper: its equations could not be read and there is no code of the authors. Confirmed are:
auxiliary classifiers behind the stages, rotations as augmented labels, one-to-one transfer between the stages of one
network by divergences and squared differences of features, no teacher, and nothing of it at inference. Joint labels,
heads and training follow the parent method's code (HSAKD, arXiv:2107.13715). Unconfirmed, and therefore arguments with
this library's defaults: which stage teaches (the next one), the weights (1 for divergences, 0.1 for features), layer
and reduction of the features (the heads' embeddings, the mean over rows and width), and whether the main classifier
learns from its deepest head (off). The parent's own form with a teacher is `TaughtLSSKD`, its online form
`MutualLSSKD`. The extra stage of the last copied head is built of the stage's own blocks where those keep the shape,
else of plain convolutions.
"""

from stillroom.systems.classification.lsskd.heads import HeadEnsemble
from stillroom.systems.classification.lsskd.method import LSSKD, MutualLSSKD, TaughtLSSKD
from stillroom.systems.classification.lsskd.recipe import (
    BothWays,
    Setting,
    StrangersTeach,
    TurnedCopies,
    paper,
    recipe,
    run_arm,
)

__all__ = [
    "LSSKD",
    "BothWays",
    "HeadEnsemble",
    "MutualLSSKD",
    "Setting",
    "StrangersTeach",
    "TaughtLSSKD",
    "TurnedCopies",
    "paper",
    "recipe",
    "run_arm",
]
