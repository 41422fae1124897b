"""The dry run: resolve everything, push one batch through it, say what the real run will take."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.experiment.run import Experiment

STARTING = 5.0
"""Seconds until processes that share the runs have loaded what they need."""


def forecast(**given: Any) -> dict[str, Any]:
    """Do everything that `stillroom.distill` does before training, and forecast the rest.

    Args:
        **given: the arguments of `stillroom.distill`.

    Returns:
        "task", "data", "teacher", "student", "features", "terms" (of one batch), "steps", "seconds" (forecast, all
        arms and seeds), "memory_bytes" (forecast, one process), "notes".

    Raises:
        ValueError: whatever would stop the real run.
    """
    import inspect
    import resource
    import sys

    import torch

    from stillroom import hub
    from stillroom.distill import distill
    from stillroom.experiment.arm import TrainingArm, load_splits
    from stillroom.experiment.budget import seconds_per_step, threads_for
    from stillroom.experiment.teacher import obtain_teacher
    from stillroom.naming import method_name
    from stillroom.options import experiment_of, jobs_of, seeds_of, with_defaults
    from stillroom.tripwires import require_teacher
    from stillroom.weigh import notes_of, question_of

    defaults = {name: p.default for name, p in inspect.signature(distill).parameters.items()}
    if strange := set(given) - set(defaults):
        raise TypeError(f"distill has no option {sorted(strange)[0]!r}")
    options = defaults | given
    method = options["method"]
    experiment = experiment_of({method_name(method): (method, options["method_options"] or {})}, options)
    options = with_defaults(options, teacher=experiment.teacher is not None)
    seeds, jobs = seeds_of(options), jobs_of(options)
    splits = load_splits(experiment.task, seeds[0])
    said = preflight(experiment, splits)
    teacher = obtain_teacher(experiment.teacher, experiment.task, Path("unused"))
    arms = {name: TrainingArm(arm, experiment.task, experiment.student) for name, arm in experiment.arms.items()}
    built = arms[list(arms)[-1]].build(seeds[0], splits, teacher)
    batch = splits.train.batch(range(min(experiment.training.batch_size, len(splits.train))))
    losses = built(batch)
    losses.total.backward()
    per_epoch = max(len(splits.train) // experiment.training.batch_size, 1)
    steps = experiment.training.total_steps(per_epoch)
    threads = threads_for(jobs)
    seconds = seconds_per_step(arms, experiment, seeds[0], teacher, options["device"], rounds=2, threads=threads)
    tries = max(len(experiment.lrs), 1)
    total = sum(seconds.values()) * steps * len(seeds) * tries / min(jobs, len(seeds) * len(arms))
    total += (
        _evaluation(experiment, built, splits, steps)
        * len(seeds)
        * len(arms)
        * tries
        / min(jobs, len(seeds) * len(arms))
    )
    first = experiment.teacher_training
    if first is None and teacher is not None:
        rows = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(0))
        require_teacher(teacher, experiment.task, splits.test.subset(rows), torch.device("cpu"))
    if first is not None and teacher is not None:
        whole = load_splits(experiment.task, 0, everything=True)
        rounds = first.total_steps(max(len(whole.train) // first.batch_size, 1))
        cost = _teacher_step(experiment, teacher.network, whole, options["device"])
        total += cost * rounds
    return {
        "task": experiment.task.name,
        "data": {
            "name": splits.name,
            "train": len(splits.train),
            "validation": 0 if splits.validation is None else len(splits.validation),
            "test": len(splits.test),
            "unlabelled": 0 if splits.unlabelled is None else len(splits.unlabelled),
            "classes": splits.classes,
            "shape": list(splits.train.shape),
            "sample": experiment.task.sample_name(splits),
        },
        "teacher": None if teacher is None else _described(hub, teacher.network),
        "student": _described(hub, built.student),
        "method": experiment.method,
        "features": features_of(built),
        "terms": {name: float(term.detach()) for name, term in losses.items()},
        "steps": steps,
        "runs": len(seeds) * len(arms) * tries,
        "teacher_first": first is not None,
        "seconds_per_step": {name: round(value, 5) for name, value in seconds.items()},
        "seconds": round(total + (STARTING if jobs > 1 else 0.0) + 5.0, 1),
        "jobs": jobs,
        "cores": os.cpu_count(),
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "notes": [question_of(experiment, splits), *splits.notes, *notes_of(experiment, splits), *said],
    }


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """The forecast in lines for people."""
    data = found["data"]
    seconds = found["seconds"]
    took = (
        f"{seconds:.0f} s"
        if seconds < 180
        else f"{seconds / 60:.0f} min"
        if seconds < 10800
        else f"{seconds / 3600:.1f} h"
    )
    processes = "1 process" if found["jobs"] == 1 else f"{found['jobs']} processes"
    before = " after the teacher's own training" if found["teacher_first"] else ""
    terms = ", ".join(f"{name} {value:.4g}" for name, value in found["terms"].items())
    return [
        *found["notes"],
        f"data: {data['name']}, {data['train']} training {data['sample']}s of {tuple(data['shape'])}, "
        f"{data['test']} to report",
        f"teacher: {found['teacher'] or 'none'}",
        f"student: {found['student']}",
        f"losses of the first batch: {terms}",
        f"forecast: {found['runs']} runs of {found['steps']} steps{before}, about {took} in all with {processes} and "
        f"{found['memory_bytes'] / 2**30:.1f} GiB of memory for each",
        "nothing was trained and nothing was written",
    ]


def _described(hub: Any, network: Any) -> str:
    from torch import nn

    return hub.describe(network) if isinstance(network, nn.Module) else "a function"


def _evaluation(experiment: Any, method: Any, splits: Any, steps: int) -> float:
    """Seconds that one run spends on measuring: about ten times the held-out part, once the reported one."""
    import time

    from stillroom.data.stream import sequential

    rows = range(min(len(splits.test), 256))
    experiment.task.evaluate(method.product, sequential(splits.test.subset(rows[:2]), 2))  # loads what it needs
    began = time.perf_counter()
    experiment.task.evaluate(method.product, sequential(splits.test.subset(rows), 256))
    each = (time.perf_counter() - began) / len(rows)
    held = 0 if splits.validation is None else len(splits.validation)
    return each * (min(steps, 10) * held + len(splits.test))


def _teacher_step(experiment: Any, network: Any, splits: Any, device: str | None) -> float:
    import copy
    from dataclasses import replace

    from stillroom.baselines import Alone
    from stillroom.fit import fit

    student = copy.deepcopy(network).requires_grad_(True)
    took = []
    for steps in (2, 8):
        training = experiment.teacher_training.change(steps=steps, evaluate_every=10**9)
        fitted = fit(
            Alone(student, task=experiment.task),
            replace(splits, validation=None),
            training,
            device=device,
            progress=False,
            check_teacher=False,
        )
        took.append(fitted.seconds)
    return max(took[1] - took[0], 0.1 * took[1]) / 6


def preflight(experiment: Experiment, splits: Any) -> list[str]:
    """Build every arm once and push some samples through it, so that what does not fit is said before training.

    Returns:
        What the models have to say of themselves (resized inputs, new heads, features that were matched).
    """
    from stillroom.experiment.arm import TrainingArm, build_student, check_rates, is_method
    from stillroom.experiment.teacher import obtain_teacher

    check_rates(experiment.lrs, splits)
    teacher = built(
        "teacher",
        experiment.teacher,
        lambda: obtain_teacher(experiment.teacher, experiment.task, Path("unused"), training=None),
    )
    batch = splits.train.batch(range(min(splits.train.largest_batch or 8, len(splits.train))))
    notes: dict[str, None] = {}  # in order, each once
    width = experiment.task.width(splits)
    if teacher is not None:
        said = push("teacher", teacher, batch)
        notes |= dict.fromkeys(f"teacher: {note}" for note in getattr(teacher.network, "notes", ()))
        if width is not None and experiment.task.width_of(said) not in (None, width):
            named = f" ({', '.join(splits.classes[:5])}, ...)" if splits.classes else ""
            raise ValueError(
                f"the teacher gives {experiment.task.width_of(said)} outputs, but the data have {width} "
                f"{experiment.task.outputs_are}{named}: take a teacher for these {experiment.task.outputs_are}, or "
                "train its head first (--teacher-epochs)"
            )
    built(
        "student",
        experiment.student,
        lambda: build_student(experiment.student, experiment.task, splits, teacher),
    )
    for name, arm in experiment.arms.items():
        if not is_method(arm):
            continue
        training_arm = TrainingArm(arm, experiment.task, experiment.student)
        try:
            method = training_arm.build(0, splits, teacher)
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"arm {name!r} cannot be built for this data: {_first_line(error)}") from error
        experiment.task.check(batch, push("student", method.student, batch))
        notes |= dict.fromkeys(f"student: {note}" for note in getattr(method.student, "notes", ()))
        notes |= dict.fromkeys(f"{name}: {line}" for line in features_of(method))
        if experiment.task.needs_labels or name != experiment.baseline:
            try:
                method(batch)
            except (RuntimeError, IndexError) as error:
                raise ValueError(f"arm {name!r} cannot use these networks: {_first_line(error)}") from error
    return list(notes)


def features_of(method: Any) -> list[str]:
    """What a feature method matched with what, a sentence each; empty for methods that look at outputs only."""
    described = getattr(method, "describe_features", None)
    return [] if described is None else list(described())


def built(who: str, spec: Any, build: Callable[[], Any]) -> Any:
    """Build a network and turn what somebody's code raises into one sentence; our own refusals are sentences."""
    try:
        return build()
    except Exception as error:
        if isinstance(error, (ValueError, TypeError, OSError, ImportError)) and _is_ours(error):
            if type(error) is ValueError and who not in str(error):
                raise ValueError(f"the {who}: {error}") from error
            raise
        spec = getattr(spec, "spec", spec)  # of a folder whose code is trusted
        name = spec if isinstance(spec, (str, Path)) else getattr(spec, "__name__", type(spec).__name__)
        raise ValueError(
            f"the {who} {name} cannot be built for this data: {type(error).__name__}: {_first_line(error)}; make it "
            "run by itself first (STILLROOM_TRACEBACK=1 shows where it fails)"
        ) from error


