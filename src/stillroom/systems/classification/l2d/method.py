"""Multi-label distillation: by logits (`MLD`), and by label-wise embeddings as well (`L2D`)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from stillroom.blocks import BriefTaps, Frozen, label_queries_in
from stillroom.data.batch import Batch
from stillroom.losses import binary_cross_entropy, kd_loss, led_class_aware_loss, led_instance_aware_loss, mld_loss
from stillroom.losses._shared import check_not_negative, check_positive
from stillroom.method import Losses, Method, Needs

WHOLE = "the label loss is a sum over the batch while the distillation loss is a mean over it"


class LabelsAlone(Method):
    """Trains a network by the label loss of `MLD` and nothing else: the student alone, or the teacher before.

    The loss is a sum over the batch like that of the other arms, so that weight decay pulls at all of them alike.

    Args:
        student: inputs -> logits `(N, C)`, one per label.
        teacher: not asked.
        eps: see `MLD`.

    Losses:
        label: as `MLD`.
    """

    needs = Needs(labels="some", teacher=False, min_classes=1, whole_batch=WHOLE, tasks=("multi-label",))

    def __init__(self, student: nn.Module, teacher: Any = None, *, eps: float = 1e-8) -> None:
        super().__init__(student)
        self.eps = eps

    def forward(self, batch: Batch) -> Losses:
        """Return the label loss of a batch."""
        if batch.labels is None:
            raise ValueError("the student alone learns from labels, but this batch has none")
        return with_labels(self.student(batch.inputs), batch, {}, label_weight=1.0, eps=self.eps)


class MLD(Method):
    """Trains a multi-label student by its labels and by its teacher's yes-or-no answers, label by label.

    Works for any two networks with one logit per label.

    Args:
        student: inputs -> logits `(N, C)`, one per label.
        teacher: inputs -> logits over the same labels; frozen here.
        mld_weight: of the distillation loss, 0 or more.
        label_weight: of the label loss, 0 or more. Since that is a sum over the batch, accumulation over smaller
            batches and several processes, which average, make it as many times smaller: raise this by as much.
        eps: probabilities are kept within [eps, 1 - eps] in both losses, in [0, 0.5). At the paper's 1e-8 a student
            that is certain and wrong gets no push; 0 is the exact form, which always pushes.

    Losses:
        label: `stillroom.losses.binary_cross_entropy`, the mean over images and labels, whose weight is their number
            times `label_weight`: the paper's is a sum; absent without labels.
        mld: `stillroom.losses.mld_loss`, summed over labels, mean over images.

    Source: Yang et al. 2023, arXiv:2308.06453.

    Example:
        >>> method = MLD(nn.Linear(4, 3), nn.Linear(4, 3))
        >>> losses = method(Batch(torch.randn(8, 4), torch.randint(2, (8, 3)).float()))
        >>> list(losses)
        ['mld', 'label']
    """

    needs = Needs(labels="some", min_classes=1, whole_batch=WHOLE, tasks=("multi-label",))
    zero_at_teacher: ClassVar[tuple[str, ...]] = ("mld",)

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        mld_weight: float = 10.0,
        label_weight: float = 1.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(student, teacher)
        check_not_negative(mld_weight=mld_weight, label_weight=label_weight)
        if not 0 <= eps < 0.5:
            raise ValueError(f"eps must be a probability in [0, 0.5), given {eps}")
        self.mld_weight, self.label_weight, self.eps = mld_weight, label_weight, eps

    def forward(self, batch: Batch) -> Losses:
        """Return the label loss and the distillation loss of a batch."""
        logits = self.student(batch.inputs)
        return self.losses(logits, batch, {"mld": (self._mld(logits, self.teacher(batch)), self.mld_weight)})

    def losses(self, logits: Tensor, batch: Batch, terms: dict[str, tuple[Tensor, float]]) -> Losses:
        """Add the label loss, where there are labels, to weighted terms."""
        return with_labels(logits, batch, terms, label_weight=self.label_weight, eps=self.eps)

    def _mld(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return mld_loss(logits, teacher_logits, eps=self.eps)


class L2D(MLD):
    """Trains a multi-label student by labels, by its teacher's answers, and by how label-wise embeddings lie.

    Both networks need a module that returns an embedding `(N, C, D)` per image and label, of any two widths. Found by
    itself is a `stillroom.blocks.LabelQueries`, which `stillroom.blocks.with_label_queries` puts behind anybody's
    backbone (and the embedded networks "conv-8-16+labels-32" have); others are named.

    Args:
        student: inputs -> logits `(N, C)`, one per label.
        teacher: a module, inputs -> logits over the same labels; frozen here.
        mld_weight: of the logits' loss, 0 or more.
        led_weight: of the embeddings' losses together, 0 or more; at 0 this is `MLD`, and the networks need no
            label-wise embeddings.
        class_aware_weight: of the embeddings of one label over images, 0 or more.
        instance_aware_weight: of the embeddings of one image over its labels, 0 or more. Both are sums, so that the
            paper's weights go with batches of 64; for others, divide.
        label_weight: of the label loss, 0 or more.
        eps: see `MLD`.
        student_embeddings: dotted name of the module that returns the student's embeddings; None to find it.
        teacher_embeddings: the same of the teacher.

    Losses:
        label, mld: see `MLD`.
        class_aware: `stillroom.losses.led_class_aware_loss`; absent without labels.
        instance_aware: `stillroom.losses.led_instance_aware_loss`; absent without labels.

    Raises:
        ValueError: a network has no label-wise embeddings, or several, and none is named; they are no `(N, C, D)`.

    Source: Yang et al. 2023, arXiv:2308.06453.

    Example:
        >>> from stillroom.blocks import LabelQueryNetwork
        >>> def tagger(width):
        ...     return LabelQueryNetwork(nn.Conv2d(3, 8, 3), 8, classes=5, width=width, heads=2, hidden=32)
        >>> method = L2D(tagger(8), tagger(16))
        >>> list(method(Batch(torch.randn(6, 3, 8, 8), torch.ones(6, 5))))
        ['mld', 'class_aware', 'instance_aware', 'label']
    """

    needs = Needs(
        labels="some",
        features=True,
        min_classes=1,
        whole_batch="embeddings of the images of a batch are compared with each other",
        tasks=("multi-label",),
    )
    zero_at_teacher = ("mld", "class_aware", "instance_aware")

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        mld_weight: float = 10.0,
        led_weight: float = 1.0,
        class_aware_weight: float = 100.0,
        instance_aware_weight: float = 1000.0,
        label_weight: float = 1.0,
        eps: float = 1e-8,
        student_embeddings: str | None = None,
        teacher_embeddings: str | None = None,
    ) -> None:
        super().__init__(student, teacher, mld_weight=mld_weight, label_weight=label_weight, eps=eps)
        check_not_negative(
            led_weight=led_weight, class_aware_weight=class_aware_weight, instance_aware_weight=instance_aware_weight
        )
        self.led_weight = led_weight
        self.class_aware_weight, self.instance_aware_weight = class_aware_weight, instance_aware_weight
        self._student_taps, self._teacher_taps = BriefTaps(()), BriefTaps(())
        if led_weight:
            self._student_taps = BriefTaps(_embeddings_of("student", self.student, student_embeddings, led_weight))
            self._teacher_taps = BriefTaps(_embeddings_of("teacher", self.teacher, teacher_embeddings, led_weight))

    def forward(self, batch: Batch) -> Losses:
        """Return the label loss and the distillation losses of a batch."""
        logits, own = self._student_taps(self.student, batch.inputs)
        teacher_logits, theirs = self.ask(batch)
        terms = {"mld": (self._mld(logits, teacher_logits), self.mld_weight)}
        if own and batch.labels is not None:
            class_aware = led_class_aware_loss(own[0], theirs[0], batch.labels)
            instance_aware = led_instance_aware_loss(own[0], theirs[0], batch.labels)
            terms["class_aware"] = class_aware, self.led_weight * self.class_aware_weight
            terms["instance_aware"] = instance_aware, self.led_weight * self.instance_aware_weight
        return self.losses(logits, batch, terms)

    def ask(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The teacher's logits, and its label-wise embeddings where they are compared."""
        return self._teacher_taps(self.teacher, batch)


