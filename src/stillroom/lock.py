"""One run to a folder: a lock that the operating system lets go of when its process ends, however it ends."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stillroom.storage import StorageError, storing, sweep

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows has none, and runs there are not locked
    fcntl = None

NAME = ".stillroom-lock"
"""The file that a running process holds; it goes when the run ends, and one that a killed run left locks nothing."""


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Hold a folder for this run, and clear what a killed one left half-written there.

    The folder is made; where the run leaves it empty, it is removed again. A folder on a disk that knows no locks
    (some network file systems) is used without one.

    Args:
        folder: of the run; None locks nothing.

    Raises:
        BlockingIOError: another run is working there.
        StorageError: the folder cannot be made or written.
    """
    if folder is None:
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        file = _take(folder)
        try:
            sweep(folder)
            yield
        finally:
            with suppress(OSError):
                (folder / NAME).unlink(missing_ok=True)  # while it is held: nobody else can mean this file
            file.close()
    finally:
        with suppress(OSError):  # what holds something stays
            for place in made:
                place.rmdir()


def hold(file: IO[Any] | int, *, wait: bool) -> bool:
    """Hold an open file until it is closed; not on Windows, nor on a disk that knows no locks.

    Args:
        file: open for writing, or its number.
        wait: until another process lets go of it.

    Returns:
        Whether it is held.

    Raises:
        BlockingIOError: another process holds it, and is not waited for.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # the disk knows no locks
        return False
    return True


def refuse_held(folder: Path | None) -> None:
    """Refuse a folder that another run works in, before anything is spent on this one.

    Raises:
        BlockingIOError: with whose it is.
    """
    if fcntl is None or folder is None:
        return
    try:
        with (folder / NAME).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(folder) from None
    except OSError:  # no such file, or no locks on that disk
        return


def _refusal(folder: Path) -> BlockingIOError:
    try:
        about = json.loads((folder / NAME).read_text())
        who = f"another run (process {about['process']} on {about['machine']}, since {about['since']})"
    except (OSError, ValueError, LookupError, TypeError):  # it has just begun, or has just ended
        who = "another run"
    return BlockingIOError(f"{who} is working in {folder}: wait for it or stop it, or name another folder")


def _take(folder: Path) -> IO[str]:
    path = folder / NAME
    while True:
        with storing(path):
            file = path.open("a+")
        try:
            hold(file, wait=False)
        except BlockingIOError:
            file.close()
            raise _refusal(folder) from None
        try:
            still = os.fstat(file.fileno()).st_ino == path.stat().st_ino
        except FileNotFoundError:  # the run before ended between our opening and our locking
            still = False
        if still:
            break
        file.close()
    about = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        with storing(path):
            file.truncate(0)
            file.write(json.dumps(about) + "\n")
            file.flush()
    except StorageError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            file.close()
        raise
    return file


class Stopped(KeyboardInterrupt):
    """Ctrl-C in a run, with how it is gone on with."""


@contextmanager
def says_how_to_go_on(folder: Path | None, done: Callable[[], str] = str) -> Iterator[None]:
    """Let Ctrl-C say how the run in a folder is gone on with.

    Args:
        folder: of the run; None where nothing is kept.
        done: says how far it is; empty where that is not known.

    Raises:
        Stopped: instead of a KeyboardInterrupt that knows less.
    """
    try:
        yield
    except Stopped:
        raise
    except KeyboardInterrupt as stop:
        said = "stopped" + (f" with {far}" if (far := done()) else "")
        if folder is None:
            raise Stopped(f"{said}; nothing is kept, for no folder was named") from stop
        how = f"go on with the same command and --resume --out {folder} (in Python: resume=True)"
        raise Stopped(f"{said}; {how}") from stop
