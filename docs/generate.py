"""Makes the pages, tables and numbers of the documentation from the code and the committed results.

    python docs/generate.py --readme    rewrite what README.md shows between its markers
    python docs/generate.py --check     exit with 1 where README.md is not what the results say

The pages themselves are made while MkDocs builds (see `hooks.py`); nothing generated is committed but README's table.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.experiment.findings import Arm, Findings, Span, read
from stillroom.experiment.wording import Scale, duration, headline, scale_of, spaced
from stillroom.systems.catalog import SYSTEMS, System

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src"
RESULTS = ROOT / "results"
KINDS = {
    "classification": "Classification",
    "segmentation": "Segmentation",
    "detection": "Detection and pose",
    "restoration": "Restoration",
    "generation": "Generation",
    "language": "Language",
    "multimodal": "Several modalities",
    "graphs": "Graphs",
    "points": "Points and places",
    "condensation": "Data condensation",
    "exploration": "Exploration and robots",
    "labels": "Labels and active learning",
    "continual": "Continual learning",
    "architecture": "Architecture and compression",
}
FIRST_RUN = "distill"
"""Results of `stillroom distill` without arguments, which README.md shows."""

Results = dict[str, Any]


# ---- results ---------------------------------------------------------------------------------------------------------


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Results]]:
    """Read the committed results.

    Args:
        folder: holds `SLUG.json`, `SLUG--VARIANT.json`, `compare--NAME.json` and `distill.json`; it may be missing.

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
        elif file.stem == FIRST_RUN:
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


# ---- the table of systems --------------------------------------------------------------------------------------------


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Text that cannot break out of its cell."""
    return " ".join(str(text).split()).replace("|", "\\|")


def arxiv(entry: System) -> str:
    """A link to the paper."""
    return f"[{entry.arxiv}](https://arxiv.org/abs/{entry.arxiv})"


def readme_systems(found: Mapping[str, Mapping[str, Results]]) -> str:
    """How many systems there are, and their table, by kind of work."""
    rows = []
    for kind in KINDS:
        for entry in (entry for entry in SYSTEMS if entry.kind == kind):
            verdict = verdict_cell(found.get(entry.slug, {}))
            rows.append([f"`{entry.slug}`", f"{entry.title} ({arxiv(entry)}, {entry.year})", kind, verdict])
    return f"{len(SYSTEMS)} systems:\n\n{table(['system', 'paper', 'kind', 'measured claims'], rows)}"


def readme_first_run(found: Mapping[str, Mapping[str, Results]]) -> str:
    """What `stillroom distill` prints at its end; empty where its results are not committed."""
    from rich.console import Console

    from stillroom.experiment.report import comparison_table

    if FIRST_RUN not in found:
        return ""
    console = Console(width=100, record=True, file=io.StringIO(), color_system=None)
    console.print(comparison_table(found[FIRST_RUN][""]))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    return "\n".join(["```text", *(line for line in lines if line), "```"])


def with_generated(readme: str, found: Mapping[str, Mapping[str, Results]]) -> str:
    """README.md's text with everything between its markers made anew.

    Raises:
        ValueError: a pair of markers is missing.
    """
    for name, content in (("systems", readme_systems(found)), ("distill", readme_first_run(found))):
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, opened, rest = readme.partition(begin)
        _, closed, after = rest.partition(end)
        if not opened or not closed:
            raise ValueError(f"README.md has no markers {begin.strip()} ... {end}: put them where that part goes")
        readme = f"{before}{begin}{content}\n{end}{after}" if content else f"{before}{begin}{end}{after}"
    return readme


def systems_page(found: Mapping[str, Mapping[str, Results]]) -> str:
    """The catalogue: a table of all systems with a box that filters it."""
    rows = []
    for kind in KINDS:
        for entry in (entry for entry in SYSTEMS if entry.kind == kind):
            methods = ", ".join(f"`{name}`" for name, _ in entry.methods)
            rows.append(
                [
                    f"[`{entry.slug}`]({entry.slug}.md)",
                    f"{entry.title} ({arxiv(entry)})",
                    str(entry.year),
                    kind,
                    entry.needs,
                    f"{entry.gives}{f'; methods {methods}' if methods else ''}",
                    verdict_cell(found.get(entry.slug, {})),
                ]
            )
    columns = ["system", "paper", "year", "kind", "needs", "gives", "measured claims"]
    return f"""---
hide: [toc]
---

# The systems

{len(SYSTEMS)} published systems, one file each. `stillroom show SLUG` says the same in a terminal, and
`stillroom run SLUG` measures a system's claims again.

<label>Filter <input type="search" id="filter" placeholder="a word or several" autocomplete="off"></label>
<span id="matches"></span>

