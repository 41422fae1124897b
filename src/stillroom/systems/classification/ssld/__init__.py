"""SSLD: a strong classifier teaches a small one on any images of the domain, and nobody needs a label.

For whom: you have a strong ready-made classifier, many images of its domain and no labels, or only few, and want a
small classifier (or a backbone for another task) that says the same.

Not for whom: there is no teacher worth copying; every image has a right label, which a teacher adds little to; the
teacher's answers are to be cached while its batch norm uses the batch; the classes differ; outputs are not one class of
many.

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
