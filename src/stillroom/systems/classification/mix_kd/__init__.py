"""MIX-KD: where mixup helps distillation and where it hurts, and a recipe of partial mixup without a temperature.

For whom: you train classifiers with mixup already and want to distil; or you do not want to tune a temperature anew for
every strength of mixing.

Not for whom: two classes (the deviation of two logits says nothing); a teacher whose answers are cached (it has to see
the mixed inputs); inputs that cannot be averaged (text, categories, images as integers); outputs other than one class
of many.

Citation: Hongjun Choi, Eun Som Jeon, Ankita Shukla, Pavan Turaga. Understanding the Role of Mixup in Knowledge
Distillation: An Empirical Study. WACV 2023. arXiv:2211.03946.

Deviations from the paper: exactly round(mixed_share N) distinct samples of a batch are mixed, where the authors' code
draws the clean ones with replacement and so mixes about 41 of 100 for an intended 10 (`official_sampling=True` does
that). The deviation has 1e-7 beside it in the denominator; the code has none. All draws come from one generator of
torch. Plain distillation of mixed samples learns from the mixed labels, where the code takes the labels of the
unshuffled batch. Tables of the paper could not be read.
"""

from stillroom.systems.classification.mix_kd.methods import MixKD, Mixup, MixupKD
from stillroom.systems.classification.mix_kd.recipe import paper, recipe

__all__ = ["MixKD", "Mixup", "MixupKD", "paper", "recipe"]
