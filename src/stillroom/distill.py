"""The main job: distil any teacher into any student on any data, and say whether it was worth it."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from stillroom.experiment.run import Experiment
    from stillroom.hub import Model

DEFAULT_TEACHER = "conv-32-64"
DEFAULT_STUDENT = "conv-4-8"
DEFAULT_LABELS = 200


@dataclass
class Distilled:
    """What a distillation gave.

    Attributes:
        results: everything as plain values: what `results.json` holds.
        folder: where it lies; None when nothing was kept.
        student: the trained student that was best on the held-out part, in eval mode, on the CPU.
    """

    results: dict[str, Any]
    folder: Path | None
    student: nn.Module

    @property
    def verdict(self) -> str:
        """ "worth it", "no difference shown" or "harmful"."""
        return str(self.results["verdict"])

    @property
    def difference(self) -> dict[str, Any]:
        """Mean, low and high of method minus student alone, positive where the method is better."""
        return dict(self.results["difference"])

    @property
    def summary(self) -> dict[str, Any]:
        """The short form: what `summary.json` holds."""
        return summary_of(self.results)

    def save(self, folder: str | Path) -> Path:
        """Keep the student, the numbers and the report in a new folder.

        Raises:
            FileExistsError: the folder exists and is not empty.
        """
        place = Path(folder)
        if place.exists() and any(place.iterdir()):
            raise FileExistsError(f"the folder {place} exists and is not empty: name a new one")
        if self.folder is not None:
            shutil.copytree(self.folder, place, dirs_exist_ok=True)
        else:
            _write(self.results, self.student, place)
        return place

    def __repr__(self) -> str:
        return f"Distilled({sentence(self.results)})"


def distill(
    teacher: Any = None,
    student: Any = None,
    data: Any = "digits",
    *,
    method: Any = "kd",
    method_options: Mapping[str, Any] | None = None,
    task: Any = None,
    labels: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    unlabelled: Any = None,
    image_size: int | None = None,
    channels: int | None = None,
    validation_share: float = 0.1,
    label_column: str | None = None,
    image_column: str | None = None,
    teacher_epochs: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | list[float] | None = None,
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
    weight_decay: float = 0.0,
    schedule: Literal["cosine", "step", "constant"] = "cosine",
    warmup: float = 0.0,
    clip: float | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    augment: str | None = None,
    precision: Literal["no", "bf16", "fp16"] = "no",
    keep: Literal["best", "last"] = "best",
    budget: Literal["steps", "time"] = "steps",
    seeds: int | list[int] = 3,
    first_seed: int = 0,
    jobs: int | None = 1,
    device: str | None = None,
    workers: int = 0,
    level: float = 0.95,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Distilled:
    """Distil a teacher into a student and weigh it against the same student trained alone.

    For every seed the student is trained twice from one initial state, in one order of batches and for as many steps:
    by the method, and by the labels alone. Weights are chosen on a held-out part of the training data; the test split
    is only reported. With no arguments at all it runs on scikit-learn's digits.

    Args:
        teacher: timm/NAME, torchvision/NAME, hf/NAME_OR_FOLDER, package.module:function, file.py:function, a checkpoint
            folder, an embedded name (conv-32-64, resnet20, ...); in Python also an nn.Module, a list of teachers, or a
            function predict(batch).
        student: the same, without lists and functions of a batch.
        data: digits, cifar10, tiny-imagenet-100, an image folder, a Parquet file or folder, hf:NAME, torchvision:NAME;
            in Python also (X, y), ((X, y), (X_test, y_test)), a Dataset, a DataLoader or Splits.
        method: name of a method (`stillroom list --methods`); in Python also a Method class or function.
        method_options: arguments of the method; on the command line `--method.NAME VALUE`.
        task: classification, multi-label, segmentation, regression or embeddings; found from the data when not given.
        labels: how many training samples keep their label; the others become the unlabelled pool.
        train_size: how many training samples are used at all.
        test_size: how many test samples are used.
        unlabelled: more data, used without labels by methods that can.
        image_size: side that images are brought to; the data's own when not given.
        channels: 1 for grey, 3 for colour; the data's own when not given.
        validation_share: part of the training samples held out for choosing weights.
        label_column: where a table holds the labels.
        image_column: where a table holds the images.
        teacher_epochs: train the teacher first, for so many passes over all labelled training samples.
        epochs: passes over the student's labelled training samples (10 when neither epochs nor steps is given).
        steps: optimizer steps, instead of epochs.
        batch_size: labelled samples per step (64 when not given).
        lr: learning rate, or several that every arm tries alike (0.001 when not given).
        optimizer: the same for every arm.
        weight_decay: of the optimizer.
        schedule: of the learning rate.
        warmup: part of the steps over which the rate rises.
        clip: largest gradient norm.
        accumulate: parts a batch is cut into to save memory.
        ema_decay: ship an average of the weights with this decay per step.
        augment: none, shift, crop_flip or resized_crop_flip; the data's own when not given.
        precision: no (float32), bf16 or fp16.
        keep: best on the held-out part, or last.
        budget: "steps" gives the student alone as many steps, "time" as much wall-clock.
        seeds: how many, or which.
        first_seed: the first of them.
        jobs: processes that share the runs; None for one per core without a GPU.
        device: cpu, cuda, ...; the machine's own choice when not given.
        workers: threads that read data ahead.
        level: of the intervals.
        out: a new folder for everything; nothing is kept when not given.
        resume: go on with the interrupted run in `out`.
        progress: say what is running.

    Returns:
        Verdict, student, difference and all numbers.

    Raises:
        ValueError: something does not fit; the message names it, what is expected and what to do.
        FileExistsError: `out` holds something and `resume` is not set.
    """
    import tempfile

    options = dict(locals())
    options.pop("tempfile")
    experiment = experiment_of([(method, method_options or {})], options)
    place = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="stillroom-"))
    try:
        results, trained = run_and_weigh(experiment, place, options, command=command_of("distill", options))
        return Distilled(results, place if out is not None else None, trained)
    finally:
        if out is None:
            shutil.rmtree(place, ignore_errors=True)


# ---- from options to an experiment -----------------------------------------------------------------------------------


def experiment_of(methods: Sequence[tuple[Any, Mapping[str, Any]]], options: Mapping[str, Any]) -> Experiment:
    """Build the experiment that `distill`, `compare` and `check` run.

    Args:
        methods: method names (or classes) with their arguments.
        options: the arguments of `distill`.
    """
    from stillroom.baselines import Alone
    from stillroom.experiment.run import Experiment

    options = with_defaults(options)
    task = task_of(options)
    arms: dict[str, Any] = {}
    if not (len(methods) == 1 and methods[0][0] == "alone"):
        arms["alone"] = Alone
    for given, arguments in methods:
        name, arm = arm_of(given, arguments)
        arms[name] = arm
        check_fits(name, arm, task)
    training = training_of(options)
    first = options["teacher_epochs"]
    if first is not None and not first > 0:
        raise ValueError(f"teacher_epochs must be above 0, given {first}")
    lrs = options["lr"] if isinstance(options["lr"], (list, tuple)) else ()
    return Experiment(
        task=task,
        arms=arms,
        student=options["student"],
        teacher=options["teacher"],
        training=training,
        teacher_training=None if first is None else training.change(epochs=first, ema_decay=None, accumulate=1),
        title=" and ".join(name for name in arms if name != "alone"),
        method=list(arms)[-1] if len(methods) == 1 else None,
        config={k: _plain(v) for k, v in options.items() if k not in ("out", "resume", "progress", "jobs")},
        lrs=tuple(lrs),
        equal_time=options["budget"] == "time",
        save=True,
    )


def with_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what was not given: the whole embedded task when there is neither teacher nor student."""
    options = dict(options)
    if options["teacher"] is None and options["student"] is None and _is(options["data"], "digits"):
        embedded = {
            "teacher": DEFAULT_TEACHER,
            "student": DEFAULT_STUDENT,
            "teacher_epochs": 20.0,
            "labels": DEFAULT_LABELS if options["train_size"] is None else None,
            "epochs": 100.0 if options["steps"] is None else None,
            "batch_size": 32,
            "lr": 5e-3,
        }
        options |= {name: value for name, value in embedded.items() if options[name] is None}
    for name in ("teacher", "student"):
        if options[name] is None:
            raise ValueError(f"no {name} was given: name one (--{name} resnet20, timm/NAME, file.py:function, ...)")
    options["batch_size"] = options["batch_size"] or 64
    options["lr"] = options["lr"] or 1e-3
    return options


