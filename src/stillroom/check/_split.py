"""Checks of a batch taken apart: gradient accumulation, and two processes with half a batch each."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stillroom.check._report import CheckError, Skip
from stillroom.check._tools import Source, Turn, compare, fresh, halves, is_random, measure, quiet
from stillroom.data.batch import Batch

WORKER = "STILLROOM_CHECK_WORKER"
"""Environment variable that the two processes carry."""

PATIENCE = 180.0  # seconds


def check_accumulation(method: Source, batch: Batch) -> Skip | None:
    """The mean over two half batches is the whole batch's loss, and gradient.

    Batch norm and dropout are in eval mode here. Skipped with the reason in `needs.whole_batch` where there is one.
    """
    parts = splittable(method, batch)
    if isinstance(parts, Skip):
        return parts
    whole, *pieces = parts
    expected = measure(quiet(fresh(method)), whole)
    found = mean_turns([measure(quiet(fresh(method)), piece) for piece in pieces])
    if difference := compare(found, expected, rtol=1e-3, atol=1e-5):
        raise CheckError(
            f"two half batches give {difference} for the whole: average every term over samples, or say in "
            "needs.whole_batch why that cannot be"
        )
    return None


def splittable(method: Source, batch: Batch) -> tuple[Batch, Batch, Batch] | Skip:
    """Return a batch and its halves, or why their losses need not agree."""
    needs = fresh(method).needs
    if needs.whole_batch:
        return Skip(needs.whole_batch)
    parts = halves(batch)
    if isinstance(parts, Skip):
        return parts
    if len(parts[1]) < needs.min_batch:
        return Skip(f"half of the batch has {len(parts[1])} samples, the method takes {needs.min_batch} or more")
    if is_random(method, parts[0]):
        return Skip("the loss depends on random draws, which differ between a batch and its halves")
    return parts


def mean_turns(measured: list[list[Turn]]) -> list[Turn]:
    """Average the totals and gradients of equally long measurements, turn by turn."""
    found = []
    for turns in zip(*measured, strict=True):
        gradients: dict[str, Tensor | None] = {}
        for name in turns[0].gradients:
            given = [turn.gradients[name] for turn in turns if turn.gradients[name] is not None]
            gradients[name] = torch.stack(given).sum(0) / len(turns) if given else None
        total = torch.stack([turn.total for turn in turns]).mean()
        found.append(Turn(turns[0].player, {}, total, None, gradients))
    return found


def check_two_processes(method: Source, batch: Batch) -> Skip | None:
    """Two processes with half the batch each, their gradients averaged, give the whole batch's loss and gradient.

    Batch norm and dropout are in eval mode here. The processes run on the CPU and meet through a file (gloo).
    """
    refuse_inside_worker()
    parts = splittable(method, batch)
    if isinstance(parts, Skip):
        return parts
    if not dist.is_available() or not dist.is_gloo_available():
        return Skip("this build of torch has no gloo")
    made = quiet(fresh(method)).to("cpu")
    whole, *pieces = (part.to("cpu") for part in parts)
    try:
        content = pickle.dumps((made, pieces))
    except Exception as error:
        return Skip(f"the method cannot be pickled ({type(error).__name__}: {error})")
    script = getattr(sys.modules["__main__"], "__file__", None)
    if not Path(script).is_file() if script else b"__main__" in content:
        return Skip("another process cannot repeat an interactive session: put the method and the call in a file")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "work").write_bytes(content)
        if skip := _run_both(Path(folder)):
            return skip
        found = pickle.loads(Path(folder, "found").read_bytes())
    if difference := compare(found, measure(made, whole), rtol=1e-3, atol=1e-5):
        raise CheckError(
            f"two processes with half the batch each give {difference} for the whole: average every term over samples, "
            "and let no loss depend on the rank or gather in one process only"
        )
    return None


def refuse_inside_worker() -> None:
    """Stop a script that runs itself again in each process that it starts."""
    if os.environ.get(WORKER):
        raise RuntimeError(
            "the check of two processes imports the script that calls it: put the call under if __name__ == '__main__':"
        )


def _run_both(folder: Path) -> Skip | None:
    before = os.environ.get(WORKER)
    os.environ[WORKER] = "1"
    deadline = time.monotonic() + PATIENCE
    processes: list[Any] = []
    try:
        context = torch.multiprocessing.spawn(_work, args=(str(folder),), nprocs=2, join=False)
        processes = context.processes
        while not context.join(timeout=1.0):
            if time.monotonic() > deadline:
                raise CheckError(
                    f"two processes did not end within {PATIENCE:.0f} s: one waits for the other; call collectives in "
                    "every process, equally often"
                )
    except torch.multiprocessing.ProcessRaisedException as error:
        last = str(error).strip().splitlines()[-1]
        raise CheckError(f"in one of two processes the method raises {last}") from error
    except torch.multiprocessing.ProcessExitedException as error:
        if not (folder / "begun").exists():
            return Skip(
                "a second process cannot import the script that calls this: put the call under "
                "if __name__ == '__main__':"
            )
        raise CheckError(f"one of two processes ended by itself ({error})") from error
    finally:
        if before is None:
            del os.environ[WORKER]
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    return None


def _work(rank: int, folder: str) -> None:
    """What each process does: measure its half, average with the other, and let the first write it down."""
    Path(folder, "begun").touch()
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(str(Path(folder, "store")), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=PATIENCE / 2))
    try:
        method, pieces = pickle.loads(Path(folder, "work").read_bytes())
        turns = measure(method, pieces[rank])
        for turn in turns:
            turn.total = _mean(turn.total)
            shapes = dict(method.named_parameters())
            for name, gradient in turn.gradients.items():
                turn.gradients[name] = _mean(torch.zeros_like(shapes[name]) if gradient is None else gradient)
            turn.outputs = None
        if rank == 0:
            Path(folder, "found").write_bytes(pickle.dumps(turns))
    finally:
        dist.destroy_process_group()


def _mean(tensor: Tensor) -> Tensor:
    summed = tensor.detach().clone()
    dist.all_reduce(summed)
    return summed / 2
