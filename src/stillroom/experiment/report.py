"""The report of a run: a table for the terminal and one self-contained HTML page, both from a results dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from stillroom.experiment import sections
from stillroom.experiment.findings import Findings, read
from stillroom.experiment.markup import Html, tag
from stillroom.experiment.wording import TONES, Headline, headline, reference, scale_of, spaced
from stillroom.storage import whole

_STYLES = {"good": "green", "bad": "red"}


def comparison_table(results: Mapping[str, Any]) -> Table:
    """Lay the arms out for a terminal: mean, interval, every seed, seconds, and the difference to the student alone.

    Args:
        results: a results dictionary; see `stillroom.experiment.findings.read`.

    Raises:
        ValueError: the dictionary cannot be read.
    """
    findings = read(results)
    scale = scale_of(findings)
    gaps = scale.for_gaps(arm.gain for arm in findings.arms if arm.gain is not None)
    compared = any(arm.gain is not None for arm in findings.arms)
    known = any(arm.span.limits for arm in findings.arms)
    below = f"\n{100 * findings.level:g}% interval" if known else ""
    table = Table(
        title=Text(str(results.get("title") or "")),
        caption=Text(str(headline(findings))),
        box=SIMPLE_HEAD,
        leading=1,
        pad_edge=False,
    )
    rows: list[list[str]] = []
    for arm in findings.listed:
        each = "" if arm.fixed else ", ".join(scale.value(value).removesuffix("%") for value in arm.values)
        rows.append([arm.name, f"{scale.value(arm.span.mean)}\n{scale.span(arm.span)}".rstrip(), each])
        if compared:
            mean, limits = gaps.gap_span(arm.gain, plus=True) if arm.gain else ("", "")
            rows[-1] += [f"{mean}\n{limits}".rstrip(), arm.verdict]
        rows[-1].append(f"{sum(arm.seconds) / len(arm.seconds):.1f}" if arm.seconds else "")

    def add(name: str, interval: str) -> None:
        table.add_column(f"{fill(name, 14, break_long_words=False)}{interval}", justify="right", no_wrap=True)

    table.add_column("arm", overflow="fold")
    add(spaced(findings.metric), below)
    table.add_column("every seed", justify="right")
    if compared:
        add(f"against {reference(findings)}{',' if gaps.unit else ''}{gaps.unit}", below)
        table.add_column("verdict")
    table.add_column("seconds", justify="right", no_wrap=True)
    for arm, row in zip(findings.listed, rows, strict=True):
        table.add_row(*map(Text, row), style=_STYLES.get(TONES.get(arm.verdict, ""), ""))
    return table


def write_report(results: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page that `render_report` makes.

    Args:
        results: a results dictionary.
        path: the file to write; folders above it are made.

    Returns:
        The path.

    Raises:
        IsADirectoryError: `path` is a folder.
        OSError: the file cannot be written; the one that was there is kept.
        ValueError: the dictionary cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the file in it, such as {path / 'report.html'}")
    page = render_report(results)
    with whole(path) as file:
        file.write(page.encode())
    return path


def render_report(results: Mapping[str, Any]) -> str:
    """Make one HTML page that needs nothing else: no network, no scripts, no fonts.

    What a run did not measure (costs, curves, a second seed) is left out. The page's content policy forbids everything
    from outside, and all text is escaped.

    Args:
        results: a results dictionary; see `stillroom.experiment.findings.read`.

    Raises:
        ValueError: the dictionary cannot be read.
    """
    findings = read(results)
    verdict = headline(findings)
    title = str(results.get("title") or "Report")
    head = tag(
        "head",
        None,
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag(
            "meta",
            {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"},
        ),
        tag("title", None, title),
        tag("style", None, Html(files("stillroom.experiment").joinpath("report.css").read_text(encoding="utf-8"))),
    )
    body = (
        sections.claims(findings),
        sections.results(findings),
        sections.every_seed(findings),
        sections.differences(findings),
        sections.learning(findings),
        sections.costs(findings),
        sections.step_costs(findings),
        sections.agreement(findings),
        sections.notes(findings),
        sections.repeat(findings),
    )
    main = tag("main", None, _header(findings, title, verdict), body)
    return f'<!doctype html>\n<html lang="en">\n{head}\n{tag("body", None, main, _footer(findings))}\n</html>\n'


def _header(findings: Findings, title: str, verdict: Headline) -> Html:
    kinds = {"distill": "Distillation report", "compare": "Comparison of methods", "system": "Results of a system"}
    slug = findings.raw.get("system")
    lead = tag("strong", None, f"{verdict.lead}: ") if verdict.lead else None
    return tag(
        "header",
        None,
        tag("p", {"class": "kind"}, kinds[findings.kind], f" \N{MIDDLE DOT} {slug}" if slug else None),
        tag("h1", None, title),
        tag("p", {"class": "question"}, findings.raw["question"]) if findings.raw.get("question") else None,
        tag("p", {"class": f"verdict {verdict.tone}"}, lead, verdict.rest),
        sections.figures(findings) if findings.kind == "distill" else None,
    )


def _footer(findings: Findings) -> Html:
    version = (findings.raw.get("versions") or {}).get("stillroom", "")
    return tag("footer", None, f"Written by stillroom {version}".strip(), ". Every number comes from the run itself.")
