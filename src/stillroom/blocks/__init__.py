"""Small modules that methods are built from: frozen teachers, taps, aligners, providers, averages and memories."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.blocks.align import Align, HintRegressor
    from stillroom.blocks.causal import CausalTransformer
    from stillroom.blocks.ema import EMA, decay_of
    from stillroom.blocks.frequencies import FrequencySampler
    from stillroom.blocks.frozen import Frozen, fingerprint
    from stillroom.blocks.heads import with_fresh_head
    from stillroom.blocks.minmax import minmax_gradients
    from stillroom.blocks.models import build
    from stillroom.blocks.providers import Average, Cached, FunctionTeacher, Provider
    from stillroom.blocks.queue import FeatureQueue, gathered
    from stillroom.blocks.shapes import as_map, as_tokens, grid_of, kind_of, pooled, resize
    from stillroom.blocks.stages import MatchedTaps, default_taps, matched_taps
    from stillroom.blocks.taps import Taps, tap_root, unwrapped

_EXPORTS = {
    "Align": "align",
    "Average": "providers",
    "Cached": "providers",
    "CausalTransformer": "causal",
    "EMA": "ema",
    "FeatureQueue": "queue",
    "FrequencySampler": "frequencies",
    "Frozen": "frozen",
    "FunctionTeacher": "providers",
    "HintRegressor": "align",
    "MatchedTaps": "stages",
    "Provider": "providers",
    "Taps": "taps",
    "as_map": "shapes",
    "as_tokens": "shapes",
    "build": "models",
    "decay_of": "ema",
    "default_taps": "stages",
    "fingerprint": "frozen",
    "gathered": "queue",
    "grid_of": "shapes",
    "kind_of": "shapes",
    "matched_taps": "stages",
    "minmax_gradients": "minmax",
    "pooled": "shapes",
    "resize": "shapes",
    "tap_root": "taps",
    "unwrapped": "taps",
    "with_fresh_head": "heads",
}

__all__ = [
    "EMA",
    "Align",
    "Average",
    "Cached",
    "CausalTransformer",
    "FeatureQueue",
    "FrequencySampler",
    "Frozen",
    "FunctionTeacher",
    "HintRegressor",
    "MatchedTaps",
    "Provider",
    "Taps",
    "as_map",
    "as_tokens",
    "build",
    "decay_of",
    "default_taps",
    "fingerprint",
    "gathered",
    "grid_of",
    "kind_of",
    "matched_taps",
    "minmax_gradients",
    "pooled",
    "resize",
    "tap_root",
    "unwrapped",
    "with_fresh_head",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
