"""Running an experiment of the main job, weighing what came out, and writing it down."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom import processes
from stillroom.forecast import preflight
from stillroom.lock import Stopped, says_how_to_go_on
from stillroom.options import jobs_of, seeds_of

if TYPE_CHECKING:
    from torch import nn

    from stillroom.experiment.run import Experiment


def run_and_weigh(
    experiment: Experiment, place: Path, options: Mapping[str, Any], *, command: str
) -> tuple[dict[str, Any], nn.Module]:
    """Run an experiment, complete its results and write everything; return results and the student to ship."""
    from stillroom.experiment.arm import load_splits
    from stillroom.experiment.findings import Span, verdict_of
    from stillroom.teacher_cache import notes_of as notes_of_cache

    seeds = seeds_of(options)
    splits = load_splits(experiment.task, seeds[0])
    question = question_of(experiment, splits)
    notes = [*splits.notes, *notes_of(experiment, splits), *preflight(experiment, splits)]
    speaks = options["progress"] and processes.is_first()
    say = Speaker([question, *notes] if speaks else [])
    if experiment.teacher_training is not None:
        say.begin()  # otherwise when the teacher has been measured, which may end it all
    results = replace(experiment, question=question).run(
        seeds,
        place,
        jobs=jobs_of(options),
        device=options["device"],
        workers=options["workers"],
        executor=options["executor"],
        resume=options["resume"],
        level=options["level"],
        progress=speaks,
        command=command,
        say=say,
    )
    say.begin()
    processes.wait(options["device"])
    shipped = experiment.method or best_arm(results)
    student, seed = trained_student(experiment, results, place, shipped, seeds)
    if experiment.method is None:
        if speaks:
            say("measuring what a step of each arm costs")
        results["step_costs"] = step_costs_of(experiment, place, seeds[0], options)  # by all processes together
    if not processes.is_first():
        return results, student
    found = [*guessing(experiment, results, splits), *notes_of_rates(results), *notes_of_cache(results["arms"])]
    for note in found if speaks else ():
        say(note)
    results["notes"] = [*notes, *found]
    results["class_names"] = splits.classes
    if experiment.method is not None:
        results["kind"] = "distill"
        results["difference"] = results["differences"].get(experiment.method)
        if results["difference"] is not None:
            results["verdict"] = verdict_of(Span.read(results["difference"]))
    results["sample"], results["takes"] = experiment.task.sample_name(splits), experiment.task.takes
    results["costs"] = costs_of(experiment, splits, student, place)
    results["student"] = {
        "parameters": sum(p.numel() for p in student.parameters()),
        "file": None,
        "arm": shipped,
        "seed": seed,
    }
    write_all(results, student, place)
    return results, student


@contextmanager
def folder_of(options: Mapping[str, Any]) -> Iterator[Path]:
    """The folder that a run works in: the one that was named, or one that is gone in the end.

    Args:
        options: the arguments of `distill`.

    Raises:
        Stopped: for Ctrl-C, with how to go on where there is something to go on with.
    """
    named = None if options["out"] is None else Path(options["out"])
    place = Path(tempfile.mkdtemp(prefix="stillroom-")) if named is None else named
    place = processes.of_first(place, options["device"])
    try:
        with says_how_to_go_on(named):
            yield place
    except Stopped as stop:
        if named is not None:
            raise
        raise Stopped(f"{str(stop).partition(';')[0]}; nothing is kept, for no folder was named") from stop
    finally:
        if named is None and processes.is_first():
            shutil.rmtree(place, ignore_errors=True)


class Speaker:
    """Says lines on standard error; before the first one, those that introduce it.

    Args:
        first: lines that wait for the first one.
    """

    def __init__(self, first: Sequence[str]) -> None:
        self.waiting = list(first)

    def begin(self) -> None:
        """Say what is waiting."""
        while self.waiting:
            print(self.waiting.pop(0), file=sys.stderr, flush=True)

    def __call__(self, line: str) -> None:
        """Say a line."""
        self.begin()
        print(line, file=sys.stderr, flush=True)


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
        found = [
            sign * (v or {}).get(results["metric"], float("-inf")) for v in results["arms"][arm].get("validation", [])
        ]
        return sum(found) / len(found) if found else float("-inf")

    return max((arm for arm in results["arms"] if arm != "teacher"), key=held)


def costs_of(experiment: Experiment, splits: Any, student: nn.Module, place: Path) -> dict[str, Any]:
    """What teacher and student cost: parameters, multiply-adds, latency on this machine, file size."""
    from torch import nn

    from stillroom.experiment.cost import costs
    from stillroom.experiment.teacher import obtain_teacher

    networks: dict[str, nn.Module] = {}
    teacher = (
        obtain_teacher(experiment.teacher, experiment.task, place / "teacher")
        if experiment.teacher is not None
        else None
    )
    if teacher is not None and isinstance(teacher.network, nn.Module) and not hasattr(teacher.network, "takes_batch"):
        networks["teacher"] = teacher.network
    networks["student"] = student
    probe = splits.train.batch([0]).inputs
    most = min(splits.train.largest_batch or 32, 32)
    return {name: cost.as_dict() for name, cost in costs(networks, probe, batch_size=most).items()}


def step_costs_of(experiment: Experiment, place: Path, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a training step of each arm costs; measured once per run."""
    import json

    from stillroom.checkpoint import write_json
    from stillroom.experiment.arm import TrainingArm, is_method, load_splits, own_augmentation
    from stillroom.experiment.budget import here, step_costs, threads_for
    from stillroom.experiment.teacher import obtain_teacher

    kept = place / "step-costs.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    methods = {name: arm for name, arm in experiment.arms.items() if is_method(arm)}
    if set(known) != set(methods):
        teacher = obtain_teacher(experiment.teacher, experiment.task, place / "teacher")
        training = experiment.training
        if training.augment is None:
            training = training.change(augment=own_augmentation(load_splits(experiment.task, seed)))
        arms = {name: TrainingArm(arm, experiment.task, experiment.student) for name, arm in methods.items()}
        known = step_costs(
            arms,
            replace(experiment, training=training),
            seed,
            teacher,
            here(options["device"]),
            threads=threads_for(jobs_of(options)),
        )
        if processes.is_first():
            write_json(kept, known)
    return dict(known)


