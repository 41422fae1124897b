"""The runs of an experiment on a Ray cluster: every arm and seed is a task that Ray places, and repeats if it dies."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from stillroom.allocator import keep_freed_memory
from stillroom.experiment.workers import failed_together
from stillroom.extras import require
from stillroom.storage import StorageError

RETRIES = 3
"""How often a run is begun again whose worker or machine died."""
STARTS = 3
"""How often a local cluster is tried to be started."""


class Plan(Protocol):
    """What a worker needs: something that can be sent to another process and runs any arm with any seed."""

    threads: int
    device: str | None
    resume: bool

    def execute(self, name: str, seed: int, factor: float = 1.0) -> dict[str, Any]:
        """Run one arm with one seed."""
        ...


def work_on_ray(
    plan: Any, todo: Sequence[tuple[str, int]], factors: Mapping[str, float], jobs: int
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Run what is to do on a Ray cluster, yielding each as it finishes.

    A cluster is joined where the environment variable RAY_ADDRESS names one or this process is on one already;
    otherwise one of `jobs` workers is started on this machine and ended again. Tasks take the plan's threads as CPUs,
    and a GPU where the device is one. The run's folder must be on a disk that all machines share. A task whose worker
    dies is begun again elsewhere and goes on from its last checkpoint.

    Args:
        plan: runs an arm with a seed.
        todo: names and seeds.
        factors: how many times the common number of steps an arm takes; 1 where not named.
        jobs: workers of a cluster that is started here.

    Raises:
        ImportError: Ray is not installed.
        TypeError: the plan cannot be sent to other processes.
        StorageError: the folder cannot be written.
    """
    ray = require("ray")
    plan = replace(plan, resume=True)  # a repeated task goes on where its worker died
    try:
        content = ray.cloudpickle.dumps(plan)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(
            f"this experiment cannot be sent to a cluster ({error}): define its models and arms at the top of a module"
        ) from error
    ours = not ray.is_initialized()
    if ours:
        _join(ray, max(jobs, 1) * plan.threads)
    try:
        kind = torch.device(plan.device or ("cuda" if torch.cuda.is_available() else "cpu")).type
        task = ray.remote(max_retries=RETRIES, num_cpus=plan.threads, num_gpus=1 if kind == "cuda" else 0)(_execute)
        shared = ray.put(content)
        waiting = {task.remote(shared, name, seed, factors.get(name, 1.0)): (name, seed) for name, seed in todo}
        failures: list[tuple[str, int, Exception]] = []
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            for reference in done:
                name, seed = waiting.pop(reference)
                try:
                    yield name, seed, ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    cause = error.cause if isinstance(error.cause, Exception) else error
                    if isinstance(cause, StorageError):  # it would be the same with the others
                        raise cause from error
                    failures.append((name, seed, cause))
                except ray.exceptions.RayError as error:
                    failures.append((name, seed, error))
        failed_together(failures)
    finally:
        if ours:
            ray.shutdown()


def _join(ray: Any, cpus: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one here; on a busy machine a start may take several tries."""
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
        return
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    for left in reversed(range(STARTS)):
        try:
            ray.init(num_cpus=cpus, log_to_driver=False, include_dashboard=False, configure_logging=False)
            return
        except Exception:  # it raises nothing narrower
            ray.shutdown()
            if not left:
                raise


def _execute(content: bytes, name: str, seed: int, factor: float) -> dict[str, Any]:
    plan: Plan = pickle.loads(content)  # from our own driver
    torch.set_num_threads(plan.threads)
    keep_freed_memory()
    return plan.execute(name, seed, factor)
