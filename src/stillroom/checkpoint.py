"""Checkpoints that survive a crash: written whole or not at all, the one before kept, read without pickle."""

from __future__ import annotations

import json
import os
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old one or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


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
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), gauss],
        "python": [version, list(internal), gauss_next],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set all random generators of this process to what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; the one that was there becomes `NAME.before`.

    Raises:
        OSError: the folder cannot be written or the disk is full; nothing that was there is lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(path.with_name(path.name + ".before"))
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(
            f"the checkpoint {path} could not be written ({error.strerror}): what was there is kept"
        ) from error


def load(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or the one before when it is damaged (with a warning), or None when there is none.

    Raises:
        ValueError: there are files, but none of them can be read.
    """
    candidates = [candidate for candidate in (path, path.with_name(path.name + ".before")) if candidate.exists()]
    for candidate in candidates:
        try:
            state = torch.load(candidate, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"checkpoint {candidate} cannot be read ({first_line}): trying the one before", stacklevel=2)
            continue
        return dict(state)
    if candidates:
        raise ValueError(f"no checkpoint in {path.parent} can be read: start the run anew in another folder")
    return None
