"""Two players over one loss: one minimises it, the other maximises it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def minmax_gradients(loss: Tensor, minimizers: Iterable[Tensor], maximizers: Iterable[Tensor] = ()) -> None:
    """Fill in the gradients of a loss for those who lower it, and the negative ones for those who raise it.

    Both come from one backward pass and replace what `grad` held, so that neither player's step sees the other's: two
    passes, of the loss and of its negative, would add up to 0 in a maximiser whose gradients are not cleared between
    them, and it would never learn.

    Args:
        loss: a scalar.
        minimizers: leaf tensors whose optimizer is to lower the loss.
        maximizers: leaf tensors whose optimizer is to raise it.

    Raises:
        ValueError: a tensor is in both groups.

    Example:
        >>> low, high = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
        >>> minmax_gradients((3 * low * high).sum(), [low], [high])
        >>> float(low.grad), float(high.grad)
        (3.0, -3.0)
    """
    lowering, raising = list(minimizers), list(maximizers)
    if {id(tensor) for tensor in lowering} & {id(tensor) for tensor in raising}:
        raise ValueError("a tensor cannot lower and raise the same loss: it was given in both groups")
    gradients = torch.autograd.grad(loss, [*lowering, *raising], allow_unused=True)
    for tensor, gradient in zip(lowering, gradients[: len(lowering)], strict=True):
        tensor.grad = gradient
    for tensor, gradient in zip(raising, gradients[len(lowering) :], strict=True):
        tensor.grad = None if gradient is None else -gradient