def question_of(experiment: Experiment, splits: Any) -> str:
    """Say in one sentence what the task is."""
    labels = len(splits.train)
    held = len(splits.validation) if splits.validation is not None else 0
    pool = len(splits.unlabelled) if splits.unlabelled is not None else 0
    classes = f" into {len(splits.classes)} classes" if splits.classes else ""
    text = (
        f"The task: {experiment.task.verb} {splits.name or 'your data'}{classes} ({experiment.task.name}); the student "
        f"sees {labels} {'labelled ' * experiment.task.needs_labels}{experiment.task.sample_name(splits)}s"
    )
    if held:
        text += f", {held} more choose its weights"
    if pool:
        text += f", {pool} unlabelled ones are there for methods that can use them"
    return text + f"; {len(splits.test)} test {experiment.task.sample_name(splits)}s are reported."


def notes_of(experiment: Experiment, splits: Any) -> list[str]:
    """What a reader of the numbers should know of the arms."""
    from torch import nn

    from stillroom.experiment.arm import own_augmentation

    notes = []
    if not experiment.task.needs_labels and experiment.baseline in experiment.arms:
        notes.append("Without labels the student alone cannot be trained: its arm is the student as it comes.")
    if isinstance(experiment.student, nn.Module):
        notes.append(
            "The student was given as a module: every seed starts from its weights and only the order of batches "
            "varies; give a function that builds it to vary the initial weights too."
        )
    if experiment.training.augment is None and own_augmentation(splits) == "none" and len(splits.train.shape) == 3:
        notes.append(
            "No augmentation: name one (--augment crop_flip, shift, ...) if moved or mirrored images mean the same."
        )
    if splits.validation is None or not len(splits.validation):
        notes.append("Nothing is held out: the last weights count, and the student of the first seed is what ships.")
    if experiment.equal_time:
        notes.append("Every arm has the wall-clock of the slowest one instead of the same number of steps.")
    return notes


