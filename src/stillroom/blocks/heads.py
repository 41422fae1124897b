"""Exchanging the head of a classifier and keeping its backbone."""

from __future__ import annotations

import copy

from torch import nn


def with_fresh_head(network: nn.Module, *, head: str | None = None) -> nn.Module:
    """Copy a network and initialise its last linear layer (or the module named) anew; all else keeps its weights.

    Args:
        network: a classifier whose modules are registered in the order they are called.
        head: dotted name of the module to initialise; None for the last `nn.Linear` or 1x1 convolution.

    Returns:
        The copy; every parameter trains.

    Raises:
        ValueError: no such module, or nothing in it can be initialised anew.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> fresh = with_fresh_head(network)
        >>> bool((fresh[0].weight == network[0].weight).all()), bool((fresh[2].weight == network[2].weight).all())
        (True, False)
    """
    other = copy.deepcopy(network)
    modules = dict(other.named_modules())
    if head is None:
        ends = [name for name, module in modules.items() if isinstance(module, nn.Linear) or _is_pointwise(module)]
        if not ends:
            raise ValueError(f"{type(network).__name__} has no linear layer: name its head with head=")
        head = ends[-1]
    if head not in modules:
        raise ValueError(
            f"{type(network).__name__} has no module {head!r}; it has {', '.join(n for n in modules if n)}"
        )
    changed = 0
    for module in modules[head].modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
            changed += 1
    if not changed:
        raise ValueError(f"module {head!r} of {type(network).__name__} cannot be initialised anew: name another head")
    for parameter in other.parameters():
        parameter.requires_grad_(True)
    return other


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