def task_of(options: Mapping[str, Any]) -> Any:
    """The task of the options, found from the data where it is not named."""
    from stillroom.data import load_data
    from stillroom.task import Task, task_for

    given = options["task"]
    if isinstance(given, Task):
        return given
    names = (
        "train_size test_size labels unlabelled image_size channels validation_share label_column image_column".split()
    )
    details = {name: options[name] for name in names}
    for name in ("labels", "train_size", "test_size"):
        if details[name] is not None and details[name] <= 0:
            raise ValueError(f"{name} must be above 0, given {details[name]}")
    if given is None:
        kind = load_data(options["data"], image_size=16, train_size=64, test_size=64).kind if isinstance(
            options["data"], (str, Path)
        ) else load_data(options["data"]).kind
        given = "embeddings" if kind == "unlabelled" else kind
    return task_for(given, options["data"], **details)


def arm_of(method: Any, arguments: Mapping[str, Any]) -> tuple[str, Any]:
    """Name and arm of a method, its arguments checked against its constructor."""
    import inspect
    from functools import partial

    from stillroom.experiment.arm import method_class
    from stillroom.systems import catalog

    name = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__).lower()
    build = catalog.method(method) if isinstance(method, str) else method
    if not callable(build):
        raise TypeError(f"method must be a name or a Method class, given {type(method).__name__}")
    own = {"self", "student", "teacher", "task", "probe", "train_labels", "train_size", "classes"}
    known = [key for key in inspect.signature(method_class(build) or build).parameters if key not in own]
    for key in arguments:
        if key not in known:
            raise ValueError(catalog.unknown(f"argument of method {name}", key, known))
    return name, partial(build, **arguments) if arguments else build


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
    names = "epochs steps batch_size accumulate ema_decay augment precision keep".split()
    return Training(optimizer=optimizer, **{name: options[name] for name in names})


