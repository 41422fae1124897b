"""What feeding costs: the time a batch takes to be made, against the training step it is made for.

    python benchmarks/input_pipeline.py --json results/benchmarks/input_pipeline.json

Small image sets are decoded once and lie in memory as bytes; a batch is a lookup, a conversion to floats and an
augmentation of the whole batch on tensors. Each is timed beside a step of a resnet8 that learns alone, of CIFAR's size
(images 3 x 32 x 32 in batches of 64), in turns; a distillation step is longer, so its share is smaller. Then the same
images are decoded from PNG at every use, as sets too large for memory are, without and with threads that read ahead
while the network works.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from stillroom.allocator import keep_freed_memory
from stillroom.blocks.models import build
from stillroom.data.augment import AUGMENTATIONS
from stillroom.data.samples import LazySamples, TensorSamples
from stillroom.data.stream import Stream
from stillroom.experiment.record import machine, versions

SIZE, BATCH = 32, 64
IN_MEMORY = ("none", "shift", "crop_flip", "resized_crop_flip")


class Learner:
    """A student alone: what a batch is made for."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = build("resnet8", classes=10, in_channels=3, image_size=SIZE).train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.05, momentum=0.9)

    def step(self, batch: Any) -> float:
        """Learn from a batch; return the seconds it took."""
        began = time.perf_counter()
        F.cross_entropy(self.network(batch.inputs), batch.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - began


def shares(stream: Stream, steps: int) -> dict[str, float]:
    """Median time of making a batch, of the step beside it, and of the share of the wait for batches in all."""
    learner, made, learned = Learner(), [], []
    batches = stream.batches(0, steps + 3)
    for number in range(steps + 3):
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        took = learner.step(batch)
        if number >= 3:
            made.append(waited)
            learned.append(took)
    return {
        "wait_ms": 1000 * median(made),
        "step_ms": 1000 * median(learned),
        "share": median(a / b for a, b in zip(made, learned, strict=True)),
        "whole_ms": 1000 * (sum(made) + sum(learned)) / steps,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Time, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as the command line does: steps are shorter, and the shares larger
    images = np.random.default_rng(0).integers(0, 256, (1024, SIZE, SIZE, 3), dtype=np.uint8)
    labels = torch.arange(len(images)) % 10
    decoded = TensorSamples(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)
    found = {}
    for name in IN_MEMORY:
        found[name] = shares(Stream(decoded, batch_size=BATCH, seed=0, augment=AUGMENTATIONS[name]), given.steps)
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())

    def fetch(row: int) -> tuple[torch.Tensor, Any]:
        image = np.asarray(Image.open(io.BytesIO(files[row])))
        return torch.from_numpy(image.copy()).permute(2, 0, 1), None

    lazy = LazySamples(fetch, len(files), labels, (3, SIZE, SIZE))
    for workers in (0, 1, 2):
        stream = Stream(lazy, batch_size=BATCH, seed=0, augment=AUGMENTATIONS["crop_flip"], workers=workers)
        found[f"decoded each time, {workers} workers"] = shares(stream, given.steps)
    for name, one in found.items():
        print(f"{name:32s} wait {one['wait_ms']:7.2f} ms, step {one['step_ms']:7.1f} ms, share {one['share']:6.1%}, "
              f"both {one['whole_ms']:7.1f} ms")  # fmt: skip
    results = {
        "loader_share_of_step": {name: found[name]["share"] for name in IN_MEMORY},
        "found": found,
        "machine": machine("cpu", threads=given.threads, jobs=1) | {"load": os.getloadavg()},
        "versions": versions(),
    }
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
