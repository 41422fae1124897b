"""stillroom: distil any teacher into any student on your own data, and be told whether it was worth it."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from stillroom._version import __version__ as __version__

if TYPE_CHECKING:
    from stillroom.baselines import KD as KD
    from stillroom.baselines import Alone as Alone
    from stillroom.check import check_method as check_method
    from stillroom.compare import compare as compare
    from stillroom.data.batch import Batch as Batch
    from stillroom.distill import Distilled as Distilled
    from stillroom.distill import distill as distill
    from stillroom.experiment.claim import Claim as Claim
    from stillroom.experiment.run import Experiment as Experiment
    from stillroom.fit import Fitted as Fitted
    from stillroom.fit import fit as fit
    from stillroom.hub import load_folder as load  # noqa: F401
    from stillroom.method import Losses as Losses
    from stillroom.method import Method as Method
    from stillroom.method import Needs as Needs
    from stillroom.method import Stage as Stage
    from stillroom.training import Optim as Optim
    from stillroom.training import Training as Training

_EXPORTS = {
    "Alone": "baselines",
    "Batch": "data.batch",
    "Claim": "experiment.claim",
    "Distilled": "distill:Distilled",
    "Experiment": "experiment.run",
    "Fitted": "fit",
    "KD": "baselines",
    "Losses": "method",
    "Method": "method",
    "Needs": "method",
    "Optim": "training",
    "Stage": "method",
    "Training": "training",
    "check_method": "check",
    "compare": "compare",
    "distill": "distill",
    "fit": "fit",
    "load": "hub:load_folder",
}
_MODULES = ("baselines", "blocks", "check", "data", "experiment", "hub", "losses", "systems", "task")

__all__ = sorted([*_EXPORTS, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        module, _, attribute = _EXPORTS[name].partition(":")
        return getattr(importlib.import_module(f"stillroom.{module}"), attribute or name)
    if name in _MODULES:
        return importlib.import_module(f"stillroom.{name}")
    raise AttributeError(f"module 'stillroom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps `stillroom.distill` the function when somebody imports the module of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _EXPORTS):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
