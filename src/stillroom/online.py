"""Networks that train together: each is a player with an optimizer and a turn of its own, and all see every batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch
from stillroom.losses import cross_entropy, kd_loss
from stillroom.losses._shared import check_not_negative, check_positive
from stillroom.method import Losses, Method, Needs


class OnlineDistillation(Method):
    """Base of methods that train a student and its teacher at the same time, from scratch if need be.

    A subclass writes `losses_of(player, outputs, batch)`. The student ships alone.

    Args:
        student: the network that ships.
        teacher: a network that learns beside it and is trained too. A frozen one is copied and the copy goes on
            learning.
        peers: further students, the players "peer-1", "peer-2", ...
        update: "simultaneous" computes all losses from one forward pass of every network; "alternating" lets each
            player step before the next one's losses, which then see its new outputs (and batch norm the samples
            twice).

    Raises:
        TypeError: a network is no module.
        ValueError: two networks are the same module, or share parameters; another word for `update`.

    Source: Zhang et al. 2018, arXiv:1706.00384 (the two ways to update).
    """

    needs = Needs(labels="some", teacher=False)

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        peers: Sequence[nn.Module] = (),
        update: Literal["simultaneous", "alternating"] = "simultaneous",
    ) -> None:
        super().__init__(student)
        if update not in ("simultaneous", "alternating"):
            raise ValueError(f'update must be "simultaneous" or "alternating", given {update!r}')
        named = {"teacher": _trainable(teacher)} | {f"peer-{n + 1}": peer for n, peer in enumerate(peers)}
        for name, network in named.items():
            if not isinstance(network, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module that is trained too, given {type(network).__name__}")
        refuse_shared({"student": student} | named)
        self.companions = nn.ModuleDict(named)
        self.update = update

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Every player's network by name, the student first."""
        return {"student": self.student, **self.companions}

    def answer(self, player: str, batch: Batch) -> Any:
        """What a player says of a batch; by default its network's outputs.

        Args:
            player: "student", "teacher", "peer-1", ...
            batch: samples, labelled or not.
        """
        return self.networks[player](batch.inputs)

    def losses_of(self, player: str, outputs: Mapping[str, Any], batch: Batch) -> Losses:
        """What a player learns from.

        Args:
            player: "student", "teacher", "peer-1", ...
            outputs: every player's answer; those of the others are to be taken as constants.
            batch: samples, labelled or not.
        """
        raise TypeError(f"{type(self).__name__} must define losses_of(player, outputs, batch) -> Losses")

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters of each network."""
        found: dict[str, list[nn.Parameter]] = {}
        for player, network in self.networks.items():
            prefix = "student." if player == "student" else f"companions.{player}."
            named = network.named_parameters()
            found[player] = [one for name, one in named if one.requires_grad or f"{prefix}{name}" in self._held]
        return found

    def turns(self, batch: Batch) -> Iterator[tuple[str, Losses]]:
        """Let every network have its turn, the student first."""
        outputs = {player: self.answer(player, batch) for player in self.networks}
        if self.update == "simultaneous":
            losses = {player: self.losses_of(player, outputs, batch) for player in outputs}
            yield from losses.items()
            return
        for player, following in zip_longest(self.networks, list(self.networks)[1:]):
            yield player, self.losses_of(player, outputs, batch)
            if following is not None:  # who learns from what it says now
                with torch.no_grad():
                    outputs[player] = self.answer(player, batch)

    def forward(self, batch: Batch) -> Losses:
        """Return the student's losses (in a loop of your own take `turns`, so that every network learns)."""
        outputs = {player: self.answer(player, batch) for player in self.networks}
        return self.losses_of("student", outputs, batch)


class MutualLearning(OnlineDistillation):
    """Deep mutual learning: every network is taught by the labels and by each other's softened outputs.

    Args:
        student: inputs -> logits `(N, C)`; ships.
        teacher: inputs -> logits `(N, C)`; learns beside it.
        peers: further networks of the same kind.
        temperature: T of the divergences, above 0.
        kd_weight: weight of the divergences, 0 or more.
        update: see `OnlineDistillation`; the paper alternates.

    Losses:
        label: cross-entropy over the labelled rows; that of the others is called teacher_label, peer-1_label, ...
        mutual: the mean over the other networks of `T^2 KL(other || own)`; likewise.

    Source: Zhang et al. 2018, arXiv:1706.00384, equations 3, 6 and 8 (T = 1 there).

    Example:
        >>> method = MutualLearning(nn.Linear(4, 3), nn.Linear(4, 3))
        >>> turns = list(method.turns(Batch(torch.randn(8, 4), torch.randint(3, (8,)))))
        >>> [player for player, losses in turns]
        ['student', 'teacher']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        peers: Sequence[nn.Module] = (),
        temperature: float = 1.0,
        kd_weight: float = 1.0,
        update: Literal["simultaneous", "alternating"] = "simultaneous",
    ) -> None:
        super().__init__(student, teacher, peers=peers, update=update)
        check_positive(temperature=temperature)
        check_not_negative(kd_weight=kd_weight)
        self.temperature, self.kd_weight = temperature, kd_weight

    def losses_of(self, player: str, outputs: Mapping[str, Tensor], batch: Batch) -> Losses:
        """Cross-entropy, and the divergence from every other network."""
        own = outputs[player]
        others = [other for name, other in outputs.items() if name != player]
        terms = [kd_loss(own, other, temperature=self.temperature) for other in others]
        return own_terms(player, own, batch, {"mutual": (torch.stack(terms).mean(), self.kd_weight)})


def own_terms(player: str, logits: Tensor, batch: Batch, terms: Mapping[str, tuple[Tensor, float]]) -> Losses:
    """Put a player's terms beside its cross-entropy, named after the player where that is not the student.

    Args:
        player: whose they are.
        logits: what it said, `(N, C)`.
        batch: its labels are learned from where there are any.
        terms: name -> (scalar, weight).
    """
    prefix = "" if player == "student" else f"{player}_"
    named = {f"{prefix}{name}": term for name, (term, _) in terms.items()}
    weights = {f"{prefix}{name}": weight for name, (_, weight) in terms.items()}
    if batch.labels is not None:
        named = {f"{prefix}label": cross_entropy(logits, batch.labels), **named}
    return Losses(outputs=logits, weights=weights, **named)


def _trainable(teacher: Any) -> Any:
    """The network of a frozen teacher as a copy that can learn; anything else as it is."""
    if not isinstance(teacher, Frozen):
        return teacher
    if not isinstance(teacher.network, nn.Module) or getattr(teacher.network, "takes_batch", False):
        kind = type(teacher.network).__name__
        raise TypeError(f"teacher is trained beside the student, but a {kind} only answers: give a network")
    return copy.deepcopy(teacher.network).requires_grad_(True).train()


def refuse_shared(named: Mapping[str, nn.Module]) -> None:
    """Refuse networks that are one module, or share parameters: each is to learn by itself.

    Raises:
        ValueError: with the names of the two.
    """
    owner: dict[int, tuple[str, str]] = {}
    for player, network in named.items():
        for other, before in named.items():
            if other == player:
                break
            if before is network:
                raise ValueError(f"{player} and {other} are the same module: give two networks, or copy.deepcopy one")
        for name, parameter in network.named_parameters():
            first, its_name = owner.setdefault(id(parameter), (player, name))
            if first != player:
                raise ValueError(
                    f"{player} and {first} share the parameter {name!r} ({its_name!r} there): give each its own"
                )
