"""The main job: distil any teacher into any student on any data, and say whether it was worth it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom import processes
from stillroom.experiment import forks
from stillroom.naming import method_name
from stillroom.options import experiment_of
from stillroom.repeating import call_of
from stillroom.weigh import folder_of, run_and_weigh, sentence, summary_of, write_all

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Distilled:
    """What a distillation gave.

    Attributes:
        results: everything as plain values: what `results.json` holds.
        folder: where it lies; None when nothing was kept.
        student: the trained student that was best on the held-out part, in eval mode, on the CPU.
    """

    results: dict[str, Any]
    folder: Path | None
    student: nn.Module

    @property
    def verdict(self) -> str:
        """ "worth it", "no difference shown" or "harmful"."""
        return str(self.results["verdict"])

    @property
    def difference(self) -> dict[str, Any]:
        """Mean, low and high of method minus student alone, positive where the method is better."""
        return dict(self.results["difference"])

    @property
    def summary(self) -> dict[str, Any]:
        """The short form: what `summary.json` holds."""
        return summary_of(self.results)

    def save(self, folder: str | Path) -> Path:
        """Keep the student, the numbers and the report in a new folder.

        Raises:
            FileExistsError: the folder exists and is not empty.
        """
        place = Path(folder)
        if place.exists() and any(place.iterdir()):
            raise FileExistsError(f"the folder {place} exists and is not empty: name a new one")
        if self.folder is not None:
            shutil.copytree(self.folder, place, dirs_exist_ok=True)
        else:
            write_all(self.results, self.student, place)
        return place

    def __repr__(self) -> str:
        return f"Distilled({sentence(self.results)})"


def distill(
    teacher: Any = None,
    student: Any = None,
    data: Any = "digits",
    *,
    method: Any = "kd",
    method_options: Mapping[str, Any] | None = None,
    task: Any = None,
    labels: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    unlabelled: Any = None,
    image_size: int | None = None,
    channels: int | None = None,
    trust_code: bool = False,
    scale: int | None = None,
    length: int | None = None,
    validation_share: float = 0.1,
    label_column: str | None = None,
    image_column: str | None = None,
    teacher_epochs: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | list[float] | None = None,
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
    weight_decay: float = 0.0,
    schedule: Literal["cosine", "step", "constant"] = "cosine",
    warmup: float = 0.0,
    clip: float | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    augment: str | None = None,
    views: int | None = None,
    cache_teacher: str | None = None,
    cache_folder: str | Path | None = None,
    precision: Literal["no", "bf16", "fp16"] = "no",
    keep: Literal["best", "last"] = "best",
    shard: bool = False,
    budget: Literal["steps", "time"] = "steps",
    seeds: int | list[int] | None = None,
    first_seed: int = 0,
    jobs: int | None = 1,
    executor: Literal["processes", "ray"] = "processes",
    device: str | None = None,
    workers: int = 0,
    level: float = 0.95,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Distilled:
    """Distil a teacher into a student and weigh it against the same student trained alone.

    For every seed the student is trained twice from one initial state, in one order of batches and for as many steps:
    by the method, and by the labels alone. Weights are chosen on a held-out part of the training data; the test split
    is only reported. With no arguments at all it runs on scikit-learn's digits.

    Args:
        teacher: timm/NAME, torchvision/NAME, hf/NAME_OR_FOLDER, package.module:function, file.py:function, a checkpoint
            folder, an embedded name (conv-32-64, resnet20, ...); in Python also an nn.Module, a list of teachers, or a
            function predict(batch).
        student: the same, without lists and functions of a batch.
        data: digits, cifar10, tiny-imagenet-100, an image folder, a Parquet file or folder, hf:NAME, torchvision:NAME;
            in Python also (X, y), ((X, y), (X_test, y_test)), a Dataset, a DataLoader or Splits.
        method: name of a method (`stillroom list --methods`), or one of your own: package.module:Class, file.py:Class;
            in Python also a Method class, a functools.partial of one, or a function (student, teacher) -> Method.
        method_options: arguments of the method; on the command line `--method.NAME VALUE`.
        task: classification, multi-label, segmentation, regression, embeddings, language-modelling or super-resolution;
            found from the data when not given. With a task and no models, an embedded demonstration of it.
        labels: how many training samples keep their label; the others become the unlabelled pool.
        train_size: how many training samples are used at all, by the student and by a teacher that is trained first.
        test_size: how many test samples are used.
        unlabelled: more data, used without labels by methods that can.
        image_size: side that images are brought to (of the small patches in super-resolution); the data's own when not
            given.
        channels: 1 for grey, 3 for colour; the data's own when not given.
        trust_code: run the code that the folder of a teacher or student names (one that a function of your own built).
        scale: how many times larger super-resolution makes images (2 when not given).
        length: tokens in a block of text (64 when not given).
        validation_share: part of the training samples held out for choosing weights.
        label_column: where a table holds the labels.
        image_column: where a table holds the images.
        teacher_epochs: train the teacher first, for so many passes over all labelled training samples.
        epochs: passes over the student's labelled training samples (10 when neither epochs nor steps is given).
        steps: optimizer steps, instead of epochs.
        batch_size: labelled samples per step (64 when not given).
        lr: learning rate, or several that every arm tries alike, as 0.1,0.01 (0.001 when not given).
        optimizer: the same for every arm.
        weight_decay: of the optimizer.
        schedule: of the learning rate.
        warmup: part of the steps over which the rate rises.
        clip: largest gradient norm.
        accumulate: parts a batch is cut into to save memory.
        ema_decay: ship an average of the weights with this decay per step.
        augment: none, shift, crop_flip, resized_crop_flip or flip_transpose; the data's own when not given.
        views: how many augmented views of each sample there are, the same for every arm and seed; drawn anew at every
            step when not given (with a cached teacher one per epoch, ten at most).
        cache_teacher: ask the teacher once per sample and view, and keep its answers on disk for this and later runs:
            float32, float16, or top-K (as top-32) with the mass of the other classes. The largest error is reported.
        cache_folder: where they are kept (~/.cache/stillroom/answers when not given).
        precision: no (float32), bf16 or fp16.
        keep: best on the held-out part, or last.
        shard: where several processes train together (torchrun), cut the student and its optimizer over them (FSDP).
        budget: "steps" gives the student alone as many steps, "time" as much wall-clock.
        seeds: how many, or which, as 0,1,7 (3, and 5 on the embedded task, when not given).
        first_seed: the first of them.
        jobs: processes that share the runs; None (on the command line: when not given) for one per core without a GPU.
        executor: who runs arms and seeds: processes of this machine, or the workers of a ray cluster (RAY_ADDRESS names
            it; without one, a local one of so many workers as there are jobs). `out` must be on a disk they all share.
        device: cpu, cuda, ...; the machine's own choice when not given.
        workers: threads that read data ahead.
        level: of the intervals.
        out: a new folder for everything; when not given, nothing is kept (on the command line: the next free one of
            stillroom-runs/DATA-METHOD-1, -2, ...).
        resume: go on with the interrupted run in `out`.
        progress: say what is running.

    Returns:
        Verdict, student, difference and all numbers.

    Raises:
        ValueError: something does not fit; the message names it, what is expected and what to do.
        FileExistsError: `out` holds something and `resume` is not set.
    """
    options = dict(locals())
    result = distilled(options, command=call_of("distill", options))
    if progress and processes.is_first():
        print(sentence(result.results), file=sys.stderr, flush=True)
    return result


def distilled(options: Mapping[str, Any], *, command: str) -> Distilled:
    """Do what `distill` does with its arguments as a dictionary, and leave it to the caller to say what came out.

    Args:
        options: the arguments.
        command: what repeats the run.
    """
    out, method = options["out"], options["method"]
    forks.begin(options["jobs"] if options["executor"] == "processes" else 1)
    experiment = experiment_of({method_name(method): (method, options["method_options"] or {})}, options)
    with folder_of(options) as place:
        results, trained = run_and_weigh(experiment, place, options, command=command)
    return Distilled(results, place if out is not None else None, trained)
