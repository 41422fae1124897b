"""The report: every part there or left out, text that stays text, nothing from outside, and a layout that holds."""

from __future__ import annotations

import html
import io
import json
import math
import re
import shutil
import subprocess
from importlib.resources import files

import pytest
from rich.console import Console

from stillroom.experiment.claim import Claim
from stillroom.experiment.findings import read
from stillroom.experiment.report import comparison_table, render_report, write_report
from stillroom.experiment.wording import headline
from tests.experiment.sample_results import (
    HOSTILE,
    LONG,
    MINIMAL,
    Page,
    compared,
    distilled,
    gain,
    of_system,
    page_of,
)

FULL = [
    "Results", "Every seed", "Difference to alone", "While training", "What the student costs",
    "Agreement with the teacher", "Notes", "Repeat it",
]  # fmt: skip


def test_a_full_report_has_every_part():
    page = page_of(distilled())
    assert page.headings() == FULL
    assert len(page.all("h1")) == len(page.all("main")) == 1
    text = page.elements[0][2]
    for expected in (
        "Sort digits into 10 classes.", "70.2\N{MULTIPLICATION SIGN} fewer", "2\N{MULTIPLICATION SIGN} faster",
        "341 kB", "95.7%", "0.131", "The teacher saw all labels.", "training.steps", "some processor", "1 min 1 s",
    ):  # fmt: skip
        assert expected in text
    (_, command), *_ = page.all("pre")
    assert command == "stillroom distill --data digits --method pld"


@pytest.mark.parametrize(
    ("absent", "heading"),
    [
        ("costs", "What the student costs"),
        ("agreement", "Agreement with the teacher"),
        ("notes", "Notes"),
    ],
)
def test_what_was_not_measured_is_left_out(absent, heading):
    assert page_of(distilled(**{absent: None})).headings() == [name for name in FULL if name != heading]
    assert page_of(distilled(**{absent: {} if absent != "notes" else []})).headings() == [
        h for h in FULL if h != heading
    ]


def test_what_steps_cost_is_listed_as_the_arms_are():
    costs = {
        "alone": {"seconds": 0.01, "ratio": 1.0, "memory_bytes": 2_000_000},
        "pld": {"seconds": 0.0252, "ratio": 2.5, "memory_bytes": 30_000_000},
    }
    page = page_of(distilled(step_costs=costs))
    assert "What a training step costs" in page.headings()
    cells = [(found.get("data-label"), text) for found, text in page.all("td")]
    assert [text for label, text in cells if label == "Time per step"] == ["25.2 ms", "10 ms"]
    assert [text for label, text in cells if label == "Times alone"] == ["2.50", "1.00"]


def test_a_minimal_report_has_what_there_is():
    page = page_of(MINIMAL)
    assert page.headings() == ["Results", "Every seed", "Difference to alone"]
    assert [text for _, text in page.all("th", scope="col")] == ["Arm", "Accuracy", "Against alone, points", "Verdict"]
    alone = {**MINIMAL, "kind": "system", "arms": {"alone": {"values": [], "role": "alone"}}}
    assert page_of(alone).headings() == ["Results"]
    assert str(headline(read(alone))) == "No verdict: no arm gave a number."


def test_runs_without_a_number_are_shown_as_such():
    results = distilled()
    results["arms"]["pld"] |= {"values": [0.93, math.nan, 0.96], "mean": None, "low": None, "high": None}
    results["difference"] = results["differences"] = None
    page = page_of(json.loads(json.dumps(results)))
    assert "Difference to alone" not in page.headings()
    assert len(page.all("circle", **{"class": "c2"})) == 2  # of three seeds
    assert "\N{EN DASH}" in [text for _, text in page.all("td", **{"data-label": "Accuracy"})]


def test_nothing_comes_from_outside():
    for results in (distilled(), compared(), of_system(Claim("pld", ">", "alone", on="accuracy"))):
        source = render_report(results)
        page = Page(source)
        for _, attributes, _ in page.elements:
            assert not set(attributes) & {"src", "href", "srcset", "action", "data"}
        assert not re.search(r"url\(|@import|https?:", source)
        assert not page.all("script")
        policies = [found["content"] for found, _ in page.all("meta") if found.get("http-equiv")]
        assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_text_stays_text():
    results = distilled(method=HOSTILE)
    for key in ("title", "question", "command"):
        results[key] = HOSTILE
    results |= {"metric": "accuracy", "system": HOSTILE, "notes": [HOSTILE], "config": {HOSTILE: {"x": HOSTILE}}}
    results["costs"][HOSTILE] = {"parameters": 3}
    results["machine"] = {"processor": HOSTILE}
    results["claims"] = [{"text": HOSTILE, "verdict": "shown", "on": HOSTILE}]
    results["arms"][HOSTILE]["metrics"] = {HOSTILE: [1.0, 2.0, 3.0]}
    clean = {name for name, _, _ in page_of(distilled()).elements} | {"ul", "li"}
    page = page_of(results)
    assert {name for name, _, _ in page.elements} <= clean
    assert not [name for _, attributes, _ in page.elements for name in attributes if name.startswith("on")]
    assert page.all("h1")[0][1] == HOSTILE
    assert page.all("pre")[0][1] == HOSTILE
    assert HOSTILE in [found.get("title") for found, _ in page.all("span", **{"class": "name"})]
    assert HOSTILE in page.all("desc")[0][1]


# The table for the terminal


def printed(results, width=160):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(comparison_table(results))
    return console.file.getvalue()


