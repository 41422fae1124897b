"""NCFM: condenses an image data set by matching characteristic functions of features, with learned frequencies.

For whom: you want a few synthetic images per class that train a network nearly as well as the whole set does, at the
cost of matching distributions: no unrolled training, little memory.

Not for whom: inputs that are not images with one class each; privacy (synthetic images may show their sources); whoever
needs the last points of accuracy and can store the data. Sets are made for one kind of network and help others less.

Citation: Shaobo Wang, Yicun Yang, Zhiyuan Liu, Chenghao Sun, Xuming Hu, Conghui He, Linfeng Zhang. Dataset Distillation
with Neural Characteristic Function: A Minmax Perspective. CVPR 2025. arXiv:2502.20653.

Deviations from the paper: the sampler's scales are multiplied by normal noise, a scale mixture as the paper writes it;
the authors' released code leaves that product out (`sampler_form="released"`), and that this is how their reported
numbers were made is unconfirmed. The sampler learns here: in the released code its gradients cancel. The phase term is
computed as |phi_real - phi_synthetic|^2 less the amplitude term, which is the same number without its rounding errors.
Pretraining sees the augmentation of the evaluation (unconfirmed) and its SGD is Nesterov's. Every evaluation reports
the last epoch, where the authors report the best one on the test images.
"""

from __future__ import annotations

from stillroom.systems.condensation.ncfm.condenser import NCFM, matching_loss
from stillroom.systems.condensation.ncfm.recipe import paper, recipe

__all__ = ["NCFM", "matching_loss", "paper", "recipe"]
