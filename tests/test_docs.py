"""The documentation: its code runs, its commands parse, its links lead somewhere, and its numbers are the results'."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from markdown.extensions.toc import slugify

import stillroom
from stillroom import cli, options
from stillroom.check import all_checks
from stillroom.command_line import parse
from stillroom.systems.catalog import SYSTEMS, System
from tests.documentation import DOCS, PAGES, ROOT, blocks, generator

NO_GOLDEN: dict[str, str] = {}
"""Systems without golden vectors: slug -> why there can be none."""

SYSTEM_FILES = ROOT / "src" / "stillroom" / "systems"


def named(page: Path) -> str:
    return page.name


# ---- code ------------------------------------------------------------------------------------------------------------


def test_there_is_code_to_run() -> None:
    python = [block for page in PAGES for block in blocks(page) if block.language == "python"]
    assert sum("no-run" not in block.tags for block in python) >= 8


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")  # as a script would be, so that its classes pickle
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks(page):
        if block.language != "python":
            continue
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
        if "no-run" not in block.tags:
            exec(code, module.__dict__)


def modules() -> list[str]:
    found = [one.name for one in pkgutil.walk_packages(stillroom.__path__, "stillroom.")]
    return [name for name in found if not name.endswith("__main__")]


def test_examples_in_docstrings_run() -> None:
    known = {"torch": torch, "nn": torch.nn, "Batch": stillroom.Batch}
    tried, failed = 0, []
    for name in modules():
        torch.manual_seed(0)
        result = doctest.testmod(importlib.import_module(name), extraglobs=known, report=False)
        tried += result.attempted
        failed += [name] * bool(result.failed)
    assert tried > 20
    assert failed == []


def commands() -> list[str]:
    """Every `stillroom ...` line of a console block."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language not in ("console", "sh"):
                continue
            for line in block.text.replace("\\\n", " ").splitlines():
                text = line.removeprefix("$ ").split("&&")[-1].strip().removeprefix("uv run ")
                if text.startswith("stillroom "):
                    found.append(" ".join(text.split()))
    return list(dict.fromkeys(found))


class Parsed(Exception):  # noqa: N818 - no error: it ends a command where its work would begin
    pass


def test_there_are_commands() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_only(parser: Any, arguments: list[str]) -> None:
        parse(parser, arguments)
        raise Parsed

    monkeypatch.setattr(cli, "parse", parse_only)
    with pytest.raises(Parsed):
        cli._dispatch(shlex.split(line)[1:])


def test_the_quickstart_names_the_embedded_networks() -> None:
    page = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    assert f"a teacher (`{options.DEFAULT_TEACHER}`" in page
    assert f"a student (`{options.DEFAULT_STUDENT}`" in page
    assert f"sees only {options.DEFAULT_LABELS} labels" in page


# ---- links -----------------------------------------------------------------------------------------------------------


def links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "`code`", text))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def headings(text: str) -> set[str]:
    return {slugify(re.sub(r"[`*]", "", title), "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def test_links_lead_somewhere() -> None:
    generated = generator().pages()
    followed, broken = 0, []
    for page in PAGES:
        for target in links(page):
            followed += 1
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            inside = file.relative_to(DOCS).as_posix() if file.is_relative_to(DOCS) else ""
            if not file.exists() and inside not in generated:
                broken.append(f"{page.name}: {target}")
            elif anchor and anchor not in headings(generated.get(inside) or file.read_text(encoding="utf-8")):
                broken.append(f"{page.name}: {target} has no such heading")
    assert followed >= 10
    assert broken == []


# ---- the catalogue and everything that speaks of it ------------------------------------------------------------------


def file_of(entry: System) -> Path:
    file = ROOT.joinpath("src", *entry.module.split("."))
    return file / "__init__.py" if file.is_dir() else file.with_suffix(".py")


def defined(file: Path) -> set[str]:
    """Names that a file defines or imports at its top."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_the_catalogue_is_complete() -> None:
    there = {
        f"{kind.name}/{path.stem}"
        for kind in SYSTEM_FILES.iterdir()
        if kind.is_dir() and kind.name != "__pycache__"
        for path in kind.iterdir()
        if path.stem not in ("__init__", "__pycache__")
    }
    listed = {"/".join(entry.module.split(".")[2:]) for entry in SYSTEMS}
    assert listed
    assert there == listed
    assert len({entry.slug for entry in SYSTEMS}) == len(SYSTEMS)
    assert {entry.kind for entry in SYSTEMS} <= set(generator().KINDS)


@pytest.mark.parametrize("entry", SYSTEMS, ids=lambda entry: entry.slug)
class TestSystem:
    def test_has_its_file(self, entry: System) -> None:
        file = file_of(entry)
        assert entry.module == f"stillroom.systems.{entry.kind}.{entry.slug.replace('-', '_')}"
        assert {"recipe", "paper", *(name for _, name in entry.methods)} <= defined(file)
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        assert re.findall(r"^(For whom|Not for whom|Citation|Deviation)", said, re.MULTILINE) == [
            "For whom",
            "Not for whom",
            "Citation",
            "Deviation",
        ]
        assert f"arXiv:{entry.arxiv}" in said

    def test_has_golden_vectors(self, entry: System) -> None:
        there = (ROOT / "tests" / "golden" / f"{entry.slug}.json").exists()
        assert there != bool(NO_GOLDEN.get(entry.slug)), "golden vectors, or a reason in NO_GOLDEN"

    def test_has_results_with_a_control(self, entry: System) -> None:
        variants = generator().read_results().get(entry.slug, {})
        assert "" in variants, f"results/{entry.slug}.json is missing"
        for variant, results in variants.items():
            assert len(results["seeds"]) >= 3, variant
            assert results["claims"], variant
            assert "control" in {arm["role"] for arm in results["arms"].values()}, variant
            for field in ("machine", "versions", "command", "seconds"):
                assert results[field], f"{variant}: {field}"

    def test_has_a_page(self, entry: System) -> None:
        page = generator().pages()[f"systems/{entry.slug}.md"]
        assert entry.title in page
        assert re.search(rf"^::: {re.escape(entry.module)}\.(recipe\.)?recipe$", page, re.MULTILINE)


def test_the_readme_says_what_the_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert generator().main(["--check"]) == 0, capsys.readouterr().err


def test_the_readme_counts_right() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^(\d+) systems:$", readme, re.MULTILINE)] == [len(SYSTEMS)]
    assert [int(number) for number in re.findall(r"(\d+) named checks", readme)] == [len(all_checks())]


def test_every_field_of_results_is_explained() -> None:
    page = (DOCS / "reading-results.md").read_text(encoding="utf-8")
    whole, arms = page.split("## `results.json`")[1].split("## `summary.json`")[0].split("Each of `arms`:")
    explained = [
        {name for cells in re.findall(r"^\| (`[^|]*) \|", part, re.MULTILINE) for name in re.findall(r"`(\w+)`", cells)}
        for part in (whole, arms)
    ]
    runs = [run for variants in generator().read_results().values() for run in variants.values()]
    assert runs
    for run in runs:
        assert set(run) <= explained[0]
        assert {field for arm in run["arms"].values() for field in arm} <= explained[1]
