"""Kill a distillation with SIGKILL again and again, resume it each time, and compare what comes out bit for bit.

    python benchmarks/kills.py --kills 100 --json results/benchmarks/kills.json

One run of `stillroom distill` is left alone. Then the same run is begun in a new folder and killed at a moment drawn
from a seeded generator; `--resume` goes on, is killed at the next moment, and so on until one of them reaches the end.
Its students, the numbers of its arms and its logs must be those of the run that was left alone. Then the next such run
begins, until there were as many kills as asked for.

Every life of a run is a process of its own. By default it is forked from one that has loaded the libraries, so that
a life costs a second rather than ten; `--fresh` starts Python anew for each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

COMMAND = (
    "distill --teacher conv-8-16 --student conv-4-8 --teacher-epochs 4 --lr 0.01 --labels 60 --test-size 100 "
    "--steps 40 --augment shift --seeds 2 --jobs 1"
)
KINDS = {
    "in training": "some time after a checkpoint, up to 40 ms",
    "writing": "up to 2 ms after a checkpoint's file was opened",
    "naming": "a checkpoint is whole, but has not got its name",
    "between arms": "around the moment at which an arm and seed is finished",
    "anywhere": "some time after the beginning, loading and measuring included",
}


@dataclass(frozen=True)
class Moment:
    """When a process is killed: at the so-many-th event of a kind in its life, and so many seconds later."""

    kind: str
    count: int
    delay: float

    def is_it(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
            opened = os.path.basename(arguments[0]).startswith(".last.pt.") and "w" in str(arguments[1])
            return opened and self.kind in ("in training", "writing")
        if event == "os.rename":
            name = os.path.basename(str(arguments[1]))
            return name == {"naming": "last.pt", "between arms": "result.json"}.get(self.kind)
        return False


def live(arguments: list[str], moment: Moment | None, tell: int) -> int:
    """Be the process that runs and is killed; `tell` gets a byte when the moment's event has come."""
    if moment is not None:
        seen = 0

        def watch(event: str, given: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in ("open", "os.rename") and moment.is_it(event, given):
                seen += 1
                if seen == moment.count:
                    os.write(tell, b".")
                    if moment.kind == "naming":
                        signal.pause()  # it is not named before the end comes

        sys.addaudithook(watch)
        if moment.kind == "anywhere":
            os.write(tell, b".")
    from stillroom.cli import main

    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def life(arguments: list[str], moment: Moment | None, log: Path, *, fresh: bool) -> int:
    """Run once, killed at a moment; return the exit status as a shell would, -9 for killed."""
    heard, tell = os.pipe()
    with log.open("ab") as output:
        if fresh:
            os.set_inheritable(tell, True)
            line = [sys.executable, __file__, "--live", json.dumps([arguments, moment and asdict(moment), tell])]
            pid = subprocess.Popen(line, stdout=output, stderr=output, pass_fds=(tell,)).pid
        elif not (pid := os.fork()):
            status = 70
            try:
                os.close(heard)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                status = live(arguments, moment, tell)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
    os.close(tell)
    if os.read(heard, 1) and moment is not None:
        select.select([heard], [], [], moment.delay)  # until then, or until it has ended by itself
        os.kill(pid, signal.SIGKILL)
    os.close(heard)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(folder: Path) -> dict[str, Any]:
    """What a run came to: every student and log by its hash, and the numbers of the arms."""
    kept = sorted([*folder.rglob("student.safetensors"), *folder.rglob("metrics.jsonl")])
    hashes = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
    return {"files": hashes, "arms": json.loads((folder / "summary.json").read_text())["arms"]}


def draw(generator: random.Random, kind: str, most: int, seconds: float) -> Moment:
    longest = {"in training": 0.04, "writing": 0.002, "naming": 0.0, "between arms": 0.004, "anywhere": seconds}[kind]
    count = generator.randint(1, 1 if kind == "between arms" else most) if kind != "anywhere" else 1
    return Moment(kind, count, generator.uniform(0.0, longest))


def stress(kills: int, seed: int, place: Path, *, fresh: bool, longest_run: int = 10) -> dict[str, Any]:
    """Kill and resume until there were so many kills.

    Args:
        kills: how many.
        seed: of the moments.
        place: an empty folder to work in.
        fresh: start Python anew for every life.
        longest_run: about so many kills fall to one run before it reaches its end.
    """
    generator = random.Random(seed)
    log = place / "log.txt"

    def arguments(name: str, *more: str) -> list[str]:
        return [*COMMAND.split(), "--out", str(place / name), *more]

    if not fresh:  # a first run in this very process loads all libraries
        live(arguments("warm"), None, -1)
    began = time.monotonic()
    if life(arguments("alone"), None, log, fresh=fresh) != 0:
        raise SystemExit(log.read_text())
    seconds = time.monotonic() - began
    alone = outcome(place / "alone")
    checkpoints = 10 * (1 + 2 * 2)  # ten evaluations of the teacher, and of two arms with two seeds
    most = max(2 * checkpoints // min(kills, longest_run) - 1, 1)
    kinds: list[str] = []
    died: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    idle = 0
    while len(died) < kills:
        name = f"run-{len(runs)}"
        lives = 0
        while True:
            if not kinds:
                kinds = list(KINDS)
                generator.shuffle(kinds)
            moment = draw(generator, kinds[-1], most, seconds) if len(died) < kills else None
            started = time.monotonic()
            status = life(arguments(name, "--resume"), moment, log, fresh=fresh)
            lives += 1
            if status == 0:
                idle = idle + 1 if moment is not None and lives == 1 else 0
                if idle > 5:
                    raise SystemExit(f"the moment {moment} does not come")
                break
            if status != -signal.SIGKILL or moment is None:
                raise SystemExit(f"{name} ended with {status}:\n{log.read_text()[-3000:]}")
            kinds.pop()
            parts = list((place / name).rglob(".*.part"))
            half = sum(path.stat().st_size for path in parts)
            after = round(time.monotonic() - started, 3)
            died.append({**asdict(moment), "run": len(runs), "after": after, "parts": len(parts), "part_bytes": half})
        found = outcome(place / name)
        left = [path.name for path in (place / name).rglob(".*")]
        runs.append({"lives": lives, "equal": found == alone, "left_behind": left})
    return {
        "kills": len(died),
        "runs": runs,
        "equal_runs": sum(run["equal"] for run in runs),
        "by_kind": dict(Counter(one["kind"] for one in died)),
        "moments": died,
        "uninterrupted_seconds": round(seconds, 3),
        "students_compared": sum(path.endswith(".safetensors") for path in alone["files"]),
    }


def table(found: dict[str, Any]) -> str:
    rows = [f"{'moment':<14}{'kills':>6}{'with a half-written file':>26}   what it is"]
    for kind, what in KINDS.items():
        mine = [one for one in found["moments"] if one["kind"] == kind]
        rows.append(f"{kind:<14}{len(mine):>6}{sum(one['parts'] > 0 for one in mine):>26}   {what}")
    runs, equal = len(found["runs"]), found["equal_runs"]
    rows.append(
        f"{found['kills']} kills in {runs} runs; {equal} of {runs} ended with the students, numbers and logs of the "
        "run that was left alone, bit for bit"
    )
    return "\n".join(rows)


def main() -> None:
    if sys.argv[1:2] == ["--live"]:
        arguments, moment, tell = json.loads(sys.argv[2])
        sys.exit(live(arguments, moment and Moment(**moment), tell))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how many kills (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--fresh", action="store_true", help="start Python anew for every life of a run")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stillroom-kills-") as place:
        found = stress(options.kills, options.seed, Path(place), fresh=options.fresh)
    from stillroom.experiment.record import machine, versions

    found |= {"seed": options.seed, "fresh": options.fresh, "command": f"stillroom {COMMAND}"}
    found |= {"seconds": round(time.monotonic() - began, 1)}
    found |= {"machine": machine("cpu", threads=1, jobs=1), "versions": versions()}
    print(table(found))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if found["equal_runs"] < len(found["runs"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
