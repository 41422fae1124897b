"""Relative difficulty distillation: weigh the pixels of the ordinary cross-entropy by who finds them hard.

For whom: you distil a segmentation network and do not want to balance further losses: one pixel-wise distillation term
stays as it is, and only the label's loss learns where to look, first at pixels that the teacher finds easy, later at
pixels that exactly one of teacher and student finds hard. Labels may be partly wrong: pixels that contradict both
networks are left out.

Not for whom: teacher and student were trained on the same wrong labels; the teacher has no auxiliary head and you want
the first phase (set `tfe_share=0`); most of your pixels have no label.

Citation: Dong Liang, Yue Sun, Yun Du, Songcan Chen, Sheng-Jun Huang. Relative Difficulty Distillation for Semantic
Segmentation. Science China Information Sciences 2024. arXiv:2407.03719.

Deviations from the paper: where paper and code differ, the code is followed: KL(auxiliary || primary) as the first
phase's weight (`direction` offers the other), the second phase averaged over the selected pixels only, the true class's
probability as confidence. `min_kept` is 0 unless it is given, because the code's 100,000 exceeds every small batch and
ends there in an error. Distillation runs at the resolution of the heads' logits where both networks have modules
called `classifier`, and at that of their outputs elsewhere. The class weights of Cityscapes are no default.
"""

from stillroom.systems.segmentation.relative_difficulty.method import RDD
from stillroom.systems.segmentation.relative_difficulty.recipe import paper, recipe

__all__ = ["RDD", "paper", "recipe"]
