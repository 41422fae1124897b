"""Distillation over a large vocabulary: memory and time of `vocabulary_kl` against losses that hold logits.

    python benchmarks/large_vocab.py --json results/benchmarks/large_vocab.json

Four ways to the forward KL per token (mean, temperature 1) and to its gradients with respect to the student's hidden
states and output matrix, forward and backward pass together:

- naive: both networks' logits of all tokens, then `token_kl`;
- ours: `vocabulary_kl`;
- loop: `token_kl` of one chunk of tokens after the other, each with its own backward pass;
- liger: the chunked distillation loss of Liger-Kernel (`pip install "stillroom[benchmarks]"`), where it is installed.

Seconds are taken in one process, the ways in turn, in another order in every repeat; ratios are medians over the
repeats of the ratio inside each. On a machine that does other work at the same time (the load is written down), the
processor's seconds, of all threads, say more than the clock's. Memory is the peak of the resident memory during one
pass minus what was resident before it (weights, inputs and libraries), each way in a fresh process; it includes the
gradients. Errors of gradients are largest differences from float64, relative to the largest gradient. Needs Linux, for
the memory.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.experiment.record import machine, versions
from stillroom.losses import token_kl, vocabulary_kl

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Hidden states and output matrix of the student, and of the teacher."""


def inputs_of(tokens: int, vocabulary: int, hidden: Sequence[int], *, seed: int = 0) -> Inputs:
    """Random hidden states, and matrices that give logits with a standard deviation of 2."""
    draws = torch.Generator().manual_seed(seed)
    made = []
    for width in hidden:
        made.append(torch.randn(tokens, width, generator=draws))
        made.append(torch.randn(vocabulary, width, generator=draws).mul_(2 / width**0.5))
    return made[0].requires_grad_(), made[1].requires_grad_(), made[2], made[3]


def naive(inputs: Inputs, chunk_size: int) -> None:
    hidden, matrix, their_hidden, their_matrix = inputs
    token_kl((hidden @ matrix.T).unsqueeze(0), (their_hidden @ their_matrix.T).unsqueeze(0)).backward()


def ours(inputs: Inputs, chunk_size: int) -> None:
    vocabulary_kl(*inputs, chunk_size=chunk_size).backward()


def loop(inputs: Inputs, chunk_size: int) -> None:
    hidden, matrix, their_hidden, their_matrix = inputs
    for rows, their_rows in zip(hidden.split(chunk_size), their_hidden.split(chunk_size), strict=True):
        logits = (rows @ matrix.T).unsqueeze(0), (their_rows @ their_matrix.T).unsqueeze(0)
        (token_kl(*logits, reduction="sum") / len(hidden)).backward()


def liger(inputs: Inputs, chunk_size: int) -> None:
    vocabulary_kl(*inputs, chunk_size=chunk_size, backend="liger").backward()


WAYS: dict[str, Callable[[Inputs, int], None]] = {"naive": naive, "ours": ours, "loop": loop, "liger": liger}


def ways() -> list[str]:
    """Those that can run here."""
    return [name for name in WAYS if name != "liger" or importlib.util.find_spec("liger_kernel")]


def gradients_of(way: Callable[[Inputs, int], None], inputs: Inputs, chunk_size: int) -> list[Tensor]:
    """Run a way; its gradients, which are taken off the inputs."""
    way(inputs, chunk_size)
    found = [one.grad for one in inputs[:2]]
    for one in inputs[:2]:
        one.grad = None
    return [one for one in found if one is not None]


