"""Puts findings into words: numbers with sensible digits, and the verdict in one sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.experiment.findings import Arm, Findings, Span, verdict_of

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
TONES = {"worth it": "good", "better": "good", "shown": "good", "harmful": "bad", "worse": "bad", "refuted": "bad"}
"""Of verdicts; the others are "open"."""
_SHARES = re.compile(
    r"acc|top.?\d|precision|recall|sensitivity|specificity|f1|iou|dice|auroc|auc|^ap\d*$|^m?ap(_|$)|agreement|error|share|rate"
)
_DECIBELS = re.compile(r"(^|_)(psnr|snr|gain_over_bicubic)(_|$)")


@dataclass(frozen=True)
class Scale:
    """How the values of one metric are written.

    Attributes:
        percent: values are shares in [0, 1], written in percent, and their differences in points.
        decimals: digits after the point, of what is written.
        decibels: values are in dB.
    """

    percent: bool
    decimals: int
    decibels: bool = False

    @classmethod
    def of(cls, metric: str, values: Iterable[float | None]) -> Scale:
        """Choose the scale by the metric's name and by how far its values lie apart."""
        known = [value for value in values if value is not None and math.isfinite(value)]
        percent = bool(_SHARES.search(metric.lower())) and all(0 <= value <= 1 for value in known)
        decibels = bool(_DECIBELS.search(metric.lower()))
        spread = (max(known) - min(known)) * (100 if percent else 1) if known else 0.0
        if spread == 0:
            largest = max(map(abs, known), default=0.0)
            return cls(percent, 1 if percent else 0 if largest == 0 else min(max(3 - _digits(largest), 0), 6), decibels)
        digits = min(max(1 - _digits(spread), 1), 2) if percent else min(max(2 - _digits(spread), 0), 6)
        return cls(percent, min(max(digits, 2), 3) if decibels else digits, decibels)

    def value(self, value: float | None) -> str:
        """A value with its unit: "97.3%", "0.412"."""
        if value is None or not math.isfinite(value):
            return DASH
        unit = " dB" if self.decibels else ""
        return f"{signed(100 * value, self.decimals)}%" if self.percent else signed(value, self.decimals) + unit

    def span(self, span: Span) -> str:
        """The limits of an interval of values: "96.8 to 97.9%"; shares end at 0 and 100%; empty where there is none."""
        if span.limits is None:
            return ""
        limits = [min(max(limit, 0.0), 1.0) for limit in span.limits] if self.percent else span.limits
        low, high = self.value(limits[0]), self.value(limits[1])
        return f"{low.removesuffix('%').removesuffix(' dB')} to {high}"

    def gap(self, number: float | None, *, plus: bool = False) -> str:
        """One difference with its unit: "2.7 points", "0.031"."""
        if number is None:
            return DASH
        factor = 100 if self.percent else 1
        decimals = self.decimals + (2 if number and abs(number) * factor < 0.5 * 10**-self.decimals else 0)
        return signed(number * factor, decimals, plus=plus) + self.unit

    def for_gaps(self, spans: Iterable[Span]) -> Scale:
        """The scale for some differences: narrow intervals need more digits, as do those that only seem to reach 0."""
        decimals = self.decimals
        for span in spans:
            if span.limits is None:
                continue
            low, high = (limit * (100 if self.percent else 1) for limit in span.limits)
            needed = max(decimals, -_digits((high - low) / 4)) if high > low else decimals
            while low * high > 0 and needed < 9 and min(abs(low), abs(high)) < 0.5 * 10**-needed:
                needed += 1
            decimals = min(max(decimals, needed), self.decimals + 2)
        return Scale(self.percent, decimals, self.decibels)

    def gap_span(self, span: Span, *, plus: bool = False) -> tuple[str, str]:
        """A mean difference and its limits ("0.9 to 4.5"; empty where there are none), without a unit."""
        factor = 100 if self.percent else 1
        written = [
            signed(x * factor, self.decimals, plus=plus) for x in (span.mean, *(span.limits or ())) if x is not None
        ]
        return written[0] if written else DASH, " to ".join(written[1:])

    @property
    def unit(self) -> str:
        """What stands behind a difference: " points", " dB", or nothing."""
        return " points" if self.percent else " dB" if self.decibels else ""


