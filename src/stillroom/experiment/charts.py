"""Charts as inline SVG: every seed as a dot, and learning curves. Positions are percentages, so text never shrinks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stillroom.experiment.findings import Span
from stillroom.experiment.markup import Child, Html, join, tag
from stillroom.experiment.wording import Scale, signed

ROW = 52
"""Height of an arm's row in pixels; the style sheet sets the names beside it to the same."""
TOP = 26
"""Room above the rows, for a reference's name."""
MOST_LINKED_ROWS = 3
MOST_POINTS = 240
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Row:
    """An arm in a chart of dots.

    Attributes:
        name: shown beside it.
        reading: what is written below the name.
        colour: number of its colour.
        dots: one value per seed; None where there is none.
        span: mean and interval.
    """

    name: str
    reading: str
    colour: int
    dots: tuple[float | None, ...]
    span: Span


@dataclass(frozen=True)
class Line:
    """An arm in a chart of curves: one list of points (step, value) per seed."""

    name: str
    colour: int
    seeds: tuple[Points, ...]


@dataclass(frozen=True)
class Axis:
    """A range of values and where its marks are."""

    low: float
    high: float
    marks: tuple[float, ...]
    step: float

    @classmethod
    def over(cls, values: Sequence[float], *, pieces: int = 5, margin: float = 0.05) -> Axis:
        """Cover the values with some margin, and mark round numbers."""
        low, high = min(values), max(values)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            room = 0.02 * max(abs(low), abs(high)) or 0.5
            low, high = low - room, high + room
        room = margin * (high - low)
        power = 10.0 ** math.floor(math.log10((high - low) / pieces))
        step = min(
            (power * factor for factor in (1, 2, 5, 10)), key=lambda size: abs(math.log((high - low) / size / pieces))
        )
        first = math.ceil((low - room) / step - 1e-9)
        last = math.floor((high + room) / step + 1e-9)
        return cls(low - room, high + room, tuple(step * k for k in range(first, last + 1)), step)

    def place(self, value: float) -> float:
        """Where a value lies, in percent of the width."""
        return 100 * (value - self.low) / (self.high - self.low)

    def write(self, value: float, scale: Scale, *, differences: bool = False) -> str:
        """A mark's text, with the digits that the distance of the marks needs."""
        factor = 100 if scale.percent else 1
        decimals = min(max(-math.floor(math.log10(self.step * factor) + 1e-9), 0), 6)
        if differences:
            return signed(value * factor, decimals, plus=True)
        return replace(scale, decimals=decimals).value(value)


def dots(
    identity: str,
    title: str,
    description: str,
    rows: Sequence[Row],
    seeds: Sequence[int],
    scale: Scale,
    *,
    references: Sequence[tuple[str, float]] = (),
    differences: bool = False,
) -> Html:
    """Draw every seed of every arm as a dot, with the arm's mean and interval.

    A seed's dots have the same place within each row and, for few rows, are joined by a line.

    Args:
        identity: prefix of the element ids.
        title: what the chart shows.
        description: the same numbers in words, for those who cannot see it.
        rows: from top to bottom, at least one with a value.
        seeds: numbers of the seeds, as many as each row has dots.
        scale: how values are written.
        references: (name, value) of vertical lines; one far outside becomes an arrow at the edge.
        differences: the values are differences: written with their sign, beside a line at 0.
    """
    shown = [value for row in rows for value in (*row.dots, row.span.mean, row.span.low, row.span.high)]
    values = [value for value in shown if value is not None] + ([0.0] if differences else [])
    near = [value for _, value in references if _is_near(value, values)]
    axis = Axis.over(values + near)
    top = TOP + 16 * max(len(references) - 1, 0)
    bottom = top + ROW * len(rows)
    centres = [top + ROW * (place + 0.5) for place in range(len(rows))]
    marks = [mark for mark in axis.marks if not scale.percent or differences or -1e-9 <= mark <= 1 + 1e-9]
    parts: list[Child] = [_upright(axis.place(mark), top, bottom, "grid") for mark in marks]
    parts += [tag("line", {"class": "lane", "x1": "0", "x2": "100%", "y1": y, "y2": y}) for y in centres]
    if differences:
        parts.append(_upright(axis.place(0.0), top - 8, bottom, "zero"))
    for place, (name, value) in enumerate(references):
        parts.append(_reference(axis, _shorten(name), value, scale, 14 + 16 * place, bottom, near=value in near))
    parts += [_mean(axis, row, y) for row, y in zip(rows, centres, strict=True)]
    write = (lambda value: scale.gap(value, plus=True)) if differences else scale.value
    for place, seed in enumerate(seeds):
        offset = _lane(place, len(seeds))
        spots = [
            (row, y + offset, row.dots[place])
            for row, y in zip(rows, centres, strict=True)
            if len(row.dots) == len(seeds)
        ]
        parts.append(_seed(axis, seed, [(row, y, x) for row, y, x in spots if x is not None], write, len(rows)))
    texts = [axis.write(mark, scale, differences=differences) for mark in marks]
    parts += _marks([axis.place(mark) for mark in marks], bottom + 18, texts)
    names = [
        tag(
            "li",
            {"class": f"c{row.colour}"},
            tag("span", {"class": "name", "title": row.name}, row.name),
            tag("span", {"class": "reading"}, row.reading),
        )
        for row in rows
    ]
    picture = _picture(identity, title, description, bottom + 26, parts)
    return tag("div", {"class": "dots"}, tag("ul", {"class": "names", "style": f"padding-top:{top}px"}, names), picture)


