"""Images per second of distilling on a GPU: `fit` against a loop written by hand, both with all that makes GPUs fast.

    python benchmarks/throughput.py --json results/benchmarks/throughput.json

Both distil (KD) one student from one teacher in bfloat16 autocast, with weights in channels_last order and both
networks compiled (`torch.compile`), from the same batches of images in the computer's memory. They work in turns:
when `fit` has done a block of steps, the loop does as many, and the device is waited for at the ends only, so that
neither is kept from running ahead of it. What is reported is the median of the blocks' ratios.

Without a GPU it runs on the processor, where it says little: `benchmarks/step_time.py` is for that.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.baselines import KD
from stillroom.blocks.models import build
from stillroom.data.samples import TensorSamples
from stillroom.experiment.record import machine, versions
from stillroom.fit import fit
from stillroom.training import Optim, Training

RATE = 0.05


def wait(device: torch.device) -> float:
    """The time when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Blocks(TensorSamples):
    """Samples that let a loop by hand do a block of steps whenever `fit` has done one, and time both."""

    def __init__(
        self, inputs: Tensor, labels: Tensor, step: Callable[[Tensor], None], block: int, device: torch.device
    ) -> None:
        super().__init__(inputs, labels)
        self.step, self.block, self.device = step, block, device
        self.rows: list[Tensor] = []
        self.began: float | None = None
        self.times: dict[str, list[float]] = {"fit": [], "hand": []}

    def batch(self, rows: Any, uniform: Tensor | None = None) -> Any:
        """Take the loop's turn where it is due, then read."""
        if len(self.rows) == self.block or self.began is None:
            if self.began is not None:
                self.times["fit"].append(wait(self.device) - self.began)
                began = wait(self.device)
                for one in self.rows:
                    self.step(one)
                self.times["hand"].append(wait(self.device) - began)
            self.rows = []
            self.began = wait(self.device)
        self.rows.append(torch.as_tensor(rows))
        return super().batch(rows, uniform)


def kd_by_hand(
    teacher: nn.Module, student: nn.Module, inputs: Tensor, labels: Tensor, device: torch.device
) -> Callable[[Tensor], None]:
    """KD in plain PyTorch, in bfloat16 autocast."""
    teacher.eval().requires_grad_(False)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), RATE, momentum=0.9, nesterov=True)

    def step(rows: Tensor) -> None:
        images, targets = inputs[rows].to(device), labels[rows].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                taught = teacher(images)
            logits = student(images)
        own, other = (logits.float() / 4).log_softmax(1), (taught.float() / 4).log_softmax(1)
        soft = F.kl_div(own, other, reduction="batchmean", log_target=True)
        loss = 0.1 * F.cross_entropy(logits.float(), targets) + 0.9 * 16 * soft
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Time, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet56")
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--block", type=int, default=50, help="steps of a turn")
    parser.add_argument("--blocks", type=int, default=8, help="turns that count, after one that does not")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile-backend", default="inductor", help='of torch.compile; "none" compiles nothing')
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    torch.manual_seed(0)
    inputs = torch.rand(8 * given.batch_size, 3, given.image_size, given.image_size)
    labels = torch.arange(len(inputs)) % 10

    def made(network: nn.Module) -> nn.Module:
        ready = copy.deepcopy(network).to(device, memory_format=torch.channels_last)
        return ready if given.compile_backend == "none" else torch.compile(ready, backend=given.compile_backend)

    teacher, student = (
        build(name, classes=10, in_channels=3, image_size=given.image_size) for name in (given.teacher, given.student)
    )
    by_hand = kd_by_hand(made(teacher), made(student), inputs, labels, device)
    samples = Blocks(inputs, labels, by_hand, given.block, device)
    training = Training(
        steps=(given.blocks + 1) * given.block + 1,
        batch_size=given.batch_size,
        optimizer=Optim("sgd", lr=RATE, schedule="constant"),
        augment="none",
        precision="bf16",
        views=1,
        keep="last",
    )
    fit(KD(made(student), made(teacher)), samples, training, device=device, progress=False, check_teacher=False)
    blocks = list(zip(*samples.times.values(), strict=True))[1:]
    images = given.block * given.batch_size
    results = {
        "ratio_to_hand_written": median(ours / theirs for ours, theirs in blocks),
        "images_per_second": median(images / ours for ours, _ in blocks),
        "images_per_second_by_hand": median(images / theirs for _, theirs in blocks),
        "seconds": samples.times,
        "given": {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()},
        "machine": machine(given.device, threads=torch.get_num_threads(), jobs=1),
        "versions": versions(),
    }
    print(f"fit {results['images_per_second']:,.0f} images/s, by hand {results['images_per_second_by_hand']:,.0f}, "
          f"time ratio {results['ratio_to_hand_written']:.3f}")  # fmt: skip
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
