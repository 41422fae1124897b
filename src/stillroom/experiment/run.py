"""An experiment: arms over seeds, in parallel, each finished one kept; then intervals, claims and a report."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from stillroom import processes
from stillroom.checkpoint import random_state, seed_everything, set_random_state, write_json
from stillroom.data.samples import Splits
from stillroom.experiment import forks
from stillroom.experiment.arm import Context, TrainingArm, is_method
from stillroom.experiment.budget import check_machine, check_seeds, here, seconds_per_step, threads_for
from stillroom.experiment.claim import Claim
from stillroom.experiment.cluster import work_on_ray
from stillroom.experiment.record import machine, results_of, versions
from stillroom.experiment.started import Started
from stillroom.experiment.teacher import measure_teacher, obtain_teacher
from stillroom.experiment.workers import work
from stillroom.lock import locked, refuse_held, says_how_to_go_on
from stillroom.method import Method
from stillroom.task import Task
from stillroom.teacher_cache import CacheOptions
from stillroom.training import Training

Results = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """What is compared, on what, and what is claimed of it. Building one builds no model and reads no data.

    All arms of a seed start from one initial student and see one order of batches.

    Attributes:
        task: the data and what outputs mean.
        arms: name -> a method class, a partial of one, a function `(student, teacher) -> Method`, or any callable
            `(seed, context) -> metrics`.
        student: anything `stillroom.hub.load` takes; not needed when every arm is a callable of its own.
        teacher: the same, or a list (their average teaches), or a function `predict(batch)`.
        training: how every arm trains.
        teacher_training: how the teacher is trained first, on all training labels; None takes it as it is.
        teacher_method: how: a method class that takes the network as its student; by its labels alone when not given.
        also: `(network, splits, teacher) -> further numbers` of what a training arm ships; None for none.
        cache: what training arms keep of the teacher's answers, and where; None asks it anew at every step.
        claims: what is tested over the seeds.
        baseline: the arm that the others' differences are taken to.
        title: heading of the report.
        question: one sentence that says what the task is.
        system: slug of the system whose recipe this is.
        method: the arm a single verdict is about.
        config: what reruns it, for the record.
        lrs: learning rates that every arm tries; the best on the held-out part counts.
        equal_time: give every training arm the wall-clock of the slowest one instead of the same steps.
        save: keep every trained student.
        controls: names of arms from which exactly what is claimed to matter was taken away; arms with
            `baselines.with_constant_teacher` and the like are known to be controls.
        rivals: names of arms that are other people's methods or simpler ways, shown as baselines.
        seeds: how many seeds the claims want, where nobody says another number.
        is_tiny: a few samples and steps, for tests.
    """

    task: Task
    arms: Mapping[str, Any]
    student: Any = None
    teacher: Any = None
    training: Training = field(default_factory=Training)
    teacher_training: Training | None = None
    teacher_method: Callable[..., Method] | None = None
    also: Callable[[nn.Module, Splits, Any], Mapping[str, float]] | None = None
    cache: CacheOptions | None = None
    claims: Sequence[Claim] = ()
    baseline: str = "alone"
    title: str = ""
    question: str = ""
    system: str | None = None
    method: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    lrs: tuple[float, ...] = ()
    equal_time: bool = False
    save: bool = False
    controls: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    seeds: int = 3
    is_tiny: bool = False

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("an experiment needs at least one arm, given none")
        for claim in self.claims:
            claim.check_arms(list(self.arms))
        for field_name in ("controls", "rivals"):
            if unknown := set(getattr(self, field_name)) - set(self.arms):
                raise ValueError(f"{field_name} names {sorted(unknown)}, but the arms are {', '.join(self.arms)}")

    def tiny(self) -> Experiment:
        """The same experiment with a few samples and steps: for tests of its plumbing, not of its claims."""
        training = self.training.change(steps=2, batch_size=16, evaluate_every=1, accumulate=1)
        first = self.teacher_training
        return replace(
            self,
            task=self.task.change(
                train_size=48, teacher_size=48, test_size=32, labels=None if self.task.labels is None else 32
            ),
            training=training,
            teacher_training=None if first is None else first.change(steps=20, batch_size=16),
            is_tiny=True,
        )

    def run(
        self,
        seeds: Sequence[int] = (0, 1, 2),
        folder: str | Path | None = None,
        *,
        jobs: int = 1,
        device: str | None = None,
        workers: int = 0,
        executor: Literal["processes", "ray"] = "processes",
        resume: bool = False,
        level: float = 0.95,
        progress: bool = True,
        command: str = "",
        say: Callable[[str], None] | None = None,
    ) -> Results:
        """Run every arm with every seed, and weigh the claims.

        Args:
            seeds: whole numbers of 0 or more, fixed before looking.
            folder: where everything is kept; a new one, or with `resume` the one of an interrupted run. None keeps
                nothing.
            jobs: processes that share the arms and seeds; each gets its part of the cores.
            device: "cpu", "cuda", ...; None for the machine's own choice.
            workers: threads per process that read data ahead.
            executor: "processes" of this machine, or "ray" for a Ray cluster (see `experiment.cluster`).
            resume: finished arms and seeds are taken as they are, interrupted ones go on.
            level: of all intervals.
            progress: say what is running and what came out.
            command: what repeats this run, for the record.
            say: where such lines go; None for standard error.

        Returns:
            The results as a dictionary of plain values (see the documentation of `results.json`).

        Raises:
            FileExistsError: the folder holds something and `resume` is not set.
            ValueError: no seeds, a seed twice or below 0, jobs below 1, or a resume with other options.
        """
        check_seeds(seeds)
        check_machine(jobs=jobs, device=device, workers=workers, level=level, executor=executor)
        temporary = folder is None
        place = Path(tempfile.mkdtemp(prefix="stillroom-")) if folder is None else Path(folder)
        place = processes.of_first(place, device)
        say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        speak = say if progress and processes.is_first() else (lambda line: None)
        plan = _Plan(self, place, device, workers, threads_for(jobs), resume)
        if executor == "processes":
            forks.begin(jobs)
        random = random_state()
        try:
            if processes.is_first():
                refuse_held(place)
                Started(self, place).check_folder(resume=resume)
                if resume and not Started(self, place).is_known:
                    speak(f"there is no run in {place} to go on with: it starts anew")
            kept = None if temporary or not processes.is_first() else place
            with says_how_to_go_on(kept, lambda: plan.how_far(seeds)), locked(kept):
                results = self._run_in(
                    plan,
                    seeds,
                    jobs=jobs,
                    executor=executor,
                    level=level,
                    progress=progress,
                    command=command,
                    speak=speak,
                )
                if not temporary and processes.is_first():
                    write_json(place / "results.json", results)
            return results
        finally:
            set_random_state(random)  # the caller's own draws are none of the run's
            if temporary and processes.is_first():
                shutil.rmtree(place, ignore_errors=True)

    def _run_in(
        self,
        plan: _Plan,
        seeds: Sequence[int],
        *,
        jobs: int,
        executor: str,
        level: float,
        progress: bool,
        command: str,
        speak: Callable[[str], None],
    ) -> Results:
        """Run it in a folder that nobody else works in."""
        began, first = time.monotonic(), processes.is_first()
        started = Started(self, plan.folder)
        found = self._accepted(started, plan, seeds) if first else {}
        processes.wait(plan.device)
        measured = self._measure_teacher(started, plan, found) if self.teacher_training is None else None
        if first:
            started.write(found)
        try:
            if measured is None:
                measured = self._measure_teacher(started, plan, found, progress)
            if measured and self.task.metric in measured:
                teacher = plan.teacher().fingerprint()
                speak(f"teacher: {self.task.metric} {measured[self.task.metric]:.4f} (weights {teacher})")
            factors = plan.step_factors(seeds[0])
            todo = [(name, seed) for seed in seeds for name in self.arms if plan.finished(name, seed) is None]
            processes.wait(plan.device)  # all have seen what is to do, before anything of it is done
            if len(todo) < len(seeds) * len(self.arms):
                speak(f"{len(seeds) * len(self.arms) - len(todo)} finished runs are kept, {len(todo)} are to do")
            spread = work_on_ray if executor == "ray" else work
            for name, seed, record in spread(plan, todo, factors, jobs):
                value = record["metrics"].get(self.task.metric)
                shown = "" if value is None else f": {self.task.metric} {value:.4f}"
                speak(f"{name}, seed {seed}{shown} ({record['seconds']:.1f} s)")
            processes.wait(plan.device)
            records = {name: {seed: plan.finished(name, seed) for seed in seeds} for name in self.arms}
            results = results_of(self, records, measured, seeds=seeds, level=level, command=command)
            results["machine"] = machine(plan.device, threads=plan.threads, jobs=jobs)
            results["versions"] = versions()
        finally:
            seconds = started.took(time.monotonic() - began) if first else time.monotonic() - began
        return results | {"seconds": round(seconds, 2)}

    def _accepted(self, started: Started, plan: _Plan, seeds: Sequence[int]) -> dict[str, Any]:
        """What the run is started with, but for the teacher, once it is known to be what the folder's was."""
        started.check_folder(resume=plan.resume)
        found = started.content(seeds[0])
        started.refuse_others(found)
        if not started.is_known:  # then nobody knows whose measure a killed run has left
            (plan.folder / "teacher" / "metrics.json").unlink(missing_ok=True)
        return found

    def _measure_teacher(
        self, started: Started, plan: _Plan, found: dict[str, Any], progress: bool = False
    ) -> dict[str, float]:
        """Load or train the teacher, see that it is the run's own, write that down in `found`, and measure it."""
        teacher = plan.teacher(progress and not self.is_tiny)
        if processes.is_first():
            found |= started.teacher_of(teacher)
            started.refuse_others(found)
        folder, chance = plan.folder / "teacher", not self.is_tiny
        measured = measure_teacher(
            teacher, self.task, folder, device=here(plan.device), workers=plan.workers, beats_chance=chance
        )
        if processes.is_first() and started.is_known:
            started.write(found)
        return measured