class Exchanged(L2D):
    """A control: every image is taught what the teacher says of another image of the batch.

    Args:
        student: see `L2D`, as for all options.
        teacher: see `L2D`.
    """

    def ask(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The teacher's answers, moved on by one image."""
        logits, embeddings = super().ask(batch)
        return logits.roll(1, 0), [one.roll(1, 0) for one in embeddings]


class SoftmaxKD(MLD):
    """A rival: the label loss, and Hinton's distillation as if exactly one label were right.

    Args:
        student: inputs -> logits `(N, C)`.
        teacher: inputs -> logits over the same labels; frozen here.
        temperature: T, above 0.
        kd_weight: of the distillation loss, 0 or more.

    Losses:
        label: as `MLD`.
        kd: `stillroom.losses.kd_loss`.
    """

    needs = Needs(labels="some", min_classes=2, whole_batch=WHOLE, tasks=("multi-label",))
    zero_at_teacher = ("kd",)

    def __init__(self, student: nn.Module, teacher: Any, *, temperature: float = 4.0, kd_weight: float = 10.0) -> None:
        super().__init__(student, teacher)
        check_positive(temperature=temperature)
        check_not_negative(kd_weight=kd_weight)
        self.temperature, self.kd_weight = temperature, kd_weight

    def forward(self, batch: Batch) -> Losses:
        """Return the label loss and the distillation loss of a batch."""
        logits = self.student(batch.inputs)
        kd = kd_loss(logits, self.teacher(batch), temperature=self.temperature)
        return self.losses(logits, batch, {"kd": (kd, self.kd_weight)})


def with_labels(
    logits: Tensor, batch: Batch, terms: dict[str, tuple[Tensor, float]], *, label_weight: float, eps: float
) -> Losses:
    """Add the label loss, where there are labels, to terms with their weights."""
    if batch.labels is not None:
        label = binary_cross_entropy(logits, batch.labels, smallest=eps)
        known = int((~batch.labels.isnan()).sum())  # the paper's is the sum over them
        terms = {**terms, "label": (label, label_weight * known)}
    values = {name: value for name, (value, _) in terms.items()}
    return Losses(outputs=logits, weights={name: weight for name, (_, weight) in terms.items()}, **values)


def _embeddings_of(side: str, network: Any, named: str | None, led_weight: float) -> str:
    """Name of the module that returns label-wise embeddings."""
    if named is not None:
        return named
    found = label_queries_in(network)
    if len(found) == 1:
        return found[0]
    kind = type(network.network if isinstance(network, Frozen) else network).__name__
    had = f"has {len(found)} of them ({', '.join(found)})" if found else "has no LabelQueries module"
    remedy = "name one" if found else "put one behind its backbone (stillroom.blocks.with_label_queries), name yours"
    raise ValueError(
        f"L2D with led_weight={led_weight:g} compares label-wise embeddings, but the {side} ({kind}) {had}: {remedy} "
        f"({side}_embeddings=), or set led_weight=0 for the logits alone"
    )
