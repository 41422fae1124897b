"""Where a training of several stages stands, and what each stage keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stillroom.blocks.ema import EMA
from stillroom.data.batch import map_tensors
from stillroom.method import Clock, Method, Stage
from stillroom.training import Training


@dataclass
class Fitted:
    """What a training gave.

    Attributes:
        product: what ships, in eval mode.
        steps: optimizer steps taken in all (also before a resume).
        seconds: spent in training steps, without evaluation.
        best_step: the step whose weights `product` has.
        validation: metrics of `product` on the held-out part; empty where there was none.
        curve: `(step, metrics)` of every evaluation.
        terms: `(step, {term: value}, {term: share of the gradient's norm})` of every logged step.
        teacher: the teacher's fingerprint; empty without a teacher.
        cached: what was kept of the teacher's answers, and the largest errors; empty for a live teacher.
        stages: of every stage that has ended its name, first and last step, and, where it kept its best weights, the
            step they are of, by which number, and its value.
    """

    product: nn.Module
    steps: int = 0
    seconds: float = 0.0
    best_step: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    terms: list[tuple[int, dict[str, float], dict[str, float]]] = field(default_factory=list)
    teacher: str = ""
    cached: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)


class StageRun:
    """The stages of one training: which is running, with whose optimizers, and its best weights so far.

    Args:
        method: whose stages they are.
        training: may name optimizers of stages.
        steps: optimizer steps of the whole training.

    Raises:
        ValueError: the training names a stage that the method does not have.
    """

    def __init__(self, method: Method, training: Training, steps: int) -> None:
        self.method, self.training, self.steps = method, training, steps
        stages = method.stages()
        names = [stage.name for stage in stages]
        if strange := sorted(set(training.stages) - set(names)):
            raise ValueError(
                f"training names an optimizer for the stage {strange[0]!r}, but {type(method).__name__} has the stages "
                f"{', '.join(names)}"
            )
        whole, taken, begin = sum(stage.share for stage in stages), 0.0, 0
        self.plan: list[tuple[Stage, int, int]] = []
        for stage in stages:
            taken += stage.share
            end = round(steps * taken / whole)
            self.plan.append((stage, begin, end))
            begin = end
        self.number = 0
        self.begun = False
        self.best: dict[str, Any] | None = None
        self.best_value, self.best_step = 0.0, 0
        self.optimizers_of = dict.fromkeys(method.players(), -1)
        """Player -> number of the stage whose optimizer it has; -1: the one it began with."""

    @property
    def stage(self) -> Stage:
        """The running stage."""
        return self.plan[self.number][0]

    @property
    def end(self) -> int:
        """The step at which it ends."""
        return self.plan[self.number][2]

    def clock(self, step: int, steps_per_epoch: int) -> Clock:
        """The time since the running stage began."""
        _, begin, end = self.plan[self.number]
        return Clock(step - begin, (step - begin) / steps_per_epoch, (step - begin) / max(end - begin, 1))

    def begin(self) -> list[str]:
        """Begin the running stage; return the players that get new optimizers."""
        self.begun = True
        self.method.begin_stage(self.stage)
        fresh = self.stage.fresh_optimizers or self.stage.name in self.training.stages
        players = [name for name in self.optimizers_of if fresh and name in (self.stage.players or self.optimizers_of)]
        self.optimizers_of |= dict.fromkeys(players, self.number)
        return players

    def optimizer(self, player: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer that a player has now."""
        options = self._options(player)
        names = {id(parameter): name for name, parameter in self.method.named_parameters()}
        return options.build(parameters, names=[names.get(id(one), "") for one in parameters])

    def _options(self, player: str) -> Any:
        number = self.optimizers_of[player]
        return self.training.optim(player, "" if number < 0 else self.plan[number][0].name)

    def rate(self, player: str, step: int) -> tuple[float, float | None]:
        """Learning rate and largest gradient norm of a player at a step."""
        options, steps = self._options(player), self.steps
        if self.optimizers_of[player] == self.number:
            _, begin, end = self.plan[self.number]
            step, steps = step - begin, end - begin
        factor = 1.0 if self.stage.name in self.training.stages else self.stage.lr_factor
        return factor * options.rate(step, steps), options.clip

    def consider(self, measured: Mapping[str, float], step: int, average: EMA | None) -> None:
        """Remember the weights where they are the stage's best so far.

        Raises:
            ValueError: what was measured has no such number.
        """
        stage = self.stage
        if not stage.best_by:
            return
        if stage.best_by not in measured:
            raise ValueError(
                f"stage {stage.name!r} chooses its best weights by {stage.best_by!r}, but what is measured is "
                f"{', '.join(measured)}"
            )
        value = measured[stage.best_by]
        if self.best is None or (value > self.best_value if stage.higher_is_better else value < self.best_value):
            self.best = {
                "method": copied(self.method),
                "average": None if average is None else copied(average),
            }
            self.best_value, self.best_step = value, step

    def finish(self, average: EMA | None) -> dict[str, Any]:
        """End the running stage: its best weights come back, and the next one is the running one."""
        stage, begin, end = self.plan[self.number]
        record: dict[str, Any] = {"stage": stage.name, "begin": begin, "end": end}
        if self.best is not None:
            self.method.load_state_dict(self.best["method"])
            if average is not None:
                average.load_state_dict(self.best["average"])
            record |= {"best_step": self.best_step, "best_by": stage.best_by, "value": self.best_value}
        self.method.end_stage(stage)
        self.number, self.begun, self.best = self.number + 1, False, None
        return record

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know."""
        kept = ("number", "begun", "best", "best_value", "best_step", "optimizers_of")
        return {name: getattr(self, name) for name in kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over where an interrupted training stood."""
        for name, value in state.items():
            setattr(self, name, value)


def copied(module: nn.Module) -> dict[str, Any]:
    """A module's state, in memory of its own."""
    return map_tensors(module.state_dict(), lambda tensor: tensor.detach().clone())
