"""Self-distillation, exactly in kernel ridge regression: when to stop, and how much of the labels to keep.

For whom: you train a model again on its own predictions (born-again networks) and want to know what the steps do, what
they converge to, and how large a share of the labels to keep; or you have a kernel regression that fits too closely,
whose ridge you cannot change, and held-out points.

Not for whom: you can tune the regularisation itself. Self-distillation = extra regularisation; it recovers what a tuned
ridge gives, no more, and it harms a fit whose ridge is tuned already. For networks nothing is promised: on digits
with wrong labels neither a gain over a second training nor an estimate as good as a grid could be shown.

Citation: Kenneth Borup, Lars N. Andersen. Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization
Imposed by Self-Distillation. NeurIPS 2021. arXiv:2102.13088.

Deviations from the paper: the kernel matrix is decomposed into eigenvectors (the authors' notebook inverts it), so that
any step and the limit come without fitting again. `label_weight` is the paper's alpha and weighs the LABELS. In the
network version training samples are shuffled, weights are chosen on a held-out part instead of the test images, and the
teacher stays in eval mode outside the student; the authors' code does otherwise. The penalty is their sum of unsquared
norms. The paper's theorems were derived again from the recursion. That it estimates the label weight of networks as
`self_distil_by_estimate` does (two trainings per step) is unconfirmed.
"""

from stillroom.systems.classification.kernel_self_distillation.estimator import KernelSelfDistillation
from stillroom.systems.classification.kernel_self_distillation.network import (
    Distilled,
    FirstStep,
    SelfDistillation,
    self_distil,
    self_distil_by_estimate,
)
from stillroom.systems.classification.kernel_self_distillation.recipe import paper, recipe
from stillroom.systems.classification.kernel_self_distillation.spectral import dual_filter, spectral_filter

__all__ = [
    "Distilled",
    "FirstStep",
    "KernelSelfDistillation",
    "SelfDistillation",
    "dual_filter",
    "paper",
    "recipe",
    "self_distil",
    "self_distil_by_estimate",
    "spectral_filter",
]
