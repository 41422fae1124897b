"""The battery: every check, run on identical copies of a method, and a report."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from stillroom.check import _equalities, _losses, _numbers, _refusals, _split, _state, _teachers
from stillroom.check._report import CheckError, CheckReport, CheckResult, CheckWarning, Skip
from stillroom.check._tools import Source, differing, fresh, measure, storage, teacher_tensors
from stillroom.data.batch import Batch
from stillroom.method import Method

if TYPE_CHECKING:
    from stillroom.task import Task

Check = Callable[..., Skip | None]

_CHECKS: tuple[Check, ...] = (
    _losses.check_terms,
    _losses.check_signs,
    _losses.check_declarations,
    _losses.check_needs,
    _losses.check_clock,
    _losses.check_players,
    _losses.check_gradients,
    _teachers.check_teacher_unchanged,
    _teachers.check_teacher_eval,
    _teachers.check_teacher_hidden,
    _state.check_state_dict,
    _state.check_determinism,
    _state.check_resume,
    _state.check_deepcopy,
    _state.check_pickle,
    _state.check_product,
    _numbers.check_float64,
    _numbers.check_autocast,
    _numbers.check_channels_last,
    _refusals.check_batch_of_one,
    _refusals.check_empty_batch,
    _refusals.check_teacher_classes,
    _refusals.check_label_shape,
    _refusals.check_label_dtype,
    _refusals.check_label_range,
    _refusals.check_nan_inputs,
    _refusals.check_nan_teacher,
    _equalities.check_weight_zero,
    _equalities.check_zero_at_teacher,
    _equalities.check_cached_teacher,
    _split.check_accumulation,
    _split.check_two_processes,
)


def all_checks() -> dict[str, Check]:
    """Every check by its name, in the order in which `check_method` runs them.

    Each is called as `check(method, batch)`, some with `task=`; it returns None or `Skip(reason)`, emits
    `CheckWarning` and raises `CheckError`.
    """
    return {check.__name__.removeprefix("check_"): check for check in _CHECKS}


def check_method(
    method: Source,
    batch: Batch,
    *,
    task: Task | None = None,
    only: Sequence[str] | None = None,
    skip: Collection[str] = (),
    processes: bool = True,
    raises: bool = True,
) -> CheckReport:
    """Run every check on a method, your own or one of the library.

    Args:
        method: a method, which is copied for each check and itself left alone; or a function without arguments that
            builds one, with a student and a teacher of its own (for methods that cannot be deep-copied).
        batch: real or random samples as the method will see them: at least 2, better 8 or more, on the method's device.
        task: checks values (label ranges, NaN) on the first batch; the method's own `task` when not given.
        only: names of checks to run; None for all.
        skip: names of checks to leave out.
        processes: whether to start two processes (some seconds).
        raises: whether to raise one error at the end when checks failed; if not, look at the report.

    Returns:
        What passed, warned, was skipped (and why) and failed; print it for a table.

    Raises:
        CheckError: checks failed, after all of them have run; it names each with its remedy.
        TypeError: `method` or `batch` is something else.
        ValueError: an unknown name, a batch that lacks what the method needs, or a factory that shares networks.

    Example:
        >>> import torch
        >>> from stillroom.baselines import Alone
        >>> batch = Batch(torch.randn(8, 4), torch.arange(8) % 3)
        >>> report = check_method(Alone(torch.nn.Linear(4, 3)), batch, processes=False)
        >>> report.ok
        True
    """
    _split.refuse_inside_worker()
    chosen = _choose(only, skip)
    made = _first_copy(method, batch)
    report = CheckReport(type(method).__name__ if made is None else type(made).__name__)
    reason = "the method cannot be copied: see deepcopy" if made is None else _unusable(method, batch)
    blamed = "deepcopy" if made is None else "terms"
    for name, check in chosen.items():
        if name == "two_processes" and not processes:
            report.results.append(CheckResult(name, "skipped", "processes=False"))
        elif reason and name != blamed:
            report.results.append(CheckResult(name, "skipped", reason))
        else:
            report.results.append(_run(name, check, method, batch, task))
    if reason and blamed not in chosen:
        report.results.append(_run(blamed, all_checks()[blamed], method, batch, task))
    for name, message in report.warned.items():
        warnings.warn(f"{report.method}: {name}: {message}", CheckWarning, stacklevel=2)
    if raises:
        report.raise_for_errors()
    return report


def _choose(only: Sequence[str] | None, skip: Collection[str]) -> dict[str, Check]:
    known = all_checks()
    for name in (*(only or ()), *skip):
        if name not in known:
            near = difflib.get_close_matches(name.removeprefix("check_"), known, n=3, cutoff=0.4) or list(known)
            raise ValueError(f"there is no check {name!r}, expected a name such as {', '.join(near)}: see all_checks()")
    return {name: known[name] for name in known if name not in skip and (only is None or name in only)}


def _first_copy(method: Source, batch: Batch) -> Method | None:
    """Refuse what cannot be checked; return a first copy, or None where the method cannot be copied."""
    if not isinstance(method, Method) and (not callable(method) or isinstance(method, type)):
        raise TypeError(
            f"expected a stillroom Method or a function without arguments that builds one, given {method!r}"
        )
    if not isinstance(batch, Batch):
        raise TypeError(
            f"batch must be a stillroom Batch, given {type(batch).__name__}: wrap it, Batch(inputs, labels)"
        )
    try:
        made = fresh(method)
    except CheckError:
        return None
    if len(batch) < max(2, made.needs.min_batch):
        raise ValueError(
            f"batch has {len(batch)} samples, expected {max(2, made.needs.min_batch)} or more (8 are good)"
        )
    if made.needs.index and batch.index is None:
        raise ValueError(
            "the method needs batch.index, and this batch has none: pass Batch(..., index=torch.arange(N))"
        )
    if made.needs.labels == "every" and batch.labels is None:
        raise ValueError("the method needs labels, and this batch has none: pass Batch(inputs, labels)")
    if not isinstance(method, Method):
        _refuse_bad_factory(made, fresh(method))
    return made


def _refuse_bad_factory(first: Method, second: Method) -> None:
    one = {**dict(first.named_parameters()), **teacher_tensors(first)}
    other = {storage(tensor) for tensor in (*second.parameters(), *teacher_tensors(second).values())} - {0}
    if shared := [name for name, tensor in one.items() if storage(tensor) in other]:
        raise ValueError(
            f"two methods of the factory share {shared[0]!r}: build (or deep-copy) student and teacher inside it"
        )
    if changed := differing(first.state_dict(), second.state_dict()):
        raise ValueError(
            f"two methods of the factory differ in {changed[0]!r} under one seed: draw weights from torch's generator"
        )


def _unusable(method: Source, batch: Batch) -> str:
    try:
        measure(fresh(method), batch)
    except Exception:
        return "the method fails on this batch: see terms"
    return ""


def _run(name: str, check: Check, method: Source, batch: Batch, task: Task | None) -> CheckResult:
    options = {"task": task} if "task" in inspect.signature(check).parameters else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckWarning)
        try:
            outcome = check(method, batch, **options)
        except CheckError as error:
            return CheckResult(name, "failed", str(error), error)
        except Exception as error:
            return CheckResult(name, "failed", f"raises {type(error).__name__}: {error}", error)
    said = [str(item.message) for item in caught if issubclass(item.category, CheckWarning)]
    for item in caught:
        if not issubclass(item.category, CheckWarning):
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
    if said:
        return CheckResult(name, "warned", "; ".join(said))
    if isinstance(outcome, Skip):
        return CheckResult(name, "skipped", outcome.reason)
    return CheckResult(name, "passed")
