"""Tripwires against silent nothing: what stops a training that could only end in a worthless number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch
from stillroom.data.samples import Samples
from stillroom.data.stream import sequential
from stillroom.method import Losses, Method
from stillroom.task import Task, teacher_beats_chance

ZERO_FOR = 50
"""Looks after which a weighted term that has always been exactly 0 stops the run."""


class TrainingError(RuntimeError):
    """Training cannot go on: a term is NaN, negative or constantly zero, or the teacher is no teacher."""


class NotFiniteError(TrainingError):
    """A loss term, a gradient or a weight is NaN or infinite.

    Attributes:
        what: which, in words.
        player: whose.
        term: the loss term, where that is known.
        place: where it began, in words; empty where it was not looked for.
        samples: numbers of the batch's samples.
    """

    def __init__(self, text: str, found: NotFiniteError | None = None, *, player: str = "", term: str = "") -> None:
        super().__init__(text)
        self.what: str = text if found is None else found.what
        self.player: str = player if found is None else found.player
        self.term: str = term if found is None else found.term
        self.place: str = "" if found is None else found.place
        self.samples: list[int] = [] if found is None else found.samples


class Tripwires:
    """Watches the loss terms of one training.

    Args:
        method: whose terms they are; it says which may be negative.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self.alive: set[str] = set()  # terms that have been other than 0
        self.silent: dict[str, int] = {}  # looks at which a weighted term has been 0 from the start

    def first_batch(self, players: Mapping[str, Sequence[nn.Parameter]]) -> None:
        """Refuse parameters that no optimizer knows.

        Raises:
            ValueError: the method has trainable parameters now that it had not when the optimizers were made.
        """
        now = {id(parameter) for parameter in self.method.parameters() if parameter.requires_grad}
        known = {id(parameter) for group in players.values() for parameter in group}
        if now - known:
            raise ValueError(
                f"{len(now - known)} trainable parameters belong to no player: list them in players(), or, if they "
                "came into being with the first batch, build the method with probe= (a first batch)"
            )

    @torch.no_grad()
    def check_first(self, task: Task, batch: Batch) -> None:
        """Let the task check values before anything is computed from them (a GPU dies of a label out of range)."""
        task.check(batch)
        outputs = self.method.product.eval()(batch.inputs)
        self.method.train()
        task.check(batch, outputs if isinstance(outputs, Tensor) else None)

    def watch(self, step: int, player: str, losses: Losses) -> None:
        """Look at the values of a step.

        Raises:
            NotFiniteError: a term is NaN or infinite.
            TrainingError: a term is below 0 though it cannot be, or has been 0 for too long.
        """
        for name, term in losses.items():
            value = float(term.detach())
            if not math.isfinite(value):
                raise NotFiniteError(f"loss term {name!r} of player {player!r} is {value}", player=player, term=name)
            if value < -1e-5 and name not in self.method.may_be_negative:
                raise TrainingError(
                    f"loss term {name!r} is {value:.4g} at step {step}, but it cannot be below 0: if it can, name it "
                    f"in {type(self.method).__name__}.may_be_negative"
                )
            if value != 0 or losses.weights[name] == 0:
                self.alive.add(name)
            if name not in self.alive:
                self.silent[name] = self.silent.get(name, 0) + 1
                if self.silent[name] >= ZERO_FOR:
                    raise TrainingError(
                        f"loss term {name!r} has been exactly 0 for the first {ZERO_FOR} steps: it teaches nothing; "
                        "check what it is computed from, or set its weight to 0"
                    )

    @staticmethod
    def gradients(player: str, parameters: Sequence[nn.Parameter]) -> None:
        """Look at the gradients of a player, before they change a weight.

        Raises:
            NotFiniteError: one is NaN or infinite.
        """
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if grads and not all_finite(grads):
            raise NotFiniteError(f"a gradient of player {player!r} is not finite", player=player)

    @staticmethod
    def weights(step: int, players: Mapping[str, Sequence[nn.Parameter]]) -> None:
        """Look at the weights, before a checkpoint is made of them.

        Raises:
            NotFiniteError: one is NaN or infinite.
        """
        for player, parameters in players.items():
            if not all_finite(parameters):
                raise NotFiniteError(
                    f"a weight of player {player!r} is not finite after step {step - 1}: no checkpoint is made of it, "
                    "the one before is kept; lower the learning rate or clip gradients (clip=1.0)",
                    player=player,
                )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know."""
        return {"alive": sorted(self.alive), "silent": dict(self.silent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what an interrupted training knew."""
        self.alive, self.silent = set(state["alive"]), dict(state["silent"])


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all values are finite: norms first, which is quick, each value where a norm has no number."""
    held = [tensor.detach() for tensor in tensors]
    pieces = [getattr(tensor, "to_local", lambda tensor=tensor: tensor)() for tensor in held]
    floating = [tensor for tensor in pieces if tensor.is_floating_point() and not tensor.is_sparse]
    if not floating:
        return True
    norms = torch._foreach_norm(floating)
    if bool(torch.isfinite(torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms])).all()):
        return True
    return all(bool(torch.isfinite(tensor).all()) for tensor in floating)


def gradient_shares(losses: Losses, parameters: Sequence[nn.Parameter]) -> dict[str, float]:
    """Each weighted term's part of the summed gradient norms, in [0, 1]; the graph is kept."""
    norms = {}
    for name, term in losses.items():
        weight = losses.weights[name]
        if weight == 0 or not term.requires_grad:
            norms[name] = 0.0
            continue
        grads = torch.autograd.grad(weight * term, parameters, retain_graph=True, allow_unused=True)
        norms[name] = math.sqrt(sum(float(grad.double().square().sum()) for grad in grads if grad is not None))
    total = sum(norms.values())
    return {name: norm / total if total else 0.0 for name, norm in norms.items()}


