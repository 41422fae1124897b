"""Charts: every dot, mean and line where its value is."""

from __future__ import annotations

import math
import re

import pytest

from stillroom.experiment.charts import Axis, Line, curves, mean_curve
from stillroom.experiment.report import render_report
from stillroom.experiment.wording import Scale
from tests.experiment.sample_results import arm, distilled, page_of


def test_charts_are_named_and_described():
    page = page_of(distilled())
    charts = page.all("svg", role="img")
    assert len(charts) == 3
    ids = [found["id"] for _, found, _ in page.elements if "id" in found]
    assert len(ids) == len(set(ids)) == 6
    for found, _ in charts:
        assert {found["aria-labelledby"], found["aria-describedby"]} <= set(ids)
    description = page.all("desc")[0][1]
    assert "pld: 93.0%, 93.0%, 96.0%; mean 94.0%" in description
    assert "teacher: 98.0%" in description


def test_every_seed_is_a_dot_at_its_value():
    source = render_report(distilled()).split('id="seeds-title"')[1].split("</figure>")[0]
    spots = {}
    for name in ("c0", "c2"):
        found = re.findall(rf'<circle class="{name}" cx="([\d.]+)%" cy="([\d.]+)"', source)
        spots[name] = [(float(x), float(y)) for x, y in found]
    assert [len(found) for found in spots.values()] == [3, 3]
    (first, _), (second, _), (third, _) = spots["c0"]  # 0.90, 0.91, 0.92
    assert second - first == pytest.approx(third - second, abs=0.02)
    per_point = second - first
    assert spots["c2"][0][0] - first == pytest.approx(3 * per_point, abs=0.05)
    assert spots["c2"][2][0] - first == pytest.approx(6 * per_point, abs=0.05)
    heights = [y for _, y in spots["c0"]]
    assert [y - 52 for y in heights] == [y for _, y in spots["c2"]]  # the same seed has the same place in each row
    reference = re.search(r'class="reference" x1="([\d.]+)%"', source)
    assert float(reference[1]) - first == pytest.approx(8 * per_point, abs=0.05)
    links = re.findall(r'<g class="seed"><title>(.*?)</title><line', source)
    assert links[0] == "seed 0: pld 93.0%, alone 90.0%"


def test_differences_are_dots_beside_a_line_at_zero():
    source = render_report(distilled()).split('id="gains-title"')[1].split("</figure>")[0]
    zero = float(re.search(r'class="zero" x1="([\d.]+)%"', source)[1])
    dots = [float(x) for x in re.findall(r'<circle class="c2" cx="([\d.]+)%"', source)]
    assert (dots[0] - zero) / (dots[1] - zero) == pytest.approx(0.03 / 0.02, rel=0.01)
    assert (dots[2] - zero) / (dots[1] - zero) == pytest.approx(0.04 / 0.02, rel=0.01)
    mean = float(re.search(r'class="mean" x1="([\d.]+)%"', source)[1])
    assert (mean - zero) / (dots[1] - zero) == pytest.approx(0.03 / 0.02, rel=0.01)


def test_a_reference_far_away_does_not_squeeze_the_rest():
    results = distilled()
    results["arms"]["teacher"] = arm([0.2], "teacher")
    source = render_report(results).split('id="seeds-title"')[1].split("</figure>")[0]
    assert "\N{LEFTWARDS ARROW} teacher 20.0%" in source
    assert 'class="reference"' not in source


def test_the_mean_curve_by_hand():
    first, second = [(0, 0.0), (10, 1.0), (20, 3.0)], [(0, 2.0), (20, 4.0)]
    assert mean_curve([first, second]) == [(0, 1.0), (10, 2.0), (20, 3.5)]
    assert mean_curve([first, [(5, 1.0), (10, 1.0)]]) == [(5, 0.75), (10, 1.0)]  # where both have values
    assert mean_curve([[(0, math.nan), (1, 2.0), (2, math.inf)]]) == [(1, 2.0)]
    assert mean_curve([[(0, math.nan)]]) == []


def test_curves_have_a_bold_mean_and_thin_seeds():
    line = Line("a", 2, ([(0, 0.0), (1, 1.0)], [(0, 0.5), (1, math.nan), (2, 0.5), (3, 1.0)]))
    source = str(curves("c", "title", "text", [line], Scale(False, 1)))
    assert len(re.findall('class="thin c2"', source)) == 2
    assert len(re.findall('class="bold c2 d2" d=', source)) == 1
    broken = re.findall(r'class="thin c2" d="([^"]+)"', source)[1]
    assert broken.count("M") == 2  # the line is interrupted where there is no number
    long = Line("a", 2, ([(step, math.sin(step)) for step in range(10_000)],))
    assert len(str(curves("c", "title", "text", [long], Scale(False, 1)))) < 8_000


def test_axes_mark_round_numbers_and_cover_the_values():
    axis = Axis.over([0.913, 0.978])
    assert axis.low < 0.913
    assert axis.high > 0.978
    assert axis.marks == pytest.approx([0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98])
    assert axis.place(axis.low) == 0
    assert axis.place(axis.high) == 100
    assert [axis.write(mark, Scale(True, 1)) for mark in axis.marks[:2]] == ["91%", "92%"]
    assert [axis.write(mark, Scale(True, 1), differences=True) for mark in (-0.01, 0.0, 0.01)] == [
        "\N{MINUS SIGN}1", "0", "+1",
    ]  # fmt: skip
    flat = Axis.over([0.5, 0.5])
    assert flat.low < 0.5 < flat.high
