"""Checks of what is equal by mathematics: the student alone, a student that is its teacher, a cached teacher."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.blocks.taps import unwrapped
from stillroom.check._report import CheckError, Skip, warn
from stillroom.check._tools import (
    Source,
    Turn,
    first_different_turn,
    fresh,
    measure,
    quiet,
    seeded,
    teacher_of,
)
from stillroom.data.batch import UNLABELLED, Batch, tensors_in
from stillroom.method import Losses, Method

if TYPE_CHECKING:
    from stillroom.task import Task

SUPERVISED = "label"


def check_weight_zero(method: Source, batch: Batch, *, task: Task | None = None) -> Skip | None:
    """With every weight 0 but that of the term "label", loss and gradients are those of the student alone."""
    made = quiet(fresh(method))
    task = task if task is not None else getattr(made, "task", None)

    def only_label(losses: Losses) -> Losses:
        weights = {name: float(name == SUPERVISED) for name in losses}
        return Losses(outputs=losses.outputs, weights=weights, **losses.terms)

    turns = [turn for turn in measure(made, batch, reweight=only_label) if SUPERVISED in turn.terms]
    if not turns or batch.labels is None:
        return Skip(f"the method has no supervised term named {SUPERVISED!r}")
    if task is None and batch.labels.is_floating_point():
        return Skip("only a task knows the supervised loss of float labels: pass task=")
    found = turns[0]
    alone = unwrapped(quiet(fresh(method)).student)
    try:
        with seeded(0):
            answers = [t for t in tensors_in(alone(batch.inputs)) if isinstance(found.outputs, Tensor)]
    except Exception as error:
        return Skip(f"the student does not answer to batch.inputs alone ({type(error).__name__})")
    answer = next((t for t in answers if t.shape == found.outputs.shape and torch.allclose(t, found.outputs)), None)
    if answer is None:
        return Skip("the outputs are not the student's answer to batch.inputs: the method makes its own inputs")
    loss = _supervised(answer, batch.labels, task)
    loss.backward()
    total, expected = float(found.total), float(loss.detach())
    if not abs(total - expected) <= 1e-6 + 1e-6 * abs(expected):
        raise CheckError(
            f"with every weight 0 but that of {SUPERVISED!r}, the total is {total:.7g}, for the student alone "
            f"{expected:.7g}: {SUPERVISED!r} must be the plain supervised loss, all factors in weights="
        )
    gradients = {f"student.{name}": parameter.grad for name, parameter in alone.named_parameters()}
    for name, gradient in found.gradients.items():
        plain = gradients.get(name)
        pair = [torch.zeros(()) if g is None else g.detach().cpu() for g in (gradient, plain)]
        if not float((pair[0] - pair[1]).norm()) <= 1e-7 + 1e-5 * float(pair[1].norm()):
            raise CheckError(
                f"with every weight 0 but that of {SUPERVISED!r}, the gradient of {name!r} is not that of the student "
                "alone: adjust_gradients or a hook changes it"
            )
    return None


def _supervised(outputs: Tensor, labels: Tensor, task: Task | None) -> Tensor:
    if task is not None:
        return task.supervised_loss(outputs, labels)
    classes_last = labels.shape == outputs.shape[:-1]
    return F.cross_entropy(outputs.movedim(-1, 1) if classes_last else outputs, labels, ignore_index=UNLABELLED)


def check_zero_at_teacher(method: Source, batch: Batch) -> Skip | None:
    """The terms in `zero_at_teacher` are 0, without gradient, when the teacher is a frozen copy of the student.

    In float64, with outputs standardised over the batch (an untrained student says nearly the same to all inputs), up
    to a thousandth of the term (a hundredth of the gradient) with the teacher as given: epsilons in denominators leave
    a little.
    """
    given, made = quiet(fresh(method)), quiet(fresh(method))
    claimed = made.zero_at_teacher
    if not claimed:
        return Skip("the method claims no term that is zero_at_teacher")
    doubled = batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def only_claimed(losses: Losses) -> Losses:
        weights = {name: float(name in claimed) for name in losses}
        return Losses(outputs=losses.outputs, weights=weights, **losses.terms)

    try:
        for one in (given, made):
            one.double()
            one.student.eval()
            _standardise(one, doubled)
        if skip := _teach_itself(made):
            return skip
        usual, turns = (measure(one, doubled, reweight=only_claimed) for one in (given, made))
    except Exception as error:
        return Skip(f"the method does not run in float64 ({type(error).__name__}): see float64")
    seen: set[str] = set()
    for turn, other in zip(turns, usual, strict=True):
        here = sorted(set(turn.terms) & set(claimed))
        seen.update(here)
        for name in here:
            if not abs(float(turn.terms[name])) <= 1e-6 + 1e-3 * abs(float(other.terms[name])):
                raise CheckError(
                    f"term {name!r} is {float(turn.terms[name]):.4g} for a student that is its teacher, expected 0 as "
                    "zero_at_teacher claims: look for other inputs, temperatures or modes on one side"
                )
        slope = _student_slope(turn)
        if not slope <= 1e-6 + 1e-2 * _student_slope(other):
            raise CheckError(
                f"the terms {here} are 0 for a student that is its teacher, but move it (gradient norm {slope:.3g}): a "
                "minimum has gradient 0"
            )
    if missing := sorted(set(claimed) - seen):
        warn(f"zero_at_teacher names {missing}, which are no terms on this batch: correct the name")
    return None


def _student_slope(turn: Turn) -> float:
    """Norm of the gradient of the student's parameters."""
    norms = [
        float(grad.norm()) for name, grad in turn.gradients.items() if name.startswith("student.") and grad is not None
    ]
    return sum(norm**2 for norm in norms) ** 0.5


