"""Checks of what a method returns: its terms, its declarations, and whom the gradients reach."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillroom.check._report import CheckError, Skip, warn
from stillroom.check._tools import (
    Source,
    Turn,
    all_finite,
    backward,
    first_different_turn,
    fresh,
    measure,
    optimizers_of,
    parameter_names,
    seeded,
    teacher_networks,
    teacher_of,
    teacher_tensors,
    train,
)
from stillroom.data.batch import UNLABELLED, Batch, tensors_in
from stillroom.method import Losses, Method, Stage

TIMES = (0.0, 0.5, 1.0)


def check_terms(method: Source, batch: Batch) -> Skip | None:
    """Every turn gives `(player, Losses)`: finite terms, a total that is their weighted sum, and `.outputs` somewhere.

    The total must be a scalar with a gradient; outputs must have one row per row of the batch.
    """
    made = fresh(method)
    outputs: list[Tensor] = []
    turns = 0
    with seeded(0):
        for turn in made.turns(batch):
            turns += 1
            if not (isinstance(turn, tuple) and len(turn) == 2 and isinstance(turn[1], Losses)):
                given = type(turn[1]).__name__ if isinstance(turn, tuple) and len(turn) == 2 else type(turn).__name__
                raise CheckError(
                    f"a turn gave {given}, expected Losses: return Losses(outputs=..., name=term) from forward, or "
                    "yield (player, Losses) from turns"
                )
            player, losses = turn
            outputs += list(tensors_in(losses.outputs))
            _check_total(player, losses)
            backward(made, player, losses)
    if not turns:
        raise CheckError("turns(batch) yields nothing, expected at least one (player, losses): nothing would train")
    if not outputs:
        raise CheckError(
            "no turn's Losses has outputs: pass outputs=student_outputs, so that metrics need no second pass"
        )
    if batch.labels is not None and outputs[0].shape[:1] != (len(batch),):
        raise CheckError(
            f"outputs have shape {tuple(outputs[0].shape)} for a batch of {len(batch)}: metrics compare them with the "
            "labels, so give one row per sample, in the batch's order"
        )
    measure(fresh(method), batch)
    return None


def _check_total(player: str, losses: Losses) -> None:
    for name, term in losses.items():
        if not bool(term.isfinite()):
            raise CheckError(f"term {name!r} of player {player!r} is {float(term.detach())}, expected a finite number")
        if not math.isfinite(losses.weights[name]):
            raise CheckError(f"the weight of term {name!r} is {losses.weights[name]}, expected a finite number")
    total = losses.total
    if not isinstance(total, Tensor) or total.ndim:
        raise CheckError(f"the total of player {player!r} is no scalar tensor: leave Losses.total as it is")
    parts = [losses.weights[name] * float(term.detach()) for name, term in losses.items()]
    found, expected = float(total.detach()), sum(parts)
    if not abs(found - expected) <= 1e-6 + 1e-4 * sum(map(abs, parts)):
        raise CheckError(
            f"the total of player {player!r} is {found:.6g}, but its weighted terms sum to {expected:.6g}: put every "
            "factor into weights="
        )
    if not total.requires_grad:
        raise CheckError(
            f"the total of player {player!r} has no gradient: a detach(), no_grad() or .item() cuts the student off"
        )


def check_signs(method: Source, batch: Batch) -> Skip | None:
    """Terms that are not named in `may_be_negative` are never below 0 (initially and over five steps)."""
    made = fresh(method)
    optimizers = optimizers_of(made)
    for step in range(6):
        for turn in measure(made, batch, seed=step):
            for name, term in turn.terms.items():
                if float(term) < -1e-5 and name not in made.may_be_negative:
                    raise CheckError(
                        f"term {name!r} is {float(term):.4g} after {step} steps, expected 0 or more: look for a wrong "
                        f"sign, or name it in {type(made).__name__}.may_be_negative"
                    )
        with seeded(step):
            train(made, batch, optimizers, steps=1, first=step, of=6)
    return None


def check_declarations(method: Source, batch: Batch) -> Skip | None:
    """`stages()` name players and terms that exist; so do `may_be_negative` and `zero_at_teacher` (a warning)."""
    made = fresh(method)
    names: set[str] = set()
    stages = made.stages()
    if not stages or any(stage.share <= 0 for stage in stages):
        raise CheckError("stages() must give at least one Stage, each with a share above 0")
    for turns in _over_time(made, batch):
        names |= {name for turn in turns for name in turn.terms}
    for stage in stages:
        for kind, asked, known in (("player", stage.players, set(made.players())), ("term", stage.terms, names)):
            if unknown := sorted(set(asked or ()) - known):
                raise CheckError(
                    f"stage {stage.name!r} asks for {kind} {unknown[0]!r}, but there are only {sorted(known)}: correct "
                    "the name in stages()"
                )
    for attribute in ("may_be_negative", "zero_at_teacher"):
        declared = getattr(made, attribute)
        if isinstance(declared, str):
            raise CheckError(
                f"{attribute} is the string {declared!r}, expected a tuple of names: write ({declared!r},)"
            )
        if unknown := sorted(set(declared) - names):
            warn(f"{attribute} names {unknown}, but the terms on this batch are {sorted(names)}: correct the name")
    return None


def _over_time(method: Method, batch: Batch) -> list[list[Turn]]:
    """Measure at the beginning, the middle and the end of each stage."""
    found = []
    for stage in method.stages():
        method.enter_stage(stage)
        for progress in TIMES:
            method.tell_time(int(100 * progress), 10 * progress, progress)
            found.append(measure(method, batch))
    return found


def check_needs(method: Source, batch: Batch) -> Skip | None:
    """What `needs` does not ask for is not needed: the index, all labels, or the labels of some rows."""
    needs = fresh(method).needs
    if not needs.index and batch.index is not None and not _answers_by_index(fresh(method)):
        _same_without(method, batch, batch.replace(index=None), "batch.index", "needs = Needs(index=True)")
    if needs.labels == "none" and batch.labels is not None:
        _same_without(method, batch, batch.replace(labels=None), "batch.labels", 'needs = Needs(labels="every")')
    if needs.labels == "some" and batch.labels is not None:
        for what, rows in (("half of the", slice(None, None, 2)), ("all", slice(None))):
            labels = batch.labels.clone()
            labels[rows] = float("nan") if labels.is_floating_point() else UNLABELLED
            try:
                turns = measure(fresh(method), batch.replace(labels=labels))
            except Exception as error:
                raise CheckError(
                    f"with {what} rows unlabelled, the method raises {type(error).__name__}: {error}; needs.labels is "
                    '"some": leave such rows out of the supervised term, or declare "every"'
                ) from error
            if wrong := all_finite(turns):
                raise CheckError(
                    f'with {what} rows unlabelled, {wrong}; needs.labels is "some": a mean over no rows must be a 0 '
                    "that is connected to the graph (stillroom.losses.reduce)"
                )
    return None


def _answers_by_index(method: Method) -> bool:
    teacher = getattr(teacher_of(method), "network", None)
    return teacher is not None and (not isinstance(teacher, torch.nn.Module) or getattr(teacher, "takes_batch", False))


def _same_without(method: Source, batch: Batch, without: Batch, what: str, remedy: str) -> None:
    expected = measure(fresh(method), batch)
    try:
        found = measure(fresh(method), without)
    except Exception as error:
        raise CheckError(
            f"without {what} the method raises {type(error).__name__}: {error}; its needs do not ask for it: declare "
            f"{remedy}"
        ) from error
    if difference := first_different_turn(found, expected):
        raise CheckError(f"without {what}, {difference}; its needs do not ask for it: declare {remedy}")


def check_clock(method: Source, batch: Batch) -> Skip | None:
    """`tell_time` is taken from the first step to the last, and losses and gradients are finite at both ends."""
    made = fresh(method)
    for progress in TIMES:
        made.tell_time(round(1000 * progress), 10 * progress, progress)
        if made.clock.progress != progress:
            raise CheckError(
                f"after tell_time(progress={progress}) the clock stands at {made.clock.progress}: call "
                "super().tell_time(step, epoch, progress)"
            )
        if wrong := all_finite(measure(made, batch)):
            raise CheckError(f"at progress {progress}, {wrong}: a schedule divides by 0, or takes its logarithm")
    return None


def check_players(method: Source, batch: Batch) -> Skip | None:
    """Every trainable parameter belongs to one player, from the start, and every player has a turn."""
    made = fresh(method)
    players = made.players()
    names = parameter_names(made)
    teachers = {id(tensor) for tensor in teacher_tensors(made).values()}
    owners: dict[int, str] = {}
    for player, group in players.items():
        group = list(group)
        if not group:
            raise CheckError(f"player {player!r} has no parameters: leave it out of players()")
        for parameter in group:
            if id(parameter) in teachers:
                raise CheckError(
                    f"player {player!r} trains a parameter of the teacher: leave the teacher out of players()"
                )
            if id(parameter) not in names:
                raise CheckError(
                    f"player {player!r} trains a parameter of shape {tuple(parameter.shape)} that is not the method's: "
                    "register it as nn.Parameter or submodule, or it is neither moved nor saved"
                )
            if not parameter.requires_grad:
                raise CheckError(f"player {player!r} holds {names[id(parameter)]!r}, which requires no gradient")
            other = owners.setdefault(id(parameter), player)
            if other != player and any(_both_play(stage, player, other) for stage in made.stages()):
                warn(f"{names[id(parameter)]!r} is stepped by two players: {other!r} and {player!r}")
    taken = {turn.player for turns in _over_time(made, batch) for turn in turns}
    if strangers := sorted(taken - set(players)):
        raise CheckError(f"turns yields player {strangers[0]!r}, but players() has {sorted(players)}: use one name")
    if idle := sorted(set(players) - taken):
        warn(f"player {idle[0]!r} had no turn on this batch: yield it from turns(), or leave it out of players()")
    for name, parameter in made.named_parameters():
        if parameter.requires_grad and id(parameter) not in owners:
            raise CheckError(
                f"trainable parameter {name!r} belongs to no player: list it in players(), create it before the first "
                "batch (probe=), or set requires_grad_(False)"
            )
    return None


def _both_play(stage: Stage, *players: str) -> bool:
    return stage.players is None or set(players) <= set(stage.players)


def check_gradients(method: Source, batch: Batch) -> Skip | None:
    """Over turns, stages and three steps each, gradients reach every parameter of each player, and no teacher."""
    made = fresh(method)
    names, players, optimizers = parameter_names(made), made.players(), optimizers_of(made)
    largest: dict[str, float] = {}
    for stage in made.stages():
        made.enter_stage(stage)
        for step, progress in enumerate(TIMES):
            made.tell_time(step, float(step), progress)
            with seeded(step):
                for player, losses in stage.counts(made.turns(batch)):
                    backward(made, player, losses)
                    for parameter in players[player]:
                        if parameter.grad is not None:
                            name, size = names[id(parameter)], float(parameter.grad.abs().max())
                            if not math.isfinite(size):
                                raise CheckError(
                                    f"the gradient of {name!r} holds NaN or infinite values in step {step}"
                                )
                            largest[name] = max(largest.get(name, 0.0), size)
                    optimizers[player].step()
                    made.zero_grad(set_to_none=True)
                    made.after_step(player)
    for player, group in players.items():
        for name in (names[id(parameter)] for parameter in group):
            if name not in largest:
                raise CheckError(
                    f"no gradient reaches {name!r} of player {player!r}: look for a detach() on its way to the total, "
                    "or set requires_grad_(False) on what is not to be trained"
                )
            if largest[name] == 0:
                warn(f"the gradient of {name!r} of player {player!r} is exactly 0 in every step: it will not train")
    for network in teacher_networks(made):
        for name, parameter in network.named_parameters():
            if parameter.requires_grad or parameter.grad is not None:
                raise CheckError(
                    f"the teacher's {name!r} {'requires' if parameter.requires_grad else 'received'} a gradient: keep "
                    "the teacher in stillroom.blocks.Frozen, and leave its requires_grad alone"
                )
    return None