def guessing(experiment: Experiment, results: Mapping[str, Any], splits: Any) -> list[str]:
    """Say that no arm has learned anything, where none is clearly better than a guess; else nothing."""
    from stillroom.task import teacher_beats_chance

    labels = splits.test.labels
    means = [arm["mean"] for arm in results["arms"].values() if arm["role"] != "teacher" and arm["mean"] is not None]
    if labels is None or not means:
        return []
    best = (max if results["higher_is_better"] else min)(means)
    if not teacher_beats_chance({results["metric"]: best}, experiment.task, labels, len(splits.test)):
        return []
    return [
        "No arm is clearly better than guessing: nothing can be said of methods before a student learns; train longer, "
        "raise the learning rate, or check the data."
    ]


def notes_of_rates(results: Mapping[str, Any]) -> list[str]:
    """Which learning rates diverged, a sentence each; the others were chosen among."""
    return [
        f"{name}, seed {seed}: the learning rate {lr} diverged and was left out ({why})."
        for name, arm in results["arms"].items()
        for seed, found in zip(results["seeds"], arm.get("diverged", ()), strict=False)
        for lr, why in (found or {}).items()
    ]


def sentence(results: Mapping[str, Any]) -> str:
    """The verdict in one sentence, in the words of the report."""
    from stillroom.experiment.findings import read
    from stillroom.experiment.wording import headline

    return str(headline(read(results)))


def summary_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """The short form of results: what `summary.json` holds."""
    arms = {name: {key: arm[key] for key in ("values", "mean", "low", "high")} for name, arm in results["arms"].items()}
    student = {key: results["student"][key] for key in ("parameters", "file")}
    return {
        "method": results.get("method"),
        "metric": results["metric"],
        "arms": arms,
        "difference": results.get("difference"),
        "verdict": results.get("verdict"),
        "student": student,
        "config": results["config"],
        "seconds": results["seconds"],
    }


def card_of(results: Mapping[str, Any]) -> str:
    """The student's model card: what it is, whether it was worth it, the numbers, and the command that repeats it."""
    metric = results["metric"].replace("_", " ")
    rows = [
        f"| {name} | {arm['mean']:.4f} | " + ", ".join(f"{value:.4f}" for value in arm["values"]) + " |"
        for name, arm in results["arms"].items()
        if arm["mean"] is not None
    ]
    lines = [
        f"# {results['title']}",
        "",
        *([sentence(results), ""] if results.get("difference") else []),
        results["question"],
        "",
        f"| arm | {metric} | every seed |",
        "|---|---|---|",
        *rows,
        "",
        f"{chosen_of(results)} It takes {results.get('takes', 'inputs in [0, 1]')}.",
        "",
        *([f"Classes: {', '.join(results['class_names'])}", ""] if results.get("class_names") else []),
        *([results["opens_with"], ""] if results.get("opens_with") else []),
        f"Load it with {results.get('loads_with', '`stillroom.load(folder)`.')}",
        "",
        "Repeat the run with",
        "",
        f"    {results['command']}",
    ]
    return "\n".join(lines) + "\n"


def chosen_of(results: Mapping[str, Any]) -> str:
    """Say whose student ships, and by what it was chosen."""
    student, seeds = results["student"], len(results["seeds"])
    text = f"This is the student of arm {student['arm']}, seed {student['seed']}"
    if any(arm.get("validation") for arm in results["arms"].values()):
        return f"{text}, the best of {seeds} seeds on held-out training data." if seeds > 1 else f"{text}."
    return f"{text}; nothing was held out to choose one by."


def write_all(results: dict[str, Any], student: nn.Module, place: Path) -> None:
    """Write student, results, summary and report into a folder."""
    from stillroom import hub
    from stillroom.checkpoint import write_bytes, write_json
    from stillroom.experiment.report import write_report
    from stillroom.hub.folder import how_to_load

    place.mkdir(parents=True, exist_ok=True)
    names = results.get("class_names")
    if isinstance(student, hub.LanguageModel) and student.source.get("kind") == "hf":
        results["opens_with"] = "Without stillroom: `transformers.AutoModelForCausalLM.from_pretrained(folder)`."
    hub.save(
        student,
        place / "student",
        config={"class_names": names} if names else None,
        metrics={name: arm["mean"] for name, arm in results["arms"].items()},
        overwrite=True,
    )
    results["loads_with"] = how_to_load(place / "student")
    write_bytes(place / "student" / "README.md", card_of(results).encode())
    results["student"]["file"] = str(Path("student") / "student.safetensors")
    write_json(place / "results.json", results)
    write_json(place / "summary.json", summary_of(results))
    write_report(results, place / "report.html")
