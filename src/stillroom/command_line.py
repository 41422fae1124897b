"""What commands share: options from functions' signatures, help with examples, complaints in a sentence, printing."""

from __future__ import annotations

import ast
import inspect
import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

COMMANDS = {
    "distill": "train a student from a teacher and say whether it was worth it",
    "compare": "several methods under one budget: a leaderboard with intervals",
    "check": "the dry run of distill: resolve everything, one batch, forecast time and memory",
    "run": "run a published system's recipe over seeds and test its claims",
    "list": "the systems (and --methods: what distill and compare can use)",
    "show": "one system: what it is for, its paper, its measured claims",
    "report": "write report.html and the table of a finished run again",
    "export": "write a trained student as ONNX or as a torch.export program",
}
EXAMPLES = {
    "": """  stillroom distill
  stillroom distill --teacher timm/resnet18 --student timm/mobilenetv3_small_050 --data photos/ --teacher-epochs 20
  stillroom compare --methods kd,dkd,dist,pld --data cifar10 --teacher resnet56 --student resnet8 --teacher-epochs 30
  stillroom run pld --seeds 10""",
    "distill": """  stillroom distill
  stillroom distill --teacher resnet56 --student resnet8 --data cifar10 --teacher-epochs 30 --method dkd
  stillroom distill --teacher mine.py:teacher --student mine.py:student --data photos/ --unlabelled more-photos/
  stillroom distill --task language-modelling --teacher hf/models/large --student hf/models/small --data my.txt
  stillroom distill --teacher runs/big/student --student conv-8-16 --data photos/ --method dkd --method.beta 4""",
    "compare": """  stillroom compare --methods kd,dkd,dist,pld --seeds 5
  stillroom compare --methods kd,dkd --dkd.beta 2 --data cifar10 --teacher resnet56 --student resnet8
  stillroom compare --methods kd,mine.py:MyMethod --mymethod.weight 2 --lr 0.1,0.01 --seeds 0,1,7""",
    "check": """  stillroom check --teacher timm/resnet50 --student timm/resnet18 --data photos/ --epochs 100""",
    "run": """  stillroom run pld
  stillroom run pld --seeds 10 --labelled 100 --out runs/pld
  stillroom run --all --out runs/all""",
    "list": """  stillroom list
  stillroom list --json""",
    "show": """  stillroom show pld""",
    "report": """  stillroom report runs/small""",
    "export": """  stillroom export runs/small/student --format onnx""",
}


USAGE = {
    "run": "SLUG [options]",
    "show": "SLUG",
    "report": "FOLDER [options]",
    "export": "FOLDER [options]",
}
FURTHER = {
    "distill": "arguments of the method: --method.NAME VALUE (as --method.temperature 2)",
    "check": "arguments of the method: --method.NAME VALUE (as --method.temperature 2)",
    "compare": "arguments of a method: --METHOD.NAME VALUE (as --kd.temperature 2; of mine.py:Own it is --own.NAME)",
    "run": "arguments of a system's recipe: stillroom run SLUG --help",
}
FIRST = {
    "slug": "which system? name one (stillroom list shows them)",
    "folder": "which folder? name it as the first argument",
}


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


def parser_for(command: str, *functions: Callable[..., Any], skip: Sequence[str] = ()) -> Any:
    """A parser whose options are the arguments of functions."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter):  # type: ignore[misc]
        def _get_help_string(self, action: Any) -> str:
            plain = action.default not in (None, False, "==SUPPRESS==") and action.option_strings
            return (action.help or "") + (f" [{action.default}]" if plain else "")

        def _format_action_invocation(self, action: Any, *rest: Any) -> str:
            text = re.sub(r", --\w+\+ \S+", "", super()._format_action_invocation(action, *rest))
            return text.replace(" {true,false}", "")

    class Parser(ArgumentParser):  # type: ignore[misc]
        kinds: Mapping[str, Any] = {}  # the type of each option

        def format_help(self, *rest: Any) -> str:
            text = re.sub(r"--[a-z][a-z_]+", lambda found: found[0].replace("_", "-"), super().format_help(*rest))
            further = f"\n{FURTHER[command]}\n" if command in FURTHER else ""
            return f"{text}{further}\nexamples:\n{EXAMPLES[command]}\n"

    parser = Parser(
        prog=f"stillroom {command}",
        usage=f"stillroom {command} {USAGE.get(command, '[options]')}",
        description=COMMANDS[command] + ".",
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=Formatter,
    )
    added: set[str] = set(skip)
    for function in functions:
        known: Any = added & set(names(function))
        hints = get_type_hints(function)
        plain = _with_types(function, hints)
        parser.add_function_arguments(plain, as_group=False, skip=known, fail_untyped=False)
        kinds = {name: hints.get(name, Any) for name in names(function) if name not in added}
        parser.kinds = {**parser.kinds, **kinds}
        added |= set(names(function))
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def _with_types(function: Callable[..., Any], hints: Mapping[str, Any]) -> Callable[..., Any]:
    """A function with types for annotations, not their names: to resolve names, the parser would import torch."""
    if not isinstance(function, types.FunctionType):
        return function
    parts = function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    plain = types.FunctionType(*parts)
    plain.__kwdefaults__, plain.__doc__ = function.__kwdefaults__, function.__doc__
    plain.__module__, plain.__qualname__ = function.__module__, function.__qualname__
    plain.__annotations__ = dict(hints)
    return plain


def names(function: Callable[..., Any]) -> list[str]:
    """Names of a function's arguments."""
    return [name for name, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD]