@dataclass(frozen=True)
class Headline:
    """The verdict in one sentence.

    Attributes:
        tone: "good", "bad" or "open".
        lead: its first words; may be empty.
        rest: what follows them.
    """

    tone: str
    lead: str
    rest: str

    def __str__(self) -> str:
        return f"{self.lead}: {self.rest}" if self.lead else self.rest


def headline(findings: Findings) -> Headline:
    """Say in one sentence what came out, in the words that the numbers allow."""
    said = findings.raw.get("verdict")
    if said and said not in ("worth it", "no difference shown", "harmful"):
        method = findings.method
        word = verdict_of(method.gain) if method is not None and method.gain is not None else ""
        return Headline(TONES.get(word, "open"), "", str(said))
    if findings.kind == "distill":
        return _of_one(findings)
    if findings.kind == "system" and findings.raw.get("claims"):
        return _of_claims(findings.raw["claims"])
    return _of_many(findings)


def reference(findings: Findings) -> str:
    """Name of the arm that the differences are taken to."""
    return "alone" if findings.alone is None else findings.alone.name


def gap_closed(findings: Findings) -> str:
    """How much of the way from the student alone to the teacher the method goes; empty where that says nothing."""
    method, alone, teacher = findings.method, findings.alone, findings.teacher
    if method is None or alone is None or teacher is None or method.gain is None or method.gain.mean is None:
        return ""
    if alone.span.mean is None or teacher.span.mean is None or verdict_of(method.gain) != "worth it":
        return ""
    sign = 1 if findings.higher_is_better else -1
    distance = sign * (teacher.span.mean - alone.span.mean)
    if distance <= 0:
        return ""
    return f"{100 * method.gain.mean / distance:.0f}%"


def _of_one(findings: Findings) -> Headline:
    method = findings.method
    if method is None or method.gain is None or method.gain.mean is None:
        name = "" if method is None else f" for {method.name}"
        return Headline("open", "No verdict", f"there is no difference to the same student alone{name}.")
    word = verdict_of(method.gain)
    amount, evidence = _gain(findings, method)
    than = f"{amount} the same student alone{_on(findings)}"
    if len(findings.seeds) == 1:
        text = f"{method.name} {than} with one seed, and one seed cannot say more: run three or more."
    elif word == "no difference shown":
        luck = ", which chance could explain" if amount.startswith("is") else ""
        text = f"{method.name} {than}{luck} ({evidence})."
        if method.gain.low == method.gain.high == 0:
            text = f"{method.name} gives exactly what the same student gives alone{_on(findings)} ({evidence})."
    else:
        text = f"{method.name} {than} ({evidence})."
    return Headline(TONES.get(word, "open"), word.capitalize(), text)


def _gain(findings: Findings, arm: Arm) -> tuple[str, str]:
    """How much better an arm is ("is 2.7 points better than"), and on what evidence."""
    gain = arm.gain or Span()
    scale = scale_of(findings).for_gaps([gain])
    mean, seeds = gain.mean or 0.0, plural(len(findings.seeds), "seed")
    if mean < 0:
        gain = Span(-mean, None if gain.high is None else -gain.high, None if gain.low is None else -gain.low)
    size, limits = scale.gap_span(gain)
    amount = f"is {size}{scale.unit} {'better' if mean >= 0 else 'worse'} than"
    if not size.strip("0."):
        amount = "does as well on average as"
    return amount, f"{100 * findings.level:g}% interval {limits}, {seeds}" if limits else seeds


def _on(findings: Findings) -> str:
    return "" if findings.metric == "accuracy" else f" on {spaced(findings.metric)}"


def _of_many(findings: Findings) -> Headline:
    ranked = findings.ranked
    if not ranked:
        return Headline("open", "No verdict", "no arm gave a number.")
    judged = [arm for arm in ranked if arm.gain is not None and arm.role in ("method", "baseline")]
    if findings.alone is None or not judged:
        best = ranked[0]
        among = f"{plural(len(ranked), 'arm')}, {plural(len(findings.seeds), 'seed')}"
        return Headline(
            "open", "", f"{best.name} has the best mean, {scale_of(findings).value(best.span.mean)} ({among})."
        )
    better = [arm for arm in judged if arm.verdict == "worth it"]
    methods = plural(len(judged), "method")
    best = better[0] if better else judged[0]
    amount, evidence = _gain(findings, best)
    if not better:
        text = (
            f"none of {methods} is shown to beat the same student alone{_on(findings)}; the best mean, of {best.name}, "
        )
        lead = "Harmful" if all(arm.verdict == "harmful" for arm in judged) else "No difference shown"
        return Headline(TONES.get(lead.lower(), "open"), lead, f"{text}{amount} the student's own ({evidence}).")
    how_many = f"{len(better)} of {methods} {'is' if len(better) == 1 else 'are'} shown to beat"
    text = f"{how_many} the same student alone{_on(findings)}"
    if len(judged) > 1:
        text += f", each by its own interval and without a correction for {len(judged)} comparisons"
    text += f"; the best mean, of {best.name}, {amount} the student's own"
    return Headline("good", "Worth it", f"{text} ({evidence}).")


