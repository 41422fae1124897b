"""Dirichlet-based prediction calibration: train a classifier on labels of which every second one may be wrong.

For whom: your training labels were made cheaply (by search terms, by one annotator each, by another model) and 20 to 80
% of them may be wrong. The loss (`EDL`, `stillroom.losses.edl_loss`) takes the place of cross-entropy in one network's
training: on digits with 45 % wrong labels it learned a fifth of them by heart where cross-entropy learned four fifths,
and lost nothing where all labels were right. The selection (`stillroom.blocks.label_margins`, `clean_probability`) says
of each label how probably it is right, with any network. `DPC` puts both into a semi-supervised training of two
networks, which ship together.

Not for whom: your labels are right; a single network's confidence is to be read as a probability (with this loss it is
far too low); you must ship one small network (distil the pair afterwards); your data set or your training is small: on
digits, with a warm-up of 180 steps, two networks trained by `stillroom.codivide.DivideMix` were not shown to be worse,
were better calibrated, and differed less between seeds, and DPC was as good with its selection dealt out to other
samples. A class that is not learned when the warm-up ends may be lost for good.

Citation: Chen-Chen Zong, Ye-Wen Wang, Ming-Kun Xie, Sheng-Jun Huang. Dirichlet-Based Prediction Calibration for
Learning with Noisy Labels. AAAI 2024. arXiv:2401.07062.

Deviations from the paper: where it and the authors' code differ, the code is followed: labels of mixed rows are the
favourites of the refined targets and not the given labels, the unlabelled loss is a mean over classes too and not a
sum, samples are trusted above the threshold and not at it, the penalty on the batch's mean prediction and the rise of
the unlabelled weight over 16 epochs are in the code only. Both networks warm up on the same batches, of the later ones'
size (128 in the paper). Both networks step in turn on each batch, where the authors train one for an epoch and then the
other. An epoch is one pass over all samples, where theirs is one over the trusted ones. Samples are selected from
fitted mixtures unless their margins form one peak (excess kurtosis above 1.2, as in the appendix; the code does so for
WebVision only). The weight of the consistency term of the variant with strong augmentation (DPC*) is 1, as in the
appendix for CIFAR-10 (3 for CIFAR-100; the code has the two exchanged); that its other terms come from the weak views
is this library's reading."""

from stillroom.systems.labels.dpc.method import DPC, EDL
from stillroom.systems.labels.dpc.recipe import paper, recipe

__all__ = ["DPC", "EDL", "paper", "recipe"]
