"""The method: collaboration, specialised teachers, dynamic distillation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.blocks import (
    Edits,
    Masked,
    Router,
    check_paired,
    last_hidden_layers,
    random_picks,
    top_picks,
)
from stillroom.data.batch import Batch, map_tensors
from stillroom.losses import (
    all_pairs_kd_loss,
    balance_kl_loss,
    cross_entropy,
    flatten_positions,
    kd_loss,
    mutual_kd_loss,
    routed_kd_loss,
)
from stillroom.losses._shared import check_not_negative, check_positive
from stillroom.method import Losses, Method, Needs, Stage

COLLABORATE, SPECIALISE, DISTIL = "collaborate", "specialise", "distil"
Routing = Literal["top", "weighted", "random", "mean"]


def decayed_weight(epoch: float, *, initial: float = 1.0, factor: float, every: int) -> float:
    """Weight of a loss term in an epoch: `initial * factor ^ ceil(epoch / every)`.

    Args:
        epoch: whole epochs since the stage began, from 0; where nobody tells the time (infinite), `initial` stays.
        initial: weight in epoch 0, 0 or more.
        factor: in (0, 1].
        every: epochs between two cuts, the first of which comes after epoch 0.

    Source: Li et al. 2025, arXiv:2507.07015, the authors' code: 0.5 every 30 epochs and 0.9 every 10.
    """
    return initial * factor ** math.ceil(epoch / every) if math.isfinite(epoch) else initial


class MSTDistill(Method):
    """Trains a student of one modality with teachers of others, of which a router picks some per sample.

    1. "collaborate": student, multimodal teacher and auxiliary (other-modality) teacher learn the labels and from each
       other, all ordered pairs, nothing detached.
    2. "specialise": for every tapped layer of both teachers a mask network learns to multiply that layer's output so
       that the teacher says what the student says; everything else stands still. The masks that are best on held-out
       samples stay.
    3. "distil": the student learns the labels, and per sample from the specialised teachers that the router picks by
       the student's own logits; a further term keeps the router balanced. The student that is best on held-out samples
       stays.

    All three networks are called with `batch.inputs`; wrap each in `stillroom.blocks.Sees` to give it its modalities.
    What ships is the student, which takes its modality alone.

    Args:
        student: its modality -> logits `(N, C)`, or `(N, C, H, W)` per position.
        teacher: all modalities -> logits of the same shape; trained in the first stage, then frozen.
        auxiliary: the other modality -> logits of the same shape; likewise.
        probe: a batch (two samples are enough) to learn shapes from.
        teacher_taps: module names in the teacher whose outputs are masked, before any activation that follows; None for
            its last hidden layers.
        auxiliary_taps: the same in the auxiliary teacher.
        taps: how many layers of each are masked where none are named.
        temperature: T of all comparisons, above 0.
        picks: k, how many teachers a sample learns from, from 1 to the number of taps.
        routing: "top" takes the k most probable teachers; "weighted" distils from their mean logits weighted by the
            router, through which the router learns too; "random" (draws k) and "mean" (the plain mean of all logits)
            are controls.
        heads: of the mask networks' attention.
        shrink: q, divides the width of the mask networks.
        masks: False leaves the teachers as they are (a control), and skips the second stage.
        stacked_masks: True masks all taps of a network up to a specialised teacher's own in the third stage.
        balance: the router's probabilities -> scalar that keeps them balanced (`balance_kl_loss`, `balance_cv_loss`).
        distill_weight: of the distillation in epoch 0 of the third stage, halved every 30 epochs; 0 or more.
        balance_weight: of the balance, times 0.9 every 10 epochs; 0 or more.
        collaborate_epochs: share of the first stage; 0 takes the networks as they are.
        specialise_epochs: share of the second stage; 0 leaves the masks at random.
        distil_epochs: share of the third stage, above 0.
        choose_by: the held-out number, the lower the better, by which the student of the third stage is chosen: the
            term "label", or a metric of the task such as "nll", which costs less.
        most_mask_parameters: a larger mask network is refused.

    Losses:
        label, label_teacher, label_auxiliary: cross-entropies (the last two in the first stage).
        mutual: `all_pairs_kd_loss` (first stage).
        follow_0, follow_1, ...: each specialised teacher's `kd_loss` to the student (second stage).
        distill: `routed_kd_loss`; balance: as given (third stage).

    Raises:
        ValueError: picks out of range, a tap that is not there or gives a sequence, a mask of width 0 or too large,
            networks with different classes, modalities of different lengths, a number out of range.

    Source: Li et al. 2025, arXiv:2507.07015.

    Example:
        >>> from stillroom.blocks import Sees
        >>> class Both(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.hidden, self.out = nn.Linear(11, 9), nn.Linear(9, 3)
        ...     def forward(self, image, sound):
        ...         return self.out(self.hidden(torch.cat([image, sound], dim=1)).relu())
        >>> student = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3))
        >>> listener = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
        >>> batch = Batch({"image": torch.randn(8, 5), "sound": torch.randn(8, 6)}, torch.arange(8) % 3)
        >>> method = MSTDistill(
        ...     Sees(student, "image"), Sees(Both(), "image", "sound"), auxiliary=Sees(listener, "sound"), probe=batch
        ... )
        >>> sorted(method(batch))
        ['balance', 'distill', 'label']
    """

    needs = Needs(
        labels="some",
        teacher=False,
        features=True,
        whole_batch="the router's balance is taken over the batch",
        tasks=("classification", "segmentation"),
    )

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        auxiliary: nn.Module,
        probe: Any,
        teacher_taps: Sequence[str] | None = None,
        auxiliary_taps: Sequence[str] | None = None,
        taps: int = 2,
        temperature: float = 4.0,
        picks: int = 1,
        routing: Routing = "top",
        heads: int = 3,
        shrink: int = 2,
        masks: bool = True,
        stacked_masks: bool = False,
        balance: Callable[[Tensor], Tensor] = balance_kl_loss,
        distill_weight: float = 1.0,
        balance_weight: float = 1.0,
        collaborate_epochs: float = 1.0,
        specialise_epochs: float = 1.0,
        distil_epochs: float = 100.0,
        choose_by: str = "label",
        most_mask_parameters: int = 20_000_000,
    ) -> None:
        super().__init__(student)
        check_positive(temperature=temperature, distil_epochs=distil_epochs)
        check_not_negative(
            distill_weight=distill_weight,
            balance_weight=balance_weight,
            collaborate_epochs=collaborate_epochs,
            specialise_epochs=specialise_epochs,
        )
        if routing not in ("top", "weighted", "random", "mean"):
            raise ValueError(f'routing must be "top", "weighted", "random" or "mean", given {routing!r}')
        self.multimodal, self.auxiliary = teacher, auxiliary
        self.temperature, self.picks, self.routing = temperature, picks, routing
        self.stacked_masks, self.balance = stacked_masks, balance
        self.distill_weight, self.balance_weight = distill_weight, balance_weight
        self.epochs = {COLLABORATE: collaborate_epochs, SPECIALISE: specialise_epochs if masks else 0.0}
        self.epochs[DISTIL] = distil_epochs
        self.choose_by = choose_by
        probe = probe if isinstance(probe, Batch) else Batch(probe)
        check_paired(probe.inputs)
        said = self._same_classes(probe)
        self.taps: list[tuple[str, str]] = []
        shapes: list[tuple[int, ...]] = []
        for owner, named in (("multimodal", teacher_taps), ("auxiliary", auxiliary_taps)):
            for name, shape in _tapped(getattr(self, owner), named, probe, taps).items():
                self.taps.append((owner, name))
                shapes.append(shape)
        if not 1 <= picks <= len(self.taps):
            raise ValueError(
                f"picks must lie in [1, {len(self.taps)}], the number of specialised teachers, given {picks}"
            )
        options = {"heads": heads, "shrink": shrink, "most_parameters": most_mask_parameters}
        self.masks = nn.ModuleList(Masked(shape, **options) for shape in shapes) if masks else None
        self.router = Router(said.shape[1], len(self.taps), dense=said.ndim == 4)

    def _same_classes(self, probe: Batch) -> Tensor:
        """Ask the three networks about the probe, and refuse different classes."""
        said: dict[str, Tensor] = {}
        for name in ("student", "multimodal", "auxiliary"):
            network = getattr(self, name)
            before = network.training
            with torch.no_grad():
                said[name] = network.eval()(probe.inputs)
            network.train(before)
            if said[name].shape != said["student"].shape:
                raise ValueError(
                    f"the student gives logits of shape {tuple(said['student'].shape)} for the probe, but the {name} "
                    f"teacher of shape {tuple(said[name].shape)}: all three networks must have the same classes"
                )
        return said["student"]

    @property
    def mask_parameters(self) -> int:
        """How many parameters all mask networks have together; they are dropped after training."""
        return 0 if self.masks is None else sum(parameter.numel() for parameter in self.masks.parameters())

    def extra_repr(self) -> str:
        """Show which layers are masked, and at what price."""
        return f"masked: {', '.join(map('.'.join, self.taps))}; {self.mask_parameters:,} mask parameters"

    # ---- stages and players --------------------------------------------------------------------------------------

    def players(self) -> dict[str, list[nn.Parameter]]:
        """Player "together" of the first stage, one per mask, and "student" (with the router) of the third stage."""
        held = {id(parameter) for name, parameter in self.named_parameters() if name in self._held}

        def trained(*modules: nn.Module) -> list[nn.Parameter]:
            found = {id(one): one for module in modules for one in module.parameters()}
            return [one for one in found.values() if one.requires_grad or id(one) in held]

        groups: dict[str, list[nn.Parameter]] = {}
        if self.epochs[COLLABORATE]:
            groups["together"] = trained(self.student, self.multimodal, self.auxiliary)
        for number, mask in enumerate(self.masks or ()):
            groups[f"mask-{number}"] = trained(mask)
        groups["student"] = trained(self.student, self.router)
        return groups

    def stages(self) -> tuple[Stage, ...]:
        """The three stages, those of 0 epochs left out."""
        masks = tuple(f"mask-{number}" for number in range(len(self.masks or ())))
        frozen = ("multimodal", "auxiliary")
        stages = (
            Stage(COLLABORATE, players=("together",), share=self.epochs[COLLABORATE]),
            Stage(
                SPECIALISE,
                players=masks,
                share=self.epochs[SPECIALISE],
                frozen=("student", *frozen),
                fresh_optimizers=True,
                best_by="total",
            ),
            Stage(
                DISTIL,
                players=("student",),
                share=self.epochs[DISTIL],
                frozen=(*frozen, *(("masks",) if self.masks is not None else ())),
                fresh_optimizers=True,
                best_by=self.choose_by,
            ),
        )
        return tuple(stage for stage in stages if stage.share)

    def turns(self, batch: Batch) -> Iterator[tuple[str, Losses]]:
        """One turn; in the second stage one per mask, over what the student says once."""
        if self.stage.name != SPECIALISE:
            yield "together" if self.stage.name == COLLABORATE else "student", self(batch)
            return
        check_paired(batch.inputs)
        said = self._student_says(batch)
        for number in range(len(self.taps)):
            yield f"mask-{number}", Losses(outputs=said, weights=None, **self._follow(number, batch, said))

    # ---- losses --------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Losses:
        """Return the losses of the running stage; of the third where none runs."""
        check_paired(batch.inputs)
        if self.stage.name == COLLABORATE:
            return self._collaborate(batch)
        if self.stage.name == SPECIALISE:
            said = self._student_says(batch)
            terms: dict[str, Tensor] = {}
            for number in range(len(self.taps)):
                terms |= self._follow(number, batch, said)
            return Losses(outputs=said, weights=None, **terms)
        return self._distil(batch)

    def _collaborate(self, batch: Batch) -> Losses:
        said = {name: getattr(self, name)(batch.inputs) for name in ("student", "multimodal", "auxiliary")}
        terms = {"mutual": all_pairs_kd_loss(said, temperature=self.temperature)}
        if batch.labels is not None:
            for name, place in (("student", ""), ("multimodal", "_teacher"), ("auxiliary", "_auxiliary")):
                terms[f"label{place}"] = cross_entropy(said[name], batch.labels)
        return Losses(outputs=said["student"], weights=None, **terms)

    def _follow(self, number: int, batch: Batch, said: Tensor) -> dict[str, Tensor]:
        """How far a specialised teacher is from what the student says."""
        theirs = self.specialised_logits(number, batch.inputs)
        rows = flatten_positions(theirs), flatten_positions(said)
        return {f"follow_{number}": kd_loss(*rows, temperature=self.temperature)}

    def _distil(self, batch: Batch) -> Losses:
        said = self.student(batch.inputs)
        probabilities = self.router(said)
        picked = None
        if self.routing in ("top", "random"):
            picked = (top_picks if self.routing == "top" else random_picks)(probabilities, self.picks)
        with torch.no_grad():
            teachers = self._all_teachers(batch.inputs, said, picked)
        if picked is not None:
            distill = routed_kd_loss(said, teachers, picked, temperature=self.temperature)
        elif self.routing == "weighted":
            target = torch.einsum("nm,mn...->n...", probabilities.to(teachers.dtype), teachers)
            distill = mutual_kd_loss(said, target, temperature=self.temperature)
        else:
            distill = mutual_kd_loss(said, teachers.mean(dim=0), temperature=self.temperature)
        terms = {"distill": distill, "balance": self.balance(probabilities)}
        if batch.labels is not None:
            terms["label"] = cross_entropy(said, batch.labels)
        epoch = self.stage_clock.epoch
        epoch = math.floor(epoch) if math.isfinite(epoch) else epoch
        weights = {
            "distill": decayed_weight(epoch, initial=self.distill_weight, factor=0.5, every=30),
            "balance": decayed_weight(epoch, initial=self.balance_weight, factor=0.9, every=10),
        }
        return Losses(outputs=said, weights=weights, **terms)

    # ---- the specialised teachers --------------------------------------------------------------------------------

    def specialised_logits(self, number: int, inputs: Any) -> Tensor:
        """What a specialised teacher says: its network with the one mask; with `stacked_masks`, in the third stage,
        also with the masks before it.

        Args:
            number: of the tap, in the order of `taps`.
            inputs: as in a batch.
        """
        owner, tap = self.taps[number]
        network: nn.Module = getattr(self, owner)
        if network.training:  # in a loop that knows no stages
            network.eval()
        if self.masks is None:
            return network(inputs)
        if self.stage.name != SPECIALISE and self.masks.training:
            self.masks.eval()
        edits: dict[str, Callable[[Tensor], Tensor]] = {tap: self.masks[number]}
        if self.stacked_masks and self.stage.name != SPECIALISE:
            before = [other for other in range(number) if self.taps[other][0] == owner]
            edits = {self.taps[other][1]: self.masks[other] for other in before} | edits
        with Edits(network, edits):
            return network(inputs)

    def _all_teachers(self, inputs: Any, like: Tensor, picks: Tensor | None) -> Tensor:
        """What all specialised teachers say, `(M, N, C, ...)`; with picks, each is asked about its own samples only
        (the others hold 0), and networks without a mask are asked once."""
        if self.masks is None:
            owners = dict.fromkeys(owner for owner, _ in self.taps)
            numbers = {owner: [name for name, _ in self.taps].index(owner) for owner in owners}
            said = {owner: self.specialised_logits(number, inputs) for owner, number in numbers.items()}
            return torch.stack([said[owner] for owner, _ in self.taps])
        if picks is None:
            return torch.stack([self.specialised_logits(number, inputs) for number in range(len(self.taps))])
        found = torch.zeros(len(self.taps), *like.shape, dtype=like.dtype, device=like.device)
        for number in range(len(self.taps)):
            rows = (picks == number).any(dim=1).nonzero().flatten()
            if len(rows):
                mine = map_tensors(inputs, partial(torch.index_select, dim=0, index=rows))
                found[number, rows] = self.specialised_logits(number, mine).to(like.dtype)
        return found

    def _student_says(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            if self.student.training:
                self.student.eval()
            return self.student(batch.inputs)


def _tapped(network: nn.Module, named: Sequence[str] | None, probe: Batch, most: int) -> dict[str, tuple[int, ...]]:
    """The layers of a network that are masked, with the shapes of their outputs."""
    names = last_hidden_layers(network, probe, most=most) if named is None else list(named)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Tensor) -> Tensor:
        shapes[name] = tuple(output.shape[1:])
        return output

    before = network.training
    try:
        edits = Edits(network, {name: partial(note, name) for name in names})
        edits = Edits(network, {name: partial(note, name) for name in edits.edited})  # patterns filled in
        with torch.no_grad(), edits:
            network.eval()(probe.inputs)
    finally:
        network.train(before)
    if idle := [name for name in edits.edited if name not in shapes]:
        raise ValueError(f"module {idle[0]!r} does not run in a forward pass: tap one that does")
    return {name: shapes[name] for name in edits.edited}
