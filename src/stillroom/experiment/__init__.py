"""Experiments: arms over seeds, claims, intervals, and the report."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.experiment.arm import Context as Context
    from stillroom.experiment.arm import TrainingArm as TrainingArm
    from stillroom.experiment.claim import Claim as Claim
    from stillroom.experiment.claim import Verdict as Verdict
    from stillroom.experiment.cost import Cost as Cost
    from stillroom.experiment.cost import agreement as agreement
    from stillroom.experiment.cost import costs as costs
    from stillroom.experiment.report import comparison_table as comparison_table
    from stillroom.experiment.report import write_report as write_report
    from stillroom.experiment.run import Experiment as Experiment
    from stillroom.experiment.statistics import Interval as Interval
    from stillroom.experiment.statistics import mean_interval as mean_interval
    from stillroom.experiment.statistics import paired_interval as paired_interval

_EXPORTS = {
    "Claim": "claim",
    "Context": "arm",
    "Cost": "cost",
    "Experiment": "run",
    "Interval": "statistics",
    "TrainingArm": "arm",
    "Verdict": "claim",
    "agreement": "cost",
    "comparison_table": "report",
    "costs": "cost",
    "mean_interval": "statistics",
    "paired_interval": "statistics",
    "write_report": "report",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