def push(who: str, network: Any, batch: Any) -> Any:
    """Call a network once and turn its complaint into one sentence."""
    from stillroom.blocks.frozen import Frozen

    try:
        return network(batch if isinstance(network, Frozen) else batch.inputs)
    except Exception as error:
        if isinstance(error, (ValueError, TypeError)) and _is_ours(error):
            raise
        inputs = batch.inputs
        if isinstance(inputs, Mapping):
            parts = (f"{name} {tuple(value.shape)}" for name, value in inputs.items() if hasattr(value, "shape"))
            shape = f"inputs of {', '.join(parts)}"
        else:
            shape = f"inputs of shape {tuple(inputs.shape) if hasattr(inputs, 'shape') else type(inputs).__name__}"
        said = _first_line(error).rstrip(".")
        raise ValueError(f"the {who} cannot take {shape}: {said}; {_remedy(network, inputs, said)}") from error


def _remedy(network: Any, inputs: Any, said: str) -> str:
    """What to do about a network that fails on inputs."""
    import torch
    from torch import nn

    inside = getattr(network, "network", network)
    if not isinstance(inside, nn.Module):
        return "a function is called with a Batch: use batch.inputs in it, as lambda batch: network(batch.inputs)"
    if isinstance(inputs, Mapping):
        return (
            "a network gets the dict by name where its forward has its keys as arguments, else as it is: wrap yours in "
            "a module with forward(self, batch): return self.model(**batch).logits"
        )
    kind = getattr(inputs, "dtype", torch.float32)
    own = next((one.dtype for one in inside.parameters() if one.is_floating_point()), kind)
    if kind == torch.int64:
        return "give shorter blocks (length), or use another model"
    if kind.is_floating_point and own != kind:
        return f"its weights are {own}, the inputs {kind}: call .float() on the network before"
    if not re.search(r"shape|size|channel|dimension|height|width|smaller", said.lower()):
        return "make it run by itself first (STILLROOM_TRACEBACK=1 shows where it fails)"
    image = getattr(inputs, "ndim", 0) == 4
    return "set image_size or channels, or use another model" if image else "take a network for inputs of this shape"


def _is_ours(error: BaseException) -> bool:
    """Whether an error was raised by a line of this package."""
    trace, file = error.__traceback__, ""
    while trace is not None:
        file, trace = trace.tb_frame.f_code.co_filename, trace.tb_next
    return Path(file).is_relative_to(Path(__file__).parent)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
