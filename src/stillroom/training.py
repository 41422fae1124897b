"""How a training goes, as data: optimizers, schedules, sizes, what is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Optim:
    """An optimizer and its schedule for one player.

    Attributes:
        name: the torch optimizer.
        lr: the highest learning rate, above 0.
        weight_decay: as the optimizer means it, on all parameters; 0 or more.
        momentum: SGD's.
        betas: Adam's and AdamW's decays of their two averages, in [0, 1).
        schedule: "cosine" falls to 0 at the last step, "step" multiplies by `gamma` at the milestones, "constant".
        warmup: part of all steps, in [0, 1), over which the rate rises linearly from 0.
        milestones: parts of all steps, in (0, 1), for "step".
        gamma: the factor at a milestone.
        clip: largest gradient norm of the player; None for no clipping.
        nesterov: whether SGD with momentum looks ahead.
        lr_factors: part of the method -> what its learning rate is multiplied by, 0 or more ("student.layer1": 0.1);
            the longest name that fits a parameter counts, and the rest keeps `lr`. A distilled backbone that is tuned
            on other data wants its early stages to move slowly.

    Raises:
        ValueError: a number outside its range, an unknown name.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    clip: float | None = None
    nesterov: bool = True
    lr_factors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("optimizer", self.name, ("adamw", "adam", "sgd"))
        _one_of("schedule", self.schedule, ("cosine", "step", "constant"))
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr (learning rate) must be a number above 0, given {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be a number of 0 or more, given {self.weight_decay}")
        if len(self.betas) != 2 or any(not 0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are two numbers in [0, 1), given {self.betas}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a part of all steps in [0, 1), given {self.warmup}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip (largest gradient norm) must be above 0, given {self.clip}")
        if any(not 0 < milestone < 1 for milestone in self.milestones):
            raise ValueError(f"milestones are parts of all steps in (0, 1), given {self.milestones}")
        for part, factor in self.lr_factors.items():
            if not 0 <= factor < math.inf:
                raise ValueError(f"lr_factors[{part!r}] must be a number of 0 or more, given {factor}")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at a step (from 0) of a training of `steps` steps."""
        begin = round(self.warmup * steps)
        if step < begin:
            return self.lr * (step + 1) / (begin + 1)
        progress = (step - begin) / max(steps - begin, 1)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        if self.schedule == "step":
            return self.lr * self.gamma ** sum(step >= milestone * steps for milestone in self.milestones)
        return self.lr

    def build(
        self, parameters: Iterable[torch.nn.Parameter], *, names: Sequence[str] | None = None
    ) -> torch.optim.Optimizer:
        """Make the torch optimizer for some parameters.

        Args:
            parameters: what it moves.
            names: their names, one each; needed where `lr_factors` names parts.

        Raises:
            ValueError: `lr_factors` names a part that has none of these parameters.
        """
        import torch

        groups = self._groups(list(parameters), names)
        if self.name == "sgd":
            nesterov = self.nesterov and self.momentum > 0
            return torch.optim.SGD(
                groups, self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=nesterov
            )
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind(groups, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)

    def _groups(self, parameters: list[torch.nn.Parameter], names: Sequence[str] | None) -> Any:
        """The parameters, or with `lr_factors` a group of them per factor."""
        if not self.lr_factors:
            return parameters
        fitting = [
            [part for part in self.lr_factors if name == part or name.startswith(f"{part}.")]
            for name in names or [""] * len(parameters)
        ]
        if strange := sorted(set(self.lr_factors) - {part for parts in fitting for part in parts}):
            raise ValueError(
                f"lr_factors names {strange[0]!r}, but no parameter lies there: name a part of the method, such as "
                f"{next(iter(names or ('student',))).rpartition('.')[0]!r}"
            )
        factors = [self.lr_factors[max(parts, key=len)] if parts else 1.0 for parts in fitting]
        return [
            {
                "params": [one for one, own in zip(parameters, factors, strict=True) if own == factor],
                "lr": factor * self.lr,
                "lr_factor": factor,
            }
            for factor in sorted(set(factors))
        ]


@dataclass(frozen=True)
class Training:
    """Everything that is the same for all arms of a comparison.

    Attributes:
        epochs: passes over the labelled training samples; give this or `steps`.
        steps: optimizer steps.
        batch_size: labelled samples per step, over all processes.
        optimizer: of every player that `players` does not name.
        players: optimizers of single players, by name.
        stages: optimizers of single stages, by name, before those of players; such a stage begins with new ones, whose
            schedules run over it alone.
        augment: name of the batch augmentation; None for the data set's own default.
        views: how many augmented views of each sample there are, the same ones for every seed; epoch e shows view
            `e % views`. None draws anew at every step. A teacher whose answers are cached wants a number.
        unlabelled_batch: unlabelled samples per step beside the labelled ones; None for as many as `batch_size` when
            there is a pool and the method can use it.
        accumulate: parts a batch is cut into, one after the other; the same loss and gradient with less memory.
        precision: "no" for float32, "bf16" or "fp16" for autocast.
        ema_decay: ship an exponential average of the weights with this decay per step; None for none.
        evaluate_every: steps between two measurements on the held-out part; None for about ten in all.
        keep: "best" on the held-out part, or "last".
        shard: where several processes train together, cut the student, its gradients and its optimizer's state over
            them (FSDP), instead of keeping all of it in each.

    Raises:
        ValueError: both or none of epochs and steps, or a number outside its range.
    """

    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 64
    optimizer: Optim = field(default_factory=Optim)
    players: Mapping[str, Optim] = field(default_factory=dict)
    stages: Mapping[str, Optim] = field(default_factory=dict)
    augment: str | None = None
    views: int | None = None
    unlabelled_batch: int | None = None
    accumulate: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    ema_decay: float | None = None
    evaluate_every: int | None = None
    keep: Literal["best", "last"] = "best"
    shard: bool = False

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 10.0)
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"give epochs or steps, not both: given epochs={self.epochs} and steps={self.steps}")
        for name in ("epochs", "steps", "batch_size", "accumulate", "evaluate_every", "views"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, given {value}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate cuts a batch into equal parts: {self.batch_size} has no {self.accumulate}")
        _one_of("precision", self.precision, ("no", "bf16", "fp16"))
        _one_of("keep", self.keep, ("best", "last"))
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1, given {self.ema_decay}")

    def change(self, **changes: Any) -> Training:
        """Return a copy with some options exchanged; naming `steps` drops `epochs` and the reverse."""
        if changes.get("steps") is not None:
            changes.setdefault("epochs", None)
        elif changes.get("epochs") is not None:
            changes.setdefault("steps", None)
        return replace(self, **changes)

    def optim(self, player: str, stage: str = "") -> Optim:
        """The optimizer of a player, in a stage that has optimizers of its own."""
        return self.stages.get(stage) or self.players.get(player, self.optimizer)

    def total_steps(self, steps_per_epoch: int) -> int:
        """How many optimizer steps the training takes."""
        if self.steps is not None:
            return self.steps
        return max(round((self.epochs or 0) * steps_per_epoch), 1)


def _one_of(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, given {given!r}")
