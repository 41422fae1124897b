"""A model as a folder: weights with the network's own names, a configuration that is data, and a card."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom._version import __version__
from stillroom.blocks.taps import unwrapped
from stillroom.checkpoint import write_bytes
from stillroom.hub import building, code
from stillroom.hub.card import code_for, model_card, needs_of
from stillroom.hub.fetch import quiet
from stillroom.hub.foreign import foreign_config
from stillroom.hub.language import WEIGHTS_FILE, LanguageModel, has_tokenizer, load_tokenizer
from stillroom.hub.model import Model, class_path, name_of
from stillroom.hub.weights import STUDENT_FILE, fit_weights, read_weights
from stillroom.hub.wrappers import wrapper_of

FORMAT = 1
"""The layout of config.json's part for us; a later one refuses to be read by an earlier package."""

_CODE = ("function", "file", "module")


@dataclass(frozen=True)
class Trusted:
    """A model's name for `load` that lets a folder's code be run, also in the processes that it is sent to.

    Attributes:
        spec: what `load` takes as a name.
    """

    spec: str


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    card: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as a folder that loads with `stillroom.load`, and without stillroom where its family allows.

    `student.safetensors` holds the network's weights under the network's own names (shared tensors once for each name);
    `config.json` says how to build it: ours under "stillroom", and beside it what timm (`local-dir:`) or transformers
    (`AutoConfig`) expect there; `README.md` is the card; `metrics.json` the metrics, where given. The weights are
    written last, each file whole or not at all. Beside a language model lies its tokenizer; the weights of one of
    transformers are called `model.safetensors` too, which is where `from_pretrained` looks for them.

    A network that its family no longer builds with these shapes (pruned, merged) is written all the same; its folder
    then needs `model=` to be loaded, and says so.

    Args:
        model: a `Model`; any other module is saved with the name of its class and needs `model=` to be loaded.
        folder: made where it is missing.
        config: how to build the model, instead of `model.config`.
        card: text of README.md; None: a minimal one.
        metrics: JSON-able numbers.
        overwrite: replace the student that the folder holds.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds a student already, or a configuration of something else.
        TypeError: metrics or config are not JSON-able, or the network's state is not tensors only.
    """
    import safetensors.torch

    folder = Path(folder)
    model = unwrapped(model)
    wrapped = model if isinstance(model, Model) else wrapper_of(model)(model, channels=None)
    state = _tensors(unwrapped(wrapped.net))
    if (folder / STUDENT_FILE).exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a student already: save into another folder, or pass overwrite=True")
    if (folder / "config.json").exists() and not is_folder(folder):
        raise FileExistsError(f"{folder} holds the configuration of something else: save into another folder")
    ours = {**wrapped.config, **(config or {})}
    if ours["kind"] in building.PLANS and not _rebuilds(ours, state):
        ours = {**ours, "kind": "module", "name": class_path(wrapped.net), "was": name_of(wrapped)}
        ours.pop("options", None)
    foreign = foreign_config(wrapped.net, ours)
    if ours["kind"] == "hf":
        ours.pop("options")  # they are transformers' part of the file
    ours.pop("weights", None)  # where they came from before training
    ours = {"format": FORMAT, "version": __version__, **ours}
    texts = {
        "README.md": model_card(wrapped, ours, metrics) if card is None else card,
        "config.json": _json({**foreign, "stillroom": ours}, "config"),
    }
    if metrics is not None:
        texts["metrics.json"] = _json(metrics, "metrics")
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())
    write_bytes(folder / STUDENT_FILE, safetensors.torch.save(state, metadata={"format": "pt"}))
    if isinstance(wrapped, LanguageModel):
        if wrapped.tokenizer is not None:
            wrapped.tokenizer.save_pretrained(folder)
        if ours["kind"] == "hf":
            _also_as(folder / STUDENT_FILE, folder / WEIGHTS_FILE)
    return folder


def _also_as(file: Path, name: Path) -> None:
    """Give a file a second name, for libraries that look for it there; a copy where the disk has no links."""
    name.unlink(missing_ok=True)
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def load_folder(
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    channels: int | None = None,
    trust_code: bool = False,
    device: torch.device | str = "cpu",
) -> Model:
    """Load a model from a folder that `save` wrote.

    Networks of timm, torchvision, transformers and our own are built from plain data. One that a user's function or
    class built is built again only with `trust_code=True`, since the folder may come from somebody else; one that was
    given as a module must be given again.

    Args:
        folder: written by `save`.
        model: the network to load the weights into, instead of building one; of a `Model` the network inside.
        channels: of the inputs, where they are others than those of the data that the model was trained on: 1 for grey,
            which is repeated to RGB, 3 for RGB, which becomes luminance.
        trust_code: run the function, file or class that the folder names.
        device: where the model goes.

    Returns:
        The model, in eval mode.

    Raises:
        FileNotFoundError: there is no such folder, or no student in it.
        ValueError: it was not written by `save` or by a later version, names code without `trust_code`, or its weights
            do not fit; or the network takes other channels than grey or RGB.
    """
    folder = Path(folder)
    config = _read(folder)
    if model is not None:
        net = model.net if isinstance(model, Model) else model
    elif config["kind"] in building.PLANS:
        net, _ = building.build(config["kind"], config["name"], config["options"])
    else:
        net = _run(folder, config, trust_code)
    inner = {**config, "weights": "folder"}
    if channels is not None:
        inner["channels"] = channels
    loaded = Model.from_config(net, inner)
    fit_weights(net, read_weights(folder), where=str(folder / STUDENT_FILE), whose=name_of(loaded))
    if isinstance(loaded, LanguageModel) and has_tokenizer(folder):
        loaded.tokenizer = load_tokenizer(folder)
    loaded.note_channels()
    return loaded.to(device).eval()


def how_to_load(folder: str | Path) -> str:
    """Say how a folder written by `save` is loaded: the call, and what code it needs.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it was not written by `save`.
    """
    config = _read(Path(folder))
    return f"`{code_for(config['kind'])}`. {needs_of(config)}".rstrip()


def is_folder(folder: str | Path) -> bool:
    """Whether a folder was written by `save`."""
    try:
        content = json.loads((Path(folder) / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and isinstance(content.get("stillroom"), dict)


def _read(folder: Path) -> dict[str, Any]:
    """Our part of config.json, without what only describes it; checked, since it may come from anybody."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"there is no config.json in {folder}: expected a folder written by stillroom.hub.save")
    if not is_folder(folder):
        raise ValueError(
            f"{folder / 'config.json'} was not written by stillroom.hub.save: write hf/{folder} for a folder "
            "of transformers"
        )
    content = json.loads((folder / "config.json").read_text())
    config = content.pop("stillroom")
    if config.get("kind") == "hf":
        config["options"] = content
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{folder} was written by stillroom {config.get('version')} in layout {config.get('format')}, expected "
            f"layout {FORMAT}: install that version or a later one"
        )
    kind, name = config.get("kind"), config.get("name")
    if kind not in (*building.PLANS, *_CODE) or not isinstance(name, str):
        raise ValueError(
            f"{folder} names a network {name!r} of kind {kind!r}, expected one of {(*building.PLANS, *_CODE)}"
        )
    if not isinstance(config.get("options", {}), dict):
        raise ValueError(f"{folder} has options of type {type(config['options']).__name__}, expected a dict")
    for key in ("classes", "channels", "net_channels", "image_size", "size"):
        if not isinstance(config.get(key), (int, type(None))):
            raise ValueError(f"{folder} says {key} is {config[key]!r}, expected a whole number or null")
    for key in ("mean", "std"):
        values = config.get(key)
        if values is not None and not (isinstance(values, list) and all(isinstance(v, (int, float)) for v in values)):
            raise ValueError(f"{folder} says {key} is {values!r}, expected a list of numbers or null")
    return {"options": {}, **{key: value for key, value in config.items() if key not in ("format", "version")}}


