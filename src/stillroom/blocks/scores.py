"""A number per sample of a data set: how clean its label looks, how much its teacher is trusted, how hard it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class SampleScores(nn.Module):
    """Remembers the latest score of every sample, by the sample's number, as part of the state dict.

    It grows with the largest number it has been told; a sample that nothing was said of has the score NaN.

    Args:
        momentum: share of the old score that stays when a sample is scored again, in [0, 1); 0 keeps the latest.

    Raises:
        ValueError: momentum outside [0, 1).

    Example:
        >>> scores = SampleScores()
        >>> scores.put(torch.tensor([2, 0]), torch.tensor([0.9, 0.1]))
        >>> scores.known.tolist(), round(float(scores.get(torch.tensor([2]))), 2)
        ([0, 2], 0.9)
    """

    values: Tensor

    def __init__(self, momentum: float = 0.0) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), given {momentum}")
        self.momentum = momentum
        self.register_buffer("values", torch.empty(0))

    def __len__(self) -> int:
        """One more than the largest number it has been told."""
        return len(self.values)

    @property
    def known(self) -> Tensor:
        """`(K,)` int64, the numbers of the samples that have a score."""
        return (~self.values.isnan()).nonzero().flatten()

    @torch.no_grad()
    def put(self, index: Tensor, scores: Tensor) -> None:
        """Take down the scores of some samples; of a number that occurs twice the last one stays.

        Args:
            index: `(N,)` int64, numbers of the samples in their data set (`batch.index`), 0 or more.
            scores: `(N,)` finite floats; kept in float32, without gradient.

        Raises:
            ValueError: shapes disagree, a negative number, or a score that is not finite.
        """
        if index.ndim != 1 or scores.shape != index.shape:
            raise ValueError(
                f"scores are one number per sample: index and scores must both be (N,), given {tuple(index.shape)} "
                f"and {tuple(scores.shape)}"
            )
        if not len(index):
            return
        if int(index.min()) < 0:
            raise ValueError(f"sample numbers must be 0 or more, given {int(index.min())}")
        if not bool(scores.isfinite().all()):
            raise ValueError(f"scores must be finite, given {float(scores[~scores.isfinite()][0])}")
        if (largest := int(index.max())) >= len(self.values):
            self.values = torch.cat([self.values, self.values.new_full((largest + 1 - len(self.values),), torch.nan)])
        index, scores = index.to(self.values.device), scores.to(self.values)
        if len(index.unique()) < len(index):  # an indexed write does not say which of two comes last
            last = {int(number): row for row, number in enumerate(index.tolist())}
            rows = torch.tensor(list(last.values()), device=index.device)
            index, scores = index[rows], scores[rows]
        before = self.values[index]
        mixed = self.momentum * before + (1 - self.momentum) * scores
        self.values[index] = torch.where(before.isnan(), scores, mixed)

    def get(self, index: Tensor, default: float = float("nan")) -> Tensor:
        """Look up scores `(N,)`; `default` for a sample that has none."""
        index = index.to(self.values.device)
        found = self.values.new_full(index.shape, torch.nan)
        inside = (index >= 0) & (index < len(self.values))
        found[inside] = self.values[index[inside]]
        return torch.where(found.isnan(), found.new_tensor(default), found)

    def quantiles(self, shares: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> list[float]:
        """Quantiles of the known scores; NaN where there are none."""
        known = self.values[self.known]
        return [float(known.quantile(share)) if len(known) else float("nan") for share in shares]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        kept = state_dict.get(f"{prefix}values")
        if kept is not None:  # a resumed memory has the size it had
            self.values = torch.full_like(kept, torch.nan, device=self.values.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
