"""A teacher that cannot change: evaluated, without gradients, outside every state dict and optimizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.data.batch import Batch, map_tensors, tensors_in

UNKNOWN = "function"
"""The fingerprint of a function that has none of its own."""


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
        if batch_norm != "running" and any(getattr(part, "answers_from_memory", False) for part in parts_of(network)):
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

        A network or function with a `fingerprint()` of its own (a cache) is asked; another function is just "function".
        """
        own = getattr(self.network, "fingerprint", None)
        if callable(own):
            return str(own())
        return fingerprint(self.network) if isinstance(self.network, nn.Module) else UNKNOWN

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        super()._apply(fn, recurse)
        if isinstance(self.network, nn.Module):
            self.network._apply(fn, recurse)
        return self


def fingerprint(network: nn.Module) -> str:
    """Twelve hex digits of a SHA-256 over names, shapes and values of a network's weights and buffers.

    What a `Frozen` or a cache in it holds counts as if the network held it itself.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_weights(network), key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()[:12]


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor's values, in order."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def is_memory(part: Any) -> bool:
    """Whether something is a cache: it answers from memory for the `provider` that it holds."""
    return bool(getattr(part, "answers_from_memory", False)) and isinstance(getattr(part, "provider", None), Frozen)


def parts_of(teacher: Any) -> Iterator[Any]:
    """Yield a teacher and every module and function in it, those that a `Frozen` holds as well."""
    yield teacher
    inside = teacher.children() if isinstance(teacher, nn.Module) else ()
    for part in (teacher.network,) if isinstance(teacher, Frozen) else inside:
        yield from parts_of(part)


def require_settled(teacher: Frozen) -> None:
    """Refuse a teacher for a cache if anything in it answers by more than the sample itself.

    Raises:
        ValueError: a `Frozen` in it normalises by the batch.
    """
    for part in parts_of(teacher):
        if isinstance(part, Frozen) and part.batch_norm != "running":
            raise ValueError(
                f"a cached answer must not depend on the batch, given a teacher with batch_norm={part.batch_norm!r}: "
                'use batch_norm="running", or the teacher without a cache'
            )


def _weights(network: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Names and values of weights and persistent buffers; the names that a state dict has where nothing is hidden."""
    while isinstance(network, Frozen) or is_memory(network):
        network = network.network if isinstance(network, Frozen) else network.provider
    if not isinstance(network, nn.Module):
        return
    if not any(isinstance(part, Frozen) for part in network.modules()):
        own = network.state_dict()
        yield from ((prefix + name, tensor) for name, tensor in own.items() if isinstance(tensor, Tensor))
        return
    for name, tensor in (*network.named_parameters(recurse=False), *network.named_buffers(recurse=False)):
        if name not in network._non_persistent_buffers_set:
            yield prefix + name, tensor
    for name, child in network.named_children():
        yield from _weights(child, f"{prefix}{name}.")
