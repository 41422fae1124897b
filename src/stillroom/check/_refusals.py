"""Checks of what cannot be right: each must end in a ValueError that says so, from the method or from its task."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.check._report import CheckError, Skip, warn
from stillroom.check._tools import (
    Source,
    all_finite,
    backward,
    edit_teacher,
    edit_tensors,
    first_different_turn,
    fresh,
    measure,
    quiet,
    seeded,
    teacher_of,
)
from stillroom.data.batch import Batch, tensors_in
from stillroom.method import Losses, Method

if TYPE_CHECKING:
    from stillroom.task import Task


def _task_of(method: Method, task: Task | None) -> Task | None:
    return task if task is not None else getattr(method, "task", None)


def _attempt(method: Method, batch: Batch) -> tuple[Exception | None, list[Losses]]:
    """Take all turns of a batch; return what was raised and the losses that came before it."""
    found: list[Losses] = []
    try:
        with seeded(0):
            for player, losses in method.turns(batch):
                found.append(losses)
                backward(method, player, losses)
    except Exception as error:
        return error, found
    return None, found


def _outputs(method: Method, batch: Batch, losses: list[Losses]) -> Tensor | None:
    """What the student says on a batch: from its losses, or by asking the product; None where it cannot answer."""
    for part in losses:
        if isinstance(part.outputs, Tensor):
            return part.outputs.detach()
    try:
        with torch.no_grad():
            answer = method.product(batch.inputs)
    except Exception:  # the method's own error is reported
        return None
    return answer if isinstance(answer, Tensor) else None


def _must_refuse(
    method: Method, bad: Batch, task: Task | None, *, what: str, words: str, values: bool = False
) -> Skip | None:
    """Ask for a ValueError with one of the words, from the method, or else from its task.

    Args:
        method: a copy that may be used up.
        bad: a batch that cannot be right.
        task: checks the first batch, where there is one.
        what: the fault, for the message.
        words: pattern of which the error must contain one.
        values: the fault is in values, which tasks check: then the method may raise anything, or, without a task, give
            any loss.
    """
    error, losses = _attempt(method, bad)
    refusal = error if isinstance(error, ValueError) else None
    if refusal is None and task is not None and (error is None or values):
        try:
            task.check(bad, _outputs(method, bad, losses))
        except ValueError as raised:
            refusal = raised
    if refusal is not None:
        if not re.search(words, str(refusal), re.IGNORECASE):
            raise CheckError(
                f"{what}: refused with {str(refusal)!r}, expected a word of what is wrong ({words.replace('|', ', ')})"
            ) from refusal
        return None
    if values and task is None:
        return Skip("values are checked by the task on the first batch, and none is given: pass task=")
    given = (
        f"{type(error).__name__}: {error}"
        if error is not None
        else f"a total of {float(sum(part.total.detach() for part in losses)):.4g}"
    )
    where = "the method (check shapes as stillroom.losses do)" if not values else "the task's check(batch, outputs)"
    raise CheckError(f"{what}: gives {given}; expected a ValueError that says so, from {where}") from error


# ---- too few samples -------------------------------------------------------------------------------------------------


def check_batch_of_one(method: Source, batch: Batch) -> Skip | None:
    """A batch of one sample works, or is refused with a ValueError that says so, as `needs.min_batch` declares.

    Batch norm is in eval mode here: that it cannot train on one sample is not the method's doing.
    """
    rows = batch.labelled.nonzero().flatten() if batch.labels is not None else torch.arange(len(batch))
    rows = rows if len(rows) else torch.arange(len(batch))
    least = fresh(method).needs.min_batch
    for size in sorted({1, least}):
        try:
            turns = measure(quiet(fresh(method)), batch[rows[:size]])
        except ValueError as error:
            if not re.search(r"batch|sample|row", str(error), re.IGNORECASE):
                raise CheckError(
                    f"a batch of {size} is refused with {str(error)!r}, expected a word on how many samples it takes"
                ) from error
            if size >= least:
                warn(f"a batch of {size} is refused ({error}), but needs.min_batch is {least}: declare what it takes")
        except Exception as error:
            raise CheckError(
                f"a batch of {size} raises {type(error).__name__}: {error}; expected a loss, or a ValueError that says "
                "how many samples it takes (beware of squeeze() without dim)"
            ) from error
        else:
            if wrong := all_finite(turns):
                raise CheckError(
                    f"with a batch of {size}, {wrong}: give a finite loss, or a ValueError, and declare needs.min_batch"
                )
    return None


def check_empty_batch(method: Source, batch: Batch, *, task: Task | None = None) -> Skip | None:
    """A batch without samples is refused."""
    made = quiet(fresh(method))
    empty = batch[:0]
    error, _ = _attempt(made, empty)
    if error is not None and not isinstance(error, ValueError):
        try:
            made.student(empty.inputs)
        except Exception as inner:
            return Skip(f"the student itself raises {type(inner).__name__} on an empty batch")
    words = r"empty|no samples|no rows|at least|samples|0 rows"
    return _must_refuse(made, empty, _task_of(made, task), what="an empty batch", words=words)


# ---- classes and labels ----------------------------------------------------------------------------------------------


def _class_dimension(outputs: Tensor, labels: Tensor | None) -> int:
    """Which dimension of logits counts the classes: the one that labels do not have, else the second."""
    if labels is not None and labels.ndim == outputs.ndim - 1 and labels.shape == outputs.shape[:-1]:
        return outputs.ndim - 1
    return 1


def check_teacher_classes(method: Source, batch: Batch) -> Skip | None:
    """A teacher with one class more than the student, or a single one, is refused (never cut, padded, broadcast)."""
    made = quiet(fresh(method))
    if teacher_of(made) is None:
        return Skip("the method has no teacher")
    plain = measure(made, batch)
    outputs = next((turn.outputs for turn in plain if isinstance(turn.outputs, Tensor)), None)
    if outputs is None or outputs.ndim < 2:
        return Skip("the method's outputs are no logits (N, C, ...)")
    classes = _class_dimension(outputs, batch.labels)
    seen: list[int] = []

    def only_logits(tensor: Tensor, edited: Tensor) -> Tensor:
        if tensor.shape != outputs.shape:
            return tensor
        seen.append(1)
        return edited

    probe = quiet(fresh(method))
    edit_teacher(probe, lambda t: only_logits(t, 1.5 * t + torch.linspace(0, 1, t.numel(), device=t.device).view_as(t)))
    changed = first_different_turn(measure(probe, batch), plain)
    if not seen:
        return Skip("the teacher's answer does not have the shape of the student's outputs")
    if not changed:
        return Skip("no term reads the teacher's outputs")
    words = "class|shape|size|dimension|width|vocab|logit"
    variants: list[tuple[str, int | None]] = [("one more class", None), ("a single class", 1)]
    for what, columns in variants[: 2 if outputs.shape[classes] > 1 else 1]:
        wrong = quiet(fresh(method))

        def edit(t: Tensor, columns: int | None = columns) -> Tensor:
            first = t.narrow(classes, 0, 1)
            return only_logits(t, first if columns else torch.cat([t, first], classes))

        edit_teacher(wrong, edit)
        _must_refuse(wrong, batch, None, what=f"a teacher with {what} than the student", words=words)
    return None


def _labels_read(method: Method, batch: Batch) -> Tensor | Skip:
    if method.needs.labels == "none" or batch.labels is None:
        return Skip("the method reads no labels")
    return batch.labels


def check_label_shape(method: Source, batch: Batch, *, task: Task | None = None) -> Skip | None:
    """Labels with a dimension too many (or too few columns) are refused, and labels of another length give no loss."""
    made = quiet(fresh(method))
    labels = _labels_read(made, batch)
    if isinstance(labels, Skip):
        return labels
    short = copy.copy(batch)
    short.labels = labels[:-1]  # set from outside: Batch itself refuses it
    error, losses = _attempt(made, short)
    if error is None:
        raise CheckError(
            f"{len(labels) - 1} labels for {len(batch)} samples give a total of "
            f"{float(sum(part.total.detach() for part in losses)):.4g}: check the labels' shape against the outputs'"
        )
    bad = labels.unsqueeze(-1) if labels.ndim == 1 else labels[..., :1] if labels.shape[-1] > 1 else labels.squeeze(-1)
    what = f"labels of shape {tuple(bad.shape)} instead of {tuple(labels.shape)}"
    made = quiet(fresh(method))
    words = "label|target|shape|size|rows"
    return _must_refuse(made, batch.replace(labels=bad), _task_of(made, task), what=what, words=words)


def check_label_dtype(method: Source, batch: Batch, *, task: Task | None = None) -> Skip | None:
    """Float labels where class numbers belong are refused."""
    made = quiet(fresh(method))
    labels = _labels_read(made, batch)
    if isinstance(labels, Skip):
        return labels
    if labels.is_floating_point():
        return Skip("the labels of this batch are floats")
    words = "label|target|int64|dtype|long"
    bad = batch.replace(labels=labels.float())
    return _must_refuse(made, bad, _task_of(made, task), what="float labels for class numbers", words=words)


def check_label_range(method: Source, batch: Batch, *, task: Task | None = None) -> Skip | None:
    """Class numbers of -1 and of the number of classes are refused, by the method or by its task's first check."""
    made = quiet(fresh(method))
    labels = _labels_read(made, batch)
    if isinstance(labels, Skip):
        return labels
    task = _task_of(made, task)
    if labels.is_floating_point():
        if getattr(task, "name", "") != "multi-label":
            return Skip("the labels of this batch are no class numbers")
        wrong: tuple[float, ...] = (2.0, -1.0)
    else:
        if not {"classification", "segmentation"} & {*made.needs.tasks, getattr(task, "name", "")}:
            return Skip(f"the labels of {', '.join(made.needs.tasks)} are no class numbers")
        outputs = _outputs(made, batch, _attempt(made, batch)[1])
        if outputs is None or outputs.ndim < 2:
            return Skip("the method's outputs are no logits (N, C, ...)")
        wrong = (outputs.shape[_class_dimension(outputs, labels)], -1)
    for value in wrong:
        wrong_labels = labels.clone()
        wrong_labels.view(-1)[0] = value
        made = quiet(fresh(method))
        bad, what = batch.replace(labels=wrong_labels), f"a label of {value}"
        if skip := _must_refuse(made, bad, task, what=what, words="label|class|target", values=True):
            return skip
    return None


