"""What the checks share: identical copies, fixed seeds, one measured pass, a few steps of training, comparisons."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.check._report import CheckError, Skip
from stillroom.checkpoint import random_state, seed_everything, set_random_state
from stillroom.data.batch import UNLABELLED, Batch, map_tensors, tensors_in
from stillroom.method import Losses, Method, Stage

Source = Method | Callable[[], Method]
"""A method, which is copied and never changed, or a function that builds one anew, all its networks included."""

LEARNING_RATE = 1e-3
_NOISY = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every random generator, and set all of them back at the end."""
    before = random_state()
    seed_everything(seed)
    try:
        yield
    finally:
        set_random_state(before)


def fresh(method: Source) -> Method:
    """Return a copy of a method (or build one under a fixed seed), in training mode and without gradients."""
    if isinstance(method, Method):
        try:
            made = copy.deepcopy(method)
        except Exception as error:
            raise CheckError(
                f"copy.deepcopy(method) raised {type(error).__name__}: {error}; expected an independent copy: keep no "
                "activations, lambdas or open files on the method"
            ) from error
    else:
        with seeded(0):
            made = method()
        if not isinstance(made, Method):
            raise TypeError(f"the factory must return a stillroom Method, given {type(made).__name__}")
    made.zero_grad(set_to_none=True)
    return made.train()


def quiet(method: Method) -> Method:
    """Set batch norm and dropout inside a method to eval, so that a sample's loss depends on that sample alone."""
    for module in method.modules():
        dropout = getattr(module, "dropout", 0.0)
        if (
            isinstance(module, _NOISY)
            or "drop" in type(module).__name__.lower()
            or (isinstance(dropout, float) and dropout > 0)
        ):
            module.eval()
    return method


@dataclass
class Turn:
    """What one turn of a player gave, detached.

    Attributes:
        player: whose turn it was.
        terms: raw loss terms.
        total: their weighted sum.
        outputs: what the student said.
        gradients: by parameter name, of the player's parameters; None where none arrived.
    """

    player: str
    terms: dict[str, Tensor]
    total: Tensor
    outputs: Any
    gradients: dict[str, Tensor | None]


def parameter_names(method: Method) -> dict[int, str]:
    """Names of a method's parameters by identity."""
    return {id(parameter): name for name, parameter in method.named_parameters()}


def backward(method: Method, player: str, losses: Losses) -> Tensor:
    """Run a turn's backward pass as `fit` does; return the detached total."""
    players = method.players()
    total = losses.total
    if total.requires_grad:
        inputs = [parameter for parameter in players.get(player, ()) if parameter.requires_grad]
        total.backward(inputs=None if len(players) == 1 else inputs)
    method.adjust_gradients(player)
    return total.detach()


def measure(
    method: Method, batch: Batch, *, seed: int = 0, reweight: Callable[[Losses], Losses] | None = None
) -> list[Turn]:
    """Take all turns of one batch under a seed, with gradients and without a step."""
    names, found = parameter_names(method), []
    with seeded(seed):
        for player, losses in method.turns(batch):
            losses = losses if reweight is None else reweight(losses)
            method.zero_grad(set_to_none=True)
            total = backward(method, player, losses)
            gradients = {
                names.get(id(parameter), f"parameter {number}"): None
                if parameter.grad is None
                else parameter.grad.clone()
                for number, parameter in enumerate(method.players().get(player, ()))
            }
            terms = {name: term.detach() for name, term in losses.items()}
            found.append(Turn(player, terms, total, map_tensors(losses.outputs, Tensor.detach), gradients))
    method.zero_grad(set_to_none=True)
    return found


def optimizers_of(method: Method) -> dict[str, torch.optim.Optimizer]:
    """One Adam per player."""
    return {name: torch.optim.Adam(list(group), lr=LEARNING_RATE) for name, group in method.players().items()}


