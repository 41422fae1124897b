"""Several processes that train one network together (torchrun, accelerate launch, SLURM): who writes, who waits.

Every process runs the same program. All of them train, each on its share of every batch, from the first one's weights.
Files, folders and lines on the screen are the first one's alone, but for each one's random state beside a checkpoint
and its part of a teacher's cached answers.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")


def rank() -> int:
    """The number of this process, as its launcher said; 0 for a process by itself."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def join(device: Any = None) -> None:
    """Meet the other processes, once; nothing for a process by itself.

    Args:
        device: "cpu" even where there are GPUs; None for the machine's own choice.
    """
    if world() == 1:
        return
    import torch
    from accelerate import PartialState

    if torch.distributed.is_initialized():
        return

    cpu = device is not None and torch.device(device).type == "cpu"
    PartialState(cpu=cpu or None)
    atexit.register(leave)  # a group that is still there at the end aborts its process now and then


def wait(device: Any = None) -> None:
    """Go on when every process has come here."""
    if world() > 1:
        import torch

        join(device)
        torch.distributed.barrier()


def of_first(value: T, device: Any = None) -> T:
    """What the first process has as this value."""
    if world() == 1:
        return value
    import torch

    join(device)
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def leave() -> None:
    """Part from the other processes."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        with suppress(RuntimeError, ValueError):
            torch.distributed.destroy_process_group()


def average_gradients(accelerator: Any, parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the mean of all processes' gradients; nothing where there is one process.

    Those of parameters that are cut over the processes are means already.
    """
    if accelerator.num_processes == 1:
        return
    import torch

    parameters = [parameter for parameter in parameters if not hasattr(parameter, "full_tensor")]
    for parameter in parameters:
        if parameter.grad is None:  # another process may have one
            parameter.grad = torch.zeros_like(parameter)
    for dtype in sorted({parameter.dtype for parameter in parameters}, key=str):  # the same order in every process
        grads = [p.grad for p in parameters if p.grad is not None and p.dtype == dtype]
        together = torch.cat([grad.flatten() for grad in grads])
        together = accelerator.reduce(together, reduction="mean")
        for grad, mean in zip(grads, together.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))


def share_weights(accelerator: Any, module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers; nothing where there is one process."""
    if accelerator.num_processes == 1:
        return
    import torch

    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            whole = tensor.detach().contiguous()
            torch.distributed.broadcast(whole, src=0)
            tensor.copy_(whole)


def any_of(accelerator: Any, value: bool) -> bool:
    """Whether it is so in any process."""
    if accelerator.num_processes == 1:
        return value
    import torch

    return bool(accelerator.reduce(torch.tensor(float(value), device=accelerator.device), reduction="sum"))


def accelerator_for(precision: str, device: Any, trackers: Sequence[str], folder: Path | None) -> Any:
    """The Accelerator of a training, with the state that another one left set right."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cpu = device is not None and torch.device(device).type == "cpu"
        if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
            AcceleratorState._reset_state()
        if PartialState._shared_state and cpu and PartialState().device.type != "cpu":
            AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(
            cpu=cpu or None, mixed_precision=precision, log_with=list(trackers) or None, project_dir=folder
        )
