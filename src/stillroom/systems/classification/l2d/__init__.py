"""L2D: distil a multi-label classifier label by label, its yes-or-no answers and how label-wise embeddings lie.

For whom: you own a large multi-label tagger (photo tags, findings, topics) and need a small one. `MLD` takes the logits
of any two networks over the same labels; `L2D` adds the embeddings where both have a query per label. Measured on grids
of digits nothing was gained: neither is shown to be better than the student alone, nor than softmax distillation.

Not for whom: exactly one class is right (softmax distillation says more); hardly any image carries three labels or no
label is carried by three images of a batch, so that the embeddings' term has nothing to compare; labels are plenty and
clean; you want a sure gain: with another image's answers (the control) the student did as well here.

Citation: Penghui Yang, Ming-Kun Xie, Chen-Chen Zong, Lei Feng, Gang Niu, Masashi Sugiyama, Sheng-Jun Huang. Multi-Label
Knowledge Distillation. ICCV 2023. arXiv:2308.06453.

Deviations from the paper: none in the losses. Rows of a group are chosen by the labels, where the authors' code looks
for embeddings that are not zero. Unknown labels (NaN) are allowed: they are left out of the label's loss, count as not
carried, and the logits are distilled all the same. The authors' F1 is measured as `micro_f1_at_k` and `macro_f1_at_k`.
"""

from __future__ import annotations

from stillroom.systems.classification.l2d.method import L2D, MLD, Exchanged, LabelsAlone, SoftmaxKD
from stillroom.systems.classification.l2d.recipe import paper, recipe

__all__ = ["L2D", "MLD", "Exchanged", "LabelsAlone", "SoftmaxKD", "paper", "recipe"]
