"""What the documentation makes of results: a small made-up run with numbers worked out by hand."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from stillroom.systems.catalog import SYSTEMS, system
from tests.documentation import generator

RUN: dict[str, Any] = {
    "kind": "system",
    "title": "PLD",
    "question": "A small student sees 150 | labels.",
    "system": "pld",
    "method": None,
    "metric": "accuracy",
    "higher_is_better": True,
    "level": 0.95,
    "seeds": [0, 1, 2],
    "arms": {
        "teacher": {"values": [0.97], "mean": 0.97, "low": None, "high": None, "role": "teacher", "metrics": {}},
        "alone": {
            "values": [0.90, 0.91, 0.92],
            "mean": 0.91,
            "low": 0.88,
            "high": 0.94,
            "role": "alone",
            "seconds": [1.0, 2.0, 3.0],
            "metrics": {"accuracy": [0.90, 0.91, 0.92], "nll": [0.30, 0.40, 0.50]},
        },
        "pld": {
            "values": [0.93, 0.94, 0.95],
            "mean": 0.94,
            "low": 0.91,
            "high": 0.97,
            "role": "method",
            "seconds": [2.0, 2.0, 2.0],
            "metrics": {"accuracy": [0.93, 0.94, 0.95], "nll": [0.20, 0.20, 0.20]},
        },
        "scrambled": {"values": [0.91, 0.91, 0.91], "mean": 0.91, "low": 0.91, "high": 0.91, "role": "control"},
    },
    "differences": {"pld": {"mean": 0.03, "low": 0.025, "high": 0.035, "level": 0.95}},
    "claims": [
        {"text": "PLD beats alone.", "verdict": "shown", "mean": 0.03, "low": 0.025, "high": 0.035, "on": "accuracy"},
        {"text": "PLD is calmer.", "verdict": "refuted", "mean": 0.2, "low": 0.1, "high": 0.3, "on": "nll"},
        {"text": "One seed says it.", "verdict": "not shown", "mean": 0.1, "low": None, "high": None, "on": "accuracy"},
    ],
    "config": {"recipe": "pld", "data": "digits"},
    "command": "stillroom run pld --seeds 3 --first-seed 0",
    "machine": {"processor": "A Processor", "cores": 2, "threads": 1, "jobs": 2, "device": "cpu", "system": "Linux"},
    "versions": {"python": "3.11.7", "torch": "2.11.0"},
    "seconds": 61.2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results = tmp_path / "results"
    results.mkdir()
    (results / "pld.json").write_text(json.dumps(RUN))
    real = copy.deepcopy(RUN) | {"config": {"recipe": "pld", "data": "cifar10"}, "claims": RUN["claims"][:1]}
    (results / "pld--cifar10.json").write_text(json.dumps(real))
    versus = copy.deepcopy(RUN) | {"kind": "compare", "system": None, "claims": [], "title": "Two on digits"}
    (results / "compare--digits.json").write_text(json.dumps(versus))
    return results


def row(page: str, first: str) -> list[str]:
    found = [line for line in page.splitlines() if line.startswith(f"| {first} |")]
    assert len(found) >= 1, f"no row {first!r} in\n{page}"
    return [text.strip() for text in re.split(r"(?<!\\)\|", found[0])[1:-1]]


def test_nothing_committed_is_no_error(tmp_path: Path) -> None:
    generate = generator()
    made = generate.pages(tmp_path / "missing")
    assert {f"systems/{entry.slug}.md" for entry in SYSTEMS} <= set(made)
    assert "not measured yet" in made["systems/index.md"]
    assert "Nothing is committed yet." in made["systems/pld.md"]


def test_a_page_has_every_seed_every_claim_and_what_repeats_it(folder: Path) -> None:
    page = generator().pages(folder)["systems/pld.md"]
    assert row(page, "PLD beats alone.") == ["PLD beats alone.", "**shown**", "+3.0 points", "+2.5 to +3.5"]
    assert row(page, "PLD is calmer.") == ["PLD is calmer.", "**refuted**", "+0.200", "+0.100 to +0.300"]
    assert row(page, "One seed says it.")[1:] == ["**not shown**", "+10.0 points", "one seed has none"]
    assert row(page, "`alone`") == ["`alone`", "alone", "91.0%", "88.0 to 94.0%", "90.0, 91.0, 92.0", "", "", "2.0"]
    assert row(page, "`pld`")[2:] == ["94.0%", "91.0 to 97.0%", "93.0, 94.0, 95.0", "+3.0", "+2.5 to +3.5", "2.0"]
    assert row(page, "`teacher`")[:5] == ["`teacher`", "teacher", "97.0%", "", ""]
    assert [line for line in page.splitlines() if line.startswith("| `alone` | 0.400 |")]  # the mean of nll
    assert "**Partly shown:** 1 of 3 claims is shown, 1 is refuted, 1 is not shown." in page
    for text in ("stillroom run pld --seeds 3 --first-seed 0", "A Processor, 2 cores", "torch 2.11.0", "1 min 1 s"):
        assert text in page
    assert "### On digits" in page
    assert "### On cifar10" in page
    assert page.index("### On digits") < page.index("### On cifar10")


def test_every_number_can_be_downloaded(folder: Path) -> None:
    made = generator().pages(folder)
    assert "(../results/pld--cifar10.json)" in made["systems/pld.md"]
    assert json.loads(made["results/pld--cifar10.json"])["config"]["data"] == "cifar10"
    assert "(results/compare--digits.json)" in made["comparisons.md"]
    assert "## Two on digits" in made["comparisons.md"]


def test_the_catalogue_page_counts_claims(folder: Path) -> None:
    generate = generator()
    found = generate.read_results(folder)
    told = "1 of 3 shown, 1 not shown, 1 refuted (digits, 3 seeds); 1 of 1 shown (cifar10, 3 seeds)"
    assert generate.verdict_cell(found["pld"]) == told
    assert told in generate.systems_page(found)
    assert 'id="filter"' in generate.systems_page(found)


def test_the_readme_is_rewritten_between_its_markers_only(folder: Path) -> None:
    generate = generator()
    found = generate.read_results(folder)
    bare = "before\n<!-- systems -->\nold\n<!-- /systems -->\nbetween\n<!-- distill -->\n<!-- /distill -->\nafter\n"
    made = generate.with_generated(bare, found)
    assert made.startswith(f"before\n<!-- systems -->\n{len(SYSTEMS)} systems:\n")
    assert "old" not in made
    assert made.endswith("between\n<!-- distill -->\n<!-- /distill -->\nafter\n")
    assert sum(line.startswith("| `") for line in made.splitlines()) == len(SYSTEMS)
    assert generate.with_generated(made, found) == made


def test_the_first_run_is_shown_as_it_is_printed(folder: Path) -> None:
    distilled = copy.deepcopy(RUN) | {"kind": "distill", "system": None, "method": "pld", "claims": []}
    (folder / "distill.json").write_text(json.dumps(distilled))
    shown = generator().readme_first_run(generator().read_results(folder))
    assert re.search(r"^ alone +91\.0% ", shown, re.MULTILINE)
    assert "Worth it: pld is 3.0 points better" in shown
    (folder / "distill.json").rename(folder / "distill--language-modelling.json")
    found = generator().read_results(folder)
    assert list(found["distill"]) == ["language-modelling"]
    assert generator().readme_first_run(found) == ""


def test_missing_markers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"README\.md has no markers <!-- systems -->"):
        generator().with_generated("no markers", {})


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("pld2.json", json.dumps(RUN), "named after 'pld2', which is no system"),
        ("logit-kd.json", json.dumps(RUN), "holds the results of 'pld', expected those of 'logit-kd'"),
        ("compare.json", json.dumps(RUN), "compare--NAME.json"),
        ("pld.json", "{", "pld.json cannot be read as results"),
        ("pld.json", json.dumps(RUN | {"kind": "other"}), "given 'other'"),
    ],
)
def test_results_that_belong_to_nothing_are_refused(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(told)):
        generator().read_results(tmp_path)


def test_check_notices_a_readme_that_is_out_of_date(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = generator()
    readme = folder.parent / "README.md"
    readme.write_text("<!-- systems -->\n<!-- /systems -->\n<!-- distill -->\n<!-- /distill -->\n")
    monkeypatch.setattr(generate, "ROOT", folder.parent)
    monkeypatch.setattr(generate.read_results, "__defaults__", (folder,))
    assert generate.main(["--check"]) == 1
    assert "README.md is not what the results say" in capsys.readouterr().err
    assert generate.main(["--readme"]) == 0
    assert generate.main(["--check"]) == 0
    (folder / "pld--cifar10.json").unlink()
    assert generate.main(["--check"]) == 1


def test_generated_tables_hold_every_check_and_method() -> None:
    from stillroom.check import all_checks
    from stillroom.systems import catalog

    generate = generator()
    checks, methods = generate.checks_table(), generate.methods_table()
    assert [line.split("`")[1] for line in checks.splitlines()[2:]] == list(all_checks())
    assert [line.split("`")[1] for line in methods.splitlines()[2:]] == list(catalog.methods())
    assert all(line.count(" | ") == 4 for line in methods.splitlines())
    with pytest.raises(ValueError, match="asks for 'nothing'"):
        generate.fill_in("<!-- generated: nothing -->")


def test_html_in_a_docstring_stays_text() -> None:
    prose = generator().prose
    assert prose("For whom: x < y and `a < b`.") == "**For whom:** x &lt; y and `a < b`."
    assert prose("Deviations from the papers, in all of them: none.").startswith(
        "**Deviations from the papers, in all of them:**"
    )


def test_a_system_names_its_public_parts_where_they_are_defined() -> None:
    names = generator().public_names(system("pld").module)
    assert list(names)[-2:] == ["recipe", "paper"]
    assert names["PLD"] == "stillroom.systems.classification.pld.PLD"
    folder = system("logit-kd").module
    names = generator().public_names(folder)
    assert names["DKD"] == f"{folder}.logits.DKD"
    assert names["recipe"] == f"{folder}.recipe.recipe"  # not the module of that name
    assert "annotations" not in names
