"""The runs of an experiment one after another or in several processes; what ends them all, ends them in good order."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from typing import Any, Protocol

import torch

from stillroom import processes
from stillroom.allocator import keep_freed_memory
from stillroom.experiment import forks
from stillroom.log import show_notices_plainly
from stillroom.storage import StorageError

PATIENCE = 60.0
"""Seconds that a worker may take to end its step and write its checkpoint before it is killed."""


class Plan(Protocol):
    """What a worker needs: something that can be sent to another process and runs any arm with any seed."""

    threads: int

    def execute(self, name: str, seed: int, factor: float = 1.0) -> dict[str, Any]:
        """Run one arm with one seed."""
        ...


def work(
    plan: Plan, todo: Sequence[tuple[str, int]], factors: Mapping[str, float], jobs: int
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Run what is to do, yielding each as it finishes; a failure is raised after the others have finished.

    A disk that cannot be written and Ctrl-C end the others too; no process is left behind.

    Args:
        plan: runs an arm with a seed.
        todo: names and seeds.
        factors: how many times the common number of steps an arm takes; 1 where not named.
        jobs: processes.
    """
    failures: list[tuple[str, int, Exception]] = []
    if jobs == 1 or len(todo) <= 1:
        before = torch.get_num_threads()
        try:
            for name, seed in todo:
                try:
                    yield name, seed, plan.execute(name, seed, factors.get(name, 1.0))
                except StorageError:  # it would be the same with the others
                    raise
                except Exception as error:  # the other arms go on; it is raised below
                    if processes.world() > 1:  # the other processes are still in this arm
                        raise
                    failures.append((name, seed, error))
        finally:
            torch.set_num_threads(before)
    else:
        try:
            content = pickle.dumps(plan)
        except Exception as error:
            raise TypeError(
                f"this experiment cannot be sent to other processes ({error}): define its models and arms at the top "
                "of a module, or run with jobs=1"
            ) from error
        forks.begin(jobs)
        others = set(multiprocessing.active_children())
        with ProcessPoolExecutor(min(jobs, len(todo)), forks.context(), _receive, (content, dict(os.environ))) as pool:
            try:
                waiting: dict[Future[dict[str, Any]], tuple[str, int]] = {}
                with forks.interrupted_later():  # the workers begin deaf to Ctrl-C, and stay so until they can heed it
                    for name, seed in todo:
                        waiting[pool.submit(_execute, name, seed, factors.get(name, 1.0))] = (name, seed)
                while waiting:
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        name, seed = waiting.pop(future)
                        failed = future.exception()
                        if failed is None:
                            yield name, seed, future.result()
                        elif isinstance(failed, Exception) and not isinstance(failed, StorageError):
                            failures.append((name, seed, failed))
                        else:
                            raise failed
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                _end(set(multiprocessing.active_children()) - others)
                raise
    failed_together(failures)


def failed_together(failures: Sequence[tuple[str, int, Exception]]) -> None:
    """Raise the first of several runs' errors, with the run's name and the number of the others; nothing for none."""
    if failures:
        name, seed, first = failures[0]
        more = f" (and {len(failures) - 1} further runs failed)" if len(failures) > 1 else ""
        raise _same_kind(first, f"arm {name!r}, seed {seed}: {str(first) or type(first).__name__}{more}") from first


def _same_kind(error: Exception, text: str) -> Exception:
    """An error of the same kind with another text; a RuntimeError where that kind takes more than a text."""
    try:
        return type(error)(text)
    except TypeError:
        return RuntimeError(f"{text} ({type(error).__name__})")


def _end(workers: set[Any]) -> None:
    """Ask workers to end after their running step and checkpoint; kill those that do not, or at a second Ctrl-C."""
    try:
        for worker in workers:
            worker.terminate()
        until = time.monotonic() + PATIENCE
        for worker in workers:
            worker.join(max(until - time.monotonic(), 0.0))
    finally:
        for worker in workers:
            with suppress(ValueError):  # it has been closed: it has ended
                if worker.is_alive():
                    worker.kill()
                    worker.join()


_plan: Plan | None = None
_over = False


def _receive(content: bytes, environment: Mapping[str, str]) -> None:
    """Begin as a worker: learn environment and plan, and leave it to the parent when to end."""
    global _plan
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a training heeds it all the same, and ends after its step
    signal.signal(signal.SIGTERM, _end_now)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    show_notices_plainly()
    _plan = pickle.loads(content)  # from our own parent process
    torch.set_num_threads(_plan.threads)
    keep_freed_memory()


def _end_now(*_: Any) -> None:
    """Between trainings nothing is lost: files are written whole or not at all."""
    os._exit(130)


def _end_with_parent() -> None:
    """Let no worker outlive a killed parent: it would write into a folder that a resumed run works in."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _execute(name: str, seed: int, factor: float) -> dict[str, Any]:
    global _over
    if _plan is None:
        raise RuntimeError("this worker process was not told its plan")
    if _over:  # what was waiting in line for this worker is not begun any more
        raise KeyboardInterrupt
    try:
        return _plan.execute(name, seed, factor)
    except KeyboardInterrupt:
        _over = True
        raise
