"""What a training step of `fit` costs against a loop written by hand that computes the same.

    python benchmarks/step_time.py --json results/benchmarks/step_time.json

Both train on the same batches, in turns: whenever `fit` asks for its next batch, the loop by hand (and, for KD,
torchdistill's box, where it is installed) takes a step of its own, timed by itself. So every step of one has a step of
the other beside it, a moment apart, and what is reported are medians of their ratios. What happens seldom is not in a
median: the first step's checks, and the logged steps, which compute the gradient of every loss term; "all" is the ratio
of the sums over all steps, and holds them.

All of this is timed after `stillroom.allocator.keep_freed_memory`, which the command line calls and which serves the
loops by hand as well: otherwise each loop waits for pages that the other has given back, and the ratios say which of
them held more of the heap's end. What a loop by hand loses without it, alone in the process, is measured first.

The pair is of CIFAR's size: images 3 x 32 x 32 in batches of 64, a student resnet8 and a teacher resnet56, whose
forward pass has ten times the multiply-adds. A cached teacher (float16 answers in files) is timed beside the live loop
by hand too, once its files are full.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.allocator import keep_freed_memory
from stillroom.baselines import KD
from stillroom.blocks.models import build
from stillroom.data.samples import TensorSamples
from stillroom.experiment.record import machine, versions
from stillroom.fit import fit
from stillroom.online import MutualLearning
from stillroom.systems.catalog import method as method_named
from stillroom.teacher_cache import CachedOnDisk
from stillroom.training import Optim, Training

RATE = 0.05
Step = Callable[[Tensor], None]


class Alternating(TensorSamples):
    """Samples that let other loops take a step each time a batch is asked for, and time everything between."""

    def __init__(self, inputs: Tensor, labels: Tensor, others: dict[str, Step]) -> None:
        super().__init__(inputs, labels)
        self.others = others
        self.times: dict[str, list[float]] = {name: [] for name in ("fit", *others)}
        self.last: float | None = None

    def batch(self, rows: Any, uniform: Tensor | None = None) -> Any:
        """Take the others' steps, then read."""
        now = time.perf_counter()
        if self.last is not None:
            self.times["fit"].append(now - self.last)
        for name, step in self.others.items():
            began = time.perf_counter()
            step(rows)
            self.times[name].append(time.perf_counter() - began)
        self.last = time.perf_counter()
        return super().batch(rows, uniform)