# ---- NaN -------------------------------------------------------------------------------------------------------------


def check_nan_inputs(method: Source, batch: Batch, *, task: Task | None = None) -> Skip | None:
    """NaN in one input is refused by the method or by its task's first check, or at least shows in total or outputs."""
    made = quiet(fresh(method))
    if not any(tensor.is_floating_point() and tensor.numel() for tensor in tensors_in(batch.inputs)):
        return Skip("the inputs are no floats")

    def poison(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        poisoned = tensor.clone()
        poisoned[0] = float("nan")
        return poisoned

    bad = batch.replace(inputs=edit_tensors(batch.inputs, poison))
    task = _task_of(made, task)
    words = r"\bnan\b|finite|not a number"
    if task is not None:
        return _must_refuse(made, bad, task, what="NaN in an input", words=words, values=True)
    error, losses = _attempt(made, bad)
    if error is None and not _shows(losses):
        raise CheckError(
            "NaN in an input gives a finite total and finite outputs: do not filter or nan_to_num what is not finite"
        )
    return None


def _shows(losses: list[Losses]) -> bool:
    values = [part.total.detach() for part in losses]
    values += [tensor for part in losses for tensor in tensors_in(part.outputs) if tensor.is_floating_point()]
    return not all(bool(value.isfinite().all()) for value in values)


def check_nan_teacher(method: Source, batch: Batch) -> Skip | None:
    """A teacher that answers NaN is refused, or makes the total NaN, which loops look for; never a finite total."""
    made = quiet(fresh(method))
    teacher = teacher_of(made)
    if teacher is None:
        return Skip("the method has no teacher")
    network: Any = teacher.network if isinstance(teacher, Frozen) else teacher
    if isinstance(network, nn.Module):
        for module in network.modules():  # activations inside too: a method may read those
            module.register_forward_hook(_answer_nan, prepend=True)
    else:
        edit_teacher(made, lambda tensor: torch.full_like(tensor, float("nan")))
    error, losses = _attempt(made, batch)
    if error is None and all(bool(part.total.detach().isfinite()) for part in losses):
        total = float(sum(part.total.detach() for part in losses))
        raise CheckError(
            f"a teacher that answers only NaN gives a total of {total:.4g}: its NaN is filtered out or never read; let "
            "it reach the total, or raise a ValueError"
        )
    if error is not None and not isinstance(error, ValueError):
        raise CheckError(f"a teacher that answers only NaN raises {type(error).__name__}: {error}") from error
    return None


def _answer_nan(module: nn.Module, inputs: Any, output: Any) -> Any:
    return edit_tensors(output, lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t)
