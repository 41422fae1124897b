"""The sub-network that learns which part of its teacher's distribution a student should match."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ClippingLimits(nn.Module):
    """Predicts, at each token, a lower and an upper limit of the teacher's mass coordinate.

    Of the `top` likeliest tokens of the teacher it reads log p and the student's log q (both detached), through
    Linear-ReLU-Linear to (a, b): lower = highest_lower * sigmoid(a), upper = 1 - (1 - lowest_upper) * sigmoid(b).
    The limits are bounded because a network that were free to clip would clip all but the target and have no loss left.

    Args:
        top: tokens that are read; where the vocabulary is smaller, all of it.
        hidden: width of the hidden layer.
        highest_lower: the lower limit stays below it, in (0, 1).
        lowest_upper: the upper limit stays above it, in (highest_lower, 1).
        first_lower: the lower limit before training, in (0, highest_lower).
        first_upper: the upper limit before training, in (lowest_upper, 1).

    Raises:
        ValueError: limits out of order.

    Source: Liu et al. 2024, arXiv:2407.10068: that a perceptron predicts two quantile limits. Its inputs, sizes, bounds
        and beginning are not confirmed.

    Example:
        >>> limits = ClippingLimits()
        >>> lower, upper = limits(torch.randn(2, 5, 50).log_softmax(-1), torch.randn(2, 5, 50).log_softmax(-1))
        >>> round(lower.mean().item(), 4), round(upper.mean().item(), 4)
        (0.05, 0.999)
    """

    def __init__(
        self,
        *,
        top: int = 32,
        hidden: int = 64,
        highest_lower: float = 0.2,
        lowest_upper: float = 0.9,
        first_lower: float = 0.05,
        first_upper: float = 0.999,
    ) -> None:
        super().__init__()
        if top < 1 or hidden < 1:
            raise ValueError(f"top and hidden must be 1 or more, given {top} and {hidden}")
        if not 0 < first_lower < highest_lower < lowest_upper < first_upper < 1:
            raise ValueError(
                "the limits must be ordered 0 < first_lower < highest_lower < lowest_upper < first_upper < 1, given "
                f"{first_lower}, {highest_lower}, {lowest_upper} and {first_upper}"
            )
        self.top = top
        self.highest_lower, self.lowest_upper = highest_lower, lowest_upper
        last = nn.Linear(hidden, 2)
        self.layers = nn.Sequential(nn.Linear(2 * top, hidden), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            shares = (first_lower / highest_lower, (1 - first_upper) / (1 - lowest_upper))
            last.bias.copy_(torch.tensor([math.log(share / (1 - share)) for share in shares]))

    def forward(self, teacher_log_probabilities: Tensor, student_log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the limits.

        Args:
            teacher_log_probabilities: `(..., V)`.
            student_log_probabilities: `(..., V)`.

        Returns:
            lower and upper, each `(...)`.
        """
        with torch.autocast(teacher_log_probabilities.device.type, enabled=False):
            likeliest, tokens = teacher_log_probabilities.detach().topk(
                min(self.top, teacher_log_probabilities.shape[-1]), dim=-1
            )
            theirs = student_log_probabilities.detach().gather(-1, tokens)
            missing = (0, self.top - likeliest.shape[-1])  # of a smaller vocabulary, read as 0
            features = torch.cat([nn.functional.pad(part, missing) for part in (likeliest, theirs)], dim=-1)
            lower, upper = self.layers(features.to(next(self.parameters()).dtype)).sigmoid().unbind(-1)
        return self.highest_lower * lower, 1 - (1 - self.lowest_upper) * upper