def optimizer_of(*networks: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that all loops use."""
    parameters = [parameter for network in networks for parameter in network.parameters()]
    return torch.optim.SGD(parameters, RATE, momentum=0.9, nesterov=True)


def kd_by_hand(teacher: nn.Module, student: nn.Module, inputs: Tensor, labels: Tensor) -> Step:
    """KD in plain PyTorch."""
    teacher.eval().requires_grad_(False)
    student.train()
    optimizer = optimizer_of(student)

    def step(rows: Tensor) -> None:
        images, targets = inputs[rows], labels[rows]
        with torch.no_grad():
            taught = teacher(images)
        logits = student(images)
        soft = F.kl_div(
            (logits / 4).log_softmax(1), (taught / 4).log_softmax(1), reduction="batchmean", log_target=True
        )
        loss = 0.1 * F.cross_entropy(logits, targets) + 0.9 * 16 * soft
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def dkd_by_hand(teacher: nn.Module, student: nn.Module, inputs: Tensor, labels: Tensor) -> Step:
    """DKD in plain PyTorch."""
    teacher.eval().requires_grad_(False)
    student.train()
    optimizer = optimizer_of(student)

    def parts(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        soft = (logits / 4).softmax(1)
        own = (soft * mask).sum(1, keepdim=True)
        return torch.cat([own, 1 - own], 1), (logits / 4 - 1000 * mask).log_softmax(1)

    def step(rows: Tensor) -> None:
        images, targets = inputs[rows], labels[rows]
        with torch.no_grad():
            taught = teacher(images)
        logits = student(images)
        mask = F.one_hot(targets, logits.shape[1]).to(logits)
        (ours, others), (theirs, other_theirs) = parts(logits, mask), parts(taught, mask)
        target = F.kl_div(ours.log(), theirs, reduction="batchmean")
        rest = F.kl_div(others, other_theirs, reduction="batchmean", log_target=True)
        loss = F.cross_entropy(logits, targets) + 16 * (target + 8 * rest)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def at_by_hand(teacher: nn.Module, student: nn.Module, inputs: Tensor, labels: Tensor) -> Step:
    """Attention transfer after every stage, in plain PyTorch, with hooks."""
    teacher.eval().requires_grad_(False)
    student.train()
    optimizer = optimizer_of(student)
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    for name, network in (("teacher", teacher), ("student", student)):
        for stage in network.stages:
            stage.register_forward_hook(lambda module, given, output, name=name: seen[name].append(output))

    def attention(feature: Tensor) -> Tensor:
        return F.normalize(feature.square().mean(1).flatten(1))

    def step(rows: Tensor) -> None:
        images, targets = inputs[rows], labels[rows]
        for kept in seen.values():
            kept.clear()
        with torch.no_grad():
            teacher(images)
        logits = student(images)
        pairs = zip(seen["student"], seen["teacher"], strict=True)
        gap = sum((attention(own) - attention(taught)).square().mean() for own, taught in pairs)
        loss = F.cross_entropy(logits, targets) + 1000 * gap
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def mutual_by_hand(teacher: nn.Module, student: nn.Module, inputs: Tensor, labels: Tensor) -> Step:
    """Deep mutual learning of two networks that step in turns, in plain PyTorch."""
    teacher.train()
    student.train()
    optimizers = optimizer_of(student), optimizer_of(teacher)

    def divergence(own: Tensor, other: Tensor) -> Tensor:
        return F.kl_div(own.log_softmax(1), other.detach().log_softmax(1), reduction="batchmean", log_target=True)

    def step(rows: Tensor) -> None:
        images, targets = inputs[rows], labels[rows]
        own, other = student(images), teacher(images)
        optimizers[0].zero_grad(set_to_none=True)
        (F.cross_entropy(own, targets) + divergence(own, other)).backward()
        optimizers[0].step()
        with torch.no_grad():
            own = student(images)
        optimizers[1].zero_grad(set_to_none=True)
        (F.cross_entropy(other, targets) + divergence(other, own)).backward()
        optimizers[1].step()

    return step


def torchdistill_step(
    teacher: nn.Module, student: nn.Module, inputs: Tensor, labels: Tensor, batch: int
) -> Step | None:
    """A step of torchdistill's box with its own data loader, KD; None where it is not installed."""
    try:
        from torchdistill.core.distillation import get_distillation_box
    except ImportError:
        return None
    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    logging.disable(logging.INFO)
    kd = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
    }
    criterion = {"key": "KDLoss", "kwargs": {**kd, "temperature": 4.0, "alpha": 0.1, "reduction": "batchmean"}}
    network = {"forward_proc": "forward_batch_only", "sequential": [], "wrapper": None}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {}},
            "kwargs": {"num_workers": 0, "batch_size": batch, "drop_last": True},
        },
        "val_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.SequentialSampler, "kwargs": {}},
            "kwargs": {"num_workers": 0, "batch_size": batch},
        },
        "teacher": {**network, "requires_grad": False},
        "student": {**network, "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": RATE, "momentum": 0.9, "nesterov": True}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": criterion, "weight": 1.0}}},
        },
    }  # fmt: skip
    data = {"train": torch.utils.data.TensorDataset(inputs, labels)}
    box = get_distillation_box(teacher, student, data, config, torch.device("cpu"), None, False, 1)
    box.pre_epoch_process(epoch=0)

    def batches() -> Iterator[Any]:
        while True:
            yield from box.train_data_loader

    endless = batches()

    def step(rows: Tensor) -> None:
        images, targets, more = next(endless)
        box.post_forward_process(box.forward_process(images, targets=targets, supp_dict=more))

    return step


def seconds_of(step: Step, steps: int, skip: int, samples: int, batch: int) -> float:
    """Median time of a step by itself."""
    times = []
    for _ in range(steps + skip):
        rows = torch.randint(samples, (batch,))
        began = time.perf_counter()
        step(rows)
        times.append(time.perf_counter() - began)
    return median(times[skip:])


STAGES = ("stages.0", "stages.1", "stages.2")
BY_HAND = {"kd": kd_by_hand, "dkd": dkd_by_hand, "at": at_by_hand, "mutual": mutual_by_hand}
METHODS: dict[str, Callable[[nn.Module, nn.Module], Any]] = {
    "kd": lambda teacher, student: KD(student, teacher),
    "dkd": lambda teacher, student: method_named("dkd")(student, teacher, warmup_share=0.0),
    "at": lambda teacher, student: method_named("at")(student, teacher, student_layers=STAGES, teacher_layers=STAGES),
    "mutual": lambda teacher, student: MutualLearning(student, teacher, update="alternating"),
}