def seeds_of(options: Mapping[str, Any]) -> list[int]:
    """The seeds of the options, checked."""
    from stillroom.experiment.run import check_seeds

    given = options["seeds"]
    seeds = list(given) if isinstance(given, (list, tuple)) else list(
        range(options["first_seed"], options["first_seed"] + given)
    )
    check_seeds(seeds)
    return seeds


def jobs_of(options: Mapping[str, Any]) -> int:
    """How many processes: as given, or one per core on a machine without a GPU."""
    import os

    import torch

    if options["jobs"] is not None:
        return int(options["jobs"])
    device = options["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    return (os.cpu_count() or 1) if device == "cpu" else 1


# ---- running and weighing --------------------------------------------------------------------------------------------


def run_and_weigh(
    experiment: Experiment, place: Path, options: Mapping[str, Any], *, command: str
) -> tuple[dict[str, Any], nn.Module]:
    """Run an experiment, complete its results and write everything; return results and the student to ship."""
    import sys

    from stillroom.experiment.arm import load_splits
    from stillroom.experiment.record import verdict_of

    seeds = seeds_of(options)
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    own_folder = options["out"] is not None
    if place.exists() and any(place.iterdir()) and own_folder and not options["resume"]:
        raise FileExistsError(f"the folder {place} exists and is not empty: name a new one, or resume that run")
    splits = load_splits(experiment.task, seeds[0])
    question = question_of(experiment, splits)
    notes = [*splits.notes, *notes_of(experiment)]
    if options["progress"]:
        for line in (question, *notes):
            say(line)
    preflight(experiment, splits)
    results = replace(experiment, question=question).run(
        seeds,
        place,
        jobs=jobs_of(options),
        device=options["device"],
        workers=options["workers"],
        resume=options["resume"],
        level=options["level"],
        progress=options["progress"],
        command=command,
    )
    shipped = experiment.method or best_arm(results)
    student, seed = trained_student(experiment, results, place, shipped, seeds)
    results["notes"] = notes
    if experiment.method is not None:
        results["kind"] = "distill"
        results["difference"] = results["differences"].get(experiment.method)
        if results["difference"] is not None:
            results["verdict"] = verdict_of(results["difference"])
    results["costs"] = costs_of(experiment, splits, student, place)
    results["student"] = {"parameters": sum(p.numel() for p in student.parameters()), "file": None, "seed": seed}
    _write(results, student, place)
    if options["progress"] and experiment.method is not None and results["difference"] is not None:
        say(sentence(results))
    return results, student


def preflight(experiment: Experiment, splits: Any) -> None:
    """Build every arm once and push two samples through it, so that what does not fit is said before training."""
    from stillroom.experiment.arm import TrainingArm, is_method, load_model
    from stillroom.experiment.teacher import obtain_teacher

    teacher = None
    if experiment.teacher is not None:
        try:
            teacher = obtain_teacher(experiment.teacher, experiment.task, Path("unused"), training=None)
        except RuntimeError as error:
            raise ValueError(f"the teacher cannot be built for this data: {_first_line(error)}") from error
    batch = splits.train.batch(range(min(4, len(splits.train))))
    if teacher is not None:
        push("teacher", teacher, batch)
    for name, arm in experiment.arms.items():
        if not is_method(arm):
            continue
        training_arm = TrainingArm(arm, experiment.task, experiment.student)
        try:
            method = training_arm.build(0, splits, teacher)
        except RuntimeError as error:
            raise ValueError(f"arm {name!r} cannot be built for this data: {_first_line(error)}") from error
        push("student", method.student, batch)
        outputs = method.student(batch.inputs)
        experiment.task.check(batch, outputs)
        if teacher is not None and name != experiment.baseline:
            said = teacher(batch)
            width = experiment.task.width(splits)
            if width is not None and said.shape[1] != width:
                raise ValueError(
                    f"the teacher gives {said.shape[1]} outputs, but the data have {width} classes"
                    f"{' (' + ', '.join(splits.classes[:5]) + ', ...)' if splits.classes else ''}: "
                    "take a teacher for these classes, or train its head first (--teacher-epochs)"
                )
    del load_model


def push(who: str, network: Any, batch: Any) -> None:
    """Call a network once and turn its complaint into one sentence."""
    try:
        network(batch.inputs)
    except (RuntimeError, IndexError) as error:
        shape = tuple(batch.inputs.shape) if hasattr(batch.inputs, "shape") else type(batch.inputs).__name__
        raise ValueError(
            f"the {who} cannot take inputs of shape {shape}: {_first_line(error)}; set image_size or channels, or use "
            "another model"
        ) from error


def trained_student(
    experiment: Experiment, results: Mapping[str, Any], place: Path, arm: str, seeds: Sequence[int]
) -> tuple[nn.Module, int]:
    """Load the student of the seed that was best on the held-out part (the first seed where nothing was held out)."""
    from stillroom import hub
    from stillroom.experiment.arm import build_student, load_splits

    sign = 1 if experiment.task.higher_is_better else -1
    held = results["arms"][arm].get("validation") or [None] * len(seeds)
    scores = [sign * (found or {}).get(experiment.task.metric, float("-inf")) for found in held]
    best = max(range(len(seeds)), key=lambda number: scores[number])
    from stillroom.experiment.teacher import obtain_teacher

    splits = load_splits(experiment.task, seeds[best])
    needs_teacher = experiment.task.width(splits) is None
    teacher = obtain_teacher(experiment.teacher, experiment.task, place / "teacher") if needs_teacher else None
    student = build_student(experiment.student, experiment.task, splits, teacher)
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in arm)
    hub.load_weights(student, place / "arms" / name / f"seed-{seeds[best]}" / "student" / "student.safetensors")
    return student.eval(), seeds[best]


