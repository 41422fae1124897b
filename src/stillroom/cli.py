"""The command line. Nothing heavy is imported before a command is known to need it."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom._version import __version__
from stillroom.command_line import COMMANDS, EXAMPLES, names, parse, parser_for, take_dotted

EXPECTED = (ValueError, TypeError, LookupError, OSError, ImportError, AttributeError)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 and one sentence when something that was given does not fit."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(arguments)
    except KeyboardInterrupt as stop:
        _fail(str(stop) or "interrupted", 130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if os.environ.get("STILLROOM_TRACEBACK") or not _expected(error):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        _fail(str(text) or type(error).__name__, 2)


def _expected(error: Exception) -> bool:
    return isinstance(error, EXPECTED) or type(error).__name__ in ("TrainingError", "ArgumentError")


def _fail(sentence: str, code: int) -> None:
    print(f"stillroom: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(code)


def _dispatch(arguments: list[str]) -> None:
    if arguments and arguments[0] in ("--version", "-V"):
        print(f"stillroom {__version__}")
        return
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        from stillroom.systems.catalog import unknown

        raise ValueError(unknown("command", command, list(COMMANDS)))
    handlers: dict[str, Callable[[list[str]], None]] = {
        "distill": _distill,
        "compare": _compare,
        "check": _check,
        "run": _run,
        "list": _list,
        "show": _show,
        "report": _report,
        "export": _export,
    }
    with warnings.catch_warnings():
        if not os.environ.get("STILLROOM_TRACEBACK"):
            warnings.filterwarnings("ignore", module=r"(torch|accelerate|timm|transformers|datasets|tensorboard)\b.*")
        handlers[command](rest)


def overview() -> str:
    """The help page of the program."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "stillroom: distil any teacher into any student on your data, and be told whether it was worth it.",
            "",
            "usage: stillroom COMMAND [options]      (stillroom COMMAND --help for the options)",
            "",
            *lines,
            "",
            "examples:",
            EXAMPLES[""],
        ]
    )


# ---- commands --------------------------------------------------------------------------------------------------------


def _distill(arguments: list[str]) -> None:
    from stillroom.distill import distill
    from stillroom.weigh import sentence, summary_of

    rest, dotted = take_dotted(arguments, ["method"])
    parser = parser_for("distill", distill, skip=["method_options", "progress"])
    parser.set_defaults(jobs=None)
    options = parse(parser, rest)
    as_json = options.pop("json")
    options["out"] = options["out"] or _new_folder(options, str(options["method"]))
    result = distill(**options, method_options=dotted.get("method"))
    if as_json:
        print_json(summary_of(result.results))
        return
    _show_table(result.results)
    if result.results.get("difference"):
        print(sentence(result.results))
    _say_where(options["out"])


def _compare(arguments: list[str]) -> None:
    from stillroom.compare import compare
    from stillroom.distill import distill
    from stillroom.systems import catalog

    rest, dotted = take_dotted(arguments, list(catalog.methods()))
    parser = parser_for("compare", compare, distill, skip=["method_options", "method", "progress", "options"])
    parser.set_defaults(jobs=None)
    options = parse(parser, rest)
    as_json = options.pop("json")
    options["out"] = options["out"] or _new_folder(options, "compare")
    results = compare(**options, method_options=dotted)
    if as_json:
        print_json(results)
        return
    _show_table(results)
    _say_where(options["out"])


def _check(arguments: list[str]) -> None:
    from stillroom.distill import distill
    from stillroom.forecast import forecast, lines_of

    rest, dotted = take_dotted(arguments, ["method"])
    parser = parser_for("check", distill, skip=["method_options", "progress", "out", "resume"])
    parser.set_defaults(jobs=None)
    options = parse(parser, rest)
    as_json = options.pop("json")
    found = forecast(**options, method_options=dotted.get("method"))
    if as_json:
        print_json(found)
        return
    for line in lines_of(found):
        print(line)


