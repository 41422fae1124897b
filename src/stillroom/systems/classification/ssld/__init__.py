"""SSLD: a strong classifier teaches a small one on any images of the domain, and nobody needs a label.

For whom: you have a strong ready-made classifier and many images of its domain without labels, and want a small
classifier that says the same. On digits a mined pool adds about a point to the same loss on the few images alone, and
mining by the teacher's confidence about as much again over a pool drawn at random, a third of it off-domain.

Not for whom: you have labels beside the pool: there plain distillation of both (`kd`, temperature 4, a tenth of the
weight on the labels) is the better one in our measurements, and on the labelled images alone it is about as good. The
teacher knows no more than your labels (no gain over the student alone could be shown); its answers are to be cached
while its batch norm uses the batch; the classes differ; outputs are not one class of many. Neither the second phase nor
the batch's statistics in the teacher made a difference that we could show.

Citation: Cheng Cui, Ruoyu Guo, Yuning Du, Dongliang He, Fu Li, Zewu Wu, Qiwen Liu, Shilei Wen, Jizhou Huang, Xiaoguang
Hu, Dianhai Yu, Errui Ding, Yanjun Ma. Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative
to Improve Backbones. 2021. arXiv:2103.05959.

Deviations from the paper: known from its abstract, the documentation and the code of PaddleClas. The loss is the
symmetric KL divergence of the code, where the text says Jensen-Shannon (`JensenShannonSSLD` is that one, and
`SoftLabelSSLD` the cross-entropy of some configurations); it is computed from differences of log-probabilities, and
`eps` brings the code's small number back. By default the teacher normalises by the batch, as the authors' does, but its
stored statistics stay and dropout is off (`teacher_mode="train"` is their way). Near-duplicates of the evaluation set
are found by nearest neighbours, of pixels or of anything given, not by SIFT. How many images are kept of a class (about
4,000) is unconfirmed. Both phases take batches of one size. AutoAugment and the last tuning of the classifier at a
larger resolution, which the authors add for large students, are left out.
"""

from stillroom.systems.classification.ssld.methods import SSLD, JensenShannonSSLD, LabelFree, SoftLabelSSLD
from stillroom.systems.classification.ssld.recipe import paper, recipe

__all__ = ["SSLD", "JensenShannonSSLD", "LabelFree", "SoftLabelSSLD", "paper", "recipe"]
