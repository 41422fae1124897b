"""The command line. Nothing heavy is imported before a command is known to need it."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from stillroom import processes
from stillroom._version import __version__
from stillroom.allocator import keep_freed_memory
from stillroom.command_line import (
    COMMANDS,
    description,
    first_as,
    measured,
    names,
    new_folder,
    overview,
    parse,
    parser_for,
    print_json,
    show,
    take_dotted,
    value_of,
)
from stillroom.running import run_options, run_system, say_where, show_results

EXPECTED = (ValueError, TypeError, LookupError, OSError, ImportError, AttributeError)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 and one sentence when something that was given does not fit."""
    if arguments is None:  # the process is ours
        keep_freed_memory()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        sys.stdout = io.StringIO()
    try:
        _dispatch(arguments)
    except KeyboardInterrupt as stop:
        _fail(str(stop) or "interrupted", 130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if os.environ.get("STILLROOM_TRACEBACK") or not _expected(error):
            raise
        _fail(_said(error), 2)


def _expected(error: Exception) -> bool:
    return isinstance(error, EXPECTED) or any(
        kind.__name__ in ("TrainingError", "ArgumentError") for kind in type(error).__mro__
    )


def _said(error: Exception) -> str:
    """An error in a sentence: those of the operating system have their number left out."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return str(text) or type(error).__name__


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
        "show": _one,
        "report": _report,
        "export": _export,
    }
    from stillroom.log import show_notices_plainly

    show_notices_plainly()
    with warnings.catch_warnings():
        if not os.environ.get("STILLROOM_TRACEBACK"):
            warnings.filterwarnings("ignore", module=r"(torch|accelerate|timm|transformers|datasets|tensorboard)\b.*")
        handlers[command](rest)


def _distill(arguments: list[str]) -> None:
    from stillroom.distill import distill, distilled
    from stillroom.naming import method_name
    from stillroom.repeating import command_of
    from stillroom.weigh import summary_of

    rest, dotted = take_dotted(arguments, ["method"])
    parser = parser_for("distill", distill, skip=["method_options", "progress"])
    parser.set_defaults(jobs=None)
    options = parse(parser, rest)
    as_json = options.pop("json")
    options["out"] = options["out"] or new_folder(options, method_name(options["method"]))
    options |= {"method_options": dotted.get("method"), "progress": True}
    result = distilled(options, command=command_of("distill", options))
    if as_json:
        print_json(summary_of(result.results))
        return
    show_results(result.results)
    say_where(options["out"])


def _compare(arguments: list[str]) -> None:
    from stillroom.compare import compare, compared
    from stillroom.distill import distill
    from stillroom.naming import named_methods
    from stillroom.repeating import command_of
    from stillroom.systems import catalog

    named = value_of("methods", arguments)
    rest, dotted = take_dotted(arguments, [*catalog.methods(), *(named_methods(named) if named else ())])
    parser = parser_for("compare", compare, distill, skip=["method_options", "method", "progress", "options"])
    parser.set_defaults(jobs=None)
    options = parse(parser, rest)
    as_json = options.pop("json")
    options["out"] = options["out"] or new_folder(options, "compare")
    methods = options.pop("methods")
    results = compared(methods, options, dotted, command_of=command_of)
    if as_json:
        print_json(results)
        return
    show_results(results)
    say_where(options["out"])


def _check(arguments: list[str]) -> None:
    from stillroom.distill import distill
    from stillroom.forecast import forecast, lines_of

    rest, dotted = take_dotted(arguments, ["method"])
    parser = parser_for("check", distill, skip=["method_options", "progress"])
    parser.set_defaults(jobs=None)
    options = parse(parser, rest)
    as_json = options.pop("json")
    found = forecast(**options, method_options=dotted.get("method"))
    if as_json:
        print_json(found)
        return
    for line in lines_of(found):
        print(line)


def _run(arguments: list[str]) -> None:
    from stillroom.systems import catalog

    everything = "--all" in arguments
    arguments = [one for one in arguments if one != "--all"]
    if not everything and (not arguments or arguments[0].startswith("-")):
        if "--help" in arguments or "-h" in arguments:
            print(parser_for("run", run_options).format_help(), end="")
            return
        raise ValueError("which system? name one (stillroom list shows them), or give --all")
    slugs = [entry.slug for entry in catalog.SYSTEMS] if everything else [arguments.pop(0)]
    printed, failures = [], []
    for slug in slugs:
        catalog.system(slug)  # an unknown one is refused before anything is imported
        recipe = catalog.recipe(slug, paper="--paper" in arguments)
        parser = parser_for("run", recipe, run_options)
        options = parse(parser, arguments)
        common = {name: options.pop(name) for name in (*names(run_options), "json")}
        try:
            printed.append(run_system(slug, recipe, options, several=everything, **common))
        except Exception as error:
            if not everything or not _expected(error):
                raise
            failures.append(f"{slug}: {_said(error)}")  # the other systems go on
    if printed and common["json"]:
        print_json(printed if everything else printed[0])
    if failures:
        raise ValueError(f"{len(failures)} of {len(slugs)} systems failed: {'; '.join(failures)}")


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
    show(table)


def _show_options(slug: str) -> None:
    """Options of `stillroom show`.

    Args:
        slug: the system (`stillroom list` shows them).
    """


def _one(arguments: list[str]) -> None:
    from stillroom.systems import catalog

    options = parse(parser_for("show", _show_options), first_as("slug", arguments))
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


def _report_options(folder: str) -> None:
    """Options of `stillroom report`.

    Args:
        folder: of a finished run, with its results.json.
    """


def _report(arguments: list[str]) -> None:
    from stillroom.experiment.report import write_report

    options = parse(parser_for("report", _report_options), first_as("folder", arguments))
    place = Path(options["folder"])
    if not (place / "results.json").exists():
        raise FileNotFoundError(f"{place} holds no results.json: name the folder of a finished run")
    results = json.loads((place / "results.json").read_text())
    if processes.is_first():
        write_report(results, place / "report.html")
    if options["json"]:
        print_json(results)
        return
    show_results(results)
    say_where(place)


def _export_options(
    folder: str, format: str = "onnx", to: str | None = None, any_size: bool = False, trust_code: bool = False
) -> None:
    """Options of `stillroom export`.

    Args:
        folder: of a saved student.
        format: onnx or torch.
        to: the file to write, its folders made where they are missing; beside the weights when not given.
        any_size: let the file take images of any height and width, as convolutional networks can.
        trust_code: run the code that the folder names (a function of your own built the student).
    """


def _export(arguments: list[str]) -> None:
    options = parse(parser_for("export", _export_options), first_as("folder", arguments))
    from stillroom import hub

    rest = {name: options[name] for name in ("format", "any_size", "trust_code")}
    written = hub.export(options["folder"], options["to"], **rest)
    found = {"path": str(written.path), "max_error": written.max_error, "format": options["format"]}
    if options["json"]:
        print_json(found)
    else:
        print(f"wrote {written.path}; largest difference to the model: {written.max_error:.2g}")
