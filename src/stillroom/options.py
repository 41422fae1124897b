"""From what a user gave to an experiment: defaults, task, arms, training, seeds."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.command_line import expectation, fits

if TYPE_CHECKING:
    from stillroom.experiment.run import Experiment

DEFAULT_TEACHER = "conv-32-64"
DEFAULT_STUDENT = "conv-8-16"
DEFAULT_LABELS = 200


def experiment_of(methods: Sequence[tuple[Any, Mapping[str, Any]]], options: Mapping[str, Any]) -> Experiment:
    """Build the experiment that `distill`, `compare` and `check` run.

    Args:
        methods: method names (or classes) with their arguments.
        options: the arguments of `distill`.
    """
    from stillroom.baselines import Alone
    from stillroom.experiment.arm import method_class, takes_teacher
    from stillroom.experiment.run import Experiment
    from stillroom.teacher_cache import cache_options, check_cacheable

    options = with_defaults(options, teacher=takes_teacher_of(methods, options))
    check_early(options)
    task = task_of(options)
    if options["augment"] not in (None, "none") and not task.augments:
        raise ValueError(f"the {task.name} task augments nothing, given augment={options['augment']!r}: leave it out")
    arms: dict[str, Any] = {}
    if not (len(methods) == 1 and methods[0][0] == "alone"):
        arms["alone"] = Alone
    for given, arguments in methods:
        name, arm = arm_of(given, arguments)
        arms[name] = arm
        check_fits(name, arm, task)
    cache = cache_options(options["cache_teacher"], options["cache_folder"])
    for name, arm in arms.items():
        if cache is not None and takes_teacher(arm):
            check_cacheable(f"method {name!r}", getattr(method_class(arm), "needs", None), cache.keep, task.name)
    training = training_of(options)
    first = options["teacher_epochs"]
    if first is not None and not first > 0:
        raise ValueError(f"teacher_epochs must be above 0, given {first}")
    lrs = tuple(options["lr"]) if isinstance(options["lr"], (list, tuple)) else ()
    for lr in lrs:
        replace(training.optimizer, lr=lr)  # checks it
    if len(lrs) == 1 or len(set(lrs)) < len(lrs):
        raise ValueError(f"several learning rates must differ, and one is given as a number: given {list(lrs)}")
    return Experiment(
        task=task,
        arms=arms,
        student=options["student"],
        teacher=options["teacher"],
        training=training,
        teacher_training=None
        if first is None
        else training.change(epochs=first, ema_decay=None, accumulate=1, views=None),
        title=title_of(list(arms), options),
        method=list(arms)[-1] if len(methods) == 1 else None,
        config={
            k: _plain(v)
            for k, v in options.items()
            if k not in ("out", "resume", "progress", "jobs", "executor", "cache_folder")
        },
        lrs=lrs,
        equal_time=options["budget"] == "time",
        save=True,
        cache=cache,
    )


def check_early(options: Mapping[str, Any]) -> None:
    """Refuse, before data or models are loaded, what needs neither to be seen as wrong."""
    from stillroom.data.augment import augmentation
    from stillroom.experiment.budget import check_machine
    from stillroom.lock import refuse_held

    check_machine(
        jobs=1 if options["jobs"] is None else options["jobs"],
        device=options["device"],
        workers=options["workers"],
        level=options["level"],
        executor=options["executor"],
    )
    seeds_of(options)
    if options["augment"] is not None:
        augmentation(options["augment"])
    if options["budget"] not in ("steps", "time"):
        raise ValueError(f"budget must be steps or time, given {options['budget']!r}")
    out = Path(options["out"]) if options["out"] is not None else None
    if out is not None and out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: name a new folder for the run")
    first = os.environ.get("RANK", "0") == "0"  # the others may find what the first of several has begun
    if first:
        refuse_held(out)
    if first and out is not None and out.exists() and any(out.iterdir()) and not options["resume"]:
        raise FileExistsError(f"the folder {out} exists and is not empty: name a new one, or resume that run")
    if options["resume"] and out is None:
        raise ValueError("resume needs the folder of the run: name it as out (--out)")


def takes_teacher_of(methods: Sequence[tuple[Any, Mapping[str, Any]]], options: Mapping[str, Any]) -> bool:
    """Whether any of the methods can be given a teacher; one that is given to none of them is refused."""
    from stillroom.experiment.arm import takes_teacher

    named = [arm_of(given, arguments) for given, arguments in methods]
    if not named or any(takes_teacher(arm) for _, arm in named):
        return True
    if options["teacher"] is not None or options["teacher_epochs"] is not None:
        raise ValueError(
            f"{named[0][0]} trains without a teacher, given teacher={_plain(options['teacher'])} and teacher_epochs="
            f"{options['teacher_epochs']}: leave them out, or take a method that learns from one"
        )
    return False


def title_of(arms: Sequence[str], options: Mapping[str, Any]) -> str:
    """Heading of the report: from what to what, by which method."""
    by = ", ".join(name for name in arms if name != "alone") or "alone"
    if options["teacher"] is None:
        return f"{_short(options['student'])} by {by}"
    return f"{_short(options['teacher'])} to {_short(options['student'])} by {by}"


def _short(model: Any) -> str:
    """A model's name for a heading."""
    if isinstance(model, (list, tuple)):
        return " + ".join(_short(one) for one in model)
    if isinstance(model, (str, Path)):
        return str(model).rsplit("/", 1)[-1]
    return getattr(model, "__name__", type(model).__name__)


