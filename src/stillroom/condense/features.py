"""What a network computes just before its head, or at layers that are named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from stillroom.blocks.taps import Taps, tap_root


class BeforeHead:
    """Reads a network's last features: what goes into its last linear layer.

    Args:
        network: any network that ends in a linear layer, or has one that all outputs come through.
        layers: names of modules whose outputs are read instead (see `stillroom.blocks.Taps`).

    Raises:
        ValueError: there is no linear layer and no layer is named.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> [tuple(part.shape) for part in BeforeHead(network)(torch.rand(3, 2, 4))]
        [(3, 5)]
    """

    def __init__(self, network: nn.Module, layers: Sequence[str] = ()) -> None:
        self.network = network
        self._taps = Taps(network, layers) if layers else None
        self._seen: Tensor | None = None
        if not layers:
            heads = [module for module in tap_root(network).modules() if isinstance(module, nn.Linear)]
            if not heads:
                raise ValueError(
                    f"{type(network).__name__} has no torch.nn.Linear to read the features before: name layers"
                )
            heads[-1].register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._seen = inputs[0]

    def __call__(self, inputs: Tensor) -> list[Tensor]:
        """Features `(N, D)` of each layer, flattened; one where none is named."""
        self._seen = None
        self.network(inputs)
        if self._taps is not None:
            return [self._taps.features[name].flatten(1) for name in self._taps.tapped]
        if self._seen is None:
            raise ValueError(f"{type(self.network).__name__} did not use its last linear layer: name layers instead")
        seen, self._seen = self._seen, None
        return [seen.flatten(1)]
