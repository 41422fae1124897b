"""Checks of number formats: float64, bfloat16 autocast, channels-last memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.check._report import CheckError, Skip
from stillroom.check._tools import (
    Source,
    Turn,
    all_finite,
    compare,
    device_type,
    fresh,
    is_random,
    measure,
    quiet,
)
from stillroom.data.batch import Batch, tensors_in
from stillroom.method import Method


def _attempt(what: str, remedy: str, work: Callable[[], list[Turn]]) -> list[Turn]:
    try:
        turns = work()
    except Exception as error:
        raise CheckError(f"{what}, the method raises {type(error).__name__}: {error}; {remedy}") from error
    if wrong := all_finite(turns):
        raise CheckError(f"{what}, {wrong}; {remedy}")
    return turns


def _floats(batch: Batch, dtype: torch.dtype) -> Batch:
    return batch.map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def check_float64(method: Source, batch: Batch) -> Skip | None:
    """`method.double()` on double inputs gives a finite float64 total, close to that in float32."""
    made = quiet(fresh(method)).double()
    _keep_functions_in_float32(made)
    remedy = "create tensors with dtype= and device= of the inputs, and use at_least_float32 instead of .float()"
    found = _attempt("in float64", remedy, lambda: measure(made, _floats(batch, torch.float64)))
    for turn in found:
        for name, value in {"the total": turn.total, **turn.terms}.items():
            if value.dtype != torch.float64:
                raise CheckError(f"in float64, {name!r} is {value.dtype}, expected torch.float64: {remedy}")
    if not is_random(method, batch):
        expected = measure(quiet(fresh(method)), _floats(batch, torch.float32))
        if difference := compare(found, expected, rtol=1e-3, atol=1e-4, gradients=False):
            raise CheckError(f"float64 gives {difference} in float32: something is computed in too few digits")
    return None


def _keep_functions_in_float32(method: Method) -> None:
    """A teacher that is a function has float32 inside; go on asking it so."""
    for module in method.modules():
        if isinstance(module, Frozen) and not isinstance(module.network, nn.Module):
            module._hidden = (_InFloat32(module.network),)


class _InFloat32:
    def __init__(self, function: Callable[[Batch], Any]) -> None:
        self.function = function

    def __call__(self, batch: Batch) -> Any:
        return self.function(_floats(batch, torch.float32))


def check_autocast(method: Source, batch: Batch) -> Skip | None:
    """Under bfloat16 autocast the loss is finite, close to that in float32, and every term is float32 or wider."""
    made = quiet(fresh(method))

    def work() -> list[Turn]:
        with torch.autocast(device_type(batch), dtype=torch.bfloat16):
            return measure(made, batch)

    remedy = "compute losses in float32 (stillroom.losses do; at_least_float32, outside_autocast for your own)"
    found = _attempt("under bfloat16 autocast", remedy, work)
    for turn in found:
        for name, value in {"the total": turn.total, **turn.terms}.items():
            if value.dtype.itemsize < 4:
                raise CheckError(
                    f"under bfloat16 autocast, {name!r} is {value.dtype}, expected torch.float32: {remedy}"
                )
    if not is_random(method, batch):
        expected = measure(quiet(fresh(method)), batch)
        if difference := compare(found, expected, rtol=0.1, atol=0.05, gradients=False):
            raise CheckError(f"bfloat16 autocast gives {difference} in float32: {remedy}")
    return None


def check_channels_last(method: Source, batch: Batch) -> Skip | None:
    """Images in channels-last memory, for method and inputs, give the same loss and gradients."""
    images = [tensor for tensor in tensors_in(batch.inputs) if tensor.ndim == 4 and tensor.is_floating_point()]
    if not images:
        return Skip("the inputs are no images (N, C, H, W)")

    def turned(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    expected = measure(quiet(fresh(method)), batch)
    made = quiet(fresh(method)).to(memory_format=torch.channels_last)
    remedy = "use reshape or flatten in place of view, and name dimensions, not strides"
    found = _attempt("in channels-last memory", remedy, lambda: measure(made, batch.map(turned)))
    if difference := compare(found, expected, rtol=1e-3, atol=1e-5):
        raise CheckError(f"channels-last memory gives {difference} in the usual one: {remedy}")
    return None