{table(columns, rows)}

<script>
{(ROOT / "docs" / "filter.js").read_text(encoding="utf-8").strip()}
</script>
"""


# ---- the page of a system --------------------------------------------------------------------------------------------


def system_page(entry: System, variants: Mapping[str, Results]) -> str:
    """A system's page: what its file says, its catalogue entry, and everything that was measured."""
    import stillroom.cli

    lead, *paragraphs = stillroom.cli.description(entry.module).split("\n\n")
    facts = {
        "Paper": f"{entry.title}, {arxiv(entry)}, {entry.year}",
        "Kind": KINDS[entry.kind].lower(),
        "Needs": entry.needs,
        "Gives": entry.gives,
        "Methods for `distill` and `compare`": ", ".join(f"`{name}`" for name, _ in entry.methods) or "none",
        "Code": f"`{entry.module}`",
        "Run it": f"`stillroom run {entry.slug}`",
    }
    listed = "\n".join(f"- {name}: {text}" for name, text in facts.items())
    parts = [f"# {entry.slug}", prose(lead), listed, *map(prose, paragraphs), "## What was measured"]
    for variant, results in variants.items():
        parts.append(measured(results, variant, f"{entry.slug}{f'--{variant}' if variant else ''}.json"))
    if not variants:
        parts.append("Nothing is committed yet.")
    names = public_names(entry.module)
    parts += ["## Reference", *(f"::: {entry.module}.{name}" for name in names)]
    return "\n\n".join(parts) + "\n"


def prose(text: str) -> str:
    """A paragraph of a docstring: its opening words in bold, as Markdown that HTML cannot leak into."""
    text = re.sub(r"<(?=[^`]*(?:`[^`]*`[^`]*)*$)", "&lt;", text)
    return re.sub(r"\A([A-Z][A-Za-z' ]{2,40}(?:, [a-z ]+)?):(?=\s)", r"**\1:**", text)


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
    columns += [f"against alone{',' if gaps.unit else ''}{gaps.unit}", interval] if compared else []
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


def comparisons_page(comparisons: Mapping[str, Results]) -> str:
    """The committed comparisons of methods under one budget."""
    lead = """# Comparisons

Several methods under one budget, each from the same initial students and in the same order of batches:
`stillroom compare` makes such a table from your models and data. How to read it: [Reading results](reading-results.md).
"""
    parts = [lead.strip()]
    for name, results in comparisons.items():
        part = measured(results, name, f"compare--{name}.json").replace("(../results/", "(results/")
        title = str(results.get("title") or name)
        parts.append(re.sub(r"\A### .*", lambda _, t=title: f"## {t}", part))
    if not comparisons:
        parts.append("Nothing is committed yet.")
    return "\n\n".join(parts) + "\n"


# ---- methods, checks, reference --------------------------------------------------------------------------------------


def methods_table() -> str:
    """Every method that `distill` and `compare` can use, with what it needs, from the classes themselves."""
    from stillroom.systems import catalog

    rows = []
    for name, path in catalog.methods().items():
        kind = catalog.method(name)
        needs = kind.needs
        where = f"{kind.__module__}.{kind.__qualname__}"
        notes = [
            "compares activations" if needs.features else "",
            "asks the teacher about inputs of its own: no cache" if needs.teacher_at == "own" else "",
            "numbered samples" if needs.index else "",
            f"{needs.min_classes} classes or more" if needs.min_classes > 2 else "",
            f"batches of {needs.min_batch} or more" if needs.min_batch > 1 else "",
            f"whole batches: {needs.whole_batch}" if needs.whole_batch else "",
        ]
        target = where if path.startswith("stillroom.baselines") else path.replace(":", ".")
        summary = (kind.__doc__ or "").strip().split("\n\n")[0]
        rows.append(
            [
                f"[`{name}`][{target}]",
                summary,
                needs.labels if needs.teacher or needs.labels != "some" else "some (without a teacher)",
                "; ".join(note for note in notes if note) or "nothing else",
                ", ".join(needs.tasks),
            ]
        )
    return table(["name", "what it does", "labels", "needs besides", "tasks"], rows)


def checks_table() -> str:
    """Every check of the battery, in the order it runs, as its docstring says it."""
    from stillroom.check import all_checks

    rows = [[f"`{name}`", (check.__doc__ or "").strip().split("\n\n")[0]] for name, check in all_checks().items()]
    return table(["check", "what must hold"], rows)


def tasks_table() -> str:
    """Every task with its main metric."""
    from stillroom.task import TASKS

    rows = [[f"`{name}`", (kind.__doc__ or "").split("\n\n")[0], f"`{kind.metric}`"] for name, kind in TASKS.items()]
    return table(["task", "what outputs mean", "main metric"], rows)


