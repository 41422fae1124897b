"""Small modules that methods are built from: frozen teachers, taps, aligners, providers, averages and memories."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.blocks.align import Align, HintRegressor
    from stillroom.blocks.frozen import Frozen, fingerprint
    from stillroom.blocks.shapes import as_map, as_tokens, grid_of, kind_of, pooled, resize
    from stillroom.blocks.stages import MatchedTaps, default_taps, matched_taps
    from stillroom.blocks.taps import Taps, tap_root

_EXPORTS = {
    "Align": "align",
    "Frozen": "frozen",
    "HintRegressor": "align",
    "MatchedTaps": "stages",
    "Taps": "taps",
    "as_map": "shapes",
    "as_tokens": "shapes",
    "default_taps": "stages",
    "fingerprint": "frozen",
    "grid_of": "shapes",
    "kind_of": "shapes",
    "matched_taps": "stages",
    "pooled": "shapes",
    "resize": "shapes",
    "tap_root": "taps",
}

__all__ = [
    "Align",
    "Frozen",
    "HintRegressor",
    "MatchedTaps",
    "Taps",
    "as_map",
    "as_tokens",
    "default_taps",
    "fingerprint",
    "grid_of",
    "kind_of",
    "matched_taps",
    "pooled",
    "resize",
    "tap_root",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
