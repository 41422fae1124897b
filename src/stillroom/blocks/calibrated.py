"""Temperature scaling: one number that makes a trained classifier's confidence honest, after the fact."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillroom.losses._shared import at_least_float32, check_label_range, check_logits, check_positive

SMALLEST, LARGEST = 1e-2, 1e2


@torch.no_grad()
def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the temperature at which held-out logits have the least cross-entropy.

    mean_i CE(z_i / T, y_i) is convex in 1 / T; its slope there, mean_i (sum_c p_ic z_ic - z_i[y_i]), is brought to 0 by
    halving.

    Args:
        logits: `(N, C)` of samples that the network was not trained on.
        labels: `(N,)` int64 in [0, C).

    Returns:
        T in [0.01, 100]; an end of that range where the cross-entropy falls to it.

    Raises:
        ValueError: shapes disagree, there is no sample, or a label is out of range.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    check_logits(logits, logits, labels)
    check_label_range(labels, logits.shape[1])
    logits = at_least_float32(logits).double()
    right = logits.gather(1, labels[:, None])[:, 0]
    low, high = 1 / LARGEST, 1 / SMALLEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        slope = float(((middle * logits).softmax(dim=1) * logits).sum(dim=1).sub(right).mean())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 1 / (low * high) ** 0.5


class Tempered(nn.Module):
    """A classifier whose logits are divided by a fixed temperature: the same favourites, another confidence.

    Args:
        network: inputs -> logits.
        temperature: above 0.

    Example:
        >>> network, logits, labels = nn.Linear(4, 3), torch.randn(50, 3), torch.randint(3, (50,))
        >>> calibrated = Tempered(network, fit_temperature(logits, labels))
        >>> calibrated(torch.randn(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.network = network
        self.temperature = temperature

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the tempered logits."""
        return self.network(inputs) / self.temperature
