"""What labels mean: class numbers, names, masks, several classes at once, numbers to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.data.batch import UNLABELLED
from stillroom.data.rows import is_known
from stillroom.data.samples import KINDS, Kind

OTHER_TASKS = ("embeddings",)  # tasks that take any kind of labels as they are
VOID = 255  # the class number that mask files use for "no label"


@dataclass
class Labels:
    """Labels of all parts of a data set, as tensors.

    Attributes:
        parts: by the name of the part; None for a part without labels.
        kind: what they are.
        classes: names of the classes in the order of their numbers; None for regression and without labels.
        notes: sentences for the user.
    """

    parts: dict[str, Tensor | None]
    kind: Kind
    classes: list[str] | None
    notes: list[str] = field(default_factory=list)


def read_labels(
    raw: Mapping[str, Any], *, task: str | None = None, classes: Sequence[str] | None = None, masks: bool = False
) -> Labels:
    """Find out what labels are and bring them to the form the tasks expect.

    - words, or integers 0 to C - 1, `(N,)`: classification;
    - 0 and 1 in two or more columns `(N, C)`: multi-label;
    - other floats `(N,)` or `(N, D)`: regression, `(N, D)`;
    - integers `(N, H, W)` or `(N, 1, H, W)`: segmentation, 255 saying no label where there is no class 254.

    None (in words), -100 (in integers) and NaN (in floats) say that a row has no label.

    Args:
        raw: for each part of the data set a tensor, array or list of labels, or None.
        task: what they shall be, where that is possible; None to go by the rules above. "unlabelled" drops them.
        classes: names of the classes, where they are known.
        masks: whether the labels are masks that are read with the images (then `raw` holds None).

    Raises:
        ValueError: labels out of range, numbers with gaps and no names, fewer than two classes, labels that cannot be
            what `task` says, parts with labels of different forms.
    """
    if task is not None and task not in (*KINDS, *OTHER_TASKS):
        raise ValueError(f"task must be one of {', '.join((*KINDS, *OTHER_TASKS))}, given {task!r}")
    wanted = None if task in OTHER_TASKS else task
    notes: list[str] = []
    names = None if classes is None else [str(name) for name in classes]
    if wanted == "unlabelled":
        return Labels(dict.fromkeys(raw), "unlabelled", None)
    if masks:
        if wanted not in (None, "segmentation"):
            raise ValueError(f"the labels are masks, which make a segmentation task, but task is {task!r}")
        return Labels(dict.fromkeys(raw), "segmentation", names)
    arrays = {part: _as_array(values) for part, values in raw.items() if values is not None}
    if not arrays:
        if wanted is not None:
            notes.append(
                f"the data have no labels, so a {task} task can only be distilled, not measured against labels"
            )
        return Labels(dict.fromkeys(raw), "unlabelled", None, notes)
    words = [part for part, array in arrays.items() if array.dtype.kind in "OUS"]
    if words and len(words) < len(arrays):
        raise ValueError(f"labels are words in {words[0]!r}, but numbers in another part: give the same in all parts")
    if words:
        arrays, names = _number_words(arrays, names, notes)
    forms = {array.shape[1:] for array in arrays.values() if len(array)}
    if len(forms) > 1:
        raise ValueError(f"labels have rows of different shapes in different parts ({sorted(forms)}): give one shape")
    tensors = {part: own_tensor(array) for part, array in arrays.items()}
    if any(_void(tensor) for tensor in tensors.values()):
        notes.append(f"mask pixels of value {VOID} carry no label (-100)")
    tensors = {part: _plain(tensor) for part, tensor in tensors.items()}
    kind = _natural_kind(tensors)
    if wanted is not None and wanted != kind:
        tensors = {part: _convert(tensor, kind, wanted) for part, tensor in tensors.items()}
        kind = wanted
    elif kind == "unclear":
        first = next(iter(arrays.values()))
        raise ValueError(
            f"labels of shape {first.shape} and dtype {first.dtype} could mean several things: say which with "
            'task= ("regression", ...)'
        )
    if kind == "regression":
        if task is None:
            _refuse_class_numbers(tensors)
        tensors = {part: t.float().view(len(t), -1) for part, t in tensors.items()}
        if all(bool((t[is_known(t)] % 1 == 0).all()) for t in tensors.values()) and wanted is None:
            notes.append(
                'labels are floats, taken as numbers to predict: for classes, give integers or task="classification"'
            )
        names = None
    elif kind == "multi-label":
        tensors = {part: t.float() for part, t in tensors.items()}
        columns = next(iter(tensors.values())).shape[1]
        names = names or [str(number) for number in range(columns)]
        if len(names) != columns:
            raise ValueError(f"labels have {columns} columns, but {len(names)} classes are named: give one name each")
        if all(bool((t == 1).sum(1).eq(1).all()) for t in tensors.values()):
            notes.append('every row has exactly one label: if these are one-hot classes, give task="classification"')
    else:
        names = _check_numbers(tensors, names, gaps=kind == "segmentation")
    return Labels({part: tensors.get(part) for part in raw}, kind, names, notes)  # type: ignore[arg-type]


def own_tensor(array: np.ndarray) -> Tensor:
    """Turn an array into a tensor, copying it only where it is read-only or not contiguous."""
    return torch.from_numpy(np.require(array, requirements=("C", "W")))


def _as_array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, np.ndarray):
        return values
    values = list(values) if not hasattr(values, "to_numpy") else values.to_numpy()
    if isinstance(values, np.ndarray):
        return values
    known = [value for value in values if value is not None]
    if known and isinstance(known[0], (bool, int, np.integer)):
        values = [UNLABELLED if value is None else value for value in values]
    elif known and isinstance(known[0], (float, np.floating)):
        values = [float("nan") if value is None else value for value in values]
    elif known and isinstance(known[0], Tensor):
        return torch.stack(values).numpy()
    elif known and isinstance(known[0], str):
        return np.array(values, dtype=object)
    try:
        return np.array(values)
    except ValueError as error:
        raise ValueError("labels have rows of different lengths: give one shape for all rows") from error


def _number_words(
    arrays: dict[str, np.ndarray], names: list[str] | None, notes: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    found = sorted({str(word) for array in arrays.values() for word in array.reshape(-1) if word is not None})
    if names is None:
        names = found
        shown = ", ".join(f"{name!r} = {number}" for number, name in enumerate(names[:5]))
        notes.append(f"labels are words, numbered in alphabetical order: {shown}{', ...' if len(names) > 5 else ''}")
    elif strange := set(found) - set(names):
        raise ValueError(f"label {sorted(strange)[0]!r} is none of the {len(names)} classes {', '.join(names[:10])}")
    number = {name: position for position, name in enumerate(names)}
    numbered = {
        part: np.array(
            [UNLABELLED if word is None else number[str(word)] for word in array.reshape(-1)], dtype=np.int64
        ).reshape(array.shape)
        for part, array in arrays.items()
    }
    return numbered, names


def _plain(tensor: Tensor) -> Tensor:
    """Bring a tensor to int64 (small integers for masks) or float32, and `(N, 1)` class numbers to `(N,)`."""
    if tensor.is_complex():
        raise ValueError(f"labels must be integers, floats or words, given dtype {tensor.dtype}")
    if tensor.is_floating_point():
        return tensor.float()
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim < 3:
        return tensor.long()
    if tensor.ndim == 4 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if _void(tensor):
        return torch.where(tensor == VOID, UNLABELLED, tensor.short())
    return tensor.short() if not tensor.numel() or int(tensor.max()) < 2**15 else tensor


def item_masks(labels: Tensor) -> Tensor:
    """Masks that come with the inputs as `read_labels` has them: one channel is dropped, and 255 in bytes is -100.

    Args:
        labels: `(N, H, W)` or `(N, 1, H, W)`; others and floats stay as they are.
    """
    if labels.ndim == 4 and labels.shape[1] == 1 and not labels.is_floating_point():
        labels = labels[:, 0]
    if labels.ndim < 3 or labels.dtype != torch.uint8:
        return labels
    return torch.where(labels == VOID, UNLABELLED, labels.short())


def _void(tensor: Tensor) -> bool:
    """Whether the largest number in masks is 255, and no class."""
    integers = not tensor.is_floating_point() and not tensor.is_complex()
    if tensor.ndim < 3 or not integers or not tensor.numel() or int(tensor.max()) != VOID:
        return False
    return tensor.dtype == torch.uint8 or not bool((tensor == VOID - 1).any())


def _refuse_class_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Refuse floats `(N,)` or `(N, 1)` that look like class numbers: 0 to C - 1 without a gap, twice each or more.

    Raises:
        ValueError: they do.
    """
    values = torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors.values()])
    known = values[~values.isnan()]
    found = known.unique()
    if values.shape[1] > 1 or not 2 <= len(found) <= len(known) / 2:
        return
    if torch.equal(found, torch.arange(len(found)).to(found)):
        shown = ", ".join(f"{number:g}" for number in found[:3].tolist())
        raise ValueError(
            f"labels are floats, but there are only {len(found)} different ones, {shown}{', ...' * (len(found) > 3)}: "
            'say what they are, task="classification" for classes or task="regression" for numbers to predict'
        )


