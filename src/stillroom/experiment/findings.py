"""Reads a results dictionary: arms in the order they are shown, differences to the student alone, the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillroom.experiment.statistics import mean_interval

KINDS = ("distill", "compare", "system")
ROLES = ("teacher", "method", "alone", "baseline", "control")


@dataclass(frozen=True)
class Span:
    """A mean with its interval; None where there is none (one seed, a run without a value)."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any] | None) -> Span:
        """Take mean, low and high; what is absent or not finite is None."""
        given = given or {}
        return cls(*(_finite(given.get(key)) for key in ("mean", "low", "high")))

    @property
    def limits(self) -> tuple[float, float] | None:
        """Low and high, where both are known."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: as the results have it.
        role: "teacher", "alone", "method", "baseline" or "control".
        values: one per seed (None where a run gave no number); a single one where the arm is fixed.
        span: mean and interval of the values.
        fixed: the same for all seeds (a teacher that is not trained here).
        seconds: per seed, may be empty.
        metrics: further metrics, values per seed.
        curves: metric -> seed -> points (step, value).
        gain: mean and interval of the paired difference to the student alone, above 0 where this arm is better.
        gains: that difference per seed; empty where there is none.
        colour: number of its colour.
    """

    name: str
    role: str
    values: tuple[float | None, ...]
    span: Span
    fixed: bool
    seconds: tuple[float, ...] = ()
    metrics: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]] = field(default_factory=dict)
    gain: Span | None = None
    gains: tuple[float | None, ...] = ()
    colour: int = 0

    @property
    def verdict(self) -> str:
        """The verdict against the student alone; empty where there is no difference to judge."""
        if self.gain is None or self.gain.mean is None:
            return ""
        word = verdict_of(self.gain)
        return word if self.role != "control" else {"worth it": "better", "harmful": "worse"}.get(word, word)


@dataclass(frozen=True)
class Findings:
    """A results dictionary, read and checked."""

    kind: str
    metric: str
    higher_is_better: bool
    level: float
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    raw: Mapping[str, Any]

    @property
    def alone(self) -> Arm | None:
        """The student alone."""
        return next((arm for arm in self.arms if arm.role == "alone"), None)

    @property
    def teacher(self) -> Arm | None:
        """The teacher, where it was measured."""
        return next((arm for arm in self.arms if arm.role == "teacher" and arm.span.mean is not None), None)

    @property
    def method(self) -> Arm | None:
        """The arm a single verdict is about."""
        methods = [arm for arm in self.arms if arm.role == "method"]
        return next((arm for arm in methods if arm.name == self.raw.get("method")), methods[0] if methods else None)

    @property
    def ranked(self) -> tuple[Arm, ...]:
        """Arms that were run over seeds, the best mean first."""
        sign = -1 if self.higher_is_better else 1
        run = [arm for arm in self.arms if not arm.fixed and arm.span.mean is not None]
        return tuple(sorted(run, key=lambda arm: sign * (arm.span.mean or 0.0)))

    @property
    def listed(self) -> tuple[Arm, ...]:
        """Arms as they are listed: in a comparison the best mean first, and those without a value last."""
        if self.kind != "compare":
            return self.arms
        return (*self.ranked, *(arm for arm in self.arms if arm not in self.ranked))

    @property
    def fixed(self) -> tuple[Arm, ...]:
        """Arms that are the same for all seeds and have a value."""
        return tuple(arm for arm in self.arms if arm.fixed and arm.span.mean is not None)


