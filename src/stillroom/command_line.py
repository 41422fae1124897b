"""Reading a command line: options from functions' signatures, help pages with examples, one-sentence complaints."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

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
  stillroom distill --teacher runs/big/student --student conv-8-16 --data photos/ --method dkd --method.beta 4""",
    "compare": """  stillroom compare --methods kd,dkd,dist,pld --seeds 5
  stillroom compare --methods kd,dkd --dkd.beta 2 --data cifar10 --teacher resnet56 --student resnet8""",
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


def parser_for(command: str, *functions: Callable[..., Any], skip: Sequence[str] = ()) -> Any:
    """A parser whose options are the arguments of functions."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter):  # type: ignore[misc]
        def _get_help_string(self, action: Any) -> str:
            plain = action.default not in (None, False, "==SUPPRESS==") and action.option_strings
            return (action.help or "") + (f" [{action.default}]" if plain else "")

    class Parser(ArgumentParser):  # type: ignore[misc]
        def format_help(self) -> str:
            text = re.sub(r"--[a-z][a-z_]+", lambda found: found[0].replace("_", "-"), super().format_help())
            return f"{text}\nexamples:\n{EXAMPLES[command]}"

    parser = Parser(
        prog=f"stillroom {command}",
        usage=f"stillroom {command} {USAGE.get(command, '[options]')}",
        description=COMMANDS[command] + ".",
        exit_on_error=False,
        formatter_class=Formatter,
    )
    added: set[str] = set(skip)
    for function in functions:
        parser.add_function_arguments(function, as_group=False, skip=added & set(names(function)), fail_untyped=False)
        added |= set(names(function))
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def names(function: Callable[..., Any]) -> list[str]:
    """Names of a function's arguments."""
    return [name for name, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD]


def parse(parser: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse, taking dashes for underscores, and turn a complaint into one sentence."""
    dashed = [
        re.sub(r"^--[a-z][a-z0-9-]*", lambda found: "--" + found[0][2:].replace("-", "_"), one) for one in arguments
    ]
    flags = {option for option, action in parser._option_string_actions.items() if action.default is False}
    for number, one in enumerate(dashed):
        follower = dashed[number + 1].lower() if number + 1 < len(dashed) else ""
        if one in flags - {"--json"} and follower not in ("true", "false"):
            dashed[number] = f"{one}=true"
    try:
        return dict(parser.parse_args(dashed).as_dict())
    except Exception as error:
        if type(error).__name__ != "ArgumentError":
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        known = [option.replace("_", "-") for option in parser._option_string_actions if option.startswith("--")]
        strange = re.search(r"[Uu]nrecognized arguments?: (\S+)|Key '(\w+)' is not expected", str(error))
        if strange:
            from stillroom.systems.catalog import unknown

            name = "--" + (strange[1] or strange[2]).lstrip("-").split("=")[0].replace("_", "-")
            raise ValueError(unknown("option", name, known)) from error
        raise ValueError(lines[0] if lines else "the options cannot be read") from error


def take_dotted(arguments: Sequence[str], owners: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Take `--OWNER.NAME VALUE` (or `=VALUE`) out of the arguments."""
    rest: list[str] = []
    taken: dict[str, dict[str, Any]] = {}
    waiting = list(arguments)
    while waiting:
        one = waiting.pop(0)
        found = re.match(r"^--([a-z0-9-]+)\.([A-Za-z0-9_-]+)(?:=(.*))?$", one, re.DOTALL)
        if not found or found[1] not in owners:
            rest.append(one)
            continue
        if found[3] is None and not waiting:
            raise ValueError(f"the option {one} needs a value")
        value = found[3] if found[3] is not None else waiting.pop(0)
        taken.setdefault(found[1], {})[found[2].replace("-", "_")] = read_value(value)
    return rest, taken


def read_value(text: str) -> Any:
    """Read a number, a truth value, a list; anything else is text."""
    word = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in word:
        return word[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
