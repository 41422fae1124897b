"""Where the time of `stillroom distill` goes, from the shell's prompt to the verdict.

    python benchmarks/cold_start.py --json results/benchmarks/cold_start.json

Runs commands in fresh processes, as a user does. First those that should answer at once (`--help`, `list`, importing
the package), then the main job on the embedded digits with all of its defaults, with the time at which its parts begin
and end: importing, reading data, building networks, the first training step of all, the teacher, the arms (and the
first step of theirs, in processes of their own), measuring costs, the report.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

AT_ONCE = {
    "import stillroom": ["-c", "import stillroom"],
    "stillroom --help": ["-m", "stillroom", "--help"],
    "stillroom distill --help": ["-m", "stillroom", "distill", "--help"],
    "stillroom list": ["-m", "stillroom", "list"],
}

WATCHED = """
import functools, inspect, json, os, sys, time
BEGAN, FILE = float(os.environ["BEGAN"]), os.environ["TIMELINE"]
def mark(name, end=False):
    with open(FILE, "a") as file:
        file.write(json.dumps([name, end, time.time() - BEGAN, os.getpid()]) + "\\n")
def watch(module, name, label, first=False):
    inner, seen = getattr(module, name), []
    @functools.wraps(inner)
    def outer(*given, **named):
        if first and seen:
            return inner(*given, **named)
        seen.append(1)
        mark(label)
        try:
            return inner(*given, **named)
        finally:
            mark(label, True)
    def steps(*given, **named):
        mark(label)
        yield from inner(*given, **named)
        mark(label, True)
    if inspect.isgeneratorfunction(inner):
        outer = steps
    setattr(module, name, outer)
mark("imports")
import importlib
distill, weigh, fit, run, cli = (importlib.import_module(f"stillroom.{name}") for name in (
    "distill", "weigh", "fit", "experiment.run", "cli"))
for name in ("experiment.arm", "experiment.teacher", "hub"):
    importlib.import_module(f"stillroom.{name}")
mark("imports", True)
watch(distill, "experiment_of", "options and task")
watch(weigh, "preflight", "data, networks, a first look")
watch(run, "obtain_teacher", "teacher", first=True)
watch(run, "measure_teacher", "teacher measured", first=True)
watch(run, "work", "arms and seeds")
watch(weigh, "costs_of", "costs measured")
watch(weigh, "write_all", "student and report written")
watch(fit.Loop, "_one_step", "first step", first=True)
"""
MAIN = (
    WATCHED
    + """
if __name__ == "__main__":
    cli.main(sys.argv[1:])
    mark("end")
"""
)


def took(arguments: list[str]) -> float:
    """Seconds of a fresh Python process, start to end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def timeline(arguments: list[str]) -> dict[str, Any]:
    """Run the main job in a fresh process; part -> when it began and how long it took."""
    with tempfile.TemporaryDirectory() as folder:
        script, file = Path(folder) / "watched.py", Path(folder) / "timeline"
        script.write_text(MAIN)
        began = time.time()
        environment = os.environ | {"BEGAN": str(began), "TIMELINE": str(file)}
        command = [sys.executable, str(script), "distill", *arguments, "--out", f"{folder}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        whole = time.time() - began
        marks = [json.loads(line) for line in file.read_text().splitlines()]
    main = marks[0][3]
    parts: dict[str, Any] = {}
    for name, end, moment, process in marks:
        if process != main:
            name = f"{name} (first worker)"
        if end and name in parts and "seconds" not in parts[name]:
            parts[name]["seconds"] = moment - parts[name]["begins"]
        elif not end:
            parts.setdefault(name, {"begins": moment})
    return {"whole": whole, "first_step": parts["first step"]["begins"], "parts": parts}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Time, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of the commands that answer at once")
    parser.add_argument("--arguments", default="", help="further arguments of stillroom distill")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    at_once = {name: median(took(arguments) for _ in range(given.repeats)) for name, arguments in AT_ONCE.items()}
    for name, seconds in at_once.items():
        print(f"{name:32s} {seconds:6.2f} s")
    found = timeline(given.arguments.split())
    for name, part in found["parts"].items():
        seconds = f"{part['seconds']:6.2f} s" if "seconds" in part else ""
        print(f"{name:40s} from {part['begins']:6.2f} s {seconds}")
    print(f"first training step after {found['first_step']:.1f} s, everything in {found['whole']:.1f} s")
    from stillroom.experiment.record import machine, versions

    results = {
        "seconds_to_first_step": found["first_step"],
        "seconds_in_all": found["whole"],
        "parts": found["parts"],
        "at_once": at_once,
        "machine": machine("cpu", threads=os.cpu_count() or 1, jobs=os.cpu_count() or 1) | {"load": os.getloadavg()},
        "versions": versions(),
    }
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