def _run_options(
    out: str | None = None,
    first_seed: int = 0,
    seeds: int | None = None,
    jobs: int | None = None,
    device: str | None = None,
    workers: int = 0,
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
        resume: go on with the interrupted run in `out`.
        paper: the paper's own settings instead of the small recipe.
        tiny: a few samples and steps, to see that everything fits together.
    """


def _run(arguments: list[str]) -> None:
    from stillroom.systems import catalog

    everything = "--all" in arguments
    arguments = [one for one in arguments if one != "--all"]
    if not everything and (not arguments or arguments[0].startswith("-")):
        if "--help" in arguments or "-h" in arguments:
            print(
                parser_for("run", _run_options).format_help()
                + "\n\nstillroom run SLUG --help: the recipe's arguments too"
            )
            return
        raise ValueError("which system? name one (stillroom list shows them), or give --all")
    slugs = [entry.slug for entry in catalog.SYSTEMS] if everything else [arguments.pop(0)]
    printed = []
    for slug in slugs:
        catalog.system(slug)  # an unknown one is refused before anything is imported
        recipe = catalog.recipe(slug, paper="--paper" in arguments)
        parser = parser_for("run", recipe, _run_options)
        options = parse(parser, arguments)
        common = {name: options.pop(name) for name in (*names(_run_options), "json")}
        results = run_system(slug, recipe, options, several=everything, **common)
        printed.append(results)
    if printed and common["json"]:
        print_json(printed if everything else printed[0])


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

    experiment = recipe(**options)
    changed = {k: v for k, v in options.items() if v != inspect.signature(recipe).parameters[k].default}
    experiment = replace(experiment, system=slug, config={"recipe": slug, "paper": paper, **options})
    experiment = experiment.tiny() if tiny else experiment
    count = experiment.seeds if seeds is None else seeds
    place = Path(out) / slug if out and several else Path(out) if out else _free(Path("stillroom-runs") / slug)
    command = ["stillroom run", slug, f"--seeds {count}", f"--first-seed {first_seed}"]
    command += ["--paper"] * paper + [f"--{k.replace('_', '-')} {v}" for k, v in changed.items()]
    results = experiment.run(
        range(first_seed, first_seed + count),
        place,
        jobs=jobs_of({"jobs": jobs, "device": device}),
        device=device,
        workers=workers,
        resume=resume,
        command=" ".join(command),
    )
    write_report(results, place / "report.html")
    if not json:
        _show_table(results)
        for claim in results["claims"]:
            print(f"{claim['verdict']}: {claim['text']}")
        _say_where(place)
    return results


def _list_options(methods: bool = False) -> None:
    """Options of `stillroom list`.

    Args:
        methods: the methods that distill and compare can use, instead of the systems.
    """


def _list(arguments: list[str]) -> None:
    from rich import box
    from rich.table import Table

    from stillroom.systems import catalog

    options = parse(parser_for("list", _list_options), arguments)
    if options["methods"]:
        known = catalog.methods()
        rows = [{"name": name, "class": path} for name, path in known.items()]
        columns = ["name", "class"]
    else:
        rows = [entry.as_dict() for entry in catalog.SYSTEMS]
        columns = ["slug", "kind", "year", "arxiv", "title"]
    if options["json"]:
        print_json(rows)
        return
    table = Table(*columns, box=box.SIMPLE)
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    _console().print(table)


def _show_options(slug: str) -> None:
    """Options of `stillroom show`.

    Args:
        slug: the system (`stillroom list` shows them).
    """


def _show(arguments: list[str]) -> None:
    from stillroom.systems import catalog

    parser = parser_for("show", _show_options)
    given = [f"--slug={one}" if not one.startswith("-") and not number else one for number, one in enumerate(arguments)]
    options = parse(parser, given)
    entry = catalog.system(options["slug"])
    found = measured(entry.slug)
    if options["json"]:
        print_json(entry.as_dict() | {"description": description(entry.module), "results": found})
        return
    print(f"{entry.title} (arXiv:{entry.arxiv}, {entry.year})\n")
    print(description(entry.module))
    print(f"\nneeds: {entry.needs}\ngives: {entry.gives}")
    if entry.methods:
        print("methods for distill and compare: " + ", ".join(name for name, _ in entry.methods))
    for claim in found["claims"] if found else ():
        low, high = claim["low"], claim["high"]
        interval = "" if low is None else f" ({claim['mean']:+.4f}, interval {low:+.4f} to {high:+.4f})"
        print(f"measured: {claim['verdict']}: {claim['text']}{interval}")
    print(f"\nrun it: stillroom run {entry.slug}")


def description(module: str) -> str:
    """The docstring of a module, read without importing it."""
    file = Path(__file__).parent.joinpath(*module.split(".")[1:])
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    return ast.get_docstring(ast.parse(file.read_text())) or ""


def measured(slug: str) -> dict[str, Any] | None:
    """The committed results of a system, where this installation carries them."""
    here = Path(__file__).parent
    for folder in (here / "_results", here.parents[1] / "results"):
        file = folder / f"{slug}.json"
        if file.exists():
            return dict(json.loads(file.read_text()))
    return None


def _report_options(folder: str) -> None:
    """Options of `stillroom report`.

    Args:
        folder: of a finished run, with its results.json.
    """


def _report(arguments: list[str]) -> None:
    from stillroom.experiment.report import write_report

    options = parse(parser_for("report", _report_options), _first_as("folder", arguments))
    place = Path(options["folder"])
    if not (place / "results.json").exists():
        raise FileNotFoundError(f"{place} holds no results.json: name the folder of a finished run")
    results = json.loads((place / "results.json").read_text())
    write_report(results, place / "report.html")
    if options["json"]:
        print_json(results)
        return
    _show_table(results)
    _say_where(place)


def _export_options(folder: str, format: str = "onnx", to: str | None = None) -> None:
    """Options of `stillroom export`.

    Args:
        folder: of a saved student.
        format: onnx or torch.
        to: the file to write; beside the weights when not given.
    """


def _export(arguments: list[str]) -> None:
    options = parse(parser_for("export", _export_options), _first_as("folder", arguments))
    from stillroom import hub

    written = hub.export(options["folder"], options["to"], format=options["format"])
    found = {"path": str(written.path), "max_error": written.max_error, "format": options["format"]}
    if options["json"]:
        print_json(found)
    else:
        print(f"wrote {written.path}; largest difference to the model: {written.max_error:.2g}")


# ---- small things ----------------------------------------------------------------------------------------------------


def print_json(content: Any) -> None:
    """Print something as JSON."""
    print(json.dumps(content, indent=2, default=str))


def _first_as(name: str, arguments: Sequence[str]) -> list[str]:
    """Let the first argument that is no option be the value of an option."""
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        arguments[0] = f"--{name}={arguments[0]}"
    return arguments


def _new_folder(options: Mapping[str, Any], what: str) -> str:
    if options.get("resume"):
        raise ValueError("--resume needs the folder of the run: name it with --out")
    data = re.sub(r"[^A-Za-z0-9]+", "-", str(options["data"])).strip("-")[-30:]
    return str(_free(Path("stillroom-runs") / f"{data}-{what}"))


def _free(place: Path) -> Path:
    """The first of place-1, place-2, ... that does not exist."""
    number = 1
    while place.with_name(f"{place.name}-{number}").exists():
        number += 1
    return place.with_name(f"{place.name}-{number}")


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def _show_table(results: Mapping[str, Any]) -> None:
    from stillroom.experiment.report import comparison_table

    _console().print(comparison_table(results))


def _say_where(place: str | Path) -> None:
    print(f"everything is in {place} (look at {Path(place) / 'report.html'})")


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