def parse(parser: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse, taking dashes for underscores, and turn a complaint into one sentence.

    Arguments of any type (models, data, methods) stay the text that was given; "none" is the absence of a value.

    Raises:
        ValueError: an unknown option, a missing value, or one of another type.
    """
    dashed = [
        re.sub(r"^--[a-z][a-z0-9-]*", lambda found: "--" + found[0][2:].replace("-", "_"), one) for one in arguments
    ]
    known = {option for option in parser._option_string_actions if option.startswith("--")}
    flags = {option for option, action in parser._option_string_actions.items() if action.default is False}
    for number, one in enumerate(dashed):
        follower = dashed[number + 1].lower() if number + 1 < len(dashed) else ""
        if one in flags - {"--json"} and follower not in ("true", "false"):
            dashed[number] = f"{one}=true"
    dashed = _with_brackets(dashed, parser.kinds)
    values = _values(dashed, known)
    for name, kind in parser.kinds.items():
        if values.get(name, "").lower() == "none" and type(None) in get_args(kind):
            dashed = [one.replace("none", "null").replace("None", "null") if _is_value(dashed, number, name) else one
                      for number, one in enumerate(dashed)]  # fmt: skip
    try:
        options = dict(parser.parse_args(dashed).as_dict())
    except Exception as error:
        if type(error).__name__ != "ArgumentError":
            raise
        raise ValueError(_complaint(str(error), parser, values)) from error
    texts = {name: values[name] for name, kind in parser.kinds.items() if kind is Any and name in values}
    return options | {name: None if text.lower() in ("none", "null") else text for name, text in texts.items()}


def _with_brackets(arguments: Sequence[str], kinds: Mapping[str, Any]) -> list[str]:
    """Values of options that take a list, given as 0.1,0.01, in the brackets that the parser wants."""
    found = list(arguments)
    for name in (name for name, kind in kinds.items() if _is_list(kind)):
        for number, one in enumerate(found):
            text = one.removeprefix(f"--{name}=")
            if _is_value(found, number, name) and "," in text and not text.startswith("["):
                found[number] = one[: len(one) - len(text)] + f"[{text}]"
    return found


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple, Sequence) or any(_is_list(one) for one in get_args(kind))


def value_of(name: str, arguments: Sequence[str]) -> str:
    """The text that an option was given, before the others are read; empty where it was not."""
    return _values(arguments, {f"--{name}"}).get(name, "")


def _values(arguments: Sequence[str], known: set[str]) -> dict[str, str]:
    """The text that each option was given, the last one where it was given twice."""
    found: dict[str, str] = {}
    for number, one in enumerate(arguments):
        name, equals, text = one.partition("=")
        if name in known and equals:
            found[name[2:]] = text
        elif name in known and number + 1 < len(arguments):
            found[name[2:]] = arguments[number + 1]
    return found


def _is_value(arguments: Sequence[str], number: int, name: str) -> bool:
    """Whether an argument is (or holds) the value of an option."""
    return arguments[number].startswith(f"--{name}=") or (number > 0 and arguments[number - 1] == f"--{name}")


def _complaint(text: str, parser: Any, values: Mapping[str, str]) -> str:
    """One sentence for what a parser complains of: what was given, what is expected, what to do."""
    from stillroom.systems.catalog import unknown

    options = [option for option in parser._option_string_actions if option.startswith("--")]
    shown = [one.replace("_", "-") for one in options if not one.startswith("--print") and not one.endswith("+")]
    if strange := re.search(r"[Uu]nrecognized arguments?: (\S+)|Key '(\w+)' is not expected", text):
        given = strange[1] or strange[2]
        if not given.startswith("-"):
            return f"unexpected argument {given!r}: options begin with --, and their values follow them"
        return unknown("option", "--" + given.lstrip("-").split("=")[0].replace("_", "-"), shown)
    if missing := re.search(r"argument (--\w+).*: expected one argument", text):
        name = missing[1].replace("_", "-")
        return f"the option {name} needs a value: {name} {missing[1][2:].upper()}"
    if required := re.search(r"required: (\w+)|Key \"(\w+)\" is required", text):
        name = required[1] or required[2]
        return FIRST.get(name, f"the option --{name.replace('_', '-')} must be given")
    if key := re.search(r'key "(\w+)"', text):
        expected = expectation(parser.kinds.get(key[1], Any))
        name = key[1].replace("_", "-")
        return f"the option --{name} must be {expected}, given {values.get(key[1], '')!r}: see {parser.prog} --help"
    return (text.strip().splitlines() or ["the options cannot be read"])[0]


def expectation(kind: Any) -> str:
    """Say in words what values a type has."""
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if kind in plain:
        return plain[kind]
    origin, inner = get_origin(kind), [one for one in get_args(kind) if one is not type(None)]
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(expectation(one) for one in inner))
    if origin in (list, tuple, Sequence) and inner:
        return (
            "a list such as [1,2]" if inner[0] is int else "a list such as [0.1,0.2]" if inner[0] is float else "a list"
        )
    return getattr(kind, "__name__", str(kind))


def fits(value: Any, kind: Any) -> bool:
    """Whether a value read from text can be of a type; types that text cannot tell fit always."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str, type(None)):
        return isinstance(value, kind)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    return True


def take_dotted(arguments: Sequence[str], owners: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Take `--OWNER.NAME VALUE` (or `=VALUE`) out of the arguments.

    Raises:
        ValueError: there is no such owner, or no value.
    """
    rest: list[str] = []
    taken: dict[str, dict[str, Any]] = {}
    waiting = list(arguments)
    while waiting:
        one = waiting.pop(0)
        found = re.match(r"^--([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)(?:=(.*))?$", one, re.DOTALL)
        if not found:
            rest.append(one)
            continue
        owner = found[1] if found[1] in owners else found[1].lower()
        if owner not in owners:
            if len(owners) == 1:
                raise ValueError(
                    f"unknown option {one!r}: an argument of the method is given as --{owners[0]}.NAME VALUE"
                )
            from stillroom.systems.catalog import unknown

            raise ValueError(unknown("method", found[1], list(owners)))
        if found[3] is None and (not waiting or waiting[0].startswith("--")):
            raise ValueError(f"the option {one} needs a value: {one} VALUE")
        value = found[3] if found[3] is not None else waiting.pop(0)
        taken.setdefault(owner, {})[found[2].replace("-", "_")] = read_value(value)
    return rest, taken


def read_value(text: str) -> Any:
    """Read a number, a truth value, a list; anything else is text."""
    word = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in word:
        return word[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if text.startswith("[") and text.endswith("]"):
            return [read_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
        return text


def first_as(name: str, arguments: Sequence[str]) -> list[str]:
    """Let the first argument, where it is no option, be the value of an option."""
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        arguments[0] = f"--{name}={arguments[0]}"
    return arguments


def print_json(content: Any) -> None:
    """Print something as JSON."""
    print(json.dumps(content, indent=2, default=str))


def show(table: Any) -> None:
    """Print a table without trailing spaces: as wide as the terminal, 120 characters where there is none."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    console = Console(highlight=False, width=120)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines()))


def free_folder(place: Path) -> Path:
    """The first of place-1, place-2, ... that does not exist."""
    number = 1
    while place.with_name(f"{place.name}-{number}").exists():
        number += 1
    return place.with_name(f"{place.name}-{number}")


def new_folder(options: Mapping[str, Any], what: str) -> str:
    """Where a run goes for which no folder was named: the next free one of stillroom-runs/DATA-WHAT-1, -2, ...

    Args:
        options: the arguments of `distill`.
        what: the method, or the command.

    Raises:
        ValueError: it is to be resumed, and nobody says which.
    """
    if options.get("resume"):
        raise ValueError("--resume needs the folder of the run: name it with --out")
    named = options["task"] if options.get("task") and options["data"] == "digits" else options["data"]
    data = re.sub(r"[^A-Za-z0-9]+", "-", str(named)).strip("-")[-30:]
    return str(free_folder(Path("stillroom-runs") / f"{data}-{what}"))


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
