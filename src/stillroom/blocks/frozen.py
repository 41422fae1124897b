"""A teacher that cannot change: evaluated, without gradients, outside every state dict and optimizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.data.batch import Batch, map_tensors, tensors_in


class Frozen(nn.Module):
    """Holds a network so that training cannot touch it.

    The network is in eval mode whatever the module around it does, runs without gradients, and shows up in none of
    `parameters()`, `modules()` and `state_dict()`; it still moves with `.to()`, and is copied by `copy.deepcopy`.

    Args:
        network: a module, called with the inputs; or a teacher provider, which is any other callable or a module with
            `takes_batch = True`, called with the whole `Batch` (`predict(batch) -> outputs`,
            tensors or a NumPy array).
        batch_norm: "running" uses the stored statistics; "batch" normalises by the current batch and leaves the stored
            statistics alone. "train" runs the whole network in training mode while it is asked: it normalises by the
            batch, moves the stored statistics and draws dropout; parameters alone are frozen then. Functions have no
            mode.

    Raises:
        TypeError: `network` is not callable.
        ValueError: `batch_norm` is another word, or is not "running" for a network that answers from memory.
    """

    def __init__(
        self, network: nn.Module | Callable[[Any], Any], *, batch_norm: Literal["running", "batch", "train"] = "running"
    ) -> None:
        super().__init__()
        if not callable(network):
            raise TypeError(f"a teacher must be a module or a function predict(batch), given {type(network).__name__}")
        if batch_norm not in ("running", "batch", "train"):
            raise ValueError(f'batch_norm must be "running", "batch" or "train", given {batch_norm!r}')
        parts = network.modules() if isinstance(network, nn.Module) else (network,)
        if batch_norm != "running" and any(getattr(part, "answers_from_memory", False) for part in parts):
            raise ValueError(
                f"batch_norm={batch_norm!r} makes answers depend on the batch, but a {type(network).__name__} teacher "
                'answers from memory: use batch_norm="running" (teacher_mode="eval"), or the teacher without a cache'
            )
        self.batch_norm = batch_norm
        self._hidden = (network,)  # in a tuple: nn.Module registers modules, not tuples of them
        if isinstance(network, nn.Module):
            network.requires_grad_(False)
            network.eval()

    @property
    def network(self) -> Any:
        """The network that is held."""
        return self._hidden[0]

    @property
    def settled(self) -> Frozen:
        """The same network by its stored statistics: how it is measured, whatever the rest of a batch holds."""
        return self if self.batch_norm == "running" else Frozen(self.network)

    @torch.no_grad()
    def forward(self, inputs: Any, *more: Any) -> Any:
        """Ask the network; what comes back carries no gradient.

        Args:
            inputs: a `Batch`, or inputs alone (a provider then gets a batch without labels and indices).
            *more: what the network takes beside its inputs (a diffusion network's time and prompt); modules only.
        """
        network = self.network
        if not isinstance(network, nn.Module) or getattr(network, "takes_batch", False):
            batch = inputs if isinstance(inputs, Batch) else Batch(inputs)
            said = self._ask(network, batch)
            if isinstance(said, np.ndarray):
                said = torch.from_numpy(said.astype(np.float32)).to(next(iter(tensors_in(batch.inputs))).device)
            return map_tensors(said, Tensor.detach)
        if isinstance(inputs, Batch):
            inputs = inputs.inputs
        return self._ask(network, inputs, *more)

    def _ask(self, network: Any, *given: Any) -> Any:
        """Call the network in the mode that was chosen, and leave it in eval mode."""
        if not isinstance(network, nn.Module):
            return network(*given)
        if network.training:  # somebody who holds the same network set it to train
            network.eval()
        if self.batch_norm == "running":
            return network(*given)
        if self.batch_norm == "train":
            network.train()
            try:
                return network(*given)
            finally:
                network.eval()
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        tracked = [norm.track_running_stats for norm in norms]
        for norm in norms:  # this is how torch is told to normalise by the batch and to write nothing down
            norm.training, norm.track_running_stats = True, False
        try:
            return network(*given)
        finally:
            for norm, before in zip(norms, tracked, strict=True):
                norm.training, norm.track_running_stats = False, before

    def fingerprint(self) -> str:
        """Twelve hex digits of a SHA-256 over names, shapes and values of all weights and buffers.

        A network with a `fingerprint()` of its own (a cache) is asked; a function without one is just "function".
        """
        own = getattr(self.network, "fingerprint", None)
        if callable(own):
            return own()
        return fingerprint(self.network) if isinstance(self.network, nn.Module) else "function"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        super()._apply(fn, recurse)
        if isinstance(self.network, nn.Module):
            self.network._apply(fn, recurse)
        return self


def fingerprint(network: nn.Module) -> str:
    """Twelve hex digits of a SHA-256 over names, shapes and values of a network's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
