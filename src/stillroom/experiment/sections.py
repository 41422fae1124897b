"""The parts of the report's page; each is left out where the run has nothing for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stillroom.experiment.charts import MOST_LINKED_ROWS, Line, Row, curves, dots
from stillroom.experiment.findings import Findings, Span
from stillroom.experiment.markup import Child, Html, tag
from stillroom.experiment.wording import (
    DASH,
    TONES,
    Scale,
    count,
    duration,
    gap_closed,
    milliseconds,
    plural,
    ratio,
    reference,
    scale_of,
    size,
    spaced,
)

_ROLES = {"teacher": "teacher", "alone": "the same student alone", "baseline": "baseline", "control": "control"}
_COSTS = (
    ("parameters", "Parameters", count, "fewer", "more"),
    ("macs", "Multiply-adds per sample", count, "fewer", "more"),
    ("latency_ms", "Time for one sample", milliseconds, "faster", "slower"),
    ("batch_latency_ms", "Time for a batch", milliseconds, "faster", "slower"),
    ("file_bytes", "File", size, "smaller", "larger"),
)
_MOST_CURVES = 7


def figures(findings: Findings) -> Html | None:
    """The few numbers of a distillation, large."""
    scale = scale_of(findings)
    shown: list[tuple[str, str]] = []
    for arm in (findings.method, findings.alone, findings.teacher):
        if arm is not None and arm.span.mean is not None:
            shown.append((scale.value(arm.span.mean), f"{spaced(findings.metric)}, {arm.name}"))
    if closed := gap_closed(findings):
        shown.append((closed, "of the way from alone to the teacher"))
    costs = findings.raw.get("costs") or {}
    teacher, student = (costs.get(name, {}).get("parameters") for name in ("teacher", "student"))
    if teacher and student:
        less = ratio(student, teacher, "fewer", "more")
        shown.append((less.split()[0] if less[0].isdigit() else "same", f"{less.partition(' ')[2]} parameters"))
    if not shown:
        return None
    pairs = [tag("div", None, tag("dt", None, label), tag("dd", None, value)) for value, label in shown]
    return tag("dl", {"class": "figures"}, pairs)


def claims(findings: Findings) -> Html | None:
    """Every claim with its verdict."""
    items = []
    for claim in findings.raw.get("claims") or ():
        span = Span.read(claim)
        scale = Scale.of(str(claim.get("on", "")), [span.mean and abs(span.mean)])
        mean, limits = scale.for_gaps([span]).gap_span(span, plus=True)
        found = f"Difference {mean}{scale.unit}" if span.mean is not None else "No difference measured"
        if limits:
            found += f", {100 * claim.get('level', findings.level):g}% interval {limits}"
        if claim.get("n"):
            found += f", {plural(claim['n'], 'seed')}"
        verdict = tag("p", None, _badge(claim["verdict"]))
        items.append(tag("li", None, verdict, tag("div", None, tag("p", None, claim["text"]), _small(f"{found}."))))
    return _section("Claims", tag("ul", {"class": "claims"}, items)) if items else None


def results(findings: Findings) -> Html:
    """The table of arms; further tables folded below it."""
    scale = scale_of(findings)
    gaps = scale.for_gaps(arm.gain for arm in findings.arms if arm.gain is not None)
    interval = f"{100 * findings.level:g}% interval"
    known = any(arm.span.limits or (arm.gain and arm.gain.limits) for arm in findings.arms)
    compared = any(arm.gain is not None for arm in findings.arms)
    timed = any(arm.seconds for arm in findings.arms)
    head = ["Arm", spaced(findings.metric).capitalize()] + [interval] * known
    against = f"Against {reference(findings)}{',' if gaps.unit else ''}{gaps.unit}"
    head += [against, *[interval] * known, "Verdict"] if compared else []
    head += ["Time per seed"] if timed else []
    rows: list[list[Child]] = []
    for arm in findings.listed:
        role = "the baseline" if arm.role == "alone" and arm.name != "alone" else _ROLES.get(arm.role, "")
        name = [tag("span", {"class": "arm"}, arm.name), _small(role) if role and role != arm.name else None]
        row: list[Child] = [name, scale.value(arm.span.mean), *[scale.span(arm.span)] * known]
        if compared:
            mean, limits = gaps.gap_span(arm.gain, plus=True) if arm.gain else ("", "")
            row += [mean, *[limits] * known, _badge(arm.verdict)]
        if timed:
            row.append(duration(sum(arm.seconds) / len(arm.seconds)) if arm.seconds else "")
        rows.append(row)
    judged = [arm for arm in findings.arms if arm.gain is not None and arm.role != "control"]
    caution = None
    if findings.kind != "distill" and len(judged) > 1:
        caution = _small(
            f"Each interval is for its own comparison, without a correction for {len(judged)} of them: of methods that "
            f"change nothing, about one in {2 / (1 - findings.level):.0f} is shown to be better by chance. The best of "
            f"{len(judged)} is also partly the luckiest: a difference that matters deserves a run of its own with new "
            "seeds."
        )
    title = "Leaderboard" if findings.kind == "compare" else "Results"
    seeds = _small(f"Means over {plural(len(findings.seeds), 'seed')}; differences are paired by seed.")
    seeds = seeds if len(findings.seeds) > 1 else _small("One seed, so no intervals: three or more show what is luck.")
    tables = (_numbers(findings), _metrics(findings), _training(findings))
    return _section(title, seeds, _table(head, rows, label=title, kind="cards"), caution, tables)


def _numbers(findings: Findings) -> Html | None:
    scale = scale_of(findings)
    run = [arm for arm in findings.listed if not arm.fixed and arm.values]
    if not run or len(findings.seeds) < 2:
        return None
    rows: list[list[Child]] = [[arm.name, *(scale.value(value) for value in arm.values)] for arm in run]
    return _fold(
        "Every seed's number",
        _table(["Arm", *(f"Seed {seed}" for seed in findings.seeds)], rows, label="Every seed's number"),
    )


def _metrics(findings: Findings) -> Html | None:
    names = list(dict.fromkeys(name for arm in findings.arms for name in arm.metrics if name != findings.metric))
    if not names:
        return None
    rows: list[list[Child]] = []
    for arm in findings.listed:
        row: list[Child] = [arm.name]
        for name in names:
            known = [value for value in arm.metrics.get(name, ()) if value is not None]
            every = [value for other in findings.arms for value in other.metrics.get(name, ())]
            row.append(Scale.of(name, every).value(sum(known) / len(known)) if known else "")
        rows.append(row)
    return _fold(
        "Further metrics, means over seeds",
        _table(["Arm", *map(spaced, names)], rows, label="Further metrics, means over seeds"),
    )


def _training(findings: Findings) -> Html | None:
    given = findings.raw["arms"]
    shown = {
        key: label
        for key, label in (("steps", "Steps"), ("lr", "Learning rate"))
        if any(value is not None for arm in findings.arms for value in _listed(given[arm.name].get(key)))
    }
    rows: list[list[Child]] = []
    for arm in findings.listed:
        found = [dict.fromkeys(v for v in _listed(given[arm.name].get(key)) if v is not None) for key in shown]
        rows.append([arm.name, *(", ".join(f"{value:,}" for value in values) for values in found)])
    return (
        _fold("How the arms were trained", _table(["Arm", *shown.values()], rows, label="How the arms were trained"))
        if shown
        else None
    )


def every_seed(findings: Findings) -> Html | None:
    """A dot for every seed of every arm."""
    run = [arm for arm in findings.listed if not arm.fixed and any(value is not None for value in arm.values)]
    if not run:
        return None
    scale = scale_of(findings)
    rows = [Row(arm.name, scale.value(arm.span.mean), arm.colour, arm.values, arm.span) for arm in run]
    references = [(arm.name, arm.span.mean) for arm in findings.fixed if arm.span.mean is not None]
    told = [f"{arm.name}: {', '.join(map(scale.value, arm.values))}; mean {scale.value(arm.span.mean)}" for arm in run]
    told += [f"{name}: {scale.value(value)}" for name, value in references]
    chart = dots(
        "seeds", f"{spaced(findings.metric)} of every seed", ". ".join(told), rows, findings.seeds, scale,
        references=references,
    )  # fmt: skip
    better = "higher" if findings.higher_is_better else "lower"
    parts = [f"{spaced(findings.metric).capitalize()}; {better} is better. A dot is one seed, the tall mark the mean"]
    parts.append(f", the band its {100 * findings.level:g}% interval" if any(a.span.limits for a in run) else "")
    parts.append(
        "; a line joins the dots of one seed" if 1 < len(run) <= MOST_LINKED_ROWS and len(findings.seeds) > 1 else ""
    )
    return _section("Every seed", tag("figure", None, chart, tag("figcaption", None, "".join(parts), ".")))


def differences(findings: Findings) -> Html | None:
    """A dot for every paired difference to the student alone."""
    run = [arm for arm in findings.listed if arm.gain is not None and arm.gains and set(arm.gains) != {None}]
    alone = findings.alone
    if not run or alone is None:
        return None
    scale = scale_of(findings).for_gaps(arm.gain for arm in run if arm.gain is not None)
    rows = [
        Row(arm.name, scale.gap_span(arm.gain, plus=True)[0] + scale.unit, arm.colour, arm.gains, arm.gain)
        for arm in run
        if arm.gain is not None
    ]
    told = ". ".join(f"{row.name}: {', '.join(scale.gap(gain, plus=True) for gain in row.dots)}" for row in rows)
    title = f"difference to {alone.name}, seed by seed"
    chart = dots("gains", title, told, rows, findings.seeds, scale, differences=True)
    unit = "Percentage points" if scale.percent else spaced(findings.metric).capitalize()
    caption = [f"{unit}; right of the line the arm is better than {alone.name}. Each dot compares two runs of one seed"]
    if not findings.higher_is_better:
        caption.append(" (less is better here, so the sign is turned)")
    return _section(f"Difference to {alone.name}", tag("figure", None, chart, tag("figcaption", None, *caption, ".")))


def learning(findings: Findings) -> Html | None:
    """A chart of curves for each metric that was recorded while training."""
    metrics = list(dict.fromkeys(name for arm in findings.arms for name in arm.curves))
    metrics.sort(key=lambda name: name != findings.metric)
    figures = []
    for place, metric in enumerate(metrics):
        recorded = [arm for arm in findings.listed if arm.curves.get(metric)]
        drawn = [arm for place, arm in enumerate(recorded) if place < _MOST_CURVES or arm.role == "alone"]
        lines = [
            Line(
                arm.name,
                arm.colour,
                tuple([(float(x), _number(y)) for x, y in seed] for seed in arm.curves[metric].values()),
            )
            for arm in drawn
        ]
        values = [y for line in lines for seed in line.seeds for _, y in seed if y == y]
        if not values:
            continue
        references = []
        if metric == findings.metric:
            references = [(arm.name, arm.span.mean) for arm in findings.fixed if arm.span.mean is not None]
        scale = Scale.of(metric, values)
        told = f"{spaced(metric)} against training steps for {', '.join(line.name for line in lines)}"
        chart = curves(f"curve-{place}", f"{spaced(metric)} while training", told, lines, scale, references=references)
        text = f"{spaced(metric).capitalize()} against steps"
        if any(len(line.seeds) > 1 for line in lines):
            text += "; bold is the mean over seeds, thin each seed"
        if len(drawn) < len(recorded):
            text += f"; the other {plural(len(recorded) - len(drawn), 'arm')} are left out"
        figures.append(tag("figure", None, chart, tag("figcaption", None, f"{text}.")))
    return _section("While training", figures) if figures else None


def costs(findings: Findings) -> Html | None:
    """What student and teacher need, side by side."""
    given: Mapping[str, Mapping[str, Any]] = findings.raw.get("costs") or {}
    names = sorted(given, key=lambda name: (name != "teacher", name != "student"))
    pair = "teacher" in given and "student" in given
    rows: list[list[Child]] = []
    sample = str(findings.raw.get("sample") or "sample")
    for key, label, write, less, more in _COSTS:
        numbers = {name: given[name].get(key) for name in names}
        if any(number is not None for number in numbers.values()):
            row: list[Child] = [
                label.replace("sample", sample),
                *(DASH if n is None else write(n) for n in numbers.values()),
            ]
            rows.append(row + ([ratio(numbers["student"], numbers["teacher"], less, more)] if pair else []))
    if not rows:
        return None
    head = ["", *(name.capitalize() if name in ("teacher", "student") else name for name in names)]
    table = _table(head + (["Student against teacher"] if pair else []), rows, label="Costs", kind="plain")
    facts = next(iter(given.values()))
    where = [str(facts["device"])] if facts.get("device") else []
    if facts.get("threads") and facts.get("device", "cpu") == "cpu":
        where.append(plural(facts["threads"], "thread"))
    place = f" ({', '.join(where)})" if where else ""
    how = f"Times are medians on this machine{place}"
    how += f"; a batch is {plural(facts['batch_size'], sample)}." if facts.get("batch_size") else "."
    timed = any(of.get("latency_ms") is not None for of in given.values())
    return _section("What the student costs" if "student" in given else "Costs", table, _small(how) if timed else None)


def step_costs(findings: Findings) -> Html | None:
    """What a training step of each arm costs."""
    given: Mapping[str, Mapping[str, Any]] = findings.raw.get("step_costs") or {}
    rows: list[list[Child]] = [
        [
            arm.name,
            milliseconds(1000 * given[arm.name]["seconds"]),
            DASH if given[arm.name]["ratio"] is None else f"{given[arm.name]['ratio']:.2f}",
            size(given[arm.name]["memory_bytes"]),
        ]
        for arm in findings.listed
        if arm.name in given
    ]
    if not rows:
        return None
    head = ["Arm", "Time per step", f"Times {reference(findings)}", "Peak memory"]
    how = (
        "Medians of interleaved runs. Memory is the most that training holds at once, without data and teacher weights."
    )
    return _section("What a training step costs", _table(head, rows, label="Step costs", kind="plain"), _small(how))


def agreement(findings: Findings) -> Html | None:
    """How far the arms say what the teacher says."""
    given: Mapping[str, Mapping[str, Any]] = findings.raw.get("agreement") or {}
    columns = {
        "top1": "Same top answer",
        "kl": "KL to the teacher, nats",
        "repeated_errors": "Teacher's errors repeated",
    }
    shown = [key for key in columns if any(of.get(key) is not None for of in given.values())]
    if not shown:
        return None
    rows: list[list[Child]] = []
    for name, of in given.items():
        row: list[Child] = [name]
        for key in shown:
            every = [_mean(other.get(key)) for other in given.values()]
            share = Scale(True, 1) if key != "kl" else Scale.of(key, every)
            row.append(share.value(_mean(of.get(key))))
        rows.append(row)
    head = ["Arm", *(columns[key] for key in shown)]
    return _section("Agreement with the teacher", _table(head, rows, label="Agreement", kind="plain"))


def notes(findings: Findings) -> Html | None:
    """What the user should know."""
    items = [tag("li", None, note) for note in findings.raw.get("notes") or ()]
    return _section("Notes", tag("ul", {"class": "notes"}, items)) if items else None


def repeat(findings: Findings) -> Html | None:
    """The command, the configuration, the versions and the machine."""
    raw = findings.raw
    command = raw.get("command")
    parts: list[Child] = []
    if command:
        parts.append(tag("p", None, "This command repeats the run. One click selects it."))
        parts.append(tag("pre", {"tabindex": "0"}, tag("code", None, _words(str(command)))))
    if raw.get("seconds"):
        parts.append(_small(f"It took {duration(raw['seconds'])} on the machine below."))
    for title, key in (("Configuration", "config"), ("Versions", "versions"), ("Machine", "machine")):
        if pairs := list(_flat(raw.get(key) or {})):
            terms = [tag("div", None, tag("dt", None, name), tag("dd", None, value)) for name, value in pairs]
            parts.append(_fold(title, tag("dl", {"class": "facts"}, terms)))
    return _section("Repeat it", parts) if parts else None


def _section(title: str, *children: Child) -> Html:
    return tag("section", None, tag("h2", None, title), children)


def _fold(title: str, *children: Child) -> Html:
    return tag("details", None, tag("summary", None, title), children)


def _small(text: str) -> Html:
    return tag("p", {"class": "small"}, text)


def _badge(text: str) -> Html | None:
    return tag("span", {"class": f"badge {TONES.get(text, 'open')}"}, text) if text else None


def _table(head: Sequence[str], rows: Sequence[Sequence[Child]], *, label: str, kind: str = "wide") -> Html:
    """A table; "cards" become one block per row on a narrow screen, others scroll within their own frame."""
    top = tag("tr", {"role": "row"}, [tag("th", {"role": "columnheader", "scope": "col"}, name) for name in head])
    body = []
    for row in rows:
        first = tag("th", {"role": "rowheader", "scope": "row"}, row[0])
        cells = [
            tag("td", {"role": "cell", "data-label": name}, cell) for name, cell in zip(head[1:], row[1:], strict=True)
        ]
        body.append(tag("tr", {"role": "row"}, first, cells))
    groups = [tag("thead", {"role": "rowgroup"}, top), tag("tbody", {"role": "rowgroup"}, body)]
    frame = {"class": f"frame {kind}", "role": "region", "tabindex": "0", "aria-label": label}
    return tag("div", frame, tag("table", {"role": "table"}, groups))


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        name = f"{above}{key}"
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{name}.")
        else:
            yield name, inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False, default=str)


def _words(command: str) -> list[Child]:
    """The command in pieces that a line break does not divide where it need not."""
    return [piece if piece.isspace() else tag("span", None, piece) for piece in re.split(r"(\s+)", command)]


def _mean(value: Any) -> float | None:
    """A number, or the mean of one per seed."""
    if isinstance(value, (list, tuple)):
        return sum(value) / len(value) if value else None
    return value


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
