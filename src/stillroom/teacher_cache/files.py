"""Memory-mapped files of answers, and who may write them."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from stillroom.checkpoint import write_json
from stillroom.lock import hold
from stillroom.storage import StorageError, sweep

_PIECE = 2**20  # bytes that are written at once


class AnswerFiles:
    """The memory-mapped files of one stream's answers."""

    def __init__(self, place: Path, views: int, rows: int, names: list[str]) -> None:
        self.place, self.views, self.rows = place, views, rows
        self.kept = {name: np.load(place / f"{name}.npy", mmap_mode="r+") for name in names}
        self.checksums = np.load(place / "checksums.npy", mmap_mode="r+")
        self.known = np.load(place / "known.npy", mmap_mode="r+")
        said = place / "error.json"
        self.error: dict[str, float] = json.loads(said.read_text()) if said.exists() else {}

    @property
    def complete(self) -> bool:
        """Whether every answer is there."""
        return bool(self.known.all())

    @property
    def bytes(self) -> int:
        """What the files take."""
        return sum(file.stat().st_size for file in self.place.glob("*.npy"))

    @classmethod
    def find(cls, place: Path, *, views: int, rows: int) -> AnswerFiles | None:
        """Open the files that are there; None where they were never all made."""
        made = place / "made.json"
        return cls(place, views, rows, json.loads(made.read_text())) if made.exists() else None

    @classmethod
    def make(cls, place: Path, layout: dict[str, tuple[str, tuple[int, ...]]], *, views: int, rows: int) -> AnswerFiles:
        """Make empty files and take their room on the disk at once, or open those that another process made meanwhile.

        Raises:
            StorageError: there is not so much room; what was made is removed.
        """
        every = layout | {"checksums": ("int64", ()), "known": ("bool", ())}
        size = sum(views * rows * math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in every.values())
        paths = {place / f"{name}.npy": place / f".{name}.npy.{os.getpid()}.part" for name in every}
        try:
            for beside, (dtype, shape) in zip(paths.values(), every.values(), strict=True):
                empty = np.lib.format.open_memmap(beside, mode="w+", dtype=dtype, shape=(views, rows, *shape))
                empty.flush()
                _take_room(beside, empty.offset)
                del empty
            if (made := cls.find(place, views=views, rows=rows)) is not None:
                return made
            for path, beside in paths.items():
                beside.replace(path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageError(
                    f"{place} could not be written ({error.strerror or error}): name another folder"
                ) from error
            raise StorageError(
                f"the teacher's answers need {size / 1e6:,.1f} MB in {place}, and the disk is too full: nothing was "
                "changed; make room, name another folder, or keep less (float16, top-K, fewer views)"
            ) from error
        finally:
            for beside in paths.values():
                beside.unlink(missing_ok=True)
        write_json(place / "made.json", list(layout))
        return cls(place, views, rows, list(layout))

    def settle(self, pending: list[tuple[int, slice]]) -> None:
        """Let answers reach the disk, and then say that they are known."""
        for kept in (*self.kept.values(), self.checksums):
            kept.flush()
        write_json(self.place / "error.json", self.error)
        for view, rows in pending:
            self.known[view, rows] = True
        self.known.flush()
        pending.clear()


def _take_room(path: Path, offset: int) -> None:
    """Take all of a new file's room on the disk; what comes after `offset` is nothing but zeros so far."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                return
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # this disk takes none in advance
                    raise
        file.seek(offset)
        for begin in range(offset, size, _PIECE):
            file.write(bytes(min(_PIECE, size - begin)))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def alone_in(place: Path) -> Iterator[None]:
    """Wait until no other process fills these files, and clear what a killed one left half-made.

    Where the system or the disk knows no locks, several may fill them: they write the same, each what it was told.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        handle = os.open(place / "lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise StorageError(f"{place} could not be written ({error.strerror}): name another folder") from error
    try:
        if hold(handle, wait=True):
            sweep(place)
        yield
    finally:
        os.close(handle)
