"""Checks of the teacher: it does not change, does not train, is not saved, and may answer from a cache."""

from __future__ import annotations

from stillroom.blocks.frozen import Frozen
from stillroom.check._report import CheckError, Skip
from stillroom.check._tools import (
    Source,
    differing,
    enough_steps,
    fresh,
    measure,
    optimizers_of,
    seeded,
    storage,
    teacher_networks,
    teacher_of,
    teacher_tensors,
    train,
)
from stillroom.data.batch import Batch
from stillroom.method import Method


def _no_teacher(method: Method) -> Skip | None:
    if teacher_of(method) is None:
        return Skip("the method has no teacher")
    if not teacher_networks(method):
        return Skip("the teacher is a function, not a module")
    return None


def check_teacher_unchanged(method: Source, batch: Batch) -> Skip | None:
    """A few steps leave every parameter and buffer of the teacher (batch-norm statistics too) as it was, bitwise."""
    made = fresh(method)
    if skip := _no_teacher(made):
        return skip
    before = {name: tensor.detach().clone() for name, tensor in teacher_tensors(made).items()}
    with seeded(0):
        train(made, batch, optimizers_of(made), steps=enough_steps(made, 4))
    if changed := differing(teacher_tensors(made), before):
        raise CheckError(
            f"the teacher's {changed[0]!r} changed in a few steps of training: ask it through stillroom.blocks.Frozen "
            "(eval, no gradient), and write to nothing in it"
        )
    return None


def check_teacher_eval(method: Source, batch: Batch) -> Skip | None:
    """The teacher stays in eval mode after `method.train()`, and through a step."""
    made = fresh(method)
    if skip := _no_teacher(made):
        return skip
    for when in ("method.train()", "a step"):
        for network in teacher_networks(made):
            for name, module in network.named_modules():
                if module.training and not isinstance(module, Frozen):
                    where = f"module {name!r} of the teacher" if name else "the teacher"
                    raise CheckError(
                        f"{where} is in training mode after {when}, expected eval: keep it in stillroom.blocks.Frozen "
                        "and ask that, never its network"
                    )
        made.train()
        measure(made, batch)
    return None


def check_teacher_hidden(method: Source, batch: Batch) -> Skip | None:
    """The teacher is not in `state_dict()`, `parameters()` or `modules()`, so it is neither saved nor trained."""
    made = method if isinstance(method, Method) else fresh(method)  # only looked at: a copy shares less memory
    if skip := _no_teacher(made):
        return skip
    hidden = "keep the teacher in stillroom.blocks.Frozen, and refer to it only there"
    inside = {id(module) for module in made.modules()}
    for network in teacher_networks(made):
        for name, module in network.named_modules():
            if id(module) in inside:
                raise CheckError(
                    f"the teacher's module {name or type(module).__name__!r} is in method.modules(): {hidden}"
                )
    tensors = teacher_tensors(made)
    memory = {storage(tensor) for tensor in tensors.values()} - {0}
    named = {id(tensor) for tensor in tensors.values()}
    for name, tensor in (*made.named_parameters(), *made.state_dict().items()):
        if id(tensor) in named or (hasattr(tensor, "untyped_storage") and storage(tensor) in memory):
            raise CheckError(f"{name!r} of the method is a tensor of the teacher: {hidden}")
        if made.needs.teacher and name.split(".")[0] == "teacher":
            raise CheckError(f"the state dict has a key {name!r}: {hidden}")
    return None
