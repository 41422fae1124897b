"""LPLD: adapt a detector to unlabelled images of a new domain, and learn softly from what it is unsure of.

For whom: you hold a two-stage detector (torchvision's Faster R-CNN or your own of that form), its training data are
gone or may not be used, and you have unlabelled images from where it shall work now. Beside its own confident boxes,
the detector learns from a slow average of itself about uncertain proposals: small, rare and strongly shifted objects.

Not for whom: the detector finds next to nothing on the new images (a teacher without one confident box teaches
nothing); it knows one class only (every proposal would count as certain); you have labels (train on those); one-stage
detectors.

Citation: Ilhoon Yoon, Hyeongjun Kwon, Jin Kim, Junyoung Park, Hyunsung Jang, Kwanghoon Sohn. Enhancing Source-Free
Domain Adaptive Object Detection with Low-confidence Pseudo Label Distillation. ECCV 2024. arXiv:2407.13524.

Deviations from the paper: torchvision's detectors take the place of detectron2's; a region's feature is what its class
scores are computed from (in the paper's C4 detectors that is the mean over the region's map; after a fully connected
head it is the head's output). The teacher's side is computed without gradients, which the authors' code does not
bother to do. In a batch of several images L_lpld is the mean over images. The aspect ratios of erased patches, and
which network ships (the teacher here), are not stated and are arguments. Integer buffers are copied, not averaged.
SGD's momentum is Nesterov's, as everywhere in this package.
"""

from __future__ import annotations

from stillroom.systems.detection.lpld.method import LPLD, EqualWeights, Shuffled, follow
from stillroom.systems.detection.lpld.recipe import paper, recipe

__all__ = ["LPLD", "EqualWeights", "Shuffled", "follow", "paper", "recipe"]