def _of_claims(claims: Sequence[Mapping[str, Any]]) -> Headline:
    verdicts = [claim["verdict"] for claim in claims]
    shown, refuted = verdicts.count("shown"), verdicts.count("refuted")
    if len(claims) == 1:
        return Headline(TONES.get(verdicts[0], "open"), verdicts[0].capitalize(), str(claims[0]["text"]))
    if shown == len(claims):
        return Headline("good", "Shown", f"all {shown} claims hold in this run.")
    rest = len(claims) - shown - refuted
    parts = [f"{shown} of {len(claims)} claims {'is' if shown == 1 else 'are'} shown"]
    if refuted:
        parts.append(f"{refuted} {'is' if refuted == 1 else 'are'} refuted")
    if rest:
        parts.append(f"{rest} {'is' if rest == 1 else 'are'} not shown")
    lead = "Refuted" if refuted == len(claims) else "Partly shown" if shown else "Not shown"
    return Headline("bad" if refuted else "open", lead, f"{', '.join(parts)}.")


def scale_of(findings: Findings) -> Scale:
    """The scale of the main metric: its digits follow how far the arms lie apart."""
    values = [value for arm in findings.arms for value in arm.values]
    return Scale.of(findings.metric, values)


def signed(number: float, decimals: int, *, plus: bool = False) -> str:
    """Write a number with a real minus sign and commas between thousands; huge and tiny ones with a power of ten."""
    if abs(number) >= 1e9 or (decimals >= 6 and 1e-300 < abs(number) < 1e-6):
        text = f"{number:.2e}"
    else:
        text = f"{number:,.{decimals}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")  # never "-0.0"
    elif plus and number > 0:
        text = f"+{text}"
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


def spaced(name: str) -> str:
    """A metric's or option's name with spaces for underscores."""
    return name.replace("_", " ").strip() or name


def plural(count: int, noun: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def count(number: float) -> str:
    """A count, large ones in three digits: "1,210", "85 k", "1.24 M"."""
    if number < 9999.5:
        return f"{number:,.0f}"
    return _in_units(number, (" k", " M", " G", " T", " P"))


def size(number: float) -> str:
    """Bytes, in units of 1,000: "46.8 MB"."""
    return f"{number:.0f} bytes" if number < 999.5 else _in_units(number, (" kB", " MB", " GB", " TB", " PB"))


def milliseconds(number: float) -> str:
    """A time in milliseconds in three digits: "0.037 ms", "43.7 ms", "1.53 s"."""
    return f"{number / 1000:.3g} s" if number >= 1000 else f"{number:.3g} ms"


def duration(seconds: float) -> str:
    """A duration: "8.4 s", "1 min 1 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s".removesuffix(" 0 s")
    return f"{whole // 3600} h {whole % 3600 // 60} min".removesuffix(" 0 min")


def ratio(student: float | None, teacher: float | None, less: str, more: str) -> str:
    """Compare the student's cost with the teacher's: "12.3 x smaller" in words the caller gives."""
    if not student or not teacher:
        return DASH
    factor = max(student, teacher) / min(student, teacher)
    if factor < 1.05:
        return "about the same"
    written = f"{factor:.1f}" if factor < 100 else f"{factor:,.0f}"
    return f"{written.removesuffix('.0')}\N{MULTIPLICATION SIGN} {less if student < teacher else more}"


def _in_units(number: float, units: Sequence[str]) -> str:
    power = 0
    number /= 1000
    while number >= 999.5 and power < len(units) - 1:
        number /= 1000
        power += 1
    return f"{number:.3g}{units[power]}"


def _digits(number: float) -> int:
    return math.floor(math.log10(abs(number)))
