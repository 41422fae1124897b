"""Makes the pages, tables and numbers of the documentation from the code and the committed results.

    python docs/generate.py --readme    rewrite what README.md shows between its markers
    python docs/generate.py --check     exit with 1 where README.md is not what the results say

The pages themselves are made while MkDocs builds (see `hooks.py`); nothing generated is committed but README's table.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measured import FIRST_RUN, RESULTS, Results, measured, read_results, table, verdict_cell
from reference import REFERENCE, checks_table, methods_table, public_names, reference_pages, tasks_table
from weighed import benchmarks, cold_start, which_method

from stillroom.experiment.findings import read
from stillroom.experiment.wording import headline
from stillroom.systems.catalog import SYSTEMS, System

ROOT = Path(__file__).resolve().parents[1]
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

# ---- the table of systems --------------------------------------------------------------------------------------------


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

    results = found.get(FIRST_RUN, {}).get("")
    if results is None:
        return ""
    console = Console(width=100, record=True, file=io.StringIO(), color_system=None)
    console.print(comparison_table(results))
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
        if not opened and not content:
            continue
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
    parts = [f"# {entry.slug}", text_of(lead), listed, *map(prose, paragraphs), "## What was measured"]
    for variant, results in variants.items():
        parts.append(measured(results, variant, f"{entry.slug}{f'--{variant}' if variant else ''}.json"))
    if not variants:
        parts.append("Nothing is committed yet.")
    parts += ["## Reference", *(f"::: {place}" for place in public_names(entry.module).values())]
    return "\n\n".join(parts) + "\n"


def text_of(paragraph: str) -> str:
    """A paragraph of a docstring as Markdown that HTML cannot leak into."""
    return re.sub(r"<(?=[^`]*(?:`[^`]*`[^`]*)*$)", "&lt;", paragraph)


def prose(paragraph: str) -> str:
    """The same with its opening words in bold: "For whom:"."""
    return re.sub(r"\A([A-Z][A-Za-z' ]{2,40}(?:, [a-z ]+)?):(?=\s)", r"**\1:**", text_of(paragraph))


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


def first_run() -> str:
    """What `stillroom distill` prints at its end, from the committed results."""
    return readme_first_run(read_results())


def task_runs() -> str:
    """What `stillroom distill --task TASK` gives without further arguments, for every task with committed results."""
    runs = {task: run for task, run in read_results().get(FIRST_RUN, {}).items() if task}
    rows = [[f"`{task}`", str(run["title"]), str(headline(read(run)))] for task, run in runs.items()]
    return table(["`--task`", "from what to what", "what came out"], rows) if rows else ""


PLACEHOLDERS = {
    "methods": methods_table,
    "checks": checks_table,
    "tasks": tasks_table,
    "distill": first_run,
    "distill-tasks": task_runs,
    "which-method": which_method,
    "benchmarks": benchmarks,
    "cold-start": cold_start,
}
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