def with_defaults(options: Mapping[str, Any], *, teacher: bool = True) -> dict[str, Any]:
    """Fill in what was not given, without a teacher on request: the embedded task where no network is named."""
    options = _of_task(dict(options))
    if options["teacher"] is None and options["student"] is None and _is(options["data"], "digits"):
        embedded = {
            "teacher": DEFAULT_TEACHER,
            "student": DEFAULT_STUDENT,
            "teacher_epochs": 20.0,
            "labels": DEFAULT_LABELS if options["train_size"] is None else None,
            "epochs": 100.0 if options["steps"] is None else None,
            "batch_size": 32,
            "lr": 1e-2,
            "seeds": 5,
        }
        options |= {name: value for name, value in embedded.items() if options[name] is None}
    if not teacher:
        options |= {"teacher": None, "teacher_epochs": None}
    for name in ("teacher", "student")[not teacher :]:
        if options[name] is None:
            raise ValueError(f"no {name} was given: name one (--{name} resnet20, timm/NAME, file.py:function, ...)")
    options["batch_size"] = 64 if options["batch_size"] is None else options["batch_size"]
    options["lr"] = 1e-3 if options["lr"] is None else options["lr"]
    options["seeds"] = 3 if options["seeds"] is None else options["seeds"]
    return options


def _of_task(options: dict[str, Any]) -> dict[str, Any]:
    """The embedded data of the task that is named, and its networks where neither teacher nor student is named."""
    from stillroom.data.passages import is_text
    from stillroom.task import TASKS

    if options["task"] is None and (_is(options["data"], "documentation") or is_text(options["data"])):
        options["task"] = "language-modelling"
    kind = TASKS.get(options["task"]) if isinstance(options["task"], str) else None
    if kind is None or not kind.demonstration:
        return options
    shown = dict(kind.demonstration)
    options["data"] = shown.pop("data") if _is(options["data"], "digits") else options["data"]
    shown.pop("data", None)
    if options["teacher"] is None and options["student"] is None:
        other = {"steps": "epochs", "epochs": "steps"}
        for name, value in shown.items():
            if options[name] is None and options.get(other.get(name, name)) is None:
                options[name] = value.format(**options) if isinstance(value, str) else value
    return options


def task_of(options: Mapping[str, Any]) -> Any:
    """The task of the options, found from the data where it is not named."""
    from stillroom.data.sources import find_source
    from stillroom.task import Task, task_for

    given = options["task"]
    if isinstance(given, Task):
        return given.for_models(options["teacher"], options["student"])
    names = [
        "train_size",
        "test_size",
        "labels",
        "unlabelled",
        "image_size",
        "channels",
        "length",
        "validation_share",
        "label_column",
        "image_column",
    ]
    details = {name: options[name] for name in names}
    if options.get("scale") is not None:
        if given != "super-resolution":
            raise ValueError(
                f"scale={options['scale']} belongs to the super-resolution task: name it (--task), or leave scale out"
            )
        details["scale"] = options["scale"]
    for name in ("labels", "train_size", "test_size"):
        if details[name] is not None and details[name] <= 0:
            raise ValueError(f"{name} must be above 0, given {details[name]}")
    if given is None:
        kind = find_source(
            options["data"], label_column=options["label_column"], image_column=options["image_column"]
        ).kind
        given = "embeddings" if kind == "unlabelled" else kind
    task = task_for(given, options["data"], teacher_size=options["train_size"], **_accepted(given, details))
    return task.for_models(options["teacher"], options["student"])


