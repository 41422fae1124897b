"""Methods that weigh teacher against label sample by sample; TGeo-KD learns how from held-out labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stillroom.bilevel import At, hypergradient, own_weights, weight_hypergradient
from stillroom.blocks import ClassAverages, SampleScores
from stillroom.blocks.modes import evaluating
from stillroom.data import hold_out
from stillroom.data.batch import UNLABELLED, Batch, tensors_in
from stillroom.data.samples import Samples
from stillroom.data.stream import Stream
from stillroom.losses import cross_entropy, kd_loss, relative_alphas
from stillroom.losses._shared import at_least_float32, check_not_negative, check_positive
from stillroom.losses.blended import check_labels
from stillroom.method import Losses, Method, Needs
from stillroom.systems.classification.tgeo_kd.geometry import Controller, State, geometry_state, state_width
from stillroom.training import Optim


class SampleWiseKD(Method):
    """Base of methods that give each sample a share of distillation and the rest of cross-entropy.

    A subclass writes `alphas(student_logits, teacher_logits, labels)`.

    Args:
        student: inputs -> logits `(N, C)`.
        teacher: inputs -> logits over the same classes; frozen here.
        temperature: tau of the divergence, above 0.

    Losses:
        weighted_label: mean of `(1 - alpha) * cross-entropy`.
        weighted_distill: mean of `alpha * tau^2 KL(teacher || student)`. Together they are `blended_kd_loss`.
        mean_alpha, low_alpha, high_alpha: mean and 5% and 95% quantiles of the batch's shares; shown, never counted.
    """

    needs = Needs(labels="every")
    zero_at_teacher = ("weighted_distill",)

    def __init__(self, student: nn.Module, teacher: Any, *, temperature: float = 4.0) -> None:
        super().__init__(student, teacher)
        check_positive(temperature=temperature)
        self.temperature = temperature
        self.scores = SampleScores()

    def alphas(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """The teacher's share of each sample, `(N,)` in [0, 1]."""
        raise TypeError(f"{type(self).__name__} must define alphas(student_logits, teacher_logits, labels)")

    def forward(self, batch: Batch) -> Losses:
        """Return the student's losses of a batch, and remember the shares of samples that have a number."""
        labels = self._labels(batch)
        logits, teacher_logits = self.student(batch.inputs), self.teacher(batch)
        check_labels(logits, teacher_logits, labels)
        with torch.no_grad():
            alphas = self.alphas(logits.detach(), teacher_logits, labels)
        if batch.index is not None:
            self.scores.put(batch.index, alphas)
        distill = kd_loss(logits, teacher_logits, temperature=self.temperature, reduction="none")
        label = cross_entropy(logits, labels, reduction="none")
        low, high = alphas.quantile(alphas.new_tensor([0.05, 0.95]))
        return Losses(
            weighted_label=((1 - alphas) * label).mean(),
            weighted_distill=(alphas * distill).mean(),
            mean_alpha=alphas.mean(),
            low_alpha=low,
            high_alpha=high,
            weights={"mean_alpha": 0.0, "low_alpha": 0.0, "high_alpha": 0.0},
            outputs=logits,
        )

    def _labels(self, batch: Batch) -> Tensor:
        if batch.labels is None:
            raise ValueError(f"{type(self).__name__} needs a label for every sample, but this batch has none")
        return batch.labels  # type: ignore[no-any-return]