@dataclass
class _Plan:
    """What a worker needs to run any arm and seed of an experiment."""

    experiment: Experiment
    folder: Path
    device: str | None
    workers: int
    threads: int
    resume: bool
    _teacher: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_teacher": None}  # every process loads its own

    def teacher(self, progress: bool = False) -> Any:
        """The frozen teacher, loaded (or trained) once per process."""
        if self._teacher is None:
            self._teacher = obtain_teacher(
                self.experiment.teacher,
                self.experiment.task,
                self.folder / "teacher",
                training=self.experiment.teacher_training,
                method=self.experiment.teacher_method,
                device=here(self.device),
                workers=self.workers,
                resume=self.resume,
                progress=progress,
            )
        return self._teacher

    def path(self, name: str, seed: int) -> Path:
        """Folder of an arm and seed."""
        return self.folder / "arms" / "".join(c if c.isalnum() or c in "-_." else "-" for c in name) / f"seed-{seed}"

    def finished(self, name: str, seed: int) -> dict[str, Any] | None:
        """What an arm and seed gave; None when it has not finished."""
        file = self.path(name, seed) / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

    def how_far(self, seeds: Sequence[int]) -> str:
        """How many arms and seeds have finished, in words."""
        arms = self.experiment.arms
        done = sum(self.finished(name, seed) is not None for seed in seeds for name in arms)
        return f"{done} of {len(seeds) * len(arms)} runs finished"

    def arm(self, name: str, factor: float = 1.0) -> Callable[[int, Context], Mapping[str, float]]:
        """The callable of an arm."""
        experiment = self.experiment
        arm = experiment.arms[name]
        if not is_method(arm):
            return arm
        return TrainingArm(
            arm,
            experiment.task,
            experiment.student,
            factor,
            experiment.lrs,
            experiment.save,
            experiment.also,
            experiment.cache,
        )

    def step_factors(self, seed: int) -> dict[str, float]:
        """How many times the common steps each arm takes; measured once per run where wall-clock is to be equal."""
        experiment = self.experiment
        if not experiment.equal_time:
            return {}
        kept = self.folder / "budget.json"
        if not kept.exists():
            arms = {name: self.arm(name) for name in experiment.arms if is_method(experiment.arms[name])}
            cost = seconds_per_step(arms, experiment, seed, self.teacher(), here(self.device), threads=self.threads)
            slowest = max(cost.values())
            if processes.is_first():
                write_json(kept, {name: slowest / seconds for name, seconds in cost.items()})
        processes.wait(self.device)
        return dict(json.loads(kept.read_text()))

    def execute(self, name: str, seed: int, factor: float = 1.0) -> dict[str, Any]:
        """Run one arm with one seed and keep what it gave."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        folder = self.path(name, seed)
        experiment = self.experiment
        context = Context(
            folder, self.teacher(), experiment.training, self.device, self.workers, self.resume, experiment.is_tiny, {}
        )
        began = time.perf_counter()
        seed_everything(seed)
        metrics = {key: float(value) for key, value in self.arm(name, factor)(seed, context).items()}
        seconds = round(time.perf_counter() - began, 3)
        record = {"arm": name, "seed": seed, "metrics": metrics, "seconds": seconds, **context.extra}
        if processes.is_first():
            write_json(folder / "result.json", record)
            for place in (folder, *folder.glob("lr-*")):  # it has finished: nothing to go on from
                shutil.rmtree(place / "checkpoints", ignore_errors=True)
        return record
