"""Where an experiment's teacher comes from: loaded, trained first, averaged, or a function that answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from stillroom import hub, processes
from stillroom.baselines import Alone
from stillroom.blocks.frozen import Frozen
from stillroom.blocks.providers import Average
from stillroom.checkpoint import seed_everything, write_json
from stillroom.data.stream import sequential
from stillroom.experiment.arm import load_model, load_splits, own_augmentation
from stillroom.fit import fit
from stillroom.method import Method
from stillroom.task import Task, teacher_beats_chance
from stillroom.training import Training
from stillroom.tripwires import TrainingError, logits_required


def obtain_teacher(
    spec: Any,
    task: Task,
    folder: Path,
    *,
    training: Training | None = None,
    method: Callable[..., Method] | None = None,
    device: str | None = None,
    workers: int = 0,
    resume: bool = False,
    progress: bool = True,
) -> Frozen | None:
    """Load a teacher, training it first where that is asked for.

    A teacher that was trained lies in `folder` and is loaded from there the next time.

    Args:
        spec: anything `stillroom.hub.load` takes, a list of such (their average teaches), a function
            `predict(batch)`, or None.
        task: the data and what outputs mean; a teacher is trained on all of its training samples and labels.
        folder: where a trained teacher is kept.
        training: how to train it; None takes it as it is.
        method: what trains it, with the network as its student; the labels alone when not given.
        device: None for the machine's own choice.
        workers: threads that read data ahead.
        resume: go on from a half-trained teacher in the folder.
        progress: show how far the training is.

    Returns:
        The frozen teacher; None for `spec` None.
    """
    if spec is None or isinstance(spec, Frozen):
        return spec
    splits = load_splits(task, 0, everything=True)
    if isinstance(spec, (list, tuple)):
        if training is not None:
            raise ValueError(
                "several teachers are averaged as they are: train each of them first, in runs of their own"
            )
        of: Literal["probabilities", "logits"] = (
            "probabilities" if task.name in ("classification", "segmentation") else "logits"
        )
        return Frozen(Average([load_model(one, splits, task.width(splits)) for one in spec], of=of))
    if callable(spec) and not isinstance(spec, (nn.Module, type)) and not hasattr(spec, "takes_batch"):
        return Frozen(spec)
    if isinstance(spec, nn.Module) and getattr(spec, "takes_batch", False):
        return Frozen(spec)
    seed_everything(0)
    network = load_model(spec, splits, task.width(splits))
    if training is None:
        return Frozen(network)
    if (folder / "student.safetensors").exists():
        hub.load_weights(network, folder / "student.safetensors")
        return Frozen(network)
    if not task.needs_labels:
        raise ValueError(f"a teacher cannot be trained for the {task.name} task, which has no labels: give it weights")
    if training.augment is None:
        training = training.change(augment=own_augmentation(splits))
    fitted = fit(
        Alone(network, task=task) if method is None else method(network),
        splits,
        training,
        task=task,
        folder=folder,
        resume=resume,
        device=device,
        workers=workers,
        progress=progress,
        title="teacher",
    )
    if processes.is_first():
        hub.save(fitted.product, folder, overwrite=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # it has been trained: nothing to go on from
    processes.wait(device)
    return Frozen(fitted.product)


def measure_teacher(
    teacher: Frozen | None,
    task: Task,
    folder: Path,
    *,
    device: str | None = None,
    workers: int = 0,
    beats_chance: bool = True,
) -> dict[str, float]:
    """Measure the teacher on the reported split, once, and refuse one that does not beat chance.

    Args:
        teacher: whom to measure; None gives no metrics.
        task: the data and what outputs mean.
        folder: where the metrics are kept; nothing is written there for a teacher that is refused.
        device: None for the machine's own choice.
        workers: threads that read data ahead.
        beats_chance: refuse a teacher that guesses.

    Raises:
        TrainingError: it gives probabilities, or is no better than guessing.
    """
    if teacher is None:
        return {}
    kept = folder / "metrics.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    splits = load_splits(task, 0, everything=True)
    if device is not None:
        teacher.to(device)
    with logits_required(teacher, task):
        measured = task.evaluate(teacher, sequential(splits.test, 256, workers=workers), teacher=teacher, device=device)
    if beats_chance and (complaint := task.no_teacher(measured)):
        raise TrainingError(complaint)
    labels = splits.test.labels if beats_chance else None
    if labels is not None and (complaint := teacher_beats_chance(measured, task, labels, len(splits.test))):
        raise TrainingError(complaint)
    if processes.is_first():
        write_json(kept, measured)
    return measured
