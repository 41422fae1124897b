"""Files that are written whole or not at all, and one sentence where they cannot be."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


class StorageError(OSError):
    """A file could not be written: the disk is full, or the folder is not ours to write in."""


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Say in one sentence that a file could not be written, and what to do.

    Raises:
        StorageError: instead of whatever the operating system says.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "make room on that disk" if full else "see that you may write there, or name another folder"
        raise StorageError(
            f"{path} could not be written ({error.strerror or error}): what was there is kept; {remedy}, then go on "
            "with --resume (resume=True)"
        ) from error


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path` that takes its place when all of it is on the disk."""
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
        _settle(path.parent)


def _settle(folder: Path) -> None:
    """Let a folder's new names reach the disk, where the system knows how."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder and below it."""
    with suppress(OSError):
        for left in list(folder.rglob(".*.part")):
            if re.fullmatch(r"\..+\.\d+\.part", left.name):  # as `whole` names them
                left.unlink(missing_ok=True)