def first_run() -> str:
    """What `stillroom distill` prints at its end, from the committed results."""
    return readme_first_run(read_results())


PLACEHOLDERS = {"methods": methods_table, "checks": checks_table, "tasks": tasks_table, "distill": first_run}
"""What a hand-written page asks for by `<!-- generated: NAME -->`."""


def fill_in(markdown: str) -> str:
    """Put generated tables where a page asks for them.

    Raises:
        ValueError: it asks for one that there is not.
    """

    def made(asked: re.Match[str]) -> str:
        if asked[1] not in PLACEHOLDERS:
            raise ValueError(f"a page asks for {asked[1]!r}, but there are only {', '.join(PLACEHOLDERS)}")
        return PLACEHOLDERS[asked[1]]()

    return re.sub(r"<!-- generated: (\S+) -->", made, markdown)


def public_names(module: str) -> list[str]:
    """Public functions and classes of a module, in its own order, the recipe and the paper's settings last."""
    import ast

    file = SOURCES.joinpath(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    listed: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            listed = list(ast.literal_eval(node.value))
    if not listed:
        kinds = (ast.FunctionDef, ast.ClassDef)
        listed = [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    last = ("recipe", "paper")
    return [*(name for name in listed if name not in last), *(name for name in last if name in listed)]


REFERENCE = {
    "index": ("stillroom", "The main job, methods, training, experiments: what most programs need."),
    "losses": ("stillroom.losses", "Pure functions of tensors, grouped by what is matched."),
    "blocks": ("stillroom.blocks", "Small modules that methods are built from."),
    "data": ("stillroom.data", "Batches, samples, streams, augmentation, loading."),
    "task": ("stillroom.task", "What outputs mean: losses, metrics, checks of values."),
    "hub": ("stillroom.hub", "Models from anywhere: load, wrap, save, export."),
    "experiment": ("stillroom.experiment", "Arms over seeds, claims, intervals, reports."),
    "check": ("stillroom.check", "The battery that every method passes."),
    "baselines": ("stillroom.baselines", "What every method is compared with, and controls."),
}


def reference_pages() -> dict[str, str]:
    """One page per public package; an object that two packages export stands where it is first."""
    import importlib

    pages, told = {}, set()
    for page, (package, summary) in REFERENCE.items():
        module = importlib.import_module(package)
        names = [name for name in getattr(module, "__all__", ()) or public_names(package) if name != "__version__"]
        lines = [f"# {package}", summary]
        for name in names:
            value = getattr(module, name)
            if isinstance(value, type(sys)):
                continue
            place = f"{getattr(value, '__module__', package)}.{getattr(value, '__qualname__', name)}"
            if place in told:
                continue
            told.add(place)
            lines.append(f"::: {package}.{name}")
        pages[f"api/{page}.md"] = "\n\n".join(lines) + "\n"
    return pages


# ---- all of it -------------------------------------------------------------------------------------------------------


def pages(folder: Path = RESULTS) -> dict[str, str]:
    """Every generated page and file: path in the documentation -> content."""
    found = read_results(folder)
    made = {"systems/index.md": systems_page(found)}
    made |= {f"systems/{entry.slug}.md": system_page(entry, found.get(entry.slug, {})) for entry in SYSTEMS}
    made["comparisons.md"] = comparisons_page(found.get("compare", {}))
    made["changelog.md"] = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    made |= reference_pages()
    made |= {f"results/{file.name}": file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.json"))}
    return made


def navigation() -> dict[str, list[Any]]:
    """What belongs under "Systems" and "Reference" in the navigation."""
    systems: list[Any] = ["systems/index.md"]
    for kind, title in KINDS.items():
        entries = [{entry.slug: f"systems/{entry.slug}.md"} for entry in SYSTEMS if entry.kind == kind]
        if entries:
            systems.append({title: entries})
    reference = [{package: f"api/{page}.md"} for page, (package, _) in REFERENCE.items()]
    return {"Systems": systems, "Reference": reference}


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite README.md's generated parts, or say whether they are right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--readme", action="store_true", help="rewrite README.md between its markers")
    action.add_argument("--check", action="store_true", help="exit with 1 where README.md is not what the results say")
    options = parser.parse_args(arguments)
    file = ROOT / "README.md"
    before = file.read_text(encoding="utf-8")
    try:
        after = with_generated(before, read_results())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if options.readme:
        file.write_text(after, encoding="utf-8")
    elif before != after:
        print("README.md is not what the results say: run python docs/generate.py --readme", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