def _run(folder: Path, config: Mapping[str, Any], trust_code: bool) -> nn.Module:
    """Build a network with code that a folder names, where that is allowed."""
    name = config["name"]
    if config.get("was"):
        raise ValueError(
            f"{folder} holds a {config['was']} whose layers were changed, which cannot be built from its name: pass "
            "the changed network as model= of stillroom.load"
        )
    if config["kind"] != "module":
        if not trust_code:
            raise ValueError(
                f"{folder} holds a network that the code {name!r} builds, and code that a folder names is not run: "
                "pass trust_code=True (--trust-code) if you trust it, or build the network and pass it as model= of "
                "stillroom.load"
            )
        return code.call_builder(code.find_function(name), name, config["options"])
    remedy = "build the network in Python and pass it as model= of stillroom.load"
    if not trust_code:
        raise ValueError(f"{folder} holds a {name} that was given as a module, which its name does not build: {remedy}")
    module, _, attribute = name.rpartition(".")
    try:
        net = code.call_builder(getattr(importlib.import_module(module), attribute), name, {})
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} holds a {name}, which cannot be built without arguments: {remedy}") from error
    if set(net.state_dict()) != set(read_weights(folder)):
        raise ValueError(f"{folder} holds a {name} with other layers than one built without arguments: {remedy}")
    return net


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """A network's weights and buffers as tensors that share nothing, as the format wants them."""
    state = net.state_dict()
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise TypeError(
            f"the state of {type(net).__name__} has {strange[0]!r}, which is no tensor: only tensors are saved"
        )
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def _rebuilds(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Whether the configuration builds a network with the names and shapes of these weights."""
    with torch.random.fork_rng(devices=[]), quiet():
        try:
            net, _ = building.build(config["kind"], config["name"], config["options"])
        except (ValueError, ImportError):
            return False
    built = {name: value.shape for name, value in net.state_dict().items()}
    return built == {name: value.shape for name, value in state.items()}


def _json(content: Mapping[str, Any], what: str) -> str:
    try:
        return json.dumps(content, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be plain values that JSON has, but {error}: turn tensors into numbers") from error