def ratio(ours: list[float], theirs: list[float], skip: int) -> dict[str, float]:
    """Median of paired ratios, and the ratio of the sums, without the first steps."""
    pairs = list(zip(ours, theirs, strict=False))[skip:]
    return {
        "median": median(a / b for a, b in pairs),
        "all": sum(a for a, _ in pairs) / sum(b for _, b in pairs),
        "ms": 1000 * median(a for a, _ in pairs),
        "ms_by_hand": 1000 * median(b for _, b in pairs),
        "pairs": len(pairs),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Time, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet56")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each method")
    parser.add_argument("--methods", default="kd,dkd,at,mutual")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--default-allocator", action="store_true", help="let freed memory go, as glibc does by itself")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    inputs = torch.rand(16 * given.batch_size, 3, given.image_size, given.image_size)
    labels = torch.arange(len(inputs)) % 10

    def make(name: str) -> nn.Module:
        return build(name, classes=10, in_channels=3, image_size=given.image_size)

    teacher, student, skip = make(given.teacher), make(given.student), 5
    training = Training(
        steps=given.steps + skip + 1, batch_size=given.batch_size, optimizer=Optim("sgd", lr=RATE), augment="none"
    )

    def two() -> tuple[nn.Module, nn.Module]:
        return copy.deepcopy(teacher), copy.deepcopy(student)

    def timed(method: Any, others: dict[str, Step]) -> dict[str, list[float]]:
        samples = Alternating(inputs, labels, others)
        fit(method, samples, training.change(views=1), progress=False, check_teacher=False)
        samples.batch(torch.arange(2))  # ends the last step
        return samples.times

    found: dict[str, Any] = {}
    if not given.default_allocator:
        alone = [kd_by_hand(*two(), inputs, labels), given.steps // 2, skip, len(inputs), given.batch_size]
        before, kept = seconds_of(*alone), keep_freed_memory()
        found["allocator"] = {"kept": kept, "ms_default": 1000 * before, "ms": 1000 * seconds_of(*alone)}
        one = found["allocator"]
        print(f"by hand  alone {one['ms_default']:6.1f} ms, with freed memory kept {one['ms']:6.1f} ms", flush=True)
    for name in given.methods.split(","):
        others = {"hand": BY_HAND[name](*two(), inputs, labels)}
        if name == "kd" and (theirs := torchdistill_step(*two(), inputs, labels, given.batch_size)) is not None:
            others["torchdistill"] = theirs
        times = timed(METHODS[name](*two()), others)
        found[name] = ratio(times["fit"], times["hand"], skip)
        one = found[name]
        print(f"{name:8s} fit {one['ms']:8.1f} ms, by hand {one['ms_by_hand']:8.1f} ms, ratio {one['median']:.3f}, "
              f"all steps {one['all']:.3f}", flush=True)  # fmt: skip
        if "torchdistill" in times:
            found["torchdistill"] = ratio(times["torchdistill"], times["hand"], skip)
            found["to_torchdistill"] = ratio(times["fit"], times["torchdistill"], skip)
            one = found["torchdistill"]
            print(f"         torchdistill {one['ms']:8.1f} ms, {one['median']:.3f} of by hand; "
                  f"fit is {found['to_torchdistill']['median']:.3f} of it")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        cached = KD(two()[1], CachedOnDisk(two()[0], folder, keep="float16"))
        times = timed(cached, {"hand": kd_by_hand(*two(), inputs, labels)})
    found["cached"] = ratio(times["fit"], times["hand"], skip)
    live = found.get("kd", {"median": 1.0})["median"]
    one = found["cached"]
    print(f"cached   fit {one['ms']:8.1f} ms, {one['median'] / live:.3f} of fit with the live teacher")
    results = {
        "ratio_to_hand_written": {name: found[name]["median"] for name in given.methods.split(",")},
        "ratio_to_hand_written_all_steps": {name: found[name]["all"] for name in given.methods.split(",")},
        "ratio_cached_to_live": found["cached"]["median"] / live,
        "ratio_to_torchdistill": found["to_torchdistill"]["median"] if "to_torchdistill" in found else None,
        "ratio_torchdistill_to_hand_written": found["torchdistill"]["median"] if "torchdistill" in found else None,
        "ratio_default_allocator_to_kept_memory": found["allocator"]["ms_default"] / found["allocator"]["ms"]
        if "allocator" in found
        else None,
        "found": found,
        "given": {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()},
        "machine": machine("cpu", threads=given.threads, jobs=1) | {"load": os.getloadavg()},
        "versions": versions(),
    }
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
