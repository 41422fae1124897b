"""What a run may take: seeds, processes, device, and the wall-clock of a step."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from stillroom import processes
from stillroom.experiment.arm import load_splits
from stillroom.extras import require

if TYPE_CHECKING:
    from stillroom.experiment.run import Experiment
    from stillroom.training import Training


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse an empty list of seeds, a seed that is no whole number of 0 or more, and a seed twice.

    Raises:
        ValueError: with the seed that does not fit.
    """
    if not len(seeds):
        raise ValueError("at least one seed is needed, given 0 seeds")
    if strange := [seed for seed in seeds if isinstance(seed, bool) or not isinstance(seed, int)]:
        raise ValueError(f"seeds must be whole numbers of 0 or more, given {strange[0]!r}")
    if min(seeds) < 0:
        raise ValueError(f"seeds must be whole numbers of 0 or more, given {min(seeds)}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"every seed must be there once, given {list(seeds)}")


def check_machine(
    *, jobs: int = 1, device: str | None = None, workers: int = 0, level: float = 0.95, executor: str = "processes"
) -> None:
    """Refuse numbers of processes and threads, devices and levels that cannot be, before anything is written.

    Raises:
        ValueError: with what was given and what is expected.
    """
    if executor not in ("processes", "ray"):
        raise ValueError(f"executor must be processes or ray, given {executor!r}")
    if executor == "ray":
        require("ray")
    if jobs < 1:
        raise ValueError(f"jobs must be 1 or more processes, given {jobs}")
    if (world := processes.world()) > 1 and (jobs > 1 or executor == "ray"):
        given = "executor 'ray'" if executor == "ray" else f"{jobs} jobs"
        raise ValueError(
            f"{world} processes train every arm together (torchrun), given {given} to spread the arms over: leave one "
            "of the two out"
        )
    if workers < 0:
        raise ValueError(f"workers must be 0 or more threads, given {workers}")
    if not 0 < level < 1:
        raise ValueError(f"level is the probability of an interval and lies between 0 and 1, given {level}")
    if device is None:
        return
    try:
        kind = torch.device(device).type
        if executor != "ray":  # it is the cluster that has the device
            torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        available = ["cpu", *(name for name in ("cuda", "mps", "xpu") if getattr(torch, name).is_available())]
        raise ValueError(f"device {device!r} is not available here: take one of {', '.join(available)}") from error
    if kind == "meta":
        raise ValueError("device 'meta' holds no numbers: take cpu, or a device that computes")


def here(device: str | None) -> str | None:
    """The device of this process for a run's: the CPU where that is a cluster's GPU and this machine has none."""
    lacks = device is not None and device.startswith("cuda") and not torch.cuda.is_available()
    return "cpu" if lacks else device


def threads_for(jobs: int) -> int:
    """Threads of each process: its part of the cores, no more than OMP_NUM_THREADS allows."""
    share = max((os.cpu_count() or 1) // jobs, 1)
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, max(int(allowed), 1)) if allowed.isdigit() else share


def seconds_per_step(
    arms: Mapping[str, Any],
    experiment: Experiment,
    seed: int,
    teacher: Any,
    device: str | None,
    *,
    rounds: int = 3,
    threads: int | None = None,
) -> dict[str, float]:
    """Measure what a training step of each arm costs; see `step_times`.

    Returns:
        Arm -> median seconds per step.
    """
    times = step_times(arms, experiment, seed, teacher, device, rounds=rounds, threads=threads)
    return {name: median(seconds) for name, seconds in times.items()}


def step_times(
    arms: Mapping[str, Any],
    experiment: Experiment,
    seed: int,
    teacher: Any,
    device: str | None,
    *,
    rounds: int = 3,
    threads: int | None = None,
) -> dict[str, list[float]]:
    """Time training steps, arms interleaved so that they share the machine's moods.

    A short training is taken from a longer one, so that what happens once (the first step's checks, the optimizer's
    memory, the logged steps) does not count.

    Args:
        arms: training arms by name.
        experiment: whose training options count.
        seed: of data and students.
        teacher: frozen.
        device: None for the machine's own choice.
        rounds: how often each arm is measured, after a first time to warm up.
        threads: as many as the real run's processes have; None for as many as there are.

    Returns:
        Arm -> seconds per step, one for each round.
    """
    from stillroom.fit import fit

    splits = load_splits(experiment.task, seed)
    bare = replace(splits, validation=None)
    short, long = (experiment.training.change(steps=steps, evaluate_every=10**9) for steps in (2, 12))

    def took(arm: Any, training: Training) -> float:
        method = arm.build(seed, splits, teacher)
        options: dict[str, Any] = {"task": experiment.task, "device": device, "progress": False}
        return fit(method, bare, training, check_teacher=False, **options).seconds

    taken: dict[str, list[float]] = {name: [] for name in arms}
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        for round_ in range(rounds + 1):
            for name, arm in arms.items():
                few, many = took(arm, short), took(arm, long)
                if round_:
                    taken[name].append(max(many - few, 0.1 * many) / 10)
    finally:
        torch.set_num_threads(before)
    return taken


def step_memory(arm: Any, experiment: Experiment, seed: int, teacher: Any, device: str | None) -> int:
    """Measure the most memory that training an arm holds at once, in bytes.

    Counted is what is allocated from building the method to its third step: the student, the method's own networks and
    memories, gradients, the optimizer's state, activations of student and teacher. Data and the teacher's weights are
    there before and do not count.

    Args:
        arm: a training arm.
        experiment: whose training options count.
        seed: of data and student.
        teacher: frozen.
        device: None for the machine's own choice.
    """
    from stillroom.fit import fit

    splits = load_splits(experiment.task, seed)
    bare = replace(splits, validation=None)
    training = experiment.training.change(steps=3, evaluate_every=10**9)

    def train() -> None:
        method = arm.build(seed, splits, teacher)
        fit(method, bare, training, task=experiment.task, device=device, progress=False, check_teacher=False)

    if torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of GPUs that are not there
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        train()
    held = most = 0
    events = profiler.profiler.kineto_results.events() if profiler.profiler is not None else []
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda one: one.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return int(most)


def step_costs(
    arms: Mapping[str, Any],
    experiment: Experiment,
    seed: int,
    teacher: Any,
    device: str | None,
    *,
    rounds: int = 3,
    threads: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure what a training step of each arm costs in time and memory.

    Args:
        arms: training arms by name.
        experiment: whose training options and baseline count.
        seed: of data and students.
        teacher: frozen.
        device: None for the machine's own choice.
        rounds: how often each arm is timed.
        threads: as many as the real run's processes have; None for as many as there are.

    Returns:
        Arm -> "seconds" (the median), "ratio" to the baseline arm (the median over rounds; None without one) and
        "memory_bytes" (see `step_memory`).
    """
    times = step_times(arms, experiment, seed, teacher, device, rounds=rounds, threads=threads)
    base = times.get(experiment.baseline)
    return {
        name: {
            "seconds": median(seconds),
            "ratio": None if base is None else median(a / b for a, b in zip(seconds, base, strict=True)),
            "memory_bytes": step_memory(arms[name], experiment, seed, teacher, device),
        }
        for name, seconds in times.items()
    }