@contextmanager
def logits_required(teacher: nn.Module, task: Task) -> Iterator[None]:
    """Stop when a teacher of a task with one class per sample or position gives probabilities in place of logits.

    Args:
        teacher: whose first answer within the block is looked at.
        task: what the answers mean.

    Raises:
        TrainingError: in every row of the answer all numbers are 0 or more and add up to 1.
    """
    if task.name not in ("classification", "segmentation"):
        yield
        return
    seen: list[bool] = []

    def look(module: nn.Module, given: Any, said: Any) -> None:
        if not seen:
            seen.append(True)
            _refuse_probabilities(said)

    hook = teacher.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()


def _refuse_probabilities(said: Any) -> None:
    if not isinstance(said, Tensor) or said.ndim < 2 or said.shape[1] < 2 or not said.is_floating_point():
        return
    if bool((said == said[:1]).all()):  # it says the same of all: a guess, which is looked for elsewhere
        return
    if bool((said >= 0).all()) and bool(((said.float().sum(1) - 1).abs() < 1e-3).all()):
        raise TrainingError(
            "the teacher gives probabilities (rows that add up to 1), expected logits, of which a temperature makes "
            "softer ones: leave its softmax out, or return the probabilities' logarithm (probabilities.clamp_min(1e-12)"
            ".log())"
        )


def require_teacher(teacher: Frozen, task: Task, samples: Samples, device: torch.device) -> None:
    """Stop when a teacher gives probabilities, or does not beat chance on up to 1,024 labelled samples.

    Raises:
        TrainingError: with both numbers and what to do.
    """
    teacher = teacher.settled if isinstance(teacher, Frozen) else teacher
    if samples.labels is None and samples.has_labels:  # they come with the inputs
        few = samples.subset(torch.arange(min(len(samples), 8)))
        with logits_required(teacher, task):
            measured = task.evaluate(teacher, sequential(few, 8), device=device)
        if complaint := task.no_teacher(measured):
            raise TrainingError(complaint)
        return
    if samples.labels is None or len(samples) < 20:
        return
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))  # a folder is sorted by class
    samples = samples.subset(order[:1024])
    with logits_required(teacher, task):
        measured = task.evaluate(teacher, sequential(samples, 256), device=device)
    labels = samples.labels
    if labels is not None and (complaint := teacher_beats_chance(measured, task, labels, len(samples))):
        raise TrainingError(complaint)
