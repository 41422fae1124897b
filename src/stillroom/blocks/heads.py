"""Heads of a classifier: exchanging one, adding a second one, adding up what several classifiers say."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


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


class SecondHead(nn.Module):
    """A second classifier on the features that a network's last linear layer receives; the network stays as it is.

    features -> Linear -> ReLU -> Dropout -> Linear -> logits.

    Args:
        network: a classifier; its head gives the first logits. It is not kept.
        hidden: width of the second head, 1 or more.
        dropout: share of its hidden values that training drops, in [0, 1).
        head: dotted name of the network's own head, an `nn.Linear`; None for the last one.

    Raises:
        ValueError: there is no such linear layer, or a number is out of range.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> second = SecondHead(network, hidden=16)
        >>> first_logits, second_logits = second.both(network, torch.randn(5, 4))
        >>> first_logits.shape == second_logits.shape
        True
    """

    def __init__(
        self, network: nn.Module, *, hidden: int = 1024, dropout: float = 0.5, head: str | None = None
    ) -> None:
        super().__init__()
        if hidden < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"hidden must be 1 or more and dropout in [0, 1), given hidden={hidden} and dropout={dropout}"
            )
        linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        if not linear or (head is not None and head not in linear):
            raise ValueError(
                f"{type(network).__name__} has no linear layer {head or ''!r} to put a second head beside: it has "
                f"{', '.join(linear) or 'none'}"
            )
        self.name = next(reversed(linear)) if head is None else head
        width, classes = linear[self.name].in_features, linear[self.name].out_features
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes)
        ).to(linear[self.name].weight)

    def forward(self, features: Tensor) -> Tensor:
        """Map features `(N, width)` to logits `(N, C)`."""
        return self.layers(features)

    def both(self, network: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
        """Ask a network once and give the logits of its own head and of this one.

        Args:
            network: the one this head was made for, or one of its kind.
            inputs: what the network takes.

        Raises:
            RuntimeError: the network did not run its head, or more than once.
        """
        seen: list[Tensor] = []
        handle = network.get_submodule(self.name).register_forward_pre_hook(
            lambda module, arguments: seen.append(arguments[0])
        )
        try:
            logits = network(inputs)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise RuntimeError(f"the head {self.name!r} ran {len(seen)} times in one forward, expected once")
        return logits, self(seen[0])


class SummedLogits(nn.Module):
    """Several classifiers that answer as one: the sum of their logits.

    Args:
        networks: inputs -> logits `(N, C)`, over the same classes; one or more.

    Raises:
        ValueError: no network.

    Example:
        >>> SummedLogits([nn.Linear(4, 3), nn.Linear(4, 3)])(torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise ValueError("there must be at least one network, given none")
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Any) -> Tensor:
        """Ask every network and add up."""
        answers = [network(inputs) for network in self.networks]
        if len({answer.shape for answer in answers}) > 1:
            shapes = ", ".join(str(tuple(answer.shape)) for answer in answers)
            raise ValueError(f"networks answer with logits of shapes {shapes}: all need the same classes")
        return torch.stack(answers).sum(dim=0)
