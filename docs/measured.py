"""What the documentation shows of runs: results files read, and laid out as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.experiment.findings import Arm, Findings, Span, read
from stillroom.experiment.wording import Scale, duration, headline, reference, scale_of, spaced
from stillroom.systems.catalog import SYSTEMS

RESULTS = Path(__file__).resolve().parents[1] / "results"
FIRST_RUN = "distill"
"""Results of `stillroom distill` without arguments, which README.md may show."""

Results = dict[str, Any]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Text that cannot break out of its cell."""
    return " ".join(str(text).split()).replace("|", "\\|")


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Results]]:
    """Read the committed results.

    Args:
        folder: holds `SLUG.json`, `SLUG--VARIANT.json`, `compare--NAME.json`, `distill.json` (the main job without
            arguments) and `distill--TASK.json`; it may be missing.

    Returns:
        Slug, "compare" or "distill" -> variant ("" for the defaults) -> results, those at the defaults first.

    Raises:
        ValueError: a file is named after no system, or holds the results of another one, or cannot be read.
    """
    known = [entry.slug for entry in SYSTEMS]
    found: dict[str, dict[str, Results]] = {}
    for file in sorted(folder.glob("*.json"), key=lambda file: file.stem):
        slug, _, variant = file.stem.partition("--")
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
            read(results)
        except ValueError as error:
            raise ValueError(f"{file.name} cannot be read as results: {error}") from error
        if slug == "compare":
            if not variant:
                raise ValueError(f"{file.name} has no name: call a comparison compare--NAME.json")
        elif slug == FIRST_RUN:
            pass
        elif slug not in known:
            raise ValueError(f"{file.name} is named after {slug!r}, which is no system: known are {', '.join(known)}")
        elif results.get("system") != slug:
            raise ValueError(f"{file.name} holds the results of {results.get('system')!r}, expected those of {slug!r}")
        found.setdefault(slug, {})[variant] = results
    return found


def data_of(results: Mapping[str, Any], variant: str) -> str:
    """What a run was on, in a word or two."""
    config = results.get("config") or {}
    data = config.get("data")
    return str(data) if isinstance(data, str) and data else variant or "the recipe's data"


def tally(results: Mapping[str, Any]) -> str:
    """How the claims of a run came out: "2 of 3 shown, 1 refuted"; empty without claims."""
    verdicts = [claim["verdict"] for claim in results.get("claims", ())]
    if not verdicts:
        return ""
    parts = [f"{verdicts.count('shown')} of {len(verdicts)} shown"]
    parts += [f"{verdicts.count(word)} {word}" for word in ("not shown", "refuted") if word in verdicts]
    return ", ".join(parts)


def verdict_cell(variants: Mapping[str, Results]) -> str:
    """The verdicts of all runs of a system, for one cell of a table."""
    told = []
    for variant, results in variants.items():
        seeds = len(results["seeds"])
        on = f"{data_of(results, variant)}, {seeds} seed{'' if seeds == 1 else 's'}"
        told.append(f"{tally(results) or 'no claims'} ({on})")
    return "; ".join(told) or "not measured yet"


def measured(results: Mapping[str, Any], variant: str, file: str) -> str:
    """One run: verdict, claims, arms with every seed, further metrics, and what repeats it."""
    findings = read(results)
    heading = f"### On {data_of(results, variant)}"
    verdict = headline(findings)
    bold = f"**{verdict.lead}:** {verdict.rest}" if verdict.lead else verdict.rest
    parts = [heading, str(results.get("question") or ""), bold]
    if results.get("claims"):
        parts.append(claims_table(findings))
    parts.append(arms_table(findings))
    if further := metrics_table(findings):
        parts += ["Means of all metrics over the seeds:", further]
    parts += [made_with(results), f"[All numbers of this run](../results/{file})"]
    return "\n\n".join(part for part in parts if part)


def claims_table(findings: Findings) -> str:
    """The claims with their verdicts, differences and intervals."""
    rows = []
    for claim in findings.raw["claims"]:
        scale = scale_on(findings, claim["on"])
        span = Span.read(claim)
        fine = scale.for_gaps([span])
        mean, limits = fine.gap_span(span, plus=True)
        rows.append([claim["text"], f"**{claim['verdict']}**", f"{mean}{fine.unit}", limits or "one seed has none"])
    return table(["claim", "verdict", "difference", f"{100 * findings.level:g}% interval"], rows)


def scale_on(findings: Findings, metric: str) -> Scale:
    """How a metric is written, by the values that all arms have on it."""
    if metric == findings.metric:
        return scale_of(findings)
    return Scale.of(metric, [value for arm in findings.arms for value in arm.metrics.get(metric, ())])


def arms_table(findings: Findings) -> str:
    """Every arm: mean, interval, every seed, the difference to the student alone."""
    scale = scale_of(findings)
    gaps = scale.for_gaps(arm.gain for arm in findings.arms if arm.gain is not None)
    compared = any(arm.gain is not None for arm in findings.arms)
    rows = [_arm_row(findings, arm, scale, gaps, compared) for arm in findings.listed]
    interval = f"{100 * findings.level:g}% interval"
    columns = ["arm", "role", spaced(findings.metric), interval, "every seed"]
    columns += [f"against {reference(findings)}{',' if gaps.unit else ''}{gaps.unit}", interval] if compared else []
    seeds = ", ".join(map(str, findings.seeds))
    return f"{table([*columns, 'seconds'], rows)}\n\nSeeds {seeds}, in this order."


def _arm_row(findings: Findings, arm: Arm, scale: Scale, gaps: Scale, compared: bool) -> list[str]:
    each = ", ".join(scale.value(value).removesuffix("%") for value in arm.values)
    row = [f"`{arm.name}`", arm.role, scale.value(arm.span.mean), scale.span(arm.span), "" if arm.fixed else each]
    if compared:
        row += list(gaps.gap_span(arm.gain, plus=True)) if arm.gain else ["", ""]
    return [*row, f"{sum(arm.seconds) / len(arm.seconds):.1f}" if arm.seconds else ""]


def metrics_table(findings: Findings) -> str:
    """Means of every metric but the main one, arm by arm; empty where there is none."""
    names = list(dict.fromkeys(name for arm in findings.arms for name in arm.metrics if name != findings.metric))
    scales = {name: scale_on(findings, name) for name in names}
    rows = []
    for arm in findings.listed:
        row = [f"`{arm.name}`"]
        for name in names:
            values = [value for value in arm.metrics.get(name, ()) if value is not None]
            row.append(scales[name].value(sum(values) / len(values)) if values else "")
        rows.append(row)
    return table(["arm", *(spaced(name) for name in names)], rows) if names else ""


def made_with(results: Mapping[str, Any]) -> str:
    """Command, machine, versions and time of a run."""
    machine, versions = results.get("machine") or {}, results.get("versions") or {}
    device = machine.get("device_name") or machine.get("device")
    told = [f"{machine.get('cores')} cores", f"{machine.get('jobs')} processes", f"device {device}"]
    lines = [f"- Command: `{results.get('command') or 'not recorded'}`"]
    if machine:
        lines.append(f"- Machine: {machine.get('processor')}, {', '.join(told)}, {machine.get('system')}")
    if versions:
        lines.append(f"- Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}")
    if results.get("seconds"):
        lines.append(f"- Time: {duration(results['seconds'])}")
    return "\n".join(lines)