def best_arm(results: Mapping[str, Any]) -> str:
    """The arm with the best mean on the held-out part (never on the reported split)."""
    sign = 1 if results["higher_is_better"] else -1

    def held(arm: str) -> float:
        found = [sign * (v or {}).get(results["metric"], float("-inf")) for v in results["arms"][arm].get("validation", [])]
        return sum(found) / len(found) if found else float("-inf")

    return max((arm for arm in results["arms"] if arm != "teacher"), key=held)


def costs_of(experiment: Experiment, splits: Any, student: nn.Module, place: Path) -> dict[str, Any]:
    """What teacher and student cost: parameters, multiply-adds, latency on this machine, file size."""
    from torch import nn

    from stillroom.experiment.cost import costs
    from stillroom.experiment.teacher import obtain_teacher

    networks: dict[str, nn.Module] = {}
    teacher = obtain_teacher(experiment.teacher, experiment.task, place / "teacher") if experiment.teacher is not None else None
    if teacher is not None and isinstance(teacher.network, nn.Module) and not hasattr(teacher.network, "takes_batch"):
        networks["teacher"] = teacher.network
    networks["student"] = student
    probe = splits.train.batch([0]).inputs
    return {name: cost.as_dict() for name, cost in costs(networks, probe).items()}


def question_of(experiment: Experiment, splits: Any) -> str:
    """Say in one sentence what the task is."""
    labels = len(splits.train)
    held = len(splits.validation) if splits.validation is not None else 0
    pool = len(splits.unlabelled) if splits.unlabelled is not None else 0
    classes = f" into {len(splits.classes)} classes" if splits.classes else ""
    what = {"embeddings": "embed", "regression": "predict numbers for"}.get(experiment.task.name, "sort")
    text = (
        f"The task: {what} {splits.name or 'your data'}{classes} ({experiment.task.name}); the student sees {labels} "
        f"{'samples' if not experiment.task.needs_labels else 'labelled samples'}"
    )
    if held:
        text += f", {held} more choose its weights"
    if pool:
        text += f", {pool} unlabelled ones are there for methods that can use them"
    return text + f"; {len(splits.test)} test samples are reported."


