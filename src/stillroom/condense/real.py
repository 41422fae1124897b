"""The real side: a labelled training set, class by class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.data.rows import generator
from stillroom.data.samples import Samples, Splits, TensorSamples
from stillroom.data.sources import load_data

ORDER = 21  # what a seed's random numbers are for


class RealImages:
    """Real images by class: batches of one class without a repetition until the class is through.

    The batch of a step depends on (seed, class, step) alone, so that an interrupted run goes on with the same images.

    Args:
        data: `Splits` or whatever `stillroom.data.load_data` takes (its training part is used), `Samples`, or arrays
            `(X, y)`, which are used whole.
        seed: of the order.

    Attributes:
        samples: all of them.
        classes: how many classes there are.
        names: names of the classes, where they are known.

    Raises:
        ValueError: no class numbers, inputs that are no images, or a class without images.
    """

    def __init__(self, data: Any, *, seed: int = 0) -> None:
        self.names: list[str] | None = None
        if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], tuple):
            inputs, labels = (torch.as_tensor(part) for part in data)
            self.samples: Samples = TensorSamples(inputs, labels)
        elif isinstance(data, Samples):
            self.samples = data
        else:
            splits = data if isinstance(data, Splits) else load_data(data)
            self.samples, self.names = splits.train, splits.classes
        labels = self.samples.labels
        if labels is None or labels.ndim != 1 or labels.is_floating_point():
            raise ValueError("condensing needs a class number for every image, given other labels or none")
        if len(self.samples.shape) != 3:
            raise ValueError(f"condensing needs images (C, H, W), given inputs of shape {self.samples.shape}")
        if int(labels.min()) < 0:
            raise ValueError(f"labels must be class numbers of 0 or more, given {int(labels.min())}: drop such rows")
        self.classes = max(int(labels.max()) + 1, len(self.names or ()))
        self.rows = [(labels == number).nonzero().flatten() for number in range(self.classes)]
        if empty := [number for number, rows in enumerate(self.rows) if not len(rows)]:
            shown = ", ".join(self.names[number] if self.names else str(number) for number in empty[:5])
            raise ValueError(
                f"there is no image of class {shown}: every class needs some, or leave it out of the labels"
            )
        self.seed = seed

    def of(self, number: int, most: int | None = None) -> Tensor:
        """The images of a class in the data's order, `(M, C, H, W)` in [0, 1]; at most so many."""
        return self.samples.batch(self.rows[number][:most]).inputs

    def batch(self, number: int, step: int, size: int) -> Tensor:
        """A batch of a class: `size` images, or all of them where there are fewer."""
        rows = self.rows[number]
        size = min(size, len(rows))
        epoch, place = divmod(step, len(rows) // size)
        order = torch.randperm(len(rows), generator=generator(self.seed, ORDER, number, epoch))
        return self.samples.batch(rows[order[place * size : (place + 1) * size]]).inputs
