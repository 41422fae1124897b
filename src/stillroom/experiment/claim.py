"""Claims: what an experiment says about its arms, written down before it runs and tested over its seeds."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from stillroom.experiment.statistics import Interval, Values, paired_interval


@dataclass(frozen=True)
class Claim:
    """One arm is above, below or equal to another arm, or a number, on one metric.

    With d = first - second, averaged over seeds:
    ">" says d > by, "<" says d < -by, "==" says -within <= d <= within.

    Args:
        first: name of an arm.
        operator: ">", "<" or "==".
        second: name of another arm, or a number.
        on: name of the metric.
        by: least difference claimed by ">" and "<"; below 0 it claims "not worse by more than"; 0 for "==".
        within: half-width of what "==" counts as equal, above 0; 0 for ">" and "<".
        text: the claim in words; written from the rest where it is empty.

    Raises:
        TypeError: an arm or the metric is not a name, or `second` is neither a name nor a number.
        ValueError: another operator, an arm compared with itself, or a `by` or `within` that the operator cannot use.

    Example:
        >>> arms = {"pld": {"accuracy": [0.93, 0.95, 0.94]}, "alone": {"accuracy": [0.90, 0.91, 0.90]}}
        >>> Claim("pld", ">", "alone", on="accuracy").test(arms).verdict
        'shown'
    """

    first: str
    operator: Literal[">", "<", "=="]
    second: str | float
    _: KW_ONLY
    on: str
    by: float = 0.0
    within: float = 0.0
    text: str | None = None

    def __post_init__(self) -> None:
        for field, value in (("first", self.first), ("on", self.on)):
            if not isinstance(value, str):
                raise TypeError(f"{field} must be a name, given {value!r}")
        if isinstance(self.second, bool) or not isinstance(self.second, (str, int, float)):
            raise TypeError(f"second must be the name of an arm or a number, given {self.second!r}")
        if self.operator not in (">", "<", "=="):
            raise ValueError(f'operator must be ">", "<" or "==", given {self.operator!r}')
        if self.first == self.second:
            raise ValueError(f"a claim compares two arms, given {self.first!r} twice")
        numbers = {"by": self.by, "within": self.within}
        if not isinstance(self.second, str):
            numbers["second"] = self.second
        for field, number in numbers.items():
            if not math.isfinite(number):
                raise ValueError(f"{field} must be finite, given {number}")
        if self.operator == "==" and (self.within <= 0 or self.by != 0):
            raise ValueError(
                f'"==" needs within= above 0 (how far apart still counts as equal) and no by=, '
                f"given within={self.within} and by={self.by}"
            )
        if self.operator != "==" and self.within != 0:
            raise ValueError(f'within={self.within} belongs to "==", given with {self.operator!r}: use by=')

    @property
    def sentence(self) -> str:
        """The claim in words."""
        if self.text is not None:
            return self.text
        metric = self.on.replace("_", " ")
        constant = not isinstance(self.second, str)
        other = f"{self.second:g}" if constant else f"that of {self.second}"
        if self.operator == "==":
            return f"The {metric} of {self.first} equals {other} within {self.within:g}."
        word = "above" if self.operator == ">" else "below"
        if self.by == 0:
            return f"The {metric} of {self.first} is {word} {other}."
        if self.by > 0:
            return f"The {metric} of {self.first} is {word} {other} by more than {self.by:g}."
        opposite = "below" if self.operator == ">" else "above"
        return f"The {metric} of {self.first} is not {opposite} {other} by {-self.by:g} or more."

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms it speaks about."""
        return (self.first, self.second) if isinstance(self.second, str) else (self.first,)

    def check_arms(self, names: Iterable[str]) -> None:
        """Refuse, before anything runs, a claim about arms that there are not.

        Raises:
            ValueError: an arm's name is not in `names`; the message has the nearest ones.
        """
        known = list(names)
        for arm in self.arms:
            if arm not in known:
                raise ValueError(f"the claim {self.sentence!r} names the arm {arm!r}, but {_nearest(arm, known)}")

    def test(
        self,
        metrics: Mapping[str, Mapping[str, Values]],
        *,
        level: float = 0.95,
        seed: int = 0,
        resolution: float = 0.0,
    ) -> Verdict:
        """Test the claim by the interval of the paired difference over seeds.

        An arm with one value beside an arm with several is fixed (one teacher for all seeds): it counts as a number.

        Args:
            metrics: `{arm: {metric: values}}`, values as `{seed: number}` or numbers in the order of the seeds.
            level: of the interval, in (0, 1).
            seed: of the resampling.
            resolution: the smallest step of the metric, see `paired_interval`.

        Returns:
            "shown" when the whole interval is where the claim says, "refuted" when all of it is elsewhere, otherwise
            (and always for one seed) "not shown".

        Raises:
            ValueError: there is no such arm, the arm has no such metric, or the values cannot be paired.
        """
        self.check_arms(metrics)
        first = self._values(metrics, self.first)
        if isinstance(self.second, str):
            second = self._values(metrics, self.second)
        else:
            second = dict.fromkeys(first, float(self.second))
        if len(second) == 1:
            second = dict.fromkeys(first, *second.values())
        elif len(first) == 1:
            first = dict.fromkeys(second, *first.values())
        interval = paired_interval(first, second, level=level, seed=seed, resolution=resolution)
        return Verdict(self, self._judge(interval), interval)

    def _values(self, metrics: Mapping[str, Mapping[str, Values]], arm: str) -> dict[int, float]:
        if self.on not in metrics[arm]:
            raise ValueError(
                f"the claim {self.sentence!r} is on {self.on!r}, but for {arm!r} {_nearest(self.on, metrics[arm])}"
            )
        values = metrics[arm][self.on]
        return dict(values.items() if isinstance(values, Mapping) else enumerate(values))

    def _judge(self, interval: Interval) -> Literal["shown", "not shown", "refuted"]:
        low, high = interval.low, interval.high
        if low is None or high is None:
            return "not shown"
        if self.operator == "==":
            if -self.within <= low and high <= self.within:
                return "shown"
            return "refuted" if low > self.within or high < -self.within else "not shown"
        if self.operator == "<":
            low, high = -high, -low
        if low > self.by:
            return "shown"
        return "refuted" if high < self.by else "not shown"


@dataclass(frozen=True)
class Verdict:
    """What the seeds say about a claim.

    Attributes:
        claim: the claim.
        verdict: "shown", "not shown" or "refuted".
        interval: of first - second.
    """

    claim: Claim
    verdict: Literal["shown", "not shown", "refuted"]
    interval: Interval

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: "better" is the claim's first arm and "worse" what that is compared with."""
        claim = self.claim
        return {
            "text": claim.sentence,
            "verdict": self.verdict,
            **self.interval.as_dict(),
            "better": claim.first,
            "operator": claim.operator,
            "worse": claim.second,
            "on": claim.on,
            "by": claim.by,
            "within": claim.within,
        }


def _nearest(name: str, known: Iterable[str]) -> str:
    """Say what there is, the names nearest to the one asked for first."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"there is none of that name: did you mean {' or '.join(map(repr, near))}?"
    return f"there is none of that name: there is {', '.join(map(repr, names)) or 'nothing'}"
