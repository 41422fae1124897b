"""How workers begin: forked from a server that has imported what they need, where that is safe, else as new processes.

Importing all of it takes longer than many a training. The server does so once, beside the parent, which reads data and
trains the teacher in the meantime; it runs nothing else, so that a fork of it is a clean process.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path

IMPORTED = (
    "stillroom.experiment.run",
    "stillroom.experiment.arm",
    "stillroom.experiment.teacher",
    "stillroom.fit",
    "stillroom.hub",
    "torch._dynamo",  # by the first optimizer
    "accelerate",
    "torchmetrics",
)
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Where Linux shows a GPU; its drivers do not survive a fork."""


def are_safe() -> bool:
    """Whether workers may be forks: on Linux without a GPU."""
    return sys.platform == "linux" and not any(Path(one).exists() for one in GPUS)


def begin(jobs: int | None) -> None:
    """Start the server, if several processes are going to work and it does not run yet.

    Args:
        jobs: processes; None for one per core.
    """
    jobs = jobs or os.cpu_count() or 1
    if jobs < 2 or not are_safe() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    forkserver.set_forkserver_preload(list(IMPORTED))
    with interrupted_later():
        forkserver.ensure_running()
    atexit.unregister(_end)
    atexit.register(_end, os.getpid())


def context() -> BaseContext:
    """How to start workers."""
    return multiprocessing.get_context("forkserver" if are_safe() else "spawn")


@contextmanager
def interrupted_later() -> Iterator[None]:
    """Hold Ctrl-C back, also from processes that are started within."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(parent: int) -> None:
    """Let the server not outlive its parent by the time that its imports take; a fork of the parent is not it."""
    if os.getpid() != parent:
        return
    server = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    if server is not None:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)