def curves(
    identity: str,
    title: str,
    description: str,
    lines: Sequence[Line],
    scale: Scale,
    *,
    references: Sequence[tuple[str, float]] = (),
    height: int = 240,
) -> Html:
    """Draw learning curves: a thin line per seed and a bold one for the mean over seeds.

    Args:
        identity: prefix of the element ids.
        title: what the chart shows.
        description: what it shows in words.
        lines: the arms, at least one with a point.
        scale: how values are written.
        references: (name, value) of horizontal lines; those far outside are left out.
        height: of the plot in pixels.
    """
    points = [point for line in lines for seed in line.seeds for point in seed if math.isfinite(point[1])]
    values = [value for _, value in points]
    near = [(name, value) for name, value in references if _is_near(value, values)]
    across = Axis.over([step for step, _ in points], margin=0.0)
    up = Axis.over(values + [value for _, value in near])
    marks = [mark for mark in up.marks if not scale.percent or -1e-9 <= mark <= 1 + 1e-9]

    def level(value: float) -> float:
        return round(8 + height * (1 - up.place(value) / 100), 2)

    parts: list[Child] = [
        tag("line", {"class": "grid", "x1": "0", "x2": "100%", "y1": level(m), "y2": level(m)}) for m in marks
    ]
    for name, value in near:
        y = level(value)
        parts.append(tag("line", {"class": "reference", "x1": "0", "x2": "100%", "y1": y, "y2": y}))
        text = f"{_shorten(name)} {scale.value(value)}"
        parts.append(tag("text", {"class": "label", "x": "0", "y": y - 5}, text))
    thin: list[Html] = []
    bold: list[Html] = []
    for line in lines:
        known = [seed for seed in line.seeds if seed]
        if len(known) > 1:
            thin += [_path(seed, across, up, f"thin c{line.colour}") for seed in known]
        bold.append(_path(mean_curve(known), across, up, f"bold c{line.colour} d{line.colour}"))
    box: dict[str, str | float | None] = {"x": 0, "y": 8, "width": "100%", "height": height, "viewBox": "0 0 1000 1000"}
    parts.append(tag("svg", {**box, "preserveAspectRatio": "none", "overflow": "visible"}, thin, bold))
    parts += _marks(list(map(across.place, across.marks)), height + 28, list(map(_step, across.marks)))
    labels = [
        tag("text", {"class": "mark", "x": "100%", "y": level(mark) + 4, "text-anchor": "end"}, up.write(mark, scale))
        for mark in marks
    ]
    gutter = tag("svg", {"class": "gutter", "height": height + 36, "aria-hidden": "true"}, labels)
    legend = [tag("li", None, swatch(line.colour), tag("span", {"class": "name"}, line.name)) for line in lines]
    picture = _picture(identity, title, description, height + 36, parts)
    return join([tag("ul", {"class": "legend"}, legend), tag("div", {"class": "curves"}, gutter, picture)])


def swatch(colour: int) -> Html:
    """A short piece of an arm's line, for legends."""
    line = tag("line", {"class": f"bold c{colour} d{colour}", "x1": 1, "x2": 27, "y1": 6, "y2": 6})
    return tag("svg", {"class": "swatch", "width": 28, "height": 12, "aria-hidden": "true"}, line)


def mean_curve(seeds: Sequence[Points]) -> list[tuple[float, float]]:
    """Average curves over seeds where all of them have values, between their own points by straight lines."""
    finite = [[point for point in seed if math.isfinite(point[1])] for seed in seeds]
    finite = [seed for seed in finite if seed]
    if not finite:
        return []
    first, last = max(seed[0][0] for seed in finite), min(seed[-1][0] for seed in finite)
    steps = sorted({step for seed in finite for step, _ in seed if first <= step <= last})
    means = np.mean([np.interp(steps, *np.array(seed, dtype=float).T) for seed in finite], axis=0) if steps else []
    return list(zip(steps, map(float, means), strict=True))


