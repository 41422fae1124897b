"""Results dictionaries as a run writes them, and a reader of the page made from them."""

from __future__ import annotations

from html.parser import HTMLParser

from stillroom.experiment.report import render_report
from stillroom.experiment.statistics import mean_interval, paired_interval

HOSTILE = "</style><script>alert(1)</script>\"'&<img src=x onerror=alert(1)>[red]x[/red]"
LONG = "a_method_with_a_name_that_is_far_longer_than_any_name_should_be_and_has_no_space_in_it"
ALONE = [0.90, 0.91, 0.92]


def arm(values, role, **more):
    return {"values": values, **mean_interval(values).as_dict(), "role": role, **more}


def curve(values):
    points = [[step, 0.1 + (value - 0.1) * step / 100] for value in values for step in (0, 50, 100)]
    return {"accuracy": {str(seed): points[3 * seed : 3 * seed + 3] for seed in range(len(values))}}


def distilled(values=(0.93, 0.93, 0.96), difference=None, method="pld", **changes):
    """A full results dictionary of the main job; changes of None take a key out."""
    found = difference or paired_interval(list(values), ALONE).as_dict()
    results = {
        "kind": "distill",
        "title": "pld on digits",
        "question": "Sort digits into 10 classes.",
        "system": None,
        "method": method,
        "metric": "accuracy",
        "higher_is_better": True,
        "seeds": [0, 1, 2],
        "level": 0.95,
        "arms": {
            "teacher": arm([0.98], "teacher"),
            "alone": arm(ALONE, "alone", seconds=[1.0, 2.0, 3.0], curves=curve(ALONE)),
            method: arm(list(values), "method", seconds=[4.0, 4.0, 4.0], curves=curve(values), lr=[0.1, 0.1, 0.2]),
        },
        "difference": found,
        "differences": {method: found},
        "verdict": None,
        "claims": [],
        "costs": {
            "teacher": {"parameters": 85_002, "macs": 84_480, "latency_ms": 0.08, "file_bytes": 340_776},
            "student": {"parameters": 1_210, "macs": 1_184, "latency_ms": 0.04, "file_bytes": 5_240},
        },
        "agreement": {method: {"top1": 0.957, "kl": 0.131, "repeated_errors": 0.5}},
        "notes": ["The teacher saw all labels."],
        "config": {"data": "digits", "training": {"steps": 100}},
        "versions": {"stillroom": "0.1", "torch": "2.11"},
        "machine": {"processor": "some processor", "cores": 2},
        "command": "stillroom distill --data digits --method pld",
        "seconds": 61.2,
    }
    results["arms"]["alone"]["metrics"] = {"accuracy": ALONE, "loss": [0.5, 0.6, 0.7]}
    return {key: value for key, value in (results | changes).items() if value is not None}


def compared(**changes):
    means = {"kd": 0.01, "dkd": 0.05, "crd": 0.0, LONG: -0.02}
    arms = {"teacher": arm([0.98], "teacher"), "alone": arm(ALONE, "alone")}
    differences = {}
    for name, gain in means.items():
        values = [a + gain + 0.002 * seed for seed, a in enumerate(ALONE)]
        arms[name] = arm(values, "baseline" if name == "kd" else "method")
        differences[name] = paired_interval(values, ALONE).as_dict()
    values = [a - 0.3 for a in ALONE]
    arms["scrambled"] = arm(values, "control")
    differences["scrambled"] = paired_interval(values, ALONE).as_dict()
    return distilled(kind="compare", arms=arms, differences=differences, method="", difference={}, **changes) | {
        "method": None,
        "difference": None,
    }


def of_system(*claims):
    results = distilled(kind="system", system="pld")
    values = {name: {"accuracy": found["values"]} for name, found in results["arms"].items()}
    results["claims"] = [claim.test(values).as_dict() for claim in claims]
    return results


MINIMAL = {
    "kind": "distill",
    "metric": "accuracy",
    "seeds": [0],
    "arms": {
        "alone": {"values": [0.90], "role": "alone"},
        "kd": {"values": [0.92], "role": "method"},
    },
}


def gain(mean, low, high):
    return {"mean": mean, "low": low, "high": high, "level": 0.95}


class Page(HTMLParser):
    """Elements (tag, attributes, text inside), in order."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in ("meta", "br", "hr", "col"):
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, **attributes):
        return [
            (found, text)
            for name, found, text in self.elements
            if name == tag and all(value in (found.get(key) or "").split() for key, value in attributes.items())
        ]

    def headings(self):
        return [text for _, text in self.all("h2")]


def page_of(results):
    page = Page(render_report(results))
    assert not page.open, "every element is closed"
    return page
