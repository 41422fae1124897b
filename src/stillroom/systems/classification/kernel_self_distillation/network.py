"""The network version: fresh networks on squared differences of probabilities, and the label weight of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from stillroom.data.batch import Batch
from stillroom.data.samples import Splits
from stillroom.losses import label_mse_loss, norm_penalty, probability_mse_loss
from stillroom.losses._shared import check_not_negative
from stillroom.losses.probabilities import check_share
from stillroom.method import Losses, Method, Needs
from stillroom.redistil import LabelWeight, Redistiller, estimate_label_weight
from stillroom.staging import Fitted

NORM_WEIGHT = 1e-4


class FirstStep(Method):
    """Trains a network on the labels alone, as the first step of self-distillation does.

    Args:
        student: inputs -> logits `(N, C)`.
        teacher: taken and ignored, so that all steps are built alike.
        norm_weight: r of the sum of the parameters' norms (which are not squared), 0 or more.

    Losses:
        label_mse: `stillroom.losses.label_mse_loss` over the labelled rows.
        norms: `stillroom.losses.norm_penalty` of the student's trainable parameters.

    Source: Borup and Andersen 2021, arXiv:2102.13088.

    Example:
        >>> method = FirstStep(nn.Linear(4, 3))
        >>> sorted(method(Batch(torch.randn(8, 4), torch.randint(3, (8,)))))
        ['label_mse', 'norms']
    """

    needs = Needs(labels="some", teacher=False)

    def __init__(self, student: nn.Module, teacher: Any = None, *, norm_weight: float = NORM_WEIGHT) -> None:
        super().__init__(student)
        check_not_negative(norm_weight=norm_weight)
        self.norm_weight = norm_weight

    def forward(self, batch: Batch) -> Losses:
        """Return the squared error to the labels and the norms."""
        if batch.labels is None:
            raise ValueError("the first step learns from labels, but this batch has none")
        logits = self.student(batch.inputs)
        label = label_mse_loss(logits, batch.labels)
        return Losses(label_mse=label, norms=_norms(self), weights={"norms": self.norm_weight}, outputs=logits)


class SelfDistillation(Method):
    """Trains a network on the probabilities of a teacher like itself and on a share of the labels.

    `loss = a * label_mse + (1 - a) * distill + r * norms`. In self-distillation the student is a new, untrained network
    of the teacher's architecture (`stillroom.redistil.Redistiller` makes them); any other pair works too.

    Args:
        student: inputs -> logits `(N, C)`.
        teacher: inputs -> logits over the same classes; frozen here, and in eval mode.
        label_weight: a, the share of the LABELS (not of the teacher), in [0, 1].
        norm_weight: r of the sum of the parameters' norms (which are not squared), 0 or more.

    Losses:
        label_mse: `stillroom.losses.label_mse_loss` over the labelled rows; absent when the batch carries no labels.
        distill: `stillroom.losses.probability_mse_loss` over all rows.
        norms: `stillroom.losses.norm_penalty` of the student's trainable parameters.

    Source: Borup and Andersen 2021, arXiv:2102.13088, and the authors' code.

    Example:
        >>> trained, fresh = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> method = SelfDistillation(fresh, trained, label_weight=0.35)
        >>> optimizer = torch.optim.Adam(method.parameters())
        >>> losses = method(Batch(torch.randn(8, 4), torch.randint(3, (8,))))
        >>> losses.total.backward()
        >>> optimizer.step()
        >>> sorted(losses)
        ['distill', 'label_mse', 'norms']
    """

    needs = Needs(labels="some")
    zero_at_teacher = ("distill",)

    def __init__(
        self, student: nn.Module, teacher: Any, *, label_weight: float = 0.6, norm_weight: float = NORM_WEIGHT
    ) -> None:
        super().__init__(student, teacher)
        check_share(label_weight=label_weight)
        check_not_negative(norm_weight=norm_weight)
        self.label_weight = label_weight
        self.norm_weight = norm_weight

    def forward(self, batch: Batch) -> Losses:
        """Return the squared errors to the labels and to the teacher, and the norms."""
        logits = self.student(batch.inputs)
        terms = {"distill": probability_mse_loss(logits, self.teacher(batch)), "norms": _norms(self)}
        weights = {"distill": 1 - self.label_weight, "norms": self.norm_weight}
        if batch.labels is not None:
            terms["label_mse"] = label_mse_loss(logits, batch.labels)
            weights["label_mse"] = self.label_weight
        return Losses(outputs=logits, weights=weights, **terms)


def _norms(method: Method) -> Any:
    return norm_penalty(*(parameter for parameter in method.student.parameters() if parameter.requires_grad))


@dataclass(frozen=True)
class Distilled:
    """A course of self-distillation whose label weights were estimated.

    Attributes:
        steps: what each step's training gave; the last product is the one to ship.
        weights: of every step from the second on, unclipped and clipped.
        pure: what the trainings without labels gave, from which the weights were estimated.
    """

    steps: list[Fitted] = field(default_factory=list)
    weights: list[LabelWeight] = field(default_factory=list)
    pure: list[Fitted] = field(default_factory=list)


def self_distil(
    redistiller: Redistiller, *, label_weights: Sequence[float] = (0.6,) * 4, norm_weight: float = NORM_WEIGHT
) -> list[Fitted]:
    """Train a first network on the labels, then one new network per label weight, each on its predecessor.

    Args:
        redistiller: makes and trains the networks.
        label_weights: of every step from the second on, each in [0, 1].
        norm_weight: of the sum of norms.

    Returns:
        What each step's training gave; the last product is the one to ship.

    Example:
        >>> from stillroom import Training
        >>> from stillroom.data import TensorSamples
        >>> samples = TensorSamples(torch.randn(60, 4), torch.arange(60) % 3)
        >>> make = Redistiller(lambda: nn.Linear(4, 3), samples, Training(steps=2), check_teacher=False)
        >>> len(self_distil(make, label_weights=[0.6, 0.6]))
        3
    """
    again = [partial(SelfDistillation, label_weight=weight, norm_weight=norm_weight) for weight in label_weights]
    return redistiller.run([partial(FirstStep, norm_weight=norm_weight), *again])


def self_distil_by_estimate(redistiller: Redistiller, *, steps: int = 5, norm_weight: float = NORM_WEIGHT) -> Distilled:
    """Self-distil with, at each step, a label weight that is estimated from one training instead of a grid of them.

    For a step a network is trained on the teacher alone; `estimate_label_weight` compares what it and the first step's
    network say about the held-out part; then the step is trained with that weight. A weight of 0 needs no second
    training.

    Args:
        redistiller: makes and trains the networks; its data must hold a validation part out.
        steps: in all, with the first one, 1 or more.
        norm_weight: of the sum of norms.

    Raises:
        ValueError: there is no held-out part, or steps is below 1.

    Source: Borup and Andersen 2021, arXiv:2102.13088; that the paper estimates exactly so is unconfirmed.
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more (the first one is on the labels alone), given {steps}")
    held = redistiller.data.validation if isinstance(redistiller.data, Splits) else None
    if held is None or not len(held):
        raise ValueError("the label weight is estimated on held-out samples, given none: pass splits with a validation")
    course = Distilled()
    course.steps.append(redistiller.train(partial(FirstStep, norm_weight=norm_weight), None, generation=1))
    for number in range(2, steps + 1):
        before = course.steps[-1].product
        step = partial(SelfDistillation, norm_weight=norm_weight)
        pure = redistiller.train(
            partial(step, label_weight=0.0), before, generation=number, name=f"generation-{number}-without-labels"
        )
        weight = estimate_label_weight(course.steps[0].product, pure.product, held)
        course.pure.append(pure)
        course.weights.append(weight)
        if weight.clipped == 0:
            course.steps.append(pure)
            continue
        course.steps.append(redistiller.train(partial(step, label_weight=weight.clipped), before, generation=number))
    return course