def _picture(identity: str, title: str, description: str, height: int, parts: Sequence[Child]) -> Html:
    names = {"aria-labelledby": f"{identity}-title", "aria-describedby": f"{identity}-text"}
    return tag(
        "svg",
        {"class": "chart", "role": "img", "height": height, **names},
        tag("title", {"id": f"{identity}-title"}, title),
        tag("desc", {"id": f"{identity}-text"}, description),
        parts,
    )


def _seed(
    axis: Axis, seed: int, spots: Sequence[tuple[Row, float, float]], write: Callable[[float], str], rows: int
) -> Html:
    told = ", ".join(f"{row.name} {write(value)}" for row, _, value in spots)
    links = [
        tag("line", {"x1": _percent(axis.place(x)), "x2": _percent(axis.place(next_x)), "y1": y, "y2": next_y})
        for (_, y, x), (_, next_y, next_x) in itertools.pairwise(spots)
        if rows <= MOST_LINKED_ROWS
    ]
    circles = [
        tag("circle", {"class": f"c{row.colour}", "cx": _percent(axis.place(x)), "cy": y, "r": 4})
        for row, y, x in spots
    ]
    return tag("g", {"class": "seed"}, tag("title", None, f"seed {seed}: {told}"), links, circles)


def _mean(axis: Axis, row: Row, y: float) -> Html:
    parts: list[Html] = []
    if row.span.limits is not None:
        low, high = (_percent(axis.place(limit)) for limit in row.span.limits)
        parts.append(tag("line", {"class": "interval", "x1": low, "x2": high, "y1": y, "y2": y}))
        parts += [tag("line", {"class": "limit", "x1": x, "x2": x, "y1": y - 7, "y2": y + 7}) for x in (low, high)]
    if row.span.mean is not None:
        x = _percent(axis.place(row.span.mean))
        parts.append(tag("line", {"class": "mean", "x1": x, "x2": x, "y1": y - 16, "y2": y + 16}))
    return tag("g", {"class": f"c{row.colour}"}, parts)


def _reference(axis: Axis, name: str, value: float, scale: Scale, y: float, bottom: float, *, near: bool) -> Html:
    if not near:
        beyond = value > axis.high
        text = f"{name} {scale.value(value)} \N{RIGHTWARDS ARROW}" if beyond else f"\N{LEFTWARDS ARROW} {name} "
        text += "" if beyond else scale.value(value)
        place = {"x": "100%" if beyond else "0", "text-anchor": "end" if beyond else "start"}
        return tag("text", {"class": "label", "y": y, **place}, text)
    x = axis.place(value)
    anchor = "end" if x > 50 else "start"
    label: dict[str, str | float | None] = {
        "class": "label",
        "x": _percent(x),
        "y": y,
        "dx": 3 if x <= 50 else -3,
        "text-anchor": anchor,
    }
    line = _upright(x, y - 10, bottom, "reference")
    return join([line, tag("text", label, f"{name} {scale.value(value)}")])


def _upright(x: float, top: float, bottom: float, kind: str) -> Html:
    return tag("line", {"class": kind, "x1": _percent(x), "x2": _percent(x), "y1": top, "y2": bottom})


def _marks(places: Sequence[float], y: float, texts: Sequence[str]) -> list[Html]:
    """Texts below an axis; of many, every second one is left out on a narrow screen."""
    return [
        tag("text", {"class": "mark odd" if place % 2 and len(texts) > 3 else "mark", "x": _percent(x), "y": y,
                     "text-anchor": "middle"}, text)
        for place, (x, text) in enumerate(zip(places, texts, strict=True))
    ]  # fmt: skip


def _path(points: Points, across: Axis, up: Axis, kind: str) -> Html:
    if len(points) > MOST_POINTS:
        points = [points[place] for place in np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int)]
    steps, pen = [], "M"
    for step, value in points:
        if not math.isfinite(value):
            pen = "M"
            continue
        steps.append(f"{pen}{10 * across.place(step):.1f} {1000 - 10 * up.place(value):.1f}")
        pen = "L"
    if len(steps) == 1:
        steps.append(f"{steps[0].replace('M', 'L')}")
    return tag("path", {"class": kind, "d": "".join(steps), "vector-effect": "non-scaling-stroke"})


def _is_near(value: float, values: Sequence[float]) -> bool:
    """Whether showing a value leaves the others at least a quarter of the width."""
    spread = max(values) - min(values)
    return max(value - max(values), min(values) - value) <= 3 * spread


def _lane(place: int, seeds: int) -> float:
    return round((place - (seeds - 1) / 2) * min(7.0, 28 / max(seeds - 1, 1)), 2)


def _percent(x: float) -> str:
    return f"{x:.2f}%"


def _shorten(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def _step(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if value >= 1e4 else signed(value, 0 if value == int(value) else 2)