def read(results: Mapping[str, Any]) -> Findings:
    """Read a results dictionary.

    Args:
        results: "kind", "metric", "seeds" and "arms" are needed, the rest may be absent; differences are above 0 where
            the arm is better than the student alone, also for metrics of which less is better.

    Raises:
        ValueError: a needed part is absent, the kind or a role is unknown, an arm has neither one value, nor one per
            seed, nor none, or the verdict given is not what the difference says.
    """
    for key in ("kind", "metric", "seeds", "arms"):
        if key not in results:
            raise ValueError(f"results must have {key!r}, given {', '.join(map(repr, results)) or 'nothing'}")
    if results["kind"] not in KINDS:
        raise ValueError(f"results must be of kind {', '.join(KINDS)}, given {results['kind']!r}")
    seeds = tuple(results["seeds"])
    higher = bool(results.get("higher_is_better", True))
    level = float(results.get("level", 0.95))
    given = {name: dict(arm) for name, arm in results["arms"].items()}
    for name, arm in given.items():
        if arm.get("role", "method") not in ROLES:
            raise ValueError(f"the role of arm {name!r} must be one of {', '.join(ROLES)}, given {arm['role']!r}")
        if len(arm.get("values", ())) not in (0, 1, len(seeds)):
            raise ValueError(
                f"arm {name!r} has {len(arm['values'])} values for {len(seeds)} seeds: give one per seed, or a single "
                "one for an arm that is the same for all seeds"
            )
    methods = [name for name, arm in given.items() if arm.get("role", "method") == "method"]
    alone = next((name for name, arm in given.items() if arm.get("role") == "alone"), None)
    gains = dict(results.get("differences") or {})
    main = results.get("method") if results.get("method") in given else next(iter(methods), None)
    if results.get("difference") and main is not None:
        gains[main] = results["difference"]
    arms = [
        _arm(name, arm, given.get(alone or ""), gains.get(name), seeds, higher, level, number)
        for (name, arm), number in zip(given.items(), _colours(given), strict=True)
    ]
    if results["kind"] == "distill":
        arms.sort(key=lambda arm: ROLES.index(arm.role))
    findings = Findings(
        kind=results["kind"],
        metric=str(results["metric"]),
        higher_is_better=higher,
        level=level,
        seeds=seeds,
        arms=tuple(arms),
        raw=results,
    )
    method, said = findings.method, results.get("verdict")
    if said in ("worth it", "no difference shown", "harmful") and method is not None and method.gain is not None:
        found = verdict_of(method.gain)
        if said != found:
            raise ValueError(f"the verdict is given as {said!r}, but the difference says {found!r}: leave it out")
    return findings


def verdict_of(gain: Span) -> str:
    """Say whether it was worth it: "worth it", "no difference shown" or "harmful".

    Args:
        gain: mean and interval of the difference to the student alone, above 0 where the method is better.
    """
    if gain.limits is None:
        return "no difference shown"
    low, high = gain.limits
    if low > 0:
        return "worth it"
    return "harmful" if high < 0 else "no difference shown"


def _arm(
    name: str,
    arm: Mapping[str, Any],
    alone: Mapping[str, Any] | None,
    gain: Mapping[str, Any] | None,
    seeds: Sequence[int],
    higher: bool,
    level: float,
    colour: int,
) -> Arm:
    role = arm.get("role", "method")
    values = tuple(_finite(value) for value in arm.get("values", ()))
    span = Span.read(arm)
    if span.mean is None and values and None not in values:
        span = Span(math.fsum(value for value in values if value is not None) / len(values))
    found = Span.read(gain) if gain and role not in ("alone", "teacher") else None
    gains: tuple[float | None, ...] = ()
    if alone is not None and role not in ("alone", "teacher") and len(alone["values"]) == len(values) == len(seeds):
        sign = 1 if higher else -1
        pairs = zip(values, map(_finite, alone["values"]), strict=True)
        gains = tuple(None if a is None or b is None else sign * (a - b) for a, b in pairs)
        known = [value for value in gains if value is not None]
        if found is None and len(known) == len(gains):
            found = Span.read(mean_interval(known, level=level).as_dict())
    return Arm(
        name=str(name),
        role=role,
        values=values,
        span=span,
        fixed=len(values) == 1 and (len(seeds) > 1 or role == "teacher"),
        seconds=tuple(arm.get("seconds") or ()),
        metrics={key: tuple(map(_finite, column)) for key, column in (arm.get("metrics") or {}).items()},
        curves=arm.get("curves") or {},
        gain=found,
        gains=gains,
        colour=colour,
    )


def _colours(arms: Mapping[str, Mapping[str, Any]]) -> list[int]:
    """Number the colours: 0 the student alone, 1 the teacher, from 2 on the others in order."""
    numbers, free = [], 2
    for arm in arms.values():
        role = arm.get("role", "method")
        if role in ("alone", "teacher"):
            numbers.append(0 if role == "alone" else 1)
        else:
            numbers.append(2 + (free - 2) % 8)
            free += 1
    return numbers


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