class _Standardise:
    """A forward hook: a fixed affine map of what a network answers."""

    def __init__(self, answer: Tensor) -> None:
        self.shift, self.spread = answer.mean(0), answer.std(0).clamp_min(1e-12)

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        fits = isinstance(output, Tensor) and output.shape[1:] == self.shift.shape
        return (output - self.shift) / self.spread if fits else output


def _standardise(method: Method, batch: Batch) -> None:
    """Give the student outputs of mean 0 and deviation 1 over the batch, where it answers with a tensor."""
    student = unwrapped(method.student)
    try:
        with torch.no_grad(), seeded(0):
            answer = student(batch.inputs)
    except Exception:  # it does not answer to the inputs alone
        return
    if isinstance(answer, Tensor) and answer.is_floating_point() and answer.ndim > 1 and len(answer) > 1:
        student.register_forward_hook(_Standardise(answer), prepend=True)


def _teach_itself(method: Method) -> Skip | None:
    """Make the student's copy the teacher: by its weights where the networks are alike, else by exchange."""
    teacher, student = teacher_of(method), unwrapped(method.student)
    if not isinstance(teacher, Frozen):
        return Skip("the method has no frozen teacher")
    network: Any = teacher.network
    own = student.state_dict()
    if isinstance(network, nn.Module):
        theirs = network.state_dict()
        alike = type(network) is type(student) and {k: v.shape for k, v in own.items()} == {
            k: v.shape for k, v in theirs.items()
        }
        if alike and str(network) == str(student):
            network.load_state_dict(own)
            teacher.batch_norm = "running"  # as the student, which is in eval mode
            for hook in student._forward_hooks.values():
                if isinstance(hook, _Standardise):
                    network.register_forward_hook(hook, prepend=True)
            return None
    if method.needs.features:
        return Skip("the method reads inside its networks: build it with a teacher of the student's architecture")
    method.teacher = Frozen(copy.deepcopy(student))
    return None


def check_cached_teacher(method: Source, batch: Batch) -> Skip | None:
    """A cached teacher gives the same losses as the live one, bit for bit, where `needs.teacher_at` is "any".

    Both are asked twice, under two seeds: the second time the cache answers from memory, and refuses other inputs.
    """
    live = quiet(fresh(method))
    teacher = teacher_of(live)
    if not isinstance(teacher, Frozen) or teacher is not live.teacher:
        return Skip("the method has no frozen teacher")
    if live.needs.teacher_at != "any":
        return Skip("the method asks its teacher about inputs that it makes itself")
    if live.needs.features:
        return Skip("the method reads activations inside its teacher")
    if teacher.batch_norm != "running":
        return Skip("the teacher's answer depends on the rest of the batch")
    if batch.index is None or len(batch.index.unique()) < len(batch):
        if live.needs.index:
            return Skip("the index of this batch names samples twice")
        batch = batch.replace(index=torch.arange(len(batch), device=next(iter(tensors_in(batch.inputs))).device))
    index: Any = batch.index
    answer = teacher(batch)
    if not isinstance(answer, Tensor):
        return Skip(f"the teacher answers with {type(answer).__name__}, which no cache keeps")
    cache = _cache(teacher.network, index, answer.dtype)
    for seed in (0, 1):
        made = quiet(fresh(method))
        made.teacher = cache
        try:
            found = measure(made, batch, seed=seed)
        except Exception as error:
            raise CheckError(
                f"with a cached teacher the method raises {type(error).__name__}: {error}; ask teacher(batch), never "
                'teacher(batch.inputs), or declare needs.teacher_at = "own"'
            ) from error
        if difference := first_different_turn(found, measure(quiet(fresh(method)), batch, seed=seed)):
            raise CheckError(
                f"with a cached teacher, {difference}: ask the teacher about the batch as it came, or declare "
                'needs.teacher_at = "own"'
            )
    return None


def _cache(network: Any, index: Tensor, dtype: torch.dtype) -> Frozen:
    from stillroom.blocks.providers import Cached

    dtype = dtype if dtype == torch.float64 else torch.float32
    return Frozen(Cached(network, size=int(index.max()) + 1, dtype=dtype))
