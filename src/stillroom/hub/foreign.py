"""What config.json says to other libraries, so that a saved folder opens without stillroom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def foreign_config(net: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the network's own library expects at the top of config.json; empty where it expects nothing.

    Args:
        net: the network.
        config: a `Model.config`.
    """
    if config["kind"] == "hf":
        return {**config["options"], "architectures": [type(net).__name__]}
    if config["kind"] != "timm":
        return {}
    options, told = dict(config["options"]), dict(getattr(net, "pretrained_cfg", None) or {})
    classes = options.pop("num_classes", told.get("num_classes"))
    side = config["size"] or config["image_size"] or told.get("input_size", (3, 224))[-1]
    kept = ("interpolation", "crop_pct", "crop_mode", "first_conv", "classifier", "fixed_input_size", "pool_size")
    return {
        "architecture": config["name"].split(".")[0],
        "num_classes": classes,
        "model_args": options,
        "pretrained_cfg": {
            **{name: told[name] for name in kept if name in told},
            "num_classes": classes,
            "input_size": [config["net_channels"], side, side],
            "mean": config["mean"],
            "std": config["std"],
        },
    }