def _natural_kind(tensors: Mapping[str, Tensor]) -> str:
    first = next(iter(tensors.values()))
    dimensions = first.ndim
    floats = any(tensor.is_floating_point() for tensor in tensors.values())
    if dimensions == 1:
        return "regression" if floats else "classification"
    if dimensions == 2:
        if first.shape[1] >= 2 and all(_binary(tensor) for tensor in tensors.values()):
            return "multi-label"
        return "regression" if floats else "unclear"
    return "segmentation" if dimensions == 3 and not floats else "unclear"


def _binary(tensor: Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1) | (tensor != tensor)).all())


def _convert(tensor: Tensor, kind: str, wanted: str) -> Tensor:
    """Bring labels of one kind to another where nothing is lost."""
    if wanted == "classification":
        if tensor.ndim == 2 and tensor.shape[1] == 1:
            tensor = tensor[:, 0]
        if tensor.ndim == 1 and bool((tensor[is_known(tensor)] % 1 == 0).all()):
            return tensor.nan_to_num(UNLABELLED).long() if tensor.is_floating_point() else tensor
        if tensor.ndim == 2 and bool(((tensor == 0) | (tensor == 1)).all() & (tensor == 1).sum(1).eq(1).all()):
            return tensor.argmax(1)
    elif wanted == "regression" and tensor.ndim <= 2:
        return torch.where(is_known(tensor).view(-1, *[1] * (tensor.ndim - 1)), tensor.float(), torch.nan)
    elif wanted == "multi-label" and tensor.ndim == 2 and _binary(tensor):
        return tensor.float()
    raise ValueError(
        f"labels of shape {tuple(tensor.shape)} and dtype {tensor.dtype} look like {kind} and cannot be taken as "
        f"{wanted}: give another task= or other labels"
    )


def _check_numbers(tensors: Mapping[str, Tensor], names: list[str] | None, *, gaps: bool) -> list[str]:
    """Check that class numbers run from 0 to C - 1 and name the classes."""
    found = torch.cat([tensor.unique().long() for tensor in tensors.values()]).unique()
    found = found[found != UNLABELLED]
    if not len(found):
        raise ValueError("every label is -100 (no label): give labels for some samples, or none at all")
    low, high = int(found.min()), int(found.max())
    if low < 0:
        raise ValueError(f"labels run from {low} to {high}: number the classes from 0, and use -100 for no label")
    if names is not None and high >= len(names):
        raise ValueError(f"labels run up to {high}, but there are {len(names)} classes (0 to {len(names) - 1})")
    if names is None and not gaps and len(found) != high + 1:
        raise ValueError(
            f"labels are {len(found)} different numbers between {low} and {high}: number the classes 0 to "
            f"{len(found) - 1} without gaps, or give their names as words"
        )
    if len(found) < 2:
        remedy = "number the classes of a mask 0 and 1, because 255 says no label" if gaps else "give labels of others"
        raise ValueError(f"every label is the same class ({low}): a task needs two classes or more; {remedy}")
    return names if names is not None else [str(number) for number in range(high + 1)]
