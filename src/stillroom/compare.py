"""Several methods under one budget: a leaderboard with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.distill import distill
from stillroom.experiment import forks
from stillroom.options import command_of, experiment_of
from stillroom.weigh import folder_of, run_and_weigh


def compare(
    methods: str | Sequence[str] = "kd,dkd,dist,pld",
    teacher: Any = None,
    student: Any = None,
    data: Any = "digits",
    *,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train one student by several methods, and alone, from the same beginnings and under one budget.

    Args:
        methods: names of methods, in a list or separated by commas.
        teacher: as in `stillroom.distill`.
        student: as in `stillroom.distill`.
        data: as in `stillroom.distill`.
        method_options: method name -> its arguments.
        **options: every further option of `stillroom.distill`.

    Returns:
        The results as plain values: every arm's values, mean and interval, and the differences to the student alone.

    Raises:
        ValueError: an unknown method, no methods, one of them twice, or whatever `stillroom.distill` refuses.
    """
    import inspect

    names = [name.strip() for name in methods.split(",")] if isinstance(methods, str) else list(methods)
    names = [name for name in names if name]
    if not names:
        raise ValueError("no methods were given: name some, separated by commas (--methods kd,dkd)")
    if len(set(names)) < len(names):
        raise ValueError(f"every method must be named once, given {', '.join(names)}")
    known = {name: p.default for name, p in inspect.signature(distill).parameters.items()}
    known = {name: default for name, default in known.items() if name not in ("method", "method_options")}
    if strange := set(options) - set(known):
        raise TypeError(f"compare has no option {sorted(strange)[0]!r}; its options are those of stillroom.distill")
    given = known | {"teacher": teacher, "student": student, "data": data} | options
    own = {name: dict(arguments) for name, arguments in (method_options or {}).items()}
    if strange := set(own) - set(names):
        raise ValueError(f"method_options are given for {sorted(strange)}, but the methods are {', '.join(names)}")
    forks.begin(given["jobs"] if given["executor"] == "processes" else 1)
    given |= {"methods": names, "method_options": own}
    experiment = experiment_of([(name, own.get(name, {})) for name in names if name != "alone"], given)
    with folder_of(given) as place:
        results, _ = run_and_weigh(experiment, place, given, command=command_of("compare", {"methods": names, **given}))
    return results
