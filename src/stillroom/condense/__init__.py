"""Condensing a data set into a few synthetic images: augmentation, start images, checkpoints, a fair test."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.condense.augment import DSA as DSA
    from stillroom.condense.checkpoints import CheckpointPairs as CheckpointPairs
    from stillroom.condense.checkpoints import blend as blend
    from stillroom.condense.features import BeforeHead as BeforeHead
    from stillroom.condense.harness import CutMix as CutMix
    from stillroom.condense.harness import Statistics as Statistics
    from stillroom.condense.harness import fresh_network as fresh_network
    from stillroom.condense.harness import soft_labels as soft_labels
    from stillroom.condense.harness import train_and_test as train_and_test
    from stillroom.condense.harness import train_network as train_network
    from stillroom.condense.initial import from_mixed as from_mixed
    from stillroom.condense.initial import from_noise as from_noise
    from stillroom.condense.initial import from_real as from_real
    from stillroom.condense.real import RealImages as RealImages

_EXPORTS = {
    "BeforeHead": "features",
    "CheckpointPairs": "checkpoints",
    "CutMix": "harness",
    "DSA": "augment",
    "RealImages": "real",
    "Statistics": "harness",
    "blend": "checkpoints",
    "fresh_network": "harness",
    "from_mixed": "initial",
    "from_noise": "initial",
    "from_real": "initial",
    "soft_labels": "harness",
    "train_and_test": "harness",
    "train_network": "harness",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
