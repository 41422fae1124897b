"""Two data sets as one: labelled samples and a pool, without their labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stillroom.data.samples import Samples
from stillroom.data.stream import follow


class JoinedSamples(Samples):
    """The samples of one data set and, after them, those of another; the labels of neither.

    Numbers in `index` stay where those of both sets differ; else `first.population` is added to the second's.

    Args:
        first: the samples that come first.
        second: the samples that follow; inputs of the same shape and the same further fields.

    Raises:
        ValueError: inputs of different shapes, or rows that take different numbers of random numbers to be read.
    """

    def __init__(self, first: Samples, second: Samples) -> None:
        if first.shape != second.shape and 1 not in (len(first.shape), len(second.shape)):  # 1: of any size
            raise ValueError(
                f"inputs of shape {first.shape} cannot be joined by inputs of shape {second.shape}: load both with the "
                "same image_size and channels"
            )
        if first.draws != second.draws:
            raise ValueError(
                f"rows that take {first.draws} random numbers cannot be joined by rows that take {second.draws}: give "
                "two sets of one kind"
            )
        collide = bool(torch.isin(second.index, first.index).any())
        offset = first.population if collide else 0
        super().__init__(len(first) + len(second), first.shape, None, torch.cat([first.index, second.index + offset]))
        self._parts = (first, second)
        self.lazy = first.lazy or second.lazy
        self.draws = first.draws
        sizes = [size for size in (first.largest_batch, second.largest_batch) if size is not None]
        self.largest_batch = min(sizes) if sizes else None

    def _read(self, rows: Tensor) -> tuple[Any, None, Mapping[str, Tensor]]:
        return self._read_both(rows, None)

    def _read_drawn(self, rows: Tensor, uniform: Tensor) -> tuple[Any, None, Mapping[str, Tensor]]:
        return self._read_both(rows, uniform)

    def _read_both(self, rows: Tensor, uniform: Tensor | None) -> tuple[Any, None, Mapping[str, Tensor]]:
        first, second = self._parts
        of_first = rows < len(first)
        mine = {True: of_first, False: ~of_first}
        batches = [
            (first if own else second).batch(
                rows[mine[own]] - (0 if own else len(first)), None if uniform is None else uniform[mine[own]]
            )
            for own in (True, False)
            if bool(mine[own].any()) or (own and not len(rows))
        ]
        found = batches[0].replace(labels=None)
        if len(batches) == 2:
            places = torch.cat([mine[True].nonzero().flatten(), mine[False].nonzero().flatten()])
            found = follow(found, batches[1])[places.argsort()]
        return found.inputs, None, found.fields
