"""From what a user gave to an experiment: defaults, task, arms, training, seeds."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.naming import arm_of, check_fits
from stillroom.repeating import plain

if TYPE_CHECKING:
    from stillroom.experiment.run import Experiment

DEFAULT_TEACHER = "conv-32-64"
DEFAULT_STUDENT = "conv-8-16"
DEFAULT_LABELS = 200


def experiment_of(methods: Mapping[str, tuple[Any, Mapping[str, Any]]], options: Mapping[str, Any]) -> Experiment:
    """Build the experiment that `distill`, `compare` and `check` run.

    Args:
        methods: what each method is called in results -> its name or class, and its arguments.
        options: the arguments of `distill`.
    """
    from stillroom.baselines import Alone
    from stillroom.experiment.arm import method_class, takes_teacher
    from stillroom.experiment.run import Experiment
    from stillroom.teacher_cache import cache_options, check_cacheable

    known = {name: arm_of(name, given, arguments) for name, (given, arguments) in methods.items()}
    options = with_defaults(options, teacher=takes_teacher_of(known, options))
    check_early(options)
    task = task_of(options)
    if options["augment"] not in (None, "none") and not task.augments:
        raise ValueError(f"the {task.name} task augments nothing, given augment={options['augment']!r}: leave it out")
    if "alone" in known and method_class(known["alone"]) is not Alone:
        raise ValueError("'alone' is what the student alone is called: give the method another name")
    arms: dict[str, Any] = (known if list(known) == ["alone"] else {"alone": Alone}) | known
    for name, arm in known.items():
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
        student=_trusted(options["student"], options["trust_code"]),
        teacher=_trusted(options["teacher"], options["trust_code"]),
        training=training,
        teacher_training=None
        if first is None
        else training.change(epochs=first, ema_decay=None, accumulate=1, views=None),
        title=title_of(list(arms), options),
        method=list(arms)[-1] if len(methods) == 1 else None,
        config={
            k: plain(v)
            for k, v in options.items()
            if k not in ("out", "resume", "progress", "jobs", "executor", "cache_folder", "trust_code")
        },
        lrs=lrs,
        equal_time=options["budget"] == "time",
        save=True,
        cache=cache,
    )


def _trusted(model: Any, trust_code: bool) -> Any:
    """The name of a folder with the trust that the user has in its code; anything else as it is."""
    from stillroom.hub.folder import Trusted, is_folder

    if isinstance(model, (list, tuple)):
        return [_trusted(one, trust_code) for one in model]
    if not trust_code or not isinstance(model, (str, Path)):
        return model
    text = str(model)
    return (
        Trusted(text)
        if any(is_folder(Path(one).expanduser()) for one in (text, text.rpartition("@")[0]) if one)
        else model
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


def takes_teacher_of(arms: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether any of the methods can be given a teacher; one that is given to none of them is refused."""
    from stillroom.experiment.arm import takes_teacher

    if not arms or any(takes_teacher(arm) for arm in arms.values()):
        return True
    if options["teacher"] is not None or options["teacher_epochs"] is not None:
        raise ValueError(
            f"{next(iter(arms))} trains without a teacher, given teacher={plain(options['teacher'])} and "
            f"teacher_epochs={options['teacher_epochs']}: leave them out, or take a method that learns from one"
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


def _is(value: Any, name: str) -> bool:
    return isinstance(value, str) and value == name
