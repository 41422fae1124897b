"""Checkpoints that survive a crash: written whole or not at all, checked when read, the one before kept, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from stillroom.log import Notice
from stillroom.storage import whole

SEAL = b"stillroom checkpoint sha256:"
"""What follows the content of a checkpoint, before the hash of that content."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old one or the new one, never a half.

    Raises:
        StorageError: the folder cannot be written or the disk is full; nothing that was there is lost.
    """
    with whole(path) as file:
        file.write(content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2, default=str) + "\n").encode())


def random_state() -> dict[str, Any]:
    """Return the states of all random generators of this process, as tensors and plain numbers."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (the legacy generator is state too)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), gauss],
        "python": [version, list(internal), gauss_next],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set all random generators of this process to what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, own in enumerate(state["cuda"][:there]):  # there may be fewer GPUs than before
        torch.cuda.set_rng_state(own, device)
    if state.get("mps") and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"][0])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


class _Hashing:
    """Passes what is written on to a file, takes its hash, and remembers what the disk complained of."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash = file, hashlib.sha256()
        self.complaint: OSError | None = None

    def write(self, content: bytes) -> int:
        """Write and hash."""
        try:
            written = self.file.write(content)
        except OSError as error:
            self.complaint = error
            raise
        self.hash.update(content)
        return written

    def flush(self) -> None:
        """Write out what waits."""
        self.file.flush()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint with its hash; the one that was there becomes `NAME.before`.

    At every moment there is a whole checkpoint under `path`, or none was ever finished.

    Args:
        path: the file.
        state: tensors, numbers, text, and lists and dictionaries of them.

    Raises:
        StorageError: the folder cannot be written or the disk is full; nothing that was there is lost.
    """
    with whole(path) as file:
        sealed = _Hashing(file)
        try:
            torch.save(state, cast(IO[bytes], sealed))  # all that it calls is write and flush
        except RuntimeError as error:  # torch hides what the disk said
            raise (sealed.complaint or error) from error
        file.write(SEAL + sealed.hash.digest())
        file.flush()
        os.fsync(file.fileno())
        if path.exists():
            _keep(path, path.with_name(path.name + ".before"))


def _keep(path: Path, before: Path) -> None:
    """Give a file a second name, which may be another file's until now."""
    beside = before.with_name(f".{before.name}.{os.getpid()}.part")
    try:
        beside.unlink(missing_ok=True)
        os.link(path, beside)
        beside.replace(before)
    except OSError:  # a disk without links
        path.replace(before)


def load(path: Path, *, wanted: Callable[[dict[str, Any]], bool] = lambda state: True) -> dict[str, Any] | None:
    """Read a checkpoint, or the one before when it is damaged, or None when there is none that can be read.

    What is damaged is said in a warning and put aside as `NAME.damaged`.

    Args:
        path: the file.
        wanted: whether a checkpoint is the one looked for; others are passed over.

    Raises:
        ValueError: a checkpoint is whole, but holds what is not read without pickle; it stays where it is.
    """
    damaged: list[str] = []
    for candidate in (path, path.with_name(path.name + ".before")):
        if not candidate.exists():
            continue
        try:
            state = _read(candidate)
        except _DamagedError as why:
            damaged.append(f"the checkpoint {candidate} is damaged ({why})")
            with suppress(OSError):
                candidate.replace(candidate.with_name(candidate.name + ".damaged"))
            continue
        if wanted(state):
            if damaged:
                warnings.warn(f"{damaged[0]}: the one before it is used", Notice, stacklevel=2)
            return state
    if damaged:
        warnings.warn(f"{' and '.join(damaged)}: there is no other, so it starts anew", Notice, stacklevel=2)
    return None


class _DamagedError(Exception):
    """A checkpoint is not what was written."""


def _read(path: Path) -> dict[str, Any]:
    """Read one checkpoint, after its hash."""
    size = path.stat().st_size
    length = size - len(SEAL) - hashlib.sha256().digest_size
    with path.open("rb") as file:
        found, left = hashlib.sha256(), max(length, 0)
        while left and (part := file.read(min(left, 1 << 20))):
            found.update(part)
            left -= len(part)
        end = file.read()
        if length <= 0 or not end.startswith(SEAL):
            raise _DamagedError(f"its end is missing, {size} bytes are there")
        if end != SEAL + found.digest():
            raise _DamagedError("its content is not what was written")
        file.seek(0)
        try:
            return dict(torch.load(file, map_location="cpu", weights_only=True))
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"the checkpoint {path} is whole, but holds other values than tensors, numbers and text, which cannot "
                f"be read safely ({str(error).splitlines()[0]}): let methods and tasks keep plain values"
            ) from error
