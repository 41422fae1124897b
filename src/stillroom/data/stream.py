"""The order of training: the number of a step alone decides its batch, on any number of processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from stillroom.data.augment import Augmentation, draws_of
from stillroom.data.batch import UNLABELLED, Batch, Ragged
from stillroom.data.rows import generator
from stillroom.data.samples import Samples

T = TypeVar("T")
ORDER, POOL_ORDER, AUGMENT, DRAW, POOL_DRAW = 1, 2, 3, 4, 5  # what a seed's random numbers are for
VIEW = 6  # with AUGMENT, DRAW or POOL_DRAW and the view's number: random numbers that are the same for every seed


class Stream:
    """An endless, repeatable stream of training batches.

    Step s belongs to epoch `s // len(stream)`; the order of an epoch comes from (seed, epoch), the augmentation from
    (seed, step). So a run that continues at step s sees what an uninterrupted run sees, and every number of processes
    sees the same augmented global batch, of which process `rank` gets rows `rank::world`. Samples that do not fill a
    last batch wait for the next epoch; a data set smaller than `batch_size` is one batch per epoch.

    Args:
        samples: what is trained on.
        batch_size: rows of a global batch, 1 or more; a multiple of `world`.
        seed: 0 or more.
        augment: `augment(batch, uniform)` with `uniform` `(N, augment.draws)` in [0, 1); see `stillroom.data.augment`.
        unlabelled: a pool whose rows follow the labelled ones, with label -100 (NaN for float labels). The pool has its
            own epochs. Its rows keep their numbers in `index` where none of them is a number of `samples` too; else
            `samples.population` is added to them.
        unlabelled_batch: rows of the pool in a global batch; a multiple of `world`.
        rank: which process this is, in [0, world).
        world: how many processes share a global batch.
        workers: threads that read ahead in `batches`, for samples that are not in memory. They ask the data set for
            different rows at the same time: leave it at 0 for a data set that cannot stand that.
        views: how many augmented views there are of each sample, the same ones for every seed; epoch e shows view
            `e % views`, and batches carry its number in the field `view` `(N,)`. None draws anew at every step.

    Raises:
        ValueError: no samples, a number out of range, a batch that cannot be shared evenly, a pool of other inputs.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int,
        seed: int,
        augment: Augmentation | None = None,
        unlabelled: Samples | None = None,
        unlabelled_batch: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        views: int | None = None,
    ) -> None:
        if not len(samples):
            raise ValueError("there are 0 samples to train on: give at least one")
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, given {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must be a whole number of 0 or more, given {seed}")
        if unlabelled_batch < 0 or workers < 0:
            raise ValueError(f"unlabelled_batch and workers must be 0 or more, given {unlabelled_batch} and {workers}")
        if views is not None and views < 1:
            raise ValueError(f"views must be 1 or more, given {views}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in [0, world), given rank {rank} of world {world}")
        if unlabelled_batch and (unlabelled is None or not len(unlabelled)):
            raise ValueError(f"unlabelled_batch is {unlabelled_batch}, but there is no unlabelled sample: give a pool")
        pool = unlabelled if unlabelled_batch else None
        self.samples = samples
        self.pool = pool
        self.batch_size = min(batch_size, len(samples))
        self.pool_batch = 0 if pool is None else min(unlabelled_batch, len(pool))
        self.seed, self.augment, self.rank, self.world, self.workers = seed, augment, rank, world, workers
        for name, rows in (("batch_size", self.batch_size), ("unlabelled_batch", self.pool_batch)):
            if rows % world:
                raise ValueError(f"{rows} rows cannot be shared evenly by {world} processes: make {name} a multiple")
        self._offset = 0
        if pool is not None:
            if pool.shape != samples.shape and 1 not in (len(pool.shape), len(samples.shape)):  # 1: of any size
                raise ValueError(
                    f"unlabelled inputs have shape {pool.shape}, but labelled ones have shape {samples.shape}: "
                    "load both with the same image_size and channels"
                )
            if bool(torch.isin(pool.index, samples.index).any()):
                self._offset = samples.population
        drawn = samples.draws or (pool is not None and pool.draws) or (augment is not None and draws_of(augment))
        self.views = views if drawn or views is None else 1  # without chance all views are one
        self._orders: dict[int, tuple[int, Tensor]] = {}
        self._of_view: dict[int, tuple[int, Tensor]] = {}

    def __len__(self) -> int:
        """Return the number of steps in an epoch."""
        return len(self.samples) // self.batch_size

    def batch(self, step: int) -> Batch:
        """Make the batch of a step, this process's share of it.

        Args:
            step: number of the step since the beginning of training, 0 or more.
        """
        if step < 0:
            raise ValueError(f"step must be 0 or more, given {step}")
        mine = slice(self.rank, None, self.world)
        rows = self._rows(ORDER, step, len(self.samples), self.batch_size)
        pool_rows = None
        if self.pool is not None:
            pool_rows = self._rows(POOL_ORDER, step, len(self.pool), self.pool_batch)[mine]
        if self.views is not None:
            return self._view(step // len(self) % self.views, rows[mine], pool_rows)
        batch = self._read(rows[mine], self._drawn(self.samples, DRAW, step, self.batch_size), pool_rows, step)
        if self.augment is None:
            return batch
        uniform = torch.rand(
            self.batch_size + self.pool_batch, draws_of(self.augment), generator=generator(self.seed, AUGMENT, step)
        )
        return self.augment(batch, uniform[mine])

    def _read(self, rows: Tensor, drawn: Tensor | None, pool_rows: Tensor | None, step: int) -> Batch:
        batch = self.samples.batch(rows, drawn)
        if self.pool is None or pool_rows is None:
            return batch
        drawn = self._drawn(self.pool, POOL_DRAW, step, self.pool_batch)
        return follow(batch, self.pool.batch(pool_rows, drawn), self._offset)

    def view_batches(self, view: int, batch_size: int = 256) -> Iterator[Batch]:
        """Yield every sample once as one view shows it, in order, the pool after the labelled ones.

        Args:
            view: its number, in [0, views).
            batch_size: rows of a batch, 1 or more.

        Raises:
            ValueError: the stream has no views, or not that one.
        """
        if self.views is None or not 0 <= view < self.views:
            raise ValueError(f"view must lie in [0, {self.views}), given {view}: make the stream with views=")
        size = min(batch_size, self.samples.largest_batch or batch_size)
        nothing = torch.empty(0, dtype=torch.int64)
        for rows in torch.arange(len(self.samples)).split(size):
            yield self._view(view, rows, None)
        if self.pool is not None:
            for rows in torch.arange(len(self.pool)).split(size):
                yield self._view(view, nothing, rows)

    def _view(self, view: int, rows: Tensor, pool_rows: Tensor | None) -> Batch:
        """Some rows and rows of the pool as one view shows them."""

        def uniform(purpose: int, samples: Samples, draws: int, chosen: Tensor) -> Tensor | None:
            return self._view_numbers(purpose, view, len(samples), draws)[chosen] if draws else None

        batch = self.samples.batch(rows, uniform(DRAW, self.samples, self.samples.draws, rows))
        draws = 0 if self.augment is None else draws_of(self.augment)
        numbers = [uniform(AUGMENT, self.samples, draws, rows)]
        if self.pool is not None and pool_rows is not None:
            pool = self.pool.batch(pool_rows, uniform(POOL_DRAW, self.pool, self.pool.draws, pool_rows))
            batch = follow(batch, pool, self._offset)
            numbers.append(uniform(AUGMENT + VIEW, self.pool, draws, pool_rows))
        if self.augment is not None:
            known = [one for one in numbers if one is not None]
            batch = self.augment(batch, torch.cat(known) if known else torch.empty(len(batch), 0))
        return batch.replace(view=torch.full((len(batch),), view))

    def _view_numbers(self, purpose: int, view: int, length: int, draws: int) -> Tensor:
        kept = self._of_view.get(purpose)
        if kept is None or kept[0] != view:
            kept = (view, torch.rand(length, draws, generator=generator(VIEW, purpose, view)))
            self._of_view[purpose] = kept
        return kept[1]

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield the batches of steps start, start + 1, ..., stop - 1; without end for None."""
        steps: Iterable[int] = _count(start, stop)
        lazy = self.samples.lazy or (self.pool is not None and self.pool.lazy)
        return ahead(self.batch, steps, self.workers if lazy else 0)

    def _drawn(self, samples: Samples, purpose: int, step: int, size: int) -> Tensor | None:
        """This process's share of the random numbers that rows take to be read; None where they take none."""
        if not samples.draws:
            return None
        uniform = torch.rand(size, samples.draws, generator=generator(self.seed, purpose, step))
        return uniform[self.rank :: self.world]

    def _rows(self, purpose: int, step: int, length: int, size: int) -> Tensor:
        epoch, place = divmod(step, length // size)
        kept = self._orders.get(purpose)
        if kept is None or kept[0] != epoch:
            kept = (epoch, torch.randperm(length, generator=generator(self.seed, purpose, epoch)))
            self._orders[purpose] = kept
        return kept[1][place * size : (place + 1) * size]


def sequential(samples: Samples, batch_size: int, *, workers: int = 0) -> Iterator[Batch]:
    """Yield all samples once, in order; the last batch may be smaller.

    Args:
        samples: what is evaluated on.
        batch_size: rows of a batch, 1 or more; fewer where the samples do not stand so many (`largest_batch`).
        workers: threads that read ahead, for samples that are not in memory.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, given {batch_size}")
    size = min(batch_size, samples.largest_batch or batch_size)
    rows = torch.arange(len(samples)).split(size) if len(samples) else ()
    return ahead(samples.batch, rows, workers if samples.lazy else 0)


def follow(batch: Batch, pool: Batch, offset: int = 0) -> Batch:
    """Append rows without labels to a batch.

    Args:
        batch: the rows that come first.
        pool: the rows that follow; their labels are not looked at.
        offset: added to `pool.index`.

    Raises:
        ValueError: the two do not carry the same further fields, or inputs of another form.
    """
    if set(batch.fields) != set(pool.fields):
        raise ValueError(
            f"labelled samples carry the fields {sorted(batch.fields)}, but unlabelled ones {sorted(pool.fields)}: "
            "give both the same"
        )
    labels: Any = None
    if isinstance(batch.labels, Ragged):
        labels = Ragged([*batch.labels, *[None] * len(pool)])
    elif batch.labels is not None:
        nothing = float("nan") if batch.labels.is_floating_point() else UNLABELLED
        labels = torch.cat([batch.labels, batch.labels.new_full((len(pool), *batch.labels.shape[1:]), nothing)])
    index = None
    if batch.index is not None and pool.index is not None:
        index = torch.cat([batch.index, pool.index + offset])
    fields = {name: join(value, pool.fields[name]) for name, value in batch.fields.items()}
    return Batch(join(batch.inputs, pool.inputs), labels, index, **fields)


def ahead(function: Callable[[Any], T], items: Iterable[Any], workers: int) -> Iterator[T]:
    """Map a function over items in order; with workers, that many threads work up to two items each ahead."""
    if not workers:
        yield from map(function, items)
        return
    remaining = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="stillroom-data") as threads:
        waiting: deque[Future[T]] = deque()
        try:
            for item in remaining:
                waiting.append(threads.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _count(start: int, stop: int | None) -> Iterator[int]:
    step = start
    while stop is None or step < stop:
        yield step
        step += 1


def join(first: Any, second: Any) -> Any:
    """Put the rows of one nested list, tuple or dict of tensors after those of another of the same form."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return {key: join(value, second[key]) for key, value in first.items()}
    if isinstance(first, Ragged) or isinstance(second, Ragged):
        return Ragged([*first, *second])
    if isinstance(first, (list, tuple)) and type(first) is type(second) and len(first) == len(second):
        return type(first)(join(one, other) for one, other in zip(first, second, strict=True))
    raise ValueError(
        f"labelled and unlabelled samples differ in form ({type(first).__name__} and {type(second).__name__}): "
        "give both the same"
    )