def stage_at(method: Method, step: int, steps: int) -> Stage:
    """The stage of a step: all stages have equal shares here, so that few steps visit each."""
    stages = method.stages()
    return stages[min(step * len(stages) // steps, len(stages) - 1)]


def enough_steps(method: Method, least: int) -> int:
    """At least so many steps, and one per stage; an even number if `least` is even."""
    stages = len(method.stages())
    return max(least, stages + (stages - least) % 2)


def train(
    method: Method,
    batch: Batch,
    optimizers: Mapping[str, torch.optim.Optimizer],
    *,
    steps: int,
    first: int = 0,
    of: int | None = None,
) -> list[Tensor]:
    """Take steps `first` to `first + steps` of a training of `of` steps; return the total of every turn."""
    totals, of = [], of or first + steps
    for step in range(first, first + steps):
        method.tell_time(step, float(step), step / of)
        stage, before = stage_at(method, step, of), stage_at(method, step - 1, of) if step else None
        method.enter_stage(stage)
        if stage is not before and stage != before:
            if before is not None:
                method.end_stage(before)
            method.begin_stage(stage)
        for player, losses in stage.counts(method.turns(batch)):
            totals.append(backward(method, player, losses))
            optimizers[player].step()
            optimizers[player].zero_grad(set_to_none=True)
            method.after_step(player)
    return totals


def trained(method: Source, batch: Batch, *, steps: int, seed: int = 0) -> Method:
    """Return a fresh method after a few seeded steps, at the end of its time."""
    made = fresh(method)
    steps = enough_steps(made, steps)
    with seeded(seed):
        train(made, batch, optimizers_of(made), steps=steps)
    made.tell_time(steps, float(steps), 1.0)
    return made


# ---- teachers --------------------------------------------------------------------------------------------------------


def teacher_of(method: Method) -> Any:
    """The method's main teacher: its `teacher`, or else the first `Frozen` in it; None where there is none."""
    own = getattr(method, "teacher", None)
    return own if own is not None else next((m for m in method.modules() if isinstance(m, Frozen)), None)


def teacher_networks(method: Method) -> list[nn.Module]:
    """All modules that stand behind the method's teachers, also inside teacher providers."""
    found: list[nn.Module] = []

    def visit(holder: Any) -> None:
        if isinstance(holder, Frozen):
            visit(holder.network)
        elif isinstance(holder, nn.Module) and not any(holder is other for other in found):
            found.append(holder)
            for module in holder.modules():
                if isinstance(module, Frozen):
                    visit(module)

    visit(getattr(method, "teacher", None))
    for module in method.modules():
        if isinstance(module, Frozen):
            visit(module)
    return found


def teacher_tensors(method: Method) -> dict[str, Tensor]:
    """Parameters and buffers of all teachers, by name."""
    found: dict[str, Tensor] = {}
    for number, network in enumerate(teacher_networks(method)):
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            found[f"{type(network).__name__}{number or ''}.{name}"] = tensor
    return found


def edit_teacher(method: Method, edit: Callable[[Tensor], Tensor]) -> None:
    """From now on, change every float tensor that the main teacher of this copy answers with."""
    teacher = teacher_of(method)
    network = teacher.network if isinstance(teacher, Frozen) else teacher

    def change(value: Any) -> Any:
        return edit_tensors(value, lambda tensor: edit(tensor) if tensor.is_floating_point() else tensor)

    if isinstance(network, nn.Module):
        network.register_forward_hook(lambda module, inputs, output: change(output), prepend=True)
    elif isinstance(teacher, Frozen):
        teacher._hidden = (lambda batch: change(network(batch)),)


def edit_tensors(value: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the tensors of what a network returned and keep its type, also for output classes."""
    if isinstance(value, Mapping) and type(value) is not dict:
        changed: Any = copy.copy(value)
        for key, inner in value.items():
            changed[key] = edit_tensors(inner, edit)
        return changed
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(edit_tensors(inner, edit) for inner in value))
    return map_tensors(value, edit)


def storage(tensor: Tensor) -> int:
    """What two tensors have in common that share their memory (0 for tensors without any)."""
    return tensor.untyped_storage().data_ptr()


# ---- comparisons -----------------------------------------------------------------------------------------------------


def same_bits(first: Any, second: Any) -> bool:
    """Whether two values are equal to the last bit; NaN equals NaN."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        return bool(((first == second) | ((first != first) & (second != second))).all())
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(same_bits(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(same_bits, first, second))
    return bool(first == second)


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names whose values are not the same to the last bit."""
    return [
        name
        for name in {**first, **second}
        if name not in first or name not in second or not same_bits(first[name], second[name])
    ]


def first_different_turn(found: list[Turn], expected: list[Turn]) -> str:
    """Say where two measurements differ in a bit; empty where they do not."""
    if [turn.player for turn in found] != [turn.player for turn in expected]:
        return f"turns of {[turn.player for turn in found]} instead of {[turn.player for turn in expected]}"
    for mine, other in zip(found, expected, strict=True):
        for name in differing(mine.terms, other.terms):
            return f"term {name!r} is {_shown(mine.terms.get(name))} instead of {_shown(other.terms.get(name))}"
        for name in differing(mine.gradients, other.gradients):
            return f"the gradient of {name!r} differs, at equal losses"
    return ""


def _shown(value: Tensor | None) -> str:
    return "absent" if value is None else f"{float(value):.9g}"


def compare(found: list[Turn], expected: list[Turn], *, rtol: float, atol: float, gradients: bool = True) -> str:
    """Say where two measurements differ by more than a tolerance; empty where they do not.

    A gradient may be off by `rtol` of its own norm and by a hundredth of that of the whole gradient's norm.
    """
    if [turn.player for turn in found] != [turn.player for turn in expected]:
        return f"turns of {[turn.player for turn in found]} instead of {[turn.player for turn in expected]}"
    for mine, other in zip(found, expected, strict=True):
        got, want = float(mine.total), float(other.total)
        if not abs(got - want) <= atol + rtol * abs(want):
            return f"a total of {got:.6g} instead of {want:.6g}"
        if not gradients:
            continue
        zero = torch.zeros(())
        norms = {name: float((grad if grad is not None else zero).norm()) for name, grad in other.gradients.items()}
        whole = sum(norm**2 for norm in norms.values()) ** 0.5
        for name, norm in norms.items():
            want_gradient, got_gradient = other.gradients[name], mine.gradients.get(name)
            difference = (zero if got_gradient is None else got_gradient.cpu().double()) - (
                zero if want_gradient is None else want_gradient.cpu().double()
            )
            off = float(difference.norm())
            if not off <= rtol * (norm + 0.01 * whole) + 1e-7:
                return f"a gradient of {name!r} that is off by {off:.3g} (its norm is {norm:.3g})"
    return ""


def is_random(method: Source, batch: Batch) -> bool:
    """Whether the loss depends on random draws other than dropout."""
    first, second = (measure(quiet(fresh(method)), batch, seed=seed) for seed in (0, 1))
    return bool(first_different_turn(first, second))


def all_finite(turns: list[Turn]) -> str:
    """Say which total, term or gradient is not finite; empty where all are."""
    for turn in turns:
        for name, term in {"total": turn.total, **turn.terms}.items():
            if not bool(term.isfinite()):
                return f"{name!r} is {float(term)}"
        for name, gradient in turn.gradients.items():
            if gradient is not None and not bool(gradient.isfinite().all()):
                return f"the gradient of {name!r} holds NaN or infinite values"
    return ""


# ---- batches ---------------------------------------------------------------------------------------------------------


def halves(batch: Batch) -> tuple[Batch, Batch, Batch] | Skip:
    """Return an even part of a batch and its two halves, with as many labels in each."""
    if len(batch) == 0:
        return Skip("the batch is empty")
    labelled = batch.labelled.nonzero().flatten()
    others = (~batch.labelled).nonzero().flatten()
    groups = [rows[: len(rows) // 2 * 2] for rows in (labelled, others)]
    first, second = (torch.cat([rows[start::2] for rows in groups]) for start in (0, 1))
    if not len(first):
        return Skip(f"a batch of {len(batch)} has no two halves with as many labels")
    parts = batch[torch.cat([first, second])], batch[first], batch[second]
    if batch.labels is not None and len({_labels_in(part) for part in parts[1:]}) > 1:
        return Skip("the two halves of the batch hold different numbers of labelled positions")
    return parts


def _labels_in(batch: Batch) -> int:
    labels = batch.labels
    if labels is None:
        return 0
    return int((~labels.isnan()).sum() if labels.is_floating_point() else (labels != UNLABELLED).sum())


def device_type(batch: Batch) -> str:
    """Kind of device that the inputs are on."""
    return next(iter(tensors_in(batch.inputs))).device.type
