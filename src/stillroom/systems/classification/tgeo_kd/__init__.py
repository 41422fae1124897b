"""TGeo-KD: each sample gets its own share of teacher and label, and held-out labels teach a small network which.

For whom: you distil a classifier whose teacher is right on some samples and wrong on others, or whose labels are, you
can spare clean labels that the student is not trained on, and you want to see which samples the teacher is trusted on.

Not for whom: there are no clean labels to spare, or the held-out ones are as wrong as the others; training time is
short (each step of the student has a look-ahead step beside it: three to four times the time of plain distillation
here); accuracy is all that you want. On digits with a teacher that mixes up two classes, the shares told the classes of
the teacher's mistakes from those of the labels' mistakes, and within these classes nothing (at temperature 1.5; at 4,
on the seeds that were looked at beforehand, the sign was the wrong one, so look at `scores` before you believe them),
and the student was a little better than one trained on the clean labels too. But WLS-KD, a rule without anything to
train, did as well once learning rate and temperature were its own, and over the best fixed share no lead was shown.
Early stopping on the held-out samples is optimistic, since the controller has learned from them.

Citation: Chengming Hu, Haolun Wu, Xuan Li, Chen Ma, Xi Chen, Boyu Wang, Jun Yan, Xue Liu. Less or More From Teacher:
Exploiting Trilateral Geometry For Knowledge Distillation. ICLR 2024. arXiv:2312.15112.

Deviations from the paper: its body could not be read in full; the order and the contents of the state, the controller
and the loss follow the authors' code. That code never trains the controller (the shares are computed without
gradients), so that its shares come from random weights; here the controller learns by one look-ahead step, and
`FrozenController` is that code's behaviour. The code takes the cross-entropy of probabilities, here it is that of
logits. The teacher's class averages are taken once over the training samples as they are, without augmentation, not
over the batch. The look-ahead is a step of plain gradient descent with the student's current learning rate, whatever
optimizer the student has. The controller learns with Adam 1e-3 and weight decay 1e-4; the code's 0.1 and 0.05 belong to
full batches. The schedule for images is the field's (unconfirmed).
"""

from stillroom.systems.classification.tgeo_kd.geometry import Controller, geometry_state, state_width
from stillroom.systems.classification.tgeo_kd.methods import WLSKD, FrozenController, ShuffledAlphas, TGeoKD
from stillroom.systems.classification.tgeo_kd.paper import paper
from stillroom.systems.classification.tgeo_kd.recipe import recipe

__all__ = [
    "WLSKD",
    "Controller",
    "FrozenController",
    "ShuffledAlphas",
    "TGeoKD",
    "geometry_state",
    "paper",
    "recipe",
    "state_width",
]
