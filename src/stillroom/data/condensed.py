"""A condensed data set: a few synthetic images with labels, what they decode to, and the folder they are kept in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stillroom.data.formation import decode_formation
from stillroom.data.parts import Part, SamplesPart, Source
from stillroom.data.samples import Samples, Splits, TensorSamples

FILE = "condensed.json"
TENSORS = "condensed.safetensors"
FORMAT = 1
"""The layout of the folder; a later one refuses to be read by an earlier package."""


@dataclass
class CondensedSet(Dataset[tuple[Tensor, Tensor]]):
    """Synthetic images that stand in for a training set. A torch `Dataset` of the decoded images.

    Attributes:
        images: what is stored, `(N, C, H, W)`, floats in [0, 1].
        labels: `(N,)` int64 class numbers, or `(N, classes)` floats: probabilities.
        factor: tiles per side of a stored image; each decodes to factor^2 images.
        classes: names of the classes, in the order of their numbers.
        name: what the data set is called.
        notes: how it was made, plain values for JSON.

    Raises:
        ValueError: shapes disagree, or the factor is out of range.

    Example:
        >>> condensed = CondensedSet(torch.rand(3, 1, 8, 8), torch.arange(3), factor=2)
        >>> len(condensed), condensed[0][0].shape
        (12, torch.Size([1, 8, 8]))
        >>> loader = torch.utils.data.DataLoader(condensed, batch_size=4)
    """

    images: Tensor
    labels: Tensor
    factor: int = 1
    classes: Sequence[str] | None = None
    name: str = "condensed"
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._decoded = decode_formation(self.images.detach().cpu().float(), self.labels.cpu(), self.factor)
        if self.labels.ndim > 2 or (self.labels.ndim == 2) != self.labels.is_floating_point():
            raise ValueError(
                f"labels must be (N,) class numbers or (N, classes) probabilities, given {tuple(self.labels.shape)} "
                f"{self.labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self._decoded[1])

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        images, labels = self._decoded
        return images[row], labels[row]

    @property
    def samples(self) -> TensorSamples:
        """The decoded images as training samples."""
        return TensorSamples(*self._decoded)

    def splits(self, real: Splits) -> Splits:
        """The condensed set to train on, and the real held-out and reported samples of the data it was made from."""
        notes = [f"{len(self.images)} stored images decode to {len(self)} training images"]
        return Splits(self.samples, real.test, real.validation, classes=real.classes, name=self.name, notes=notes)

    def save(self, folder: str | Path, real: Splits | None = None) -> Path:
        """Write it as a folder that `stillroom.data.load_data` (and so `--data FOLDER`) reads.

        Args:
            folder: made where it is missing.
            real: the data it was made from: its test and validation samples are written beside the synthetic ones, so
                that whoever trains on the folder reports on real images. Without it a part of the synthetic images
                would be held out.

        Returns:
            The folder.

        Raises:
            FileExistsError: the folder holds a condensed set already.
        """
        import safetensors.torch

        folder = Path(folder)
        if (folder / FILE).exists():
            raise FileExistsError(f"{folder} holds a condensed set already: save into another folder")
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"images": self.images.detach().cpu().contiguous(), "labels": self.labels.cpu().contiguous()}
        for part in ("test", "validation"):
            samples: Samples | None = getattr(real, part, None)
            if samples is not None and len(samples):
                batch = samples.batch(torch.arange(len(samples)))
                if batch.labels is None:
                    raise ValueError(f"the {part} samples have no labels to report on: leave them out (real=None)")
                tensors |= {f"{part}_images": batch.inputs.contiguous(), f"{part}_labels": batch.labels.contiguous()}
        about = {
            "format": FORMAT,
            "factor": self.factor,
            "classes": None if self.classes is None else list(self.classes),
            "name": self.name,
            "notes": dict(self.notes),
        }
        text = json.dumps(about, indent=2) + "\n"  # before anything is written: notes must be plain values
        _write(folder / TENSORS, safetensors.torch.save(tensors))
        _write(folder / FILE, text.encode())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> CondensedSet:
        """Read a folder that `save` wrote.

        Raises:
            FileNotFoundError: it holds no condensed set.
            ValueError: it was written by a later version.
        """
        about, tensors = _read(Path(folder))
        return cls(
            tensors["images"], tensors["labels"], about["factor"], about["classes"], about["name"], about["notes"]
        )


def is_condensed(folder: Path) -> bool:
    """Whether a folder was written by `CondensedSet.save`."""
    return (folder / FILE).is_file() and (folder / TENSORS).is_file()


def read_condensed(folder: Path) -> Source:
    """Find a condensed set in a folder; soft labels become their favourite class."""
    about, tensors = _read(folder)
    condensed = CondensedSet.load(folder)
    notes = [f"{len(condensed.images)} condensed images decode to {len(condensed)} training images"]
    samples: Samples = condensed.samples
    if condensed.labels.is_floating_point():
        samples = samples.relabel(samples.labels.argmax(1) if samples.labels is not None else None)
        notes.append("the soft labels of the condensed set are taken by their favourite class")
    parts: dict[str, Part] = {"train": SamplesPart(samples)}
    for part in ("test", "validation"):
        if f"{part}_images" in tensors:
            parts[part] = SamplesPart(TensorSamples(tensors[f"{part}_images"], tensors[f"{part}_labels"]))
    known = torch.cat([part.labels for part in parts.values() if part.labels is not None])
    classes = about["classes"] or [str(number) for number in range(int(known.max()) + 1)]
    return Source(parts, "classification", classes, folder.resolve().name, notes)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    import safetensors.torch

    if not is_condensed(folder):
        raise FileNotFoundError(f"{folder} holds no condensed set: expected {FILE} and {TENSORS} in it")
    about = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if about["format"] > FORMAT:
        raise ValueError(f"{folder} has format {about['format']}, this version reads {FORMAT}: install a later one")
    return about, safetensors.torch.load_file(folder / TENSORS)


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_bytes(content)
    beside.replace(path)
