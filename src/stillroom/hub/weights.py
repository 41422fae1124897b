"""Weights from files: read without running anything, their names brought to the network's, refused when they differ."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.hub.fetch import first_line
from stillroom.hub.model import Model, name_of

STUDENT_FILE = "student.safetensors"

_NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "student")
"""Keys under which training scripts keep the weights beside optimizers and epochs."""

_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "student.")
"""What DataParallel, torch.compile, Lightning and our own wrapper put before the network's names."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors, without running code that it may contain.

    Args:
        path: a .safetensors file; a file written by `torch.save` (.pt, .pth, .bin, .ckpt), read with
            `weights_only=True`, the weights at its top or under "state_dict", "model_state_dict", "model", "net",
            "network" or "student"; or a folder written by `stillroom.hub.save`.

    Returns:
        Names and tensors, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, holds more than tensors and numbers, or holds no tensors.
    """
    path = Path(path)
    if path.is_dir():
        path = path / STUDENT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: expected a .safetensors, .pt or .pth file")
    if path.suffix == ".safetensors":
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as safetensors ({first_line(error)}): save it again") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, or is damaged, and is not read because reading could run its code: save "
            "network.state_dict() alone, as .safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as weights ({first_line(error)}): save it again") from error
    tensors = _tensors_of(content)
    if not tensors:
        raise ValueError(f"{path} holds no weights, expected a dict of tensors: save network.state_dict()")
    return tensors


def fit_weights(net: nn.Module, tensors: Mapping[str, Tensor], *, where: str, whose: str) -> None:
    """Load weights into a network, every name and shape as it must be.

    Prefixes that all names share ("module.", "_orig_mod.", "model.", "net.", "network.", "student.") are taken off
    where the network has none.

    Args:
        net: changed in place.
        tensors: names and values.
        where: where they come from, for messages.
        whose: what the network is, for messages.

    Raises:
        ValueError: names are missing, unknown, or have another shape; the first few are named.
    """
    own = net.state_dict()
    tensors = _without_prefixes(dict(tensors), own)
    differ = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    shapes = [f"{name} is {tuple(tensors[name].shape)} for {tuple(own[name].shape)}" for name in differ]
    wrong = {
        "missing": [name for name in own if name not in tensors],
        "unknown": [name for name in tensors if name not in own],
        "of another shape": shapes,
    }
    if any(wrong.values()):
        told = "; ".join(f"{len(names)} {what} ({_few(names)})" for what, names in wrong.items() if names)
        raise ValueError(
            f"the weights in {where} do not fit {whose}: {told}; load the network that they were saved from, with the "
            "same number of classes"
        )
    net.load_state_dict(tensors)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read a checkpoint and load it into a network, every name and shape as it must be.

    Args:
        model: changed in place; of a `Model` the network inside.
        path: see `read_weights`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read or does not fit; the first few names that differ are given.
    """
    net = model.net if isinstance(model, Model) else model
    fit_weights(net, read_weights(path), where=str(path), whose=name_of(model))


def _tensors_of(content: Any) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return {str(name): value for name, value in content.items()}
        content = next((content[key] for key in _NESTS if isinstance(content.get(key), Mapping)), None)
    return {}


def _without_prefixes(tensors: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    while tensors and not any(name in own for name in tensors):
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _few(names: list[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