def test_the_table_has_every_arm_with_its_numbers():
    lines = printed(distilled(difference=gain(0.03, 0.01, 0.05), title="Digits")).splitlines()
    pld = " ".join(next(line for line in lines if line.strip().startswith("pld ")).split())
    assert pld == "pld 94.0% 93.0, 93.0, 96.0 +3.0 worth it 4.0"
    alone = " ".join(next(line for line in lines if line.strip().startswith("alone ")).split())
    assert alone == "alone 91.0% 90.0, 91.0, 92.0 2.0"
    assert "+1.0 to +5.0" in " ".join(lines)
    assert "Worth it: pld is 3.0 points better" in " ".join(lines)


def test_the_table_prints_names_as_they_are_and_fits():
    assert "[red]x[/red]" in printed(distilled(method=HOSTILE), width=300)
    assert max(map(len, printed(compared(), width=80).splitlines())) <= 80


# Files and refusals


def test_a_report_is_written_from_what_a_json_file_holds(tmp_path):
    results = json.loads(json.dumps(distilled()))
    path = write_report(results, tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == render_report(distilled())
    with pytest.raises(IsADirectoryError, match="name the file in it"):
        write_report(results, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "other"}, "must be of kind distill, compare, system, given 'other'"),
        ({"metric": None}, "must have 'metric'"),
        ({"arms": {"a": {"values": [1.0, 2.0]}}}, "arm 'a' has 2 values for 3 seeds"),
        ({"arms": {"a": {"values": [1.0], "role": "pupil"}}}, "role of arm 'a' must be .* given 'pupil'"),
    ],
)
def test_results_that_cannot_be_read_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read(distilled(**changes))


# How it looks


def style():
    return files("stillroom.experiment").joinpath("report.css").read_text(encoding="utf-8")


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first, second):
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_marks_stand_out(dark):
    """WCAG 2.2 AA: 4.5 for text, 3 for marks."""
    light_part, dark_part = style().split("prefers-color-scheme: dark")[:2]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark_part if dark else light_part))
    assert len(colours) == 22
    for name in ("ink", "soft", "good", "bad", "open", "c1"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    for name in ("good", "bad", "open"):
        assert contrast(colours[name], colours[f"{name}-paper"]) >= 4.5, name
        assert contrast(colours["ink"], colours[f"{name}-paper"]) >= 4.5, name
    assert contrast(colours["ink"], colours["raised"]) >= 4.5
    for number in range(10):
        assert contrast(colours[f"c{number}"], colours["paper"]) >= 3, number


FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--virtual-time-budget=10000", "--dump-dom",
]  # fmt: skip


def browser():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


PROBE = """
<script>
addEventListener("load", () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, width = frame.clientWidth;
    for (const fold of page.querySelectorAll("details")) fold.open = true;
    const outside = [...page.querySelectorAll("body *")].filter(
      e => e.getBoundingClientRect().right > width + 1 && !e.closest(".frame"));
    const texts = [...page.querySelectorAll("p, li, td, th, dd, text")].filter(e => e.textContent.trim());
    found.push({
      width: width,
      overflow: page.documentElement.scrollWidth - width,
      outside: outside.map(e => e.outerHTML.slice(0, 80)),
      height: page.body.scrollHeight,
      smallest: Math.min(...texts.map(e => parseFloat(getComputedStyle(e).fontSize))),
      dots: page.querySelectorAll("circle").length,
      blank: [...page.querySelectorAll("svg.chart")].filter(e => e.getBoundingClientRect().width < 100).length,
      paper: getComputedStyle(page.body).backgroundColor,
    });
  }
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


@pytest.mark.skipif(browser() is None, reason="needs Chromium or Chrome")
def test_it_renders_on_phones_and_screens_without_sideways_scrolling(tmp_path):
    long = distilled(method=LONG, title=LONG, command=f"stillroom distill --{LONG}={LONG}", notes=[LONG * 3])
    long["config"] = {LONG: LONG}
    many = distilled(seeds=list(range(12)))
    for name in ("alone", "pld"):
        many["arms"][name]["values"] = 4 * many["arms"][name]["values"]
    reports = [distilled(), compared(), of_system(Claim("pld", ">", "alone", on="accuracy")), MINIMAL, long, many]
    widths = (360, 1200)
    pages = [html.escape(render_report(results)) for results in reports]
    look = "border:0;height:900px;width:{}px"
    frames = [f'<iframe style="{look.format(w)}" srcdoc="{page}"></iframe>' for page in pages for w in widths]
    (tmp_path / "probe.html").write_text(f"<!doctype html><body>{PROBE}{''.join(frames)}</body>", encoding="utf-8")
    done = subprocess.run(
        [browser(), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)[1]))
    assert [page["width"] for page in found] == list(widths) * len(reports)
    for page in found:
        assert page["overflow"] == 0, page
        assert page["outside"] == [], page
        assert page["smallest"] >= 12, page
        assert page["blank"] == 0, page
        assert page["height"] > 600, page
        assert page["paper"] == "rgb(251, 250, 247)", page  # the style sheet is applied under the content policy
    assert [page["dots"] for page in found[::2]] == [9, 18 + 15, 9, 3, 9, 36]


def test_differences_are_said_to_be_to_the_arm_they_are_to():
    given = distilled()
    given["arms"]["chance"] = given["arms"].pop("alone")
    assert "Against chance, points" in [text for _, text in page_of(given).all("th", scope="col")]
    table = printed(given)
    assert "chance," in table
    assert "alone," not in table
