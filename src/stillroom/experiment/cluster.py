"""The runs of an experiment on a Ray cluster: every arm and seed is a task that Ray places, and repeats if it dies."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from stillroom.allocator import keep_freed_memory
from stillroom.experiment.workers import PATIENCE, failed_together
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
    otherwise one of `jobs` workers is started on this machine and ended again. A task takes as many CPUs as a worker of
    this machine has threads, and on a cluster that was joined no more than let the tasks run at once and its nodes
    have; and a GPU where the device is one, or is not named and a node has one. The run's folder must be on a disk that
    all machines share. A task whose worker dies is begun again elsewhere and goes on from its last checkpoint. What
    ends the run ends its tasks, after their running step and checkpoint.

    Args:
        plan: runs an arm with a seed.
        todo: names and seeds.
        factors: how many times the common number of steps an arm takes; 1 where not named.
        jobs: workers of a cluster that is started here.

    Raises:
        ImportError: Ray is not installed.
        TypeError: the plan cannot be sent to other processes.
        ValueError: no node of the cluster can run a task, or an equal wall-clock was measured on another device.
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
    local = ours and _join(ray, max(jobs, 1) * plan.threads)
    waiting: dict[Any, tuple[str, int]] = {}
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = size_of_task(nodes, plan.device, tasks=jobs if local else len(todo), threads=plan.threads)
        if gpus and factors and not torch.cuda.is_available():
            raise ValueError(
                "an equal wall-clock is measured where the command runs, which has no GPU, but the cluster's tasks get "
                "one: start it on a machine with a GPU, or give all arms the same steps (--budget steps)"
            )
        if cpus != plan.threads:
            content = ray.cloudpickle.dumps(replace(plan, threads=cpus))
        task = ray.remote(max_retries=RETRIES, num_cpus=cpus, num_gpus=gpus)(_execute)
        shared = ray.put(content)
        for name, seed in todo:
            waiting[task.remote(shared, name, seed, factors.get(name, 1.0))] = (name, seed)
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
        try:
            _end(ray, list(waiting))
        finally:
            if ours:
                ray.shutdown()


def size_of_task(
    nodes: Sequence[Mapping[str, float]], device: str | None, *, tasks: int, threads: int
) -> tuple[int, int]:
    """How many CPUs and GPUs a task asks for.

    Args:
        nodes: what each node has: "CPU" and "GPU", absent for none.
        device: of the tasks; None takes GPUs where there are any.
        tasks: how many would run at once.
        threads: the most CPUs that a task can use; 1 or more.

    Returns:
        CPUs, no more than any of the nodes has that can run a task at all; and GPUs, 0 or 1.

    Raises:
        ValueError: no node can run a task.
    """
    have = "; ".join(
        " and ".join(f"{node[kind]:g} {kind}s" for kind in ("CPU", "GPU") if node.get(kind, 0) >= 1) or "nothing"
        for node in nodes
    )
    able = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not able:
        raise ValueError(f"no node of the cluster has a CPU (nodes: {have or 'none'}): start its workers first")
    with_gpu = [node for node in able if node.get("GPU", 0) >= 1]
    gpu = bool(with_gpu) if device is None else torch.device(device).type == "cuda"
    if gpu and not with_gpu:
        raise ValueError(
            f"device {device!r} was given, but no node of the cluster has a GPU (nodes: {have}): take device cpu, or "
            "start nodes with GPUs first"
        )
    able = with_gpu if gpu else able
    share = int(sum(node["CPU"] for node in able)) // max(tasks, 1)
    return max(min(threads, share, *(int(node["CPU"]) for node in able)), 1), int(gpu)


def _end(ray: Any, tasks: list[Any]) -> None:
    """End tasks after their running step and checkpoint, those that have not begun at once; kill what does not end."""
    if not tasks:
        return
    for task in tasks:
        ray.cancel(task)
    _, left = ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE)
    for task in left:
        ray.cancel(task, force=True)


def _join(ray: Any, cpus: int) -> bool:
    """Join the cluster that RAY_ADDRESS names, or start one here; say whether it was started here.

    On a busy machine a start may take several tries.
    """
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
        return False
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    for left in reversed(range(STARTS)):
        try:
            ray.init(num_cpus=cpus, log_to_driver=False, include_dashboard=False, configure_logging=False)
            return True
        except Exception:  # it raises nothing narrower
            ray.shutdown()
            if not left:
                raise
    return True


def _execute(content: bytes, name: str, seed: int, factor: float) -> dict[str, Any]:
    plan: Plan = pickle.loads(content)  # from our own driver
    torch.set_num_threads(plan.threads)
    keep_freed_memory()
    return plan.execute(name, seed, factor)
