"""What a student wrote before: kept first in, first out, and drawn from; and when it is written, kept or left aside."""

from __future__ import annotations

from collections import deque
from typing import Literal

import torch
from torch import Tensor, nn

from stillroom.data.batch import UNLABELLED

Source = Literal["generate", "replay", "reference"]


class ReplayBuffer(nn.Module):
    """Keeps the latest sequences and their labels, first in, first out; part of the state dict.

    Args:
        capacity: how many sequences it holds, 1 or more.

    Raises:
        ValueError: capacity is below 1.

    Example:
        >>> buffer = ReplayBuffer(2)
        >>> buffer.push(torch.arange(6).view(3, 2), torch.arange(6).view(3, 2))
        >>> len(buffer), buffer.rows[0][0].tolist()
        (2, [2, 3])
    """

    def __init__(self, capacity: int = 1000) -> None:
        super().__init__()
        if capacity < 1:
            raise ValueError(f"capacity must be 1 sequence or more, given {capacity}")
        self.capacity = capacity
        self.rows: deque[tuple[Tensor, Tensor]] = deque(maxlen=capacity)

    def __len__(self) -> int:
        """How many sequences it holds now."""
        return len(self.rows)

    @property
    def full(self) -> bool:
        """Whether the next sequence pushes one out."""
        return len(self.rows) == self.capacity

    def push(self, inputs: Tensor, labels: Tensor) -> None:
        """Put sequences in; the oldest make room.

        Args:
            inputs: `(N, L)` int64 tokens.
            labels: `(N, L)` int64, the token that follows each, -100 where it does not count; what stands behind the
                last label of a row is not kept.

        Raises:
            ValueError: the two have other shapes or dtypes.
        """
        if inputs.shape != labels.shape or inputs.ndim != 2 or {inputs.dtype, labels.dtype} != {torch.int64}:
            raise ValueError(
                f"inputs and labels must be (N, L) int64, given {tuple(inputs.shape)} {inputs.dtype} and "
                f"{tuple(labels.shape)} {labels.dtype}"
            )
        for tokens, targets in zip(inputs.detach().cpu(), labels.detach().cpu(), strict=True):
            counted = (targets != UNLABELLED).nonzero()
            end = int(counted[-1]) + 1 if len(counted) else 1
            self.rows.append((tokens[:end].clone(), targets[:end].clone()))

    def sample(self, count: int, *, fill: int = 0, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw different sequences, all equally likely.

        Args:
            count: how many, 1 to `len(buffer)`.
            fill: the token behind the end of shorter sequences, where labels are -100.
            generator: of the draw; None for torch's global one.

        Returns:
            inputs and labels `(count, L)` with L the longest of them, on the CPU.

        Raises:
            ValueError: there are fewer sequences.
        """
        if not 1 <= count <= len(self):
            raise ValueError(
                f"{count} sequences are asked of a buffer that holds {len(self)}: make its capacity larger"
            )
        drawn = [self.rows[row] for row in torch.randperm(len(self), generator=generator)[:count].tolist()]
        inputs, labels = zip(*drawn, strict=True)
        pad = nn.utils.rnn.pad_sequence
        return pad(list(inputs), True, fill), pad(list(labels), True, UNLABELLED)

    def get_extra_state(self) -> dict[str, Tensor]:
        """All sequences one behind the other, and their lengths."""
        nothing = torch.empty(0, dtype=torch.int64)
        return {
            "inputs": torch.cat([inputs for inputs, _ in self.rows] or [nothing]),
            "labels": torch.cat([labels for _, labels in self.rows] or [nothing]),
            "lengths": torch.tensor([len(inputs) for inputs, _ in self.rows], dtype=torch.int64),
        }

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take over the sequences of a state."""
        lengths = state["lengths"].tolist()
        parts = (state[name].cpu().split(lengths) for name in ("inputs", "labels"))
        self.rows = deque(zip(*parts, strict=True), maxlen=self.capacity)


class AdaptiveSchedule(nn.Module):
    """Decides when a student learns from its own sequences: more often each time its validation loss rises.

    phi starts at `share`. When the validation loss is at least the one remembered plus `tolerance`, phi becomes
    min(phi + step, 1) and that loss is remembered; the first loss told is remembered as it is. In each step, with r
    uniform in [0, 1) and s the part of training that is over: r < phi (1 - s), or r < phi while the buffer is not full,
    generates; otherwise r < phi replays; otherwise the reference data are used. Part of the state dict.

    Args:
        share: phi at the beginning, in [0, 1].
        step: what is added to it, in [0, 1].
        tolerance: by how much the loss must have risen, 0 or more.

    Raises:
        ValueError: a number out of range.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898, its adaptive off-policy schedule and its code's constants.

    Example:
        >>> schedule = AdaptiveSchedule()
        >>> for loss in (2.0, 2.2, 2.25, 2.4):
        ...     schedule.tell(loss)
        >>> schedule.share
        0.2
    """

    def __init__(self, share: float = 0.0, *, step: float = 0.1, tolerance: float = 0.1) -> None:
        super().__init__()
        for name, value in {"share": share, "step": step}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} of the student's sequences must lie in [0, 1], given {value}")
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be 0 or more, given {tolerance}")
        self.first_share, self.step, self.tolerance = share, step, tolerance
        self.rises = 0
        self.remembered = float("inf")

    @property
    def share(self) -> float:
        """Phi: how often the student's own sequences are used."""
        return min(round(self.first_share + self.rises * self.step, 12), 1.0)

    def tell(self, validation_loss: float) -> None:
        """Take the validation loss of an epoch's end."""
        if self.remembered == float("inf"):
            self.remembered = validation_loss
        elif validation_loss >= self.remembered + self.tolerance:
            self.rises += 1
            self.remembered = validation_loss

    def choose(self, uniform: float, *, progress: float, full: bool) -> Source:
        """Say what a step trains on.

        Args:
            uniform: r, a draw from [0, 1).
            progress: s, the part of training that is over, in [0, 1].
            full: whether the replay buffer is full.
        """
        if uniform < self.share * (1 - progress) or (uniform < self.share and not full):
            return "generate"
        return "replay" if uniform < self.share else "reference"

    def get_extra_state(self) -> Tensor:
        """How often the loss rose, and the loss remembered."""
        return torch.tensor([float(self.rises), self.remembered], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.rises, self.remembered = int(state[0]), float(state[1])
