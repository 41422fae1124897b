"""What a method is fed: the training stream that fits its needs."""

from __future__ import annotations

from dataclasses import replace

import torch

from stillroom.data.augment import augmentation
from stillroom.data.joined import JoinedSamples
from stillroom.data.samples import Samples, Splits
from stillroom.data.stream import Stream
from stillroom.method import Method
from stillroom.task import Task
from stillroom.training import Training


def stream_for(
    method: Method,
    task: Task,
    training: Training,
    data: Splits | Samples,
    part: str = "train",
    *,
    seed: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Stream:
    """Make a training stream of a method.

    A pool without labels is mixed in where the method has a teacher and does not need a label on every row; by default
    as many rows of it as labelled ones.

    Args:
        method: what is trained.
        task: what the labels mean.
        training: sizes and augmentation.
        data: the training samples, with a pool beside them or without.
        part: "train"; "unlabelled" for the pool alone; "train-alone" for the training samples without the pool;
            "merged" for both as one set, every sample as probable as any other and none with a label.
        seed: of order and augmentation.
        workers: threads that read ahead.
        rank: which process this is.
        world: how many processes share a batch.

    Raises:
        ValueError: the method needs labels and there are none (or they are merged away), unlabelled rows are asked for
            and there are none, or another part.
    """
    needs = method.needs
    samples, pool = (data.train, data.unlabelled) if isinstance(data, Splits) else (data, None)
    if method.kept_apart is not None and part != "unlabelled":
        samples = samples.subset((~torch.isin(samples.index, method.kept_apart)).nonzero().flatten())
    if part == "unlabelled" and pool is not None:
        samples, pool = pool, None
        needs = replace(needs, labels="none")
    elif part == "merged":
        if needs.labels != "none":
            raise ValueError(
                f'"merged" samples have no labels, but {type(method).__name__} learns from {needs.labels} labels: draw '
                'from "train", which keeps them beside the pool'
            )
        samples = samples.relabel(None) if pool is None or not len(pool) else JoinedSamples(samples, pool)
    elif part not in ("train", "train-alone"):
        raise ValueError(
            'a stage draws from "train", "train-alone", "merged" or, where there is a pool, "unlabelled", '
            f"given {part!r}"
        )
    if part in ("merged", "train-alone"):
        pool, training = None, training.change(unlabelled_batch=None)
    usable = needs.labels != "every" and needs.teacher
    if not usable or pool is None or not len(pool):
        pool = None
    if training.unlabelled_batch and usable and pool is None:
        raise ValueError(
            f"unlabelled_batch is {training.unlabelled_batch}, but there are no unlabelled data: give some"
        )
    if needs.labels != "none" and not (samples.has_labels or samples.lazy) and task.needs_labels:
        raise ValueError(
            f"{type(method).__name__} learns from labels, but the training data have none: use a method that needs no "
            "labels, or the embeddings task"
        )
    wanted = training.batch_size if training.unlabelled_batch is None else training.unlabelled_batch
    return Stream(
        samples,
        batch_size=training.batch_size,
        seed=seed,
        augment=augmentation(training.augment) if training.augment else None,
        unlabelled=pool if wanted else None,
        unlabelled_batch=wanted if pool is not None else 0,
        rank=rank,
        world=world,
        workers=workers,
        views=training.views,
    )
