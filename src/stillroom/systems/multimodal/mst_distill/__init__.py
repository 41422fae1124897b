"""MST-Distill: a student of one modality picks, sample by sample, among masked teachers of other modalities.

For whom: you have several modalities while you train (camera and microphone, image and text, colour and depth), but the
network you ship sees one of them; you do not know beforehand whether the multimodal or the other-modality network
teaches better, and you can train all three together from the start.

Not for whom: your teacher is trained already and must not change (set `collaborate_epochs=0`, or use `KD`); the tapped
layers are wide (a mask over F features has about F^3 / 2 parameters: 596 features take 105 million); you expect the
router to find out who teaches best (it does not: see below).

Citation: Hui Li, Pengfei Yang, Juanyang Chen, Le Dong, Yanxin Chen, Quan Wang. MST-Distill: Mixture of Specialized
Teachers for Cross-Modal Knowledge Distillation. ACM Multimedia 2025. arXiv:2507.07015.

Deviations from the paper: the formulas are those of the authors' code; where the code says one thing and the figure
another, the figure is the default: in the third stage every specialised teacher runs with its own mask alone
(`stacked_masks=True` runs it with the masks before it too, as the code does). The router receives gradient from its
balance term only (the pick is not differentiable): it shares the samples out evenly by what the student says, and
nothing makes it prefer the teacher that helps; `routing="weighted"` distils from the teachers' mean weighted by the
router, which is differentiable. Frozen networks receive no gradients at all (in the code they pile up, unused). Inputs
are scaled without looking at the test data. The padding of the dense router's convolution is unconfirmed.
"""

from __future__ import annotations

from stillroom.systems.multimodal.mst_distill.method import MSTDistill, decayed_weight
from stillroom.systems.multimodal.mst_distill.recipe import paper, recipe

__all__ = ["MSTDistill", "decayed_weight", "paper", "recipe"]
