"""What a run may take: seeds, processes, device, and the wall-clock of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stillroom.experiment.arm import load_splits

if TYPE_CHECKING:
    from stillroom.experiment.run import Experiment


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


def check_machine(*, jobs: int = 1, device: str | None = None, workers: int = 0, level: float = 0.95) -> None:
    """Refuse numbers of processes and threads, devices and levels that cannot be, before anything is written.

    Raises:
        ValueError: with what was given and what is expected.
    """
    import torch

    if jobs < 1:
        raise ValueError(f"jobs must be 1 or more processes, given {jobs}")
    if workers < 0:
        raise ValueError(f"workers must be 0 or more threads, given {workers}")
    if not 0 < level < 1:
        raise ValueError(f"level is the probability of an interval and lies between 0 and 1, given {level}")
    if device is None:
        return
    try:
        kind = torch.device(device).type
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        available = ["cpu", *(name for name in ("cuda", "mps", "xpu") if getattr(torch, name).is_available())]
        raise ValueError(f"device {device!r} is not available here: take one of {', '.join(available)}") from error
    if kind == "meta":
        raise ValueError("device 'meta' holds no numbers: take cpu, or a device that computes")


def seconds_per_step(
    arms: Mapping[str, Any], experiment: Experiment, seed: int, teacher: Any, device: str | None, *, rounds: int = 5
) -> dict[str, float]:
    """Measure what a training step of each arm costs, arms interleaved so that they share the machine's moods.

    Returns:
        Arm -> median seconds per step over `rounds` short trainings of four steps.
    """
    from statistics import median

    from stillroom.fit import fit

    splits = load_splits(experiment.task, seed)
    training = experiment.training.change(steps=4, evaluate_every=10**9)
    bare = replace(splits, validation=None)
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(rounds + 1):
        for name, arm in arms.items():
            method = arm.build(seed, splits, teacher)
            fitted = fit(
                method, bare, training, task=experiment.task, device=device, progress=False, check_teacher=False
            )
            if round_:  # the first one warms up
                taken[name].append(fitted.seconds / fitted.steps)
    return {name: median(seconds) for name, seconds in taken.items()}
