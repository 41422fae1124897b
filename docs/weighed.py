"""What the comparisons of methods and the benchmarks say, as tables and sentences made from the committed results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from measured import RESULTS, Results, read_results, table

from stillroom.experiment.findings import Findings, Span, read, verdict_of
from stillroom.experiment.statistics import paired_interval
from stillroom.experiment.wording import scale_of, size

RIVAL = "kd"
"""The method that the others are held against, besides the student alone."""


def which_method() -> str:
    """A table for each comparison, and what its intervals support."""
    found = read_results().get("compare", {})
    if not found:
        return "Nothing is committed yet."
    parts = []
    for name, results in found.items():
        findings = read(results)
        parts += [f"### On {name}", str(results["question"]), _table(findings, results)]
    return "\n\n".join([*_sentences(found), *parts])


def _against(findings: Findings, name: str, rival: str) -> Span | None:
    """Paired difference of two arms, above 0 where the first is better; None where one was not run."""
    values = {arm.name: arm.values for arm in findings.arms}
    if name == rival or rival not in values or None in values[name] or None in values[rival]:
        return None
    sign = 1 if findings.higher_is_better else -1
    pair = ([sign * float(value or 0) for value in values[one]] for one in (name, rival))
    return Span.read(paired_interval(*pair, level=findings.level).as_dict())


def _table(findings: Findings, results: Results) -> str:
    scale = scale_of(findings)
    costs: Mapping[str, Any] = results.get("step_costs") or {}
    gaps = scale.for_gaps(arm.gain for arm in findings.arms if arm.gain is not None)
    rows = []
    for arm in findings.listed:
        if arm.role == "teacher":
            continue
        row = [f"`{arm.name}`", scale.value(arm.span.mean)]
        for span in (arm.gain, _against(findings, arm.name, RIVAL) if arm.name != "alone" else None):
            mean, limits = gaps.gap_span(span, plus=True) if span else ("", "")
            row.append(f"{mean} ({limits})" if limits else mean)
        cost = costs.get(arm.name)
        row += [f"{cost['ratio']:.2f}", size(cost["memory_bytes"])] if cost else ["", ""]
        rows.append(row)
    unit = f",{gaps.unit}" if gaps.unit else ""
    interval = f"({100 * findings.level:g}%)"
    columns = ["method", findings.metric, f"against alone{unit} {interval}", f"against {RIVAL}{unit} {interval}"]
    return table([*columns, "time of a step, alone = 1", "peak memory"], rows)


def _sentences(found: Mapping[str, Results]) -> list[str]:
    """What the intervals of all comparisons together support, method by method."""
    every = {name: read(results) for name, results in found.items()}
    methods = [
        arm.name
        for arm in next(iter(every.values())).listed
        if arm.gain is not None and all(arm.name in {a.name for a in one.arms} for one in every.values())
    ]

    def verdicts(name: str, rival: str) -> set[str]:
        spans = [_against(one, name, rival) for one in every.values()]
        return {verdict_of(span) for span in spans if span is not None}

    def listed(rival: str, verdict: str) -> str:
        names = [f"`{name}`" for name in methods if name != rival and verdicts(name, rival) == {verdict}]
        return ", ".join(names) or "none"

    some = [
        f"`{name}`" for name in methods if len(verdicts(name, "alone")) > 1 and "worth it" in verdicts(name, "alone")
    ]
    where = " and on ".join(every)
    lines = [
        f"- Better than the student alone, on {where}: {listed('alone', 'worth it')}.",
        f"- Better than it on one of them only: {', '.join(some) or 'none'}.",
        f"- Worse than it on every one: {listed('alone', 'harmful')}.",
        f"- Better than `{RIVAL}` on every one: {listed(RIVAL, 'worth it')}.",
        f"- Worse than `{RIVAL}` on every one: {listed(RIVAL, 'harmful')}.",
        "- Of every other difference these seeds cannot tell.",
    ]
    return ["\n".join(lines)]


_BENCHMARKS = {
    "step_time": (
        ("ratio_to_hand_written", "a step of `fit`, times a loop written by hand"),
        ("ratio_cached_to_live", "a step with a cached teacher, times one with the live teacher"),
        ("ratio_to_torchdistill", "a step of `fit`, times a step of torchdistill (KD)"),
        ("ratio_torchdistill_to_hand_written", "a step of torchdistill, times a loop written by hand (KD)"),
        ("ratio_default_allocator_to_kept_memory", "a step by hand with glibc's defaults, times one with memory kept"),
    ),
    "throughput": (
        ("images_per_second", "`fit` in bfloat16, channels_last, compiled: images per second"),
        ("ratio_to_hand_written", "the same: time, times a loop written by hand"),
    ),
    "large_vocab": (
        ("memory_to_naive", "KL over a large vocabulary in chunks: memory, times that of whole logits"),
        ("time_to_naive", "the same: time"),
        ("gradient_error", "the same: largest error of a gradient"),
        ("liger_memory_to_naive", "Liger-Kernel's chunked form: memory"),
        ("liger_time_to_naive", "Liger-Kernel's chunked form: time"),
        ("liger_gradient_error", "Liger-Kernel's chunked form: largest error of a gradient"),
    ),
    "input_pipeline": (("loader_share_of_step", "making a batch, as a share of the student's own step"),),
    "cold_start": (
        ("seconds_to_first_step", "`stillroom distill`: seconds to the first training step"),
        ("seconds_in_all", "`stillroom distill`: seconds in all"),
    ),
    "kills": (("kills", "kills by SIGKILL"), ("runs", "runs they hit"), ("equal_runs", "runs equal to the last bit")),
}


def benchmarks() -> str:
    """One row per number of the committed benchmarks."""
    rows = []
    for name, numbers in _BENCHMARKS.items():
        file = RESULTS / "benchmarks" / f"{name}.json"
        if not file.exists():
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        where = found["machine"]
        place = f"{where['processor']}, {where.get('threads', where.get('cores'))} threads"
        rows += [[f"`benchmarks/{name}.py`", what, _shown(found[key]), place] for key, what in numbers if key in found]
    return table(["command", "what", "measured", "on"], rows) if rows else "Nothing is committed yet."


def cold_start() -> str:
    """One row per part of the main job."""
    found = json.loads((RESULTS / "benchmarks" / "cold_start.json").read_text(encoding="utf-8"))
    rows = [
        [name, f"{part['begins']:.1f}", f"{part['seconds']:.1f}" if "seconds" in part and part["seconds"] > 0 else ""]
        for name, part in found["parts"].items()
    ]
    return table(
        ["part", "begins after, seconds", "takes"], [*rows, ["the process ends", f"{found['seconds_in_all']:.1f}", ""]]
    )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return str(len(value))
    return f"{value:.3g}" if isinstance(value, float) else "not measured" if value is None else str(value)