def error_of(gradients: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference from float64, relative to the largest gradient of that tensor."""
    return max(float((one - right).abs().max() / right.abs().max()) for one, right in zip(gradients, exact))


def status(line: str) -> int:
    """A size out of /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(1024 * int(one.split()[1]) for one in text.splitlines() if one.startswith(line))


def memory_here(name: str, inputs: Inputs, chunk_size: int) -> int:
    """The peak of one pass in this process, above what was resident before."""
    WAYS[name](inputs_of(8, 64, (4, 4)), 4)  # loads what is loaded with the first use
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    WAYS[name](inputs, chunk_size)
    return status("VmHWM") - before


def memory_of(name: str, arguments: Sequence[str]) -> int:
    """The same in a fresh process."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--memory-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


@dataclass
class Passes:
    """What the passes of one way took, by the clock and of the processor, and how exact its gradients were."""

    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    gradient_error: float = math.nan


def passes_of(
    names: Sequence[str], inputs: Inputs, exact: Sequence[Tensor], chunk_size: int, repeats: int
) -> dict[str, Passes]:
    """Run every way once in every repeat, in turn; after a small pass each that is not counted."""
    found = {name: Passes() for name in names}
    for name in names:
        gradients_of(WAYS[name], inputs_of(8, 64, (4, 4)), 4)
    for repeat in range(repeats):
        for name in (*names[repeat % len(names) :], *names[: repeat % len(names)]):
            gc.collect()
            begin, begin_processor = time.perf_counter(), time.process_time()
            gradients = gradients_of(WAYS[name], inputs, chunk_size)
            found[name].seconds.append(time.perf_counter() - begin)
            found[name].processor_seconds.append(time.process_time() - begin_processor)
            if repeat == repeats - 1:
                found[name].gradient_error = error_of(gradients, exact)
            del gradients
    return found


def ratio(ones: Sequence[float], bases: Sequence[float]) -> float:
    """The median of the ratios inside each repeat."""
    return statistics.median(one / base for one, base in zip(ones, bases, strict=True))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--hidden", type=int, nargs=2, default=[256, 512], metavar=("STUDENT", "TEACHER"))
    parser.add_argument("--chunk-size", type=int, default=128, help="tokens at a time, of all ways but the naive one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="of the processor; None leaves PyTorch's number")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="where the numbers are written")
    parser.add_argument("--memory-of", choices=list(WAYS), default=None, help="only measure the memory of one way")
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked = parser.parse_args(given)
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    names, load_before = ways(), os.getloadavg()
    memory = {} if asked.memory_of is not None else {name: memory_of(name, given) for name in names}
    inputs = inputs_of(asked.tokens, asked.vocabulary, asked.hidden)
    if asked.memory_of is not None:
        print(memory_here(asked.memory_of, inputs, asked.chunk_size))
        return {}
    wide: Inputs = tuple(one.detach().double().requires_grad_(one.requires_grad) for one in inputs)  # type: ignore[assignment]
    exact = gradients_of(loop, wide, min(asked.chunk_size, 64))
    del wide
    load_between = os.getloadavg()
    passes = passes_of(names, inputs, exact, asked.chunk_size, asked.repeats)
    load_after = os.getloadavg()
    result: dict[str, Any] = {}
    base = passes["naive"]
    for name, done in passes.items():
        prefix = "" if name == "ours" else f"{name}_"
        if name != "naive":
            result[f"{prefix}memory_to_naive"] = memory[name] / memory["naive"]
            result[f"{prefix}time_to_naive"] = ratio(done.seconds, base.seconds)
            result[f"{prefix}processor_time_to_naive"] = ratio(done.processor_seconds, base.processor_seconds)
        result[f"{prefix}gradient_error"] = done.gradient_error
    result |= {
        "memory_bytes": memory,
        "seconds": {name: done.seconds for name, done in passes.items()},
        "processor_seconds": {name: done.processor_seconds for name, done in passes.items()},
        "setting": {
            "tokens": asked.tokens,
            "vocabulary": asked.vocabulary,
            "student_hidden": asked.hidden[0],
            "teacher_hidden": asked.hidden[1],
            "chunk_size": asked.chunk_size,
            "repeats": asked.repeats,
            "dtype": "float32",
            "divergence": "forward KL, temperature 1, mean over tokens",
        },
        "load": {"before": list(load_before), "between": list(load_between), "after": list(load_after)},
        "machine": machine("cpu", threads=torch.get_num_threads(), jobs=1),
        "versions": versions()
        | ({"liger-kernel": importlib.metadata.version("liger-kernel")} if "liger" in names else {}),
        "command": " ".join(["python", "benchmarks/large_vocab.py", *given]),
    }
    for name in names:
        print(f"{name:6} {memory[name] / 1e9:8.3f} GB {statistics.median(passes[name].seconds):8.2f} s")
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
