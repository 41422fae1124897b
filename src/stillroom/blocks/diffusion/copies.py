"""Second networks that start as a teacher and follow something else: an adapter on shared weights, or a full copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from stillroom.extras import require
from stillroom.losses._shared import check_positive


def shared_copy(network: nn.Module) -> nn.Module:
    """Copy the modules of a network and none of its weights: both networks hold the same tensors."""
    kept = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, memo=dict(kept))


class AdaptedCopy(nn.Module):
    """A network with a low-rank adapter over the frozen weights of another, which it shares.

    Only the adapter counts as this module's parameters: it alone is trained and saved. The network that was copied has
    no adapter in it, so nothing must be switched on and off between the two, and a compiled one stays right.

    Args:
        network: whose weights are shared; frozen here, and by whoever keeps it as teacher.
        config: `peft.LoraConfig`.

    Raises:
        ImportError: peft is not installed.
        ValueError: the config's target modules match none of the network's; the message lists candidates.

    Example:
        >>> from peft import LoraConfig
        >>> teacher = nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_out": nn.Linear(8, 8)})
        >>> adapted = AdaptedCopy(teacher, LoraConfig(r=2, lora_alpha=4, target_modules=["to_q"]))
        >>> sum(p.numel() for p in adapted.parameters())  # two matrices of 2 x 8
        32
    """

    def __init__(self, network: nn.Module, config: Any) -> None:
        super().__init__()
        peft = require("peft")
        check_targets(network, config.target_modules)
        network.requires_grad_(False)
        adapted = peft.inject_adapter_in_model(config, shared_copy(network))
        self._hidden = (adapted,)  # in a tuple: its shared weights are not this module's
        self.adapter = nn.ParameterDict(
            {name.replace(".", "/"): weight for name, weight in adapted.named_parameters() if weight.requires_grad}
        )
        self.train()

    @property
    def network(self) -> nn.Module:
        """The network with the adapter in it."""
        return self._hidden[0]

    def forward(self, *inputs: Any) -> Any:
        """Ask the adapted network."""
        return self.network(*inputs)

    def train(self, mode: bool = True) -> AdaptedCopy:
        """Set this module's mode; of the network only the adapter's dropout follows, the rest stays in eval mode."""
        super().train(mode)
        self.network.eval()
        for module in self.network.modules():
            dropout = getattr(module, "lora_dropout", None)
            if isinstance(dropout, nn.Module):
                dropout.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedCopy:
        super()._apply(fn, recurse)
        self.network._apply(fn, recurse)
        return self


def lora_copy(
    network: nn.Module, *, rank: int = 64, alpha: float = 108.0, modules: Sequence[str] = ("to_q", "to_v")
) -> AdaptedCopy:
    """A copy that shares the weights and learns a low-rank change, at first none (`W + alpha / rank * B A`, B = 0).

    Args:
        network: whose weights are shared.
        rank: of the change, 1 or more.
        alpha: the change is scaled by alpha / rank.
        modules: names (or ends of names) of the layers that change.

    Source: Hu et al. 2021, arXiv:2106.09685, as peft implements it.
    """
    check_positive(rank=rank, alpha=alpha)
    peft = require("peft")
    return AdaptedCopy(network, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(modules)))


def lora_copy_of_linears(network: nn.Module, *, rank: int = 16, alpha: float = 27.0) -> AdaptedCopy:
    """`lora_copy` over every linear layer, for networks without attention.

    Args:
        network: whose weights are shared.
        rank: of the change, 1 or more.
        alpha: the change is scaled by alpha / rank.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return lora_copy(network, rank=rank, alpha=alpha, modules=names or ["linear"])


def full_copy(network: nn.Module) -> nn.Module:
    """A copy with weights of its own, all of them trainable."""
    return copy.deepcopy(network).requires_grad_(True)


def check_targets(network: nn.Module, targets: Any) -> None:
    """Refuse names of layers that match none.

    Raises:
        ValueError: with the names of layers that there are.
    """
    if targets is None or isinstance(targets, str):  # peft's own defaults, patterns and "all-linear"
        return
    layers = [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for target in sorted(targets):
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            ends = sorted({name.rsplit(".", 1)[-1] for name in layers if not name.rsplit(".", 1)[-1].isdigit()})
            shown = ends or sorted(layers)
            raise ValueError(
                f"no layer of {type(network).__name__} is called {target!r}: adapters can go to "
                f"{', '.join(shown[:20]) or 'nothing, it has no linear or convolutional layer'}"
            )