def _accepted(task: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a task's class takes; one that it does not take is refused where it was given."""
    import inspect

    from stillroom.task import TASKS

    if task not in TASKS:
        return dict(details)  # refused by its name
    known = inspect.signature(TASKS[task]).parameters
    for name, value in details.items():
        if value is not None and name not in known:
            raise ValueError(f"the {task} task has no {name}, given {value!r}: leave it out")
    return {name: value for name, value in details.items() if name in known}


def arm_of(method: Any, arguments: Mapping[str, Any]) -> tuple[str, Any]:
    """Name and arm of a method, its arguments checked against its constructor."""
    import inspect
    from functools import partial

    from stillroom.experiment.arm import method_class
    from stillroom.systems import catalog

    build = catalog.method(method) if isinstance(method, str) else method
    if not callable(build):
        raise TypeError(f"method must be a name or a Method class, given {type(method).__name__}")
    name = method if isinstance(method, str) else (method_class(build) or build).__name__.lower()
    own = {"self", "student", "teacher", "task", "probe", "train_labels", "train_size", "train_samples", "classes"}
    maker = method_class(build) or build
    known = [key for key in inspect.signature(maker).parameters if key not in own]
    kinds = _kinds(maker)
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(catalog.unknown(f"argument of method {name}", key, known))
        if not fits(value, kinds.get(key, Any)):
            raise ValueError(f"{key} of method {name} must be {expectation(kinds[key])}, given {value!r}")
    return name, partial(build, **arguments) if arguments else build


def _kinds(maker: Any) -> dict[str, Any]:
    """The types of a method's arguments; empty where they cannot be told."""
    import typing

    function: Any = vars(maker).get("__init__", maker) if isinstance(maker, type) else maker
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # somebody's own, with names that only a type checker sees
        return {}


def check_fits(name: str, arm: Any, task: Any) -> None:
    """Refuse a method that does not work for the task."""
    from stillroom.experiment.arm import method_class

    kind = method_class(arm)
    if kind is None:
        return
    if task.name not in kind.needs.tasks:
        raise ValueError(
            f"method {name!r} works for {', '.join(kind.needs.tasks)}, but the task is {task.name}: choose another "
            "method, or name the task"
        )


def training_of(options: Mapping[str, Any]) -> Any:
    """The training options of every arm."""
    from stillroom.training import Optim, Training

    rates = options["lr"]
    optimizer = Optim(
        options["optimizer"],
        lr=rates[0] if isinstance(rates, (list, tuple)) else rates,
        weight_decay=options["weight_decay"],
        schedule=options["schedule"],
        warmup=options["warmup"],
        clip=options["clip"],
    )
    names = ["epochs", "steps", "batch_size", "accumulate", "ema_decay", "augment", "precision", "keep", "shard"]
    views = options["views"]
    if views is None and options["cache_teacher"] is not None:  # those of the epochs, ten at most
        views = 10 if options["epochs"] is None and options["steps"] else min(math.ceil(options["epochs"] or 10), 10)
    return Training(optimizer=optimizer, views=views, **{name: options[name] for name in names})


def seeds_of(options: Mapping[str, Any]) -> list[int]:
    """The seeds of the options, checked."""
    from stillroom.experiment.budget import check_seeds

    given = with_defaults(options, teacher=False)["seeds"]
    if isinstance(given, int) and given < 1:
        raise ValueError(f"at least one seed is needed, given {given} seeds")
    seeds = (
        list(given)
        if isinstance(given, (list, tuple))
        else list(range(options["first_seed"], options["first_seed"] + given))
    )
    check_seeds(seeds)
    return seeds


def jobs_of(options: Mapping[str, Any]) -> int:
    """How many processes: as given, or one per core on a machine without a GPU."""
    import torch

    if options["jobs"] is not None:
        return int(options["jobs"])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the processes that there are train every arm together
        return 1
    device = options["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    return (os.cpu_count() or 1) if device == "cpu" else 1


def command_of(command: str, options: Mapping[str, Any], *, skip: Sequence[str] = ("progress", "resume", "out")) -> str:
    """The command line that repeats a run (as far as its options can be written on one)."""
    import inspect

    from stillroom.distill import distill

    defaults = {name: p.default for name, p in inspect.signature(distill).parameters.items()}
    parts = ["stillroom", command]
    for name, value in options.items():
        if name in skip or name not in (*defaults, "methods") or value is None or value == defaults.get(name):
            continue
        if name == "method_options":
            for owner, arguments in (value if command == "compare" else {"method": value}).items():
                for key, inner in arguments.items():
                    parts += [f"--{owner}.{key}", str(_plain(inner))]
            continue
        shown = ",".join(value) if name == "methods" else str(_plain(value))
        parts += ["--" + name.replace("_", "-"), shown]
    return " ".join(shlex.quote(part) for part in parts)


def _plain(value: Any) -> Any:
    """Something that can be written down: plain values as they are, anything else by its name."""
    from functools import partial

    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)) and (len(value) < 10 or isinstance(value[0], (str, int, float))):
        return [_plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, partial):
        from stillroom.experiment.described import text_of

        return f"<{text_of(value)}>"
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"<{kind.__module__}.{kind.__qualname__}>"


def _is(value: Any, name: str) -> bool:
    return isinstance(value, str) and value == name
