"""A data set before it is cut: its parts as they were found, not decoded yet."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from stillroom.data.batch import Batch
from stillroom.data.images import Form, check_range, fit_tensor
from stillroom.data.samples import Kind, LazySamples, Samples, TensorSamples

PARTS = ("train", "validation", "test", "unlabelled")
WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
    "unlabelled": ("unlabelled", "unlabeled", "unsupervised"),
}


class Part(Protocol):
    """Rows that can be chosen by their labels before any of them is read."""

    labels: Tensor | None
    numbers: Tensor | None
    """What the rows are called in `index`, where they have numbers already."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def load(self, rows: Tensor, form: Form | None, lazy: bool, notes: list[str]) -> Samples:
        """Read rows now, or later where `lazy`; `index` of the result holds the rows."""


@runtime_checkable
class Fits(Protocol):
    """Samples that bring their images to a form by themselves, whenever they are read."""

    def fitted(self, form: Form) -> Samples:
        """Return the same samples in that form."""


@dataclass
class Source:
    """A data set as it was found.

    Attributes:
        parts: some of "train", "validation", "test" and "unlabelled".
        kind: what the labels are.
        classes: names of the classes.
        name: what the data set is called.
        notes: sentences for the user.
        tokenizer: what turned text into tokens, where the inputs are text.
    """

    parts: dict[str, Part]
    kind: Kind = "classification"
    classes: list[str] | None = None
    name: str = ""
    notes: list[str] = field(default_factory=list)
    tokenizer: Any = None


class SamplesPart:
    """A part whose samples are tensors already, or are made by somebody's data set.

    Args:
        samples: all rows.
        labels: exchanged for the samples' own; None: their own.
        numbered: whether `samples.index` shall stay what it is.
    """

    def __init__(self, samples: Samples, labels: Tensor | None = None, *, numbered: bool = False) -> None:
        self.samples = samples if labels is None else samples.relabel(labels)
        self.labels = self.samples.labels if isinstance(self.samples.labels, Tensor) else None
        self.numbers = samples.index if numbered else None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shapes(self) -> Counter[tuple[int, ...]]:
        """Shapes of the inputs that were looked at, and how often."""
        return Counter(self.samples.shapes or {self.samples.shape: len(self)})

    @property
    def varied(self) -> bool:
        """Whether inputs differ in shape."""
        return len(self.shapes) > 1

    def probe(self) -> tuple[Counter[tuple[int, int]], Counter[bool]]:
        """Count sizes (height, width) and whether images are grey, over the images that were looked at.

        Raises:
            ValueError: inputs that differ in shape are no images.
        """
        sizes: Counter[tuple[int, int]] = Counter()
        greys: Counter[bool] = Counter()
        for shape, count in self.shapes.items():
            if len(shape) != 3 or shape[0] not in (1, 3):
                raise ValueError(
                    f"inputs of different shapes, {shape} among them, are no images (1 or 3, height, width), so they "
                    "cannot be brought to one: give all one shape in the data set"
                )
            sizes[shape[1], shape[2]] += count
            greys[shape[0] == 1] += count
        return sizes, greys

    def planes_as_images(self, notes: list[str]) -> None:
        """Take inputs `(height, width)` of floats as grey images `(1, height, width)`; others are left alone.

        Raises:
            ValueError: they do not lie in [0, 1].
        """
        first = self.samples.batch([0]).inputs if len(self.samples.shape) == 2 and len(self) else None
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return
        if isinstance(self.samples, Fits):
            self.samples = self.samples.fitted(Form(1, *first.shape[1:]))
            check_range(first.unsqueeze(1), "the first input", notes)
        elif isinstance(self.samples, TensorSamples):
            self.samples = self.samples.change_inputs(lambda planes: planes.unsqueeze(1))
            check_range(self.samples.batch(torch.arange(len(self))).inputs, "inputs", notes)
        else:
            return
        notes.append(f"inputs of shape {tuple(first.shape[1:])} are taken as grey images")

    def load(self, rows: Tensor, form: Form | None, lazy: bool, notes: list[str]) -> Samples:
        """Take rows, and bring their images to a form where it is another."""
        samples = self.samples.subset(rows).renumber(rows)
        if form is None:
            return samples
        if isinstance(samples, Fits):  # also where the first image has the form: others need not have it
            return samples.fitted(form)
        if form.shape == samples.shape:
            return samples
        if isinstance(samples, TensorSamples):
            return samples.change_inputs(lambda images: fit_tensor(images, form))
        return LazySamples(_Fitted(samples, form), len(samples), samples.labels, form.shape, rows)


class _Fitted:
    """Fetches one sample and brings its image to a form."""

    def __init__(self, samples: Samples, form: Form) -> None:
        self.samples, self.form = samples, form

    def __call__(self, row: int) -> tuple[Tensor, Any]:
        batch: Batch = self.samples.batch([row])
        return fit_tensor(batch.inputs[0], self.form), None if batch.labels is None else batch.labels[0]


def part_of(word: str) -> str | None:
    """Which part of a data set a folder or file name means, if any: "train", "validation", "test", "unlabelled"."""
    return next((part for part, words in WORDS.items() if word.lower() in words), None)


def without_labels(part: Part) -> Part:
    """Return the same rows as a pool."""
    other = copy.copy(part)
    other.labels = None
    if isinstance(other, SamplesPart):
        other.samples = other.samples.relabel(None)
    if hasattr(other, "open_mask"):
        other.open_mask = None
    return other


def counting(length: int, start: int = 0) -> Tensor:
    """Row numbers start, start + 1, ...."""
    return torch.arange(start, start + length)
