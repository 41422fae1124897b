"""Running a system's recipe on the command line, and showing what came out of any run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from stillroom import processes
from stillroom.command_line import free_folder, show


def run_options(
    out: str | None = None,
    first_seed: int = 0,
    seeds: int | None = None,
    jobs: int | None = None,
    device: str | None = None,
    workers: int = 0,
    executor: Literal["processes", "ray"] = "processes",
    resume: bool = False,
    paper: bool = False,
    tiny: bool = False,
) -> None:
    """Options of `stillroom run` that every system has.

    Args:
        out: a new folder for everything.
        first_seed: the first seed.
        seeds: how many seeds; the recipe's own number when not given.
        jobs: processes that share arms and seeds; one per core without a GPU when not given.
        device: cpu, cuda, ...
        workers: threads that read data ahead.
        executor: who runs arms and seeds: processes of this machine, or the workers of a ray cluster.
        resume: go on with the interrupted run in `out`.
        paper: the paper's own settings instead of the small recipe.
        tiny: a few samples and steps, to see that everything fits together.
    """


def run_system(
    slug: str,
    recipe: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    out: str | None,
    first_seed: int,
    seeds: int | None,
    jobs: int | None,
    device: str | None,
    workers: int,
    executor: Literal["processes", "ray"],
    resume: bool,
    paper: bool,
    tiny: bool,
    json: bool,
    several: bool,
) -> dict[str, Any]:
    """Run one system's recipe and write its folder."""
    from dataclasses import replace

    from stillroom.experiment.report import write_report
    from stillroom.options import jobs_of

    if resume and out is None:
        raise ValueError("--resume needs the folder of the run: name it with --out")
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds must be 1 or more, given {seeds}")
    experiment = recipe(**options)
    changed = {k: v for k, v in options.items() if v != inspect.signature(recipe).parameters[k].default}
    experiment = replace(experiment, system=slug, config={"recipe": slug, "paper": paper, "tiny": tiny, **options})
    experiment = experiment.tiny() if tiny else experiment
    count = experiment.seeds if seeds is None else seeds
    place = Path(out) / slug if out and several else Path(out) if out else free_folder(Path("stillroom-runs") / slug)
    command = ["stillroom run", slug, f"--seeds {count}", f"--first-seed {first_seed}"]
    command += ["--paper"] * paper + ["--tiny"] * tiny + [f"--{k.replace('_', '-')} {v}" for k, v in changed.items()]
    results = experiment.run(
        range(first_seed, first_seed + count),
        place,
        jobs=jobs_of({"jobs": jobs, "device": device}),
        device=device,
        workers=workers,
        executor=executor,
        resume=resume,
        command=" ".join(command),
    )
    if processes.is_first():
        write_report(results, place / "report.html")
    if not json:
        show_results(results)
        for claim in results["claims"]:
            print(f"{claim['verdict']}: {claim['text']}")
        say_where(place)
    return results


def show_results(results: Mapping[str, Any]) -> None:
    """Print the arms of a run, and below them in one sentence what came out."""
    from stillroom.experiment.report import comparison_table
    from stillroom.weigh import sentence

    table = comparison_table(results)
    table.caption = None
    show(table)
    print(sentence(results))


def say_where(place: str | Path) -> None:
    """Print which folder a run wrote."""
    print(f"everything is in {place} (look at {Path(place) / 'report.html'})")
