"""Exploration: novelty of states as a reward, for any algorithm of Stable-Baselines3.

A novelty (`RandomNetworkDistillation`, or anything with `bonus` and `learn`) says how new states are; `IntrinsicReward`
adds it to the reward of a vectorised environment and lets it learn after every rollout.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.explore.advantages import generalised_advantages as generalised_advantages
    from stillroom.explore.moments import DiscountedScale as DiscountedScale
    from stillroom.explore.moments import RunningMoments as RunningMoments
    from stillroom.explore.novelty import Novelty as Novelty
    from stillroom.explore.novelty import RandomNetworkDistillation as RandomNetworkDistillation
    from stillroom.explore.novelty import mlp as mlp
    from stillroom.explore.two_heads import TwoHeads as TwoHeads
    from stillroom.explore.wrapper import IntrinsicReward as IntrinsicReward
    from stillroom.explore.wrapper import LearnNovelty as LearnNovelty

_EXPORTS = {
    "DiscountedScale": "moments",
    "IntrinsicReward": "wrapper",
    "LearnNovelty": "wrapper",
    "Novelty": "novelty",
    "RandomNetworkDistillation": "novelty",
    "RunningMoments": "moments",
    "TwoHeads": "two_heads",
    "generalised_advantages": "advantages",
    "mlp": "novelty",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