class WLSKD(SampleWiseKD):
    """Trains with the share 1 - exp(-CE_student / CE_teacher): little of a teacher that is far from the label.

    Args:
        student: inputs -> logits `(N, C)`.
        teacher: inputs -> logits over the same classes; frozen here.
        temperature: tau of the divergence, above 0.

    Losses:
        weighted_label, weighted_distill, mean_alpha, low_alpha, high_alpha: see `SampleWiseKD`.

    Source: Zhou et al. 2021, arXiv:2102.00650, in the form that Hu et al. 2024, arXiv:2312.15112, compare with.

    Example:
        >>> method = WLSKD(nn.Linear(4, 3), nn.Linear(4, 3))
        >>> losses = method(Batch(torch.randn(8, 4), torch.arange(8) % 3))
        >>> 0 < float(losses["mean_alpha"]) < 1
        True
    """

    def alphas(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """The share by who fits the label better."""
        return relative_alphas(student_logits, teacher_logits, labels)


class TGeoKD(SampleWiseKD):
    """Trains a student, and a controller that gives each sample its share of the teacher so that held-out loss falls.

    The controller's turn comes first: one look-ahead step of the student, the held-out cross-entropy behind it, and its
    derivative by the shares. Then the student learns with the controller's new shares. The student ships alone;
    `scores` has the latest share of every training sample (of several processes, each knows those it has seen). In a
    loop of your own, take `turns` with an optimizer for each player, and call `after_step(player)`.

    Args:
        student: inputs -> logits `(N, C)`.
        teacher: inputs -> logits over the same classes; frozen here.
        train_samples: what the student is trained on, a class number each; the teacher's averages are taken over them.
        held_out: labelled samples that the student is never trained on; None keeps `held_out_share` of `train_samples`
            apart (`fit` then does not train on them; in a loop of your own leave out `kept_apart`).
        held_out_share: see there, in (0, 1).
        held_out_batch: held-out samples per controller step.
        seed: of what is held out and in which order it is used.
        temperature: tau of the divergence, above 0; 4 for images, 1.5 for tables.
        state: what the controller reads, see `geometry_state`.
        widths: of the controller's hidden layers.
        scale: what the state is multiplied by.
        limits: the least and the greatest share.
        look_ahead_rate: of the look-ahead step; None for the student's current learning rate (0.1 where nobody told
            it: a loop of your own).
        student_steps: student's steps for each of the controller's.
        forward_mode: whether the hypergradient comes from one pass in forward mode; False takes second derivatives,
            for networks with operations that do not know forward mode. The result is the same.

    Losses:
        weighted_label, weighted_distill, mean_alpha, low_alpha, high_alpha: see `SampleWiseKD`.
        held_out: of the controller, the held-out cross-entropy after the look-ahead step.

    Raises:
        ValueError: `held_out` shares sample numbers with `train_samples`, a batch has a held-out sample, a class
            without training samples, labels that are no class numbers, other classes of the teacher, or a number out of
            range.

    Source: Hu et al. 2024, arXiv:2312.15112.

    Example:
        >>> from stillroom.data import TensorSamples
        >>> samples = TensorSamples(torch.randn(60, 4), torch.arange(60) % 3)
        >>> method = TGeoKD(nn.Linear(4, 3), nn.Linear(4, 3), train_samples=samples)
        >>> trained_on = (~torch.isin(samples.index, method.kept_apart)).nonzero().flatten()
        >>> optimizers = {name: torch.optim.Adam(group) for name, group in method.players().items()}
        >>> for player, losses in method.turns(samples.batch(trained_on[:16])):
        ...     losses.total.backward(inputs=method.players()[player])
        ...     optimizers[player].step()
        ...     optimizers[player].zero_grad()
        ...     method.after_step(player)
        >>> len(method.scores.known)
        16
    """

    needs = Needs(labels="every", whole_batch="the controller looks ahead by a step on the mean over the whole batch")
    optimizers: ClassVar[Mapping[str, Optim]] = {
        "controller": Optim("adam", lr=1e-3, weight_decay=1e-4, schedule="constant")
    }

    learns: ClassVar[bool] = True
    rounds: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        train_samples: Samples,
        held_out: Samples | None = None,
        held_out_share: float = 0.1,
        held_out_batch: int = 128,
        seed: int = 0,
        temperature: float = 4.0,
        state: State = "probabilities+distances",
        widths: tuple[int, ...] = (32, 16),
        scale: float = 1.0,
        limits: tuple[float, float] = (0.0, 1.0),
        look_ahead_rate: float | None = None,
        student_steps: int = 1,
        forward_mode: bool = True,
    ) -> None:
        super().__init__(student, teacher, temperature=temperature)
        if look_ahead_rate is not None:
            check_not_negative(look_ahead_rate=look_ahead_rate)
        if student_steps < 1 or held_out_batch < 1:
            raise ValueError(
                f"student_steps and held_out_batch must be 1 or more, given {student_steps} and {held_out_batch}"
            )
        kept, apart = keep_apart(train_samples, held_out, held_out_share, seed)
        self.kept_apart = apart.index
        self.trained_on = kept
        self.held_out = Stream(apart, batch_size=held_out_batch, seed=seed)
        classes = _classes(student, kept)
        self.controller = Controller(state_width(state, classes), widths=widths, scale=scale, limits=limits)
        self.controller.requires_grad_(self.learns)
        self.averages = ClassAverages(classes)
        self.state, self.look_ahead_rate, self.student_steps = state, look_ahead_rate, student_steps
        self.forward_mode = forward_mode
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The controller, while it learns, and the student."""
        named = [(name, one) for name, one in self.named_parameters() if one.requires_grad or name in self._held]
        controller = [one for name, one in named if name.startswith("controller.")]
        student = [one for name, one in named if not name.startswith("controller.")]
        return {"controller": controller, "student": student} if controller else {"student": student}

    def turns(self, batch: Batch) -> Iterator[tuple[str, Losses]]:
        """Let the controller look ahead, then the student learn with its shares."""
        self._refuse_held_out(batch)
        learns = next(self.controller.parameters()).requires_grad
        if learns and int(self.rounds) % self.student_steps == 0:
            yield "controller", self.look_ahead(batch)
        yield "student", self(batch)

    def after_step(self, player: str) -> None:
        """Count the student's steps: they say which held-out samples come next, and whose turn it is."""
        if player == "student":
            self.rounds += 1

    def alphas(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """What the controller says, `(N,)`, differentiable by its weights alone."""
        check_labels(student_logits, teacher_logits, labels)
        student, teacher = (at_least_float32(logits.detach()).softmax(1) for logits in (student_logits, teacher_logits))
        averages = self._class_averages(labels)
        shares: Tensor = self.controller(geometry_state(student, teacher, labels, averages, state=self.state))
        return shares

    def look_ahead(self, batch: Batch) -> Losses:
        """Return the controller's loss: held-out cross-entropy after a step of plain gradient descent on the batch."""
        labels, teacher_logits = self._labels(batch), self.teacher(batch)
        like = next(tensors_in(batch.inputs))
        held = _as(self.held_out.batch(int(self.rounds) // self.student_steps).to(like.device), like)
        with torch.no_grad():
            logits = own_weights(self.student)(batch.inputs)
        alphas = self.alphas(logits, teacher_logits, labels)

        def weighed(student: At) -> tuple[Tensor, Tensor]:
            said = student(batch.inputs)
            label = cross_entropy(said, labels, reduction="none")
            distill = kd_loss(said, teacher_logits, temperature=self.temperature, reduction="none")
            return label.mean(), (distill - label) / len(labels)

        def lower(student: At) -> Tensor:
            base, terms = weighed(student)
            return base + (alphas * terms).sum()

        def upper(student: At) -> Tensor:
            return cross_entropy(student(held.inputs), held.labels)

        if self.forward_mode:
            found = weight_hypergradient(self.student, weighed, upper, alphas, rate=self.rate)
        else:
            found = hypergradient(self.student, lower, upper, [alphas], rate=self.rate)
        return Losses(held_out=found.attach(alphas))

    @property
    def rate(self) -> float:
        """Rate of the look-ahead step."""
        return self.rates.get("student", 0.1) if self.look_ahead_rate is None else self.look_ahead_rate

    @torch.no_grad()
    def _class_averages(self, labels: Tensor) -> Tensor:
        if not self.averages.filled:
            like = next(one for one in self.student.parameters())
            self.averages.fill(lambda batch: self.teacher(_as(batch, like)), self.trained_on, device=labels.device)
        return self.averages(labels)

    def _refuse_held_out(self, batch: Batch) -> None:
        if batch.index is None or self.kept_apart is None:
            return
        inside = torch.isin(batch.index, self.kept_apart.to(batch.index.device))
        if bool(inside.any()):
            raise ValueError(
                f"the batch has sample {int(batch.index[inside][0])}, which is held out for the controller: leave the "
                "samples in kept_apart out of the training"
            )


class FrozenController(TGeoKD):
    """A control: TGeo-KD whose controller stays as it was drawn, as in the code that was published with the paper."""

    learns = False


class ShuffledAlphas(TGeoKD):
    """A control: the controller learns as in TGeo-KD, but the student gets its shares for the wrong samples."""

    def forward(self, batch: Batch) -> Losses:
        """The student's losses with the batch's shares in another order."""
        self._shuffle = True
        try:
            return super().forward(batch)
        finally:
            self._shuffle = False

    _shuffle = False

    def alphas(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """What the controller says, for the student in a random order."""
        found = super().alphas(student_logits, teacher_logits, labels)
        return found[torch.randperm(len(found), device=found.device)] if self._shuffle else found


def _as(batch: Batch, like: Tensor) -> Batch:
    """A batch whose floats have the type of a tensor's."""
    if not like.is_floating_point():
        return batch
    return batch.map(lambda tensor: tensor.to(like.dtype) if tensor.is_floating_point() else tensor)


def keep_apart(samples: Samples, held_out: Samples | None, share: float, seed: int) -> tuple[Samples, Samples]:
    """What is trained on and what is held out, both with a class number for every sample.

    Args:
        samples: of which a part is held out, where `held_out` is not given.
        held_out: what is held out.
        share: of `samples`, in (0, 1); stratified by class.
        seed: of the choice.

    Raises:
        ValueError: no class numbers, the same sample in both, or a share that leaves nothing.
    """
    for name, given in (("train_samples", samples), ("held_out", held_out)):
        labels = None if given is None else given.labels
        if given is not None and (
            not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point() or not len(labels)
        ):
            shown = "none" if not isinstance(labels, Tensor) else f"{tuple(labels.shape)} {labels.dtype}"
            raise ValueError(f"{name} must have labels (N,) of class numbers, known up front, given {shown}")
    if held_out is not None:
        both = samples.index[torch.isin(samples.index, held_out.index)]
        if len(both):
            raise ValueError(
                f"sample {int(both[0])} is in held_out and in train_samples ({len(both)} are): the controller would be "
                "judged by what the student has learned; cut them apart, or renumber() other samples of that number"
            )
        return samples, held_out
    if not 0 < share < 1:
        raise ValueError(f"held_out_share must lie between 0 and 1, given {share}")
    labelled = (samples.labels != UNLABELLED).nonzero().flatten()
    size = max(round(share * len(labelled)), 1)
    if size >= len(labelled):
        raise ValueError(f"held_out_share {share} leaves nothing of {len(labelled)} labelled samples to train on")
    kept, apart = hold_out(len(labelled), size, seed, samples.labels[labelled])
    return samples.subset(labelled[kept]), samples.subset(labelled[apart])


@torch.no_grad()
def _classes(student: nn.Module, samples: Samples) -> int:
    """How many outputs the student has."""
    first = next(student.parameters())
    with evaluating(student):
        said = student(_as(samples.batch([0]).to(first.device), first).inputs)
    found = next(tensors_in(said))
    if found.ndim != 2:
        raise ValueError(f"the student must give logits (N, C), given {tuple(found.shape)}")
    return found.shape[1]
