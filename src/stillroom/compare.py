"""Several methods under one budget: a leaderboard with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stillroom.distill import distill
from stillroom.experiment import forks
from stillroom.naming import named_methods
from stillroom.options import experiment_of
from stillroom.repeating import call_of
from stillroom.weigh import folder_of, run_and_weigh


def compare(
    methods: Any = "kd,dkd,dist,pld",
    teacher: Any = None,
    student: Any = None,
    data: Any = "digits",
    *,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train one student by several methods, and alone, from the same beginnings and under one budget.

    Args:
        methods: methods as in `stillroom.distill`, separated by commas (kd,my_method.py:MyMethod); in Python also a
            list of names, classes and partials, or a dict of them, by names of your own.
        teacher: as in `stillroom.distill`.
        student: as in `stillroom.distill`.
        data: as in `stillroom.distill`.
        method_options: method name -> its arguments; the name of one of your own is its class's in lower case.
        **options: every further option of `stillroom.distill`.

    Returns:
        The results as plain values: every arm's values, mean and interval, and the differences to the student alone.

    Raises:
        ValueError: an unknown method, no methods, one of them twice, or whatever `stillroom.distill` refuses.
    """
    options |= {"teacher": teacher, "student": student, "data": data}
    return compared(methods, options, method_options or {}, command_of=call_of)


def compared(
    methods: Any,
    options: Mapping[str, Any],
    method_options: Mapping[str, Mapping[str, Any]],
    *,
    command_of: Callable[[str, Mapping[str, Any]], str],
) -> dict[str, Any]:
    """Do what `compare` does with its arguments as dictionaries.

    Args:
        methods: as of `compare`.
        options: all other arguments.
        method_options: as of `compare`.
        command_of: says what repeats the run.
    """
    import inspect

    found = named_methods(methods)
    known = {name: p.default for name, p in inspect.signature(distill).parameters.items()}
    known = {name: default for name, default in known.items() if name not in ("method", "method_options")}
    if strange := set(options) - set(known):
        raise TypeError(f"compare has no option {sorted(strange)[0]!r}; its options are those of stillroom.distill")
    given = known | dict(options)
    own = {name: dict(arguments) for name, arguments in method_options.items()}
    if strange := set(own) - set(found):
        raise ValueError(f"method_options are given for {sorted(strange)}, but the methods are {', '.join(found)}")
    forks.begin(given["jobs"] if given["executor"] == "processes" else 1)
    given |= {"methods": list(found), "method_options": own}
    experiment = experiment_of({name: (one, own.get(name, {})) for name, one in found.items() if one != "alone"}, given)
    repeated = {"methods": methods if isinstance(methods, Mapping) else list(found.values())}
    with folder_of(given) as place:
        command = command_of("compare", {**given, **repeated})
        results, _ = run_and_weigh(experiment, place, given, command=command)
    return results
