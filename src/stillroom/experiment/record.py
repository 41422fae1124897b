"""What is written down of a run: every seed's values, intervals, verdicts, versions and the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillroom.baselines import is_control
from stillroom.experiment.arm import is_method, load_splits, method_class
from stillroom.experiment.statistics import mean_interval, paired_interval

if TYPE_CHECKING:
    from stillroom.experiment.run import Experiment


def results_of(
    experiment: Experiment,
    records: Mapping[str, Mapping[int, Any]],
    teacher: Mapping[str, float],
    *,
    seeds: Sequence[int],
    level: float,
    command: str,
) -> dict[str, Any]:
    """Put together the results of finished runs.

    Args:
        experiment: what was run.
        records: arm -> seed -> what `result.json` holds.
        teacher: the teacher's metrics; empty without one.
        seeds: in order.
        level: of all intervals.
        command: what repeats the run.
    """
    metric = experiment.task.metric
    values = {
        name: {
            key: [records[name][seed]["metrics"].get(key, float("nan")) for seed in seeds]
            for key in records[name][seeds[0]]["metrics"]
        }
        for name in experiment.arms
    }
    main = metric if all(metric in kept for kept in values.values()) else next(iter(next(iter(values.values()))))
    arms: dict[str, Any] = {}
    if teacher:
        arms["teacher"] = {
            "values": [teacher[main]] if main in teacher else [],
            **_interval([teacher[main]] if main in teacher else [], level),
            "metrics": {key: [value] for key, value in teacher.items()},
            "role": "teacher",
        }
    for name in experiment.arms:
        runs = [records[name][seed] for seed in seeds]
        arms[name] = {
            "values": values[name][main],
            **_interval(values[name][main], level),
            "seconds": [run["seconds"] for run in runs],
            "metrics": values[name],
            "steps": [run.get("steps") for run in runs],
            "curves": _curves(runs, main),
            "role": role_of(experiment, name),
        }
        for key in ("validation", "lr", "diverged", "teacher", "cached"):
            if any(run.get(key) for run in runs):
                arms[name][key] = [run.get(key) for run in runs]
    base = values.get(experiment.baseline)
    differences = {
        name: _interval_of_difference(
            values[name][main],
            base[main],
            level,
            experiment.task.higher_is_better,
            resolution_of(experiment, main, seeds),
        )
        for name in experiment.arms
        if base is not None and name != experiment.baseline
    }
    by_seed = {
        name: {key: dict(zip(seeds, column, strict=True)) for key, column in kept.items()}
        for name, kept in values.items()
    }
    return {
        "kind": "system" if experiment.system else "compare",
        "title": (experiment.title or experiment.system or "experiment")
        + (" (tiny: tries the plumbing, measures nothing)" if experiment.is_tiny else ""),
        "question": experiment.question,
        "system": experiment.system,
        "method": experiment.method,
        "metric": main,
        "higher_is_better": experiment.task.higher_is_better,
        "level": level,
        "seeds": list(seeds),
        "arms": arms,
        "differences": differences,
        "agreement": _agreement(values),
        "claims": [
            claim.test(by_seed, level=level, resolution=resolution_of(experiment, claim.on, seeds)).as_dict()
            for claim in experiment.claims
        ],
        "config": dict(experiment.config),
        "command": command,
    }


def role_of(experiment: Experiment, name: str) -> str:
    """What an arm is in the report: "alone", "method", "control" or "baseline"."""
    arm = experiment.arms[name]
    if name in experiment.controls or is_control(arm):
        return "control"
    if name == experiment.baseline:
        return "alone"
    if name in experiment.rivals:
        return "baseline"
    if name == experiment.method:
        return "method"
    kind = method_class(arm)
    return "baseline" if kind is not None and kind.__module__ == "stillroom.baselines" else "method"


def _interval(values: Sequence[float], level: float) -> dict[str, float | None]:
    if not values or any(value != value for value in values):
        return {"mean": None, "low": None, "high": None}
    found = mean_interval(values, level=level)
    return {"mean": found.mean, "low": found.low, "high": found.high}


def resolution_of(experiment: Experiment, metric: str, seeds: Sequence[int]) -> float:
    """The smallest step of a metric: one reported sample's part of an accuracy; 0 where it has none or is not known."""
    if metric != "accuracy" or not any(is_method(arm) for arm in experiment.arms.values()):
        return 0.0
    return 1 / max(len(load_splits(experiment.task, seeds[0]).test), 1)


def _interval_of_difference(
    a: Sequence[float], b: Sequence[float], level: float, higher: bool, resolution: float
) -> dict[str, Any]:
    pair = (a, b) if higher else (b, a)
    found = paired_interval(*pair, level=level, resolution=resolution)
    return {"mean": found.mean, "low": found.low, "high": found.high, "level": level}


def _agreement(values: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """How far each arm says what the teacher says, means over seeds; for tasks where that is measured."""
    names = {"agreement": "top1", "kl_to_teacher": "kl"}
    found = {
        arm: {short: sum(kept[name]) / len(kept[name]) for name, short in names.items() if name in kept}
        for arm, kept in values.items()
    }
    return {arm: parts for arm, parts in found.items() if parts}


def _curves(runs: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    curves = {
        str(run["seed"]): [[step, measured[metric]] for step, measured in run.get("curve", ()) if metric in measured]
        for run in runs
    }
    return {metric: curves} if any(curves.values()) else {}


def machine(device: str | None, *, threads: int, jobs: int) -> dict[str, Any]:
    """Describe the machine a run was made on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    used = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = {"processor": model, "cores": os.cpu_count(), "threads": threads, "jobs": jobs, "device": used}
    if used.startswith("cuda") and torch.cuda.is_available():
        found["device_name"] = torch.cuda.get_device_name()
    return found | {"system": f"{platform.system()} {platform.machine()}"}


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("stillroom", "torch", "torchvision", "accelerate", "numpy", "scikit-learn", "timm", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
