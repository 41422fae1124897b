"""The model card of a saved model, for those who were given none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.hub.detectors import torchvision_arguments
from stillroom.hub.language import LanguageModel
from stillroom.hub.model import Model, describe, name_of

_WITHOUT_US = {
    "timm": """\
```python
import timm
from safetensors.torch import load_file

net = timm.create_model({name!r}, {options})
net.load_state_dict(load_file("student.safetensors"))
```
""",
    "torchvision": """\
```python
import torchvision
from safetensors.torch import load_file

net = torchvision.models.get_model({name!r}, weights=None, weights_backbone=None, {options})
net.load_state_dict(load_file("student.safetensors"))
```
""",
    "hf": """\
```python
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageClassification

net = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained("."))
net.load_state_dict(load_file("student.safetensors"))
```
""",
}


_LANGUAGE_WITHOUT_US = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

net, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
```
"""


_NEEDS = {
    "function": "This runs `{name}`, which built the network and must be importable where it is loaded.",
    "file": "This runs `{name}`, which built the network; the path is relative to where Python runs.",
    "module": "The network was given as a module (`{name}`): build it with the same layers and call it `network`.",
}


def code_for(kind: str) -> str:
    """The Python that loads a folder whose network is of a kind."""
    needs = {"module": ", model=network", "function": ", trust_code=True", "file": ", trust_code=True"}
    return f'stillroom.load("path/to/this/folder"{needs.get(kind, "")})'


def needs_of(config: Mapping[str, Any]) -> str:
    """Say what code loading a network needs; empty where it needs none of a user's."""
    return _NEEDS.get(config["kind"], "").format(name=config["name"])


def model_card(model: Model, config: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> str:
    """Write a minimal README.md: what the model is, what it scored, how to load it with and without stillroom.

    Args:
        model: what is saved.
        config: what is written about it.
        metrics: shown in a table.
    """
    parts = [f"---\nlibrary_name: stillroom\n---\n# {name_of(model)}\n\n{describe(model)}.\n"]
    if metrics:
        rows = [f"| {name} | {_shown(value)} |" for name, value in metrics.items()]
        parts.append("\n".join(["| metric | value |", "| --- | --- |", *rows]) + "\n")
    parts.append(f"```python\nimport stillroom\n\nmodel = {code_for(config['kind'])}\n```\n")
    if needs := needs_of(config):
        parts.append(f"{needs}\n")
    foreign = _without_us(config)
    if isinstance(model, LanguageModel) and foreign:
        foreign = _LANGUAGE_WITHOUT_US
    if foreign:
        parts.append(f"Without stillroom, in this folder:\n\n{foreign}")
        if not model.takes and (inputs := _inputs(config)):
            parts.append(f"The network inside takes images that were {inputs}.\n")
    return "\n".join(parts)


def _without_us(config: Mapping[str, Any]) -> str:
    kind, name, options = config["kind"], str(config["name"]), dict(config.get("options", {}))
    if kind not in _WITHOUT_US or (kind == "torchvision" and options.pop("channels", 3) != 3):
        return ""
    if kind == "torchvision":
        name = name.rsplit("/", 1)[-1]
        template = _WITHOUT_US[kind]
        if name.startswith("fasterrcnn"):
            if options.pop("frozen_norms", False):
                return ""
            options = torchvision_arguments(options)
        elif not str(config["name"]).startswith("segmentation/"):
            template = template.replace("weights_backbone=None, ", "")
    else:
        template = _WITHOUT_US[kind]
    return template.format(name=name, options=", ".join(f"{key}={value!r}" for key, value in options.items()))


def _inputs(config: Mapping[str, Any]) -> str:
    steps = []
    if config["channels"] != config["net_channels"]:
        steps.append(f"brought from {config['channels']} to {config['net_channels']} channels")
    if config["size"] is not None:
        steps.append(f"resized to {config['size']}x{config['size']}")
    if config["mean"] is not None:
        mean, std = ([round(value, 6) for value in config[key]] for key in ("mean", "std"))
        steps.append(f"normalised from [0, 1] with mean {mean} and std {std}")
    return ", ".join(steps)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
