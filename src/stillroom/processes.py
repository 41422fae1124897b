"""What processes that train one method together tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def average_gradients(accelerator: Any, parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the mean of all processes' gradients; nothing where there is one process."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:  # another process may have one
            parameter.grad = torch.zeros_like(parameter)
    for dtype in {parameter.dtype for parameter in parameters}:
        grads = [p.grad for p in parameters if p.grad is not None and p.dtype == dtype]
        together = torch.cat([grad.flatten() for grad in grads])
        together = accelerator.reduce(together, reduction="mean")
        for grad, mean in zip(grads, together.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))