def notes_of(experiment: Experiment) -> list[str]:
    """What a reader of the numbers should know of the arms."""
    from torch import nn

    notes = []
    if not experiment.task.needs_labels and experiment.baseline in experiment.arms:
        notes.append("Without labels the student alone cannot be trained: its arm is the student as it comes.")
    if isinstance(experiment.student, nn.Module):
        notes.append(
            "The student was given as a module: every seed starts from its weights and only the order of batches "
            "varies; give a function that builds it to vary the initial weights too."
        )
    if experiment.equal_time:
        notes.append("Every arm has the wall-clock of the slowest one instead of the same number of steps.")
    return notes


def sentence(results: Mapping[str, Any]) -> str:
    """The verdict in one sentence."""
    difference, count = results["difference"], len(results["seeds"])
    percent = results["metric"] in ("accuracy", "mean_iou", "mean_average_precision", "neighbour_overlap")
    scale, unit = (100, " points of " + results["metric"].replace("_", " ")) if percent else (1, " " + results["metric"])
    mean = f"{scale * difference['mean']:+.2f}{unit}"
    if difference["low"] is None:
        return f"{results['verdict'].capitalize()}: {results['method']} against the student alone {mean} from one seed."
    low, high = scale * difference["low"], scale * difference["high"]
    return (
        f"{results['verdict'].capitalize()}: {results['method']} against the student alone {mean} "
        f"({round(100 * results['level'])}% interval {low:+.2f} to {high:+.2f}, {count} seeds)."
    )


def summary_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """The short form of results: what `summary.json` holds."""
    arms = {
        name: {key: arm[key] for key in ("values", "mean", "low", "high")} for name, arm in results["arms"].items()
    }
    names = ("method", "metric", "difference", "verdict", "student", "config", "seconds")
    return {"arms": arms, **{name: results.get(name) for name in names}}


def command_of(command: str, options: Mapping[str, Any], *, skip: Sequence[str] = ("progress", "resume")) -> str:
    """The command line that repeats a run (as far as its options can be written on one)."""
    import inspect

    defaults = {name: p.default for name, p in inspect.signature(distill).parameters.items()}
    parts = ["stillroom", command]
    for name, value in options.items():
        if name in skip or name not in (*defaults, "methods") or value is None or value == defaults.get(name):
            continue
        if name == "method_options":
            for key, inner in value.items():
                parts += [f"--method.{key}", str(inner)]
            continue
        shown = str(_plain(value))
        parts += ["--" + name.replace("_", "-"), shown]
    return " ".join(shlex.quote(part) for part in parts)


def _write(results: dict[str, Any], student: nn.Module, place: Path) -> None:
    from stillroom import hub
    from stillroom.checkpoint import write_json
    from stillroom.experiment.report import write_report

    place.mkdir(parents=True, exist_ok=True)
    card = sentence(results) if results.get("difference") else results["question"]
    hub.save(student, place / "student", card=f"# {results['title']}\n\n{card}\n\n{results['question']}\n", overwrite=True)
    results["student"]["file"] = str(Path("student") / "student.safetensors")
    write_json(place / "results.json", results)
    write_json(place / "summary.json", summary_of(results))
    write_report(results, place / "report.html")


def _plain(value: Any) -> Any:
    """Something that can be written down: plain values as they are, anything else by its name."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)) and all(isinstance(inner, (str, int, float, bool)) for inner in value):
        return json.loads(json.dumps(value))
    if isinstance(value, Path):
        return str(value)
    kind = type(value) if not isinstance(value, type) else value
    return f"<{kind.__module__}.{kind.__qualname__}>"


def _is(value: Any, name: str) -> bool:
    return isinstance(value, str) and value == name


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if TYPE_CHECKING:
    _: type[Model]
