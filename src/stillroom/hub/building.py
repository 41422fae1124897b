"""Build a network of a known family from plain data: what `load` plans and what a saved folder says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from stillroom.hub import huggingface, zoo
from stillroom.hub.fetch import first_line
from stillroom.hub.plan import Plan, Wish

PLANS: dict[str, Callable[[str, Wish], list[Plan]]] = {
    "timm": zoo.timm_plans,
    "torchvision": zoo.torchvision_plans,
    "hf": huggingface.hf_plans,
    "embedded": zoo.embedded_plans,
}
"""The families whose networks are built from a name and plain options, without running code of a user."""

_BUILDERS: dict[str, Callable[[str, dict[str, Any], bool], tuple[nn.Module, bool]]] = {
    "timm": zoo.build_timm,
    "torchvision": zoo.build_torchvision,
    "hf": huggingface.build_hf,
    "embedded": zoo.build_embedded,
}

_OPTIONS = {
    "timm": zoo.TIMM_OPTIONS,
    "torchvision": zoo.TORCHVISION_OPTIONS,
    "embedded": zoo.EMBEDDED_OPTIONS,
}
"""The only options that are passed on, since a folder of a stranger's may name others; hf has a filter of its own."""


def build(kind: str, name: str, options: Mapping[str, Any], *, pretrained: bool = False) -> tuple[nn.Module, bool]:
    """Build a network.

    Args:
        kind: the family, a key of `PLANS`.
        name: the network's name there.
        options: what its builder is called with.
        pretrained: with the family's own weights.

    Returns:
        The network, and whether its head is new beside pretrained layers.

    Raises:
        ValueError: the family cannot build that, or an option is none of the family's.
    """
    if kind in _OPTIONS and (strange := set(options) - set(_OPTIONS[kind])):
        raise ValueError(f"{kind}/{name} is built with {', '.join(_OPTIONS[kind])}, given {', '.join(sorted(strange))}")
    try:
        return _BUILDERS[kind](name, dict(options), pretrained)
    except (RuntimeError, TypeError, AssertionError, LookupError, ZeroDivisionError) as error:
        raise ValueError(f"{kind}/{name} cannot be built with {_shown(options)}: {first_line(error)}") from error


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items() if isinstance(value, (int, float, str)))
