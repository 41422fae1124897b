"""What a training keeps to go on from: everything that decides its numbers, and what it was a training of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from stillroom import checkpoint
from stillroom.blocks.providers import checksum
from stillroom.teacher_cache import cache_of

if TYPE_CHECKING:
    from stillroom.fit import Loop

FIRST_SAMPLES = 16
"""So many are looked at to tell one data set from another."""
FITTED = ("seconds", "best_step", "validation", "curve", "terms", "cached")


def save(loop: Loop) -> None:
    """Write a checkpoint of a training; the first process does, the others give their part.

    Raises:
        StorageError: the folder cannot be written or the disk is full; the checkpoint that was there is kept.
    """
    if loop.folder is None:
        return
    loop.tripwires.weights(loop.step, loop.trained)
    state: dict[str, Any] = {
        "of": loop.identity,
        "method": loop.method.state_dict(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in loop.optimizers.items()},
        "scaler": loop.scaler.state_dict(),
        "average": None if loop.average is None else loop.average.state_dict(),
        "best": loop.best,
        "step": loop.step,
        "steps": loop.steps,
        "ended": loop.fitted.stages,
        "stages": loop.stages.state_dict(),
        "tripwires": loop.tripwires.state_dict(),
        "random": checkpoint.random_state(),
    } | {name: getattr(loop.fitted, name) for name in FITTED}
    if loop.shards is not None:
        state = loop.shards.gathered(state)
    if loop.accelerator.num_processes > 1:  # dropout differs by process: each keeps its own random state
        own = loop.checkpoint.with_name(f"random-{loop.accelerator.process_index}.pt")
        checkpoint.save(own, {"random": state["random"], "step": loop.step})
        loop.accelerator.wait_for_everyone()
    if loop.accelerator.is_main_process:
        checkpoint.save(loop.checkpoint, state)


def restore(loop: Loop) -> None:
    """Take over where the last checkpoint in the training's folder stood; nothing where there is none.

    Raises:
        ValueError: no folder, or the checkpoint is of another training: other steps, seed, batch size, samples or
            teacher.
    """
    if loop.folder is None:
        raise ValueError("resume=True needs the folder of the run: pass folder=")
    state = checkpoint.load(loop.checkpoint)
    if state is None:
        return
    _refuse_another(loop, state)
    if loop.shards is not None:
        state["method"] = loop.shards.cut_like(state["method"], loop.method.state_dict())
    loop.stages.load_state_dict(state["stages"])
    loop.fitted.stages = state["ended"]
    loop.method.load_state_dict(state["method"])
    for name in [player for player, number in loop.stages.optimizers_of.items() if number >= 0]:
        loop.optimizers[name] = loop.optimizer(name)
    for name, optimizer in loop.optimizers.items():
        kept = state["optimizers"][name]
        optimizer.load_state_dict(kept if loop.shards is None else loop.shards.cut_optimizer(kept, optimizer))
    loop.scaler.load_state_dict(state["scaler"])
    if loop.average is not None:
        loop.average.load_state_dict(state["average"])
    loop.best, loop.step = state["best"], state["step"]
    for name in FITTED:
        setattr(loop.fitted, name, state.get(name, getattr(loop.fitted, name)))
    loop.tripwires.load_state_dict(state["tripwires"])
    own = None
    if loop.accelerator.num_processes > 1:
        path = loop.checkpoint.with_name(f"random-{loop.accelerator.process_index}.pt")
        own = checkpoint.load(path, wanted=lambda kept: kept["step"] == loop.step)
    checkpoint.set_random_state((own or state)["random"])


def identity_of(loop: Loop) -> dict[str, Any]:
    """What a training is of, as plain values that another one is told apart by."""
    train = loop.train
    found: dict[str, Any] = {
        "seed": loop.seed,
        "batch size": loop.training.batch_size,
        "teacher": loop.fitted.teacher,
        "number of samples": len(train),
    }
    if not train.lazy and len(train) and cache_of(loop.method) is None:  # which watches every sample itself
        rows = torch.arange(min(len(train), FIRST_SAMPLES))
        found["samples"] = checksum(train.batch(rows).inputs).tolist()
    return found


def _refuse_another(loop: Loop, state: dict[str, Any]) -> None:
    now, before = loop.identity, state.get("of", {})
    if state["steps"] != loop.steps:
        raise ValueError(
            f"the checkpoint in {loop.folder} is of a run of {state['steps']} steps, this one takes {loop.steps}: "
            "resume with the same data and options, or use another folder"
        )
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            other = (
                "other samples" if name == "samples" else f"another {name} ({before[name]}, this one has {now[name]})"
            )
            raise ValueError(
                f"the checkpoint in {loop.folder} is of a run with {other}: resume with the same data, teacher and "
                "options, or use another folder"
            )
