"""How student, teacher, label and class average lie to each other, and the small network that reads a share from it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.losses._shared import at_least_float32, check_label_range, outside_autocast

State = Literal[
    "probabilities+distances",
    "probabilities",
    "distances",
    "angles",
    "distances+angles",
    "angles+probabilities",
    "probabilities+distances+angles",
]
PARTS: dict[str, tuple[str, ...]] = {
    "probabilities+distances": ("probabilities", "five distances"),
    "probabilities": ("probabilities",),
    "distances": ("distances",),
    "angles": ("angles",),
    "distances+angles": ("distances", "angles"),
    "angles+probabilities": ("angles", "probabilities"),
    "probabilities+distances+angles": ("probabilities", "distances", "angles"),
}
WIDTHS = {"probabilities": 4, "five distances": 5, "distances": 3, "angles": 2}


def state_width(state: State, classes: int) -> int:
    """How many numbers a state has: 9, 4, 3, 2, 5, 6 or 9 for each class.

    Raises:
        ValueError: another state.
    """
    if state not in PARTS:
        raise ValueError(f"state must be one of {', '.join(PARTS)}, given {state!r}")
    return classes * sum(WIDTHS[part] for part in PARTS[state])


def geometry_state(
    student_probabilities: Tensor,
    teacher_probabilities: Tensor,
    labels: Tensor,
    class_averages: Tensor,
    *,
    state: State = "probabilities+distances",
) -> Tensor:
    """What is known about each sample: the corners of two triangles, and the squares of their edges.

    With S and T the probabilities of student and teacher, G the label as a one-hot vector and A the teacher's average
    over the label's class: [S | T | G | A | (A - S)^2 | (G - S)^2 | (T - S)^2 | (T - G)^2 | (A - G)^2], element by
    element. The other states have of these the probabilities alone, the first three distances, or the products
    (A - S)(G - S) and (T - S)(G - S) ("angles"), put together in the order of their names.

    Args:
        student_probabilities: S, `(N, C)`; taken as constants.
        teacher_probabilities: T, `(N, C)`.
        labels: `(N,)`, int64 in [0, C).
        class_averages: A, `(N, C)`, of each sample's class.
        state: which of them.

    Returns:
        `(N, state_width(state, C))` in float32 or wider, without gradient.

    Raises:
        ValueError: shapes disagree, labels are not int64 or (on the CPU) out of range, or another state.

    Source: Hu et al. 2024, arXiv:2312.15112; the authors' code for the order and the states.
    """
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(
            f"labels must be (N,) int64 class numbers, given {tuple(labels.shape)} {labels.dtype}: soft labels are no "
            "one-hot vectors"
        )
    given = [student_probabilities, teacher_probabilities, class_averages]
    shapes = [tuple(tensor.shape) for tensor in given]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][0] != len(labels):
        raise ValueError(
            f"student, teacher and class averages must be (N, C) over the same classes with a label each, given "
            f"{shapes[0]}, {shapes[1]} and {shapes[2]} with {len(labels)} labels"
        )
    classes = shapes[0][1]
    check_label_range(labels, classes)
    state_width(state, classes)
    s, t, a = (at_least_float32(tensor.detach()) for tensor in given)
    g = F.one_hot(labels, classes).to(s.dtype)
    t, a = t.to(s.dtype), a.to(s.dtype)
    blocks = {
        "probabilities": [s, t, g, a],
        "five distances": [(a - s) ** 2, (g - s) ** 2, (t - s) ** 2, (t - g) ** 2, (a - g) ** 2],
        "distances": [(a - s) ** 2, (g - s) ** 2, (t - s) ** 2],
        "angles": [(a - s) * (g - s), (t - s) * (g - s)],
    }
    return torch.cat([block for part in PARTS[state] for block in blocks[part]], dim=1)


class Controller(nn.Module):
    """A small network that reads the teacher's share from a sample's state.

    Linear, LeakyReLU(0.01), ..., Linear to one number, sigmoid.

    Args:
        inputs: numbers in a state.
        widths: of the hidden layers.
        scale: what states are multiplied by, above 0; with very many classes nearly all of a state is near 0.
        limits: the least and the greatest share, in [0, 1]; what is outside is cut off.

    Raises:
        ValueError: no input, a scale not above 0, or limits that are no part of [0, 1].

    Source: the authors' code (widths 32 and 16, no scale).
    """

    def __init__(
        self,
        inputs: int,
        *,
        widths: tuple[int, ...] = (32, 16),
        scale: float = 1.0,
        limits: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if inputs < 1 or any(width < 1 for width in widths):
            raise ValueError(f"inputs and widths must be 1 or more, given {inputs} and {widths}")
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a number above 0, given {scale}")
        if not 0 <= limits[0] < limits[1] <= 1:
            raise ValueError(f"limits must rise and lie in [0, 1], given {limits}")
        layers: list[nn.Module] = []
        for width, following in zip((inputs, *widths), widths, strict=False):
            layers += [nn.Linear(width, following), nn.LeakyReLU(0.01)]
        self.layers = nn.Sequential(*layers, nn.Linear((inputs, *widths)[-1], 1))
        self.scale, self.limits = scale, limits

    @outside_autocast
    def forward(self, state: Tensor) -> Tensor:
        """Return shares `(N,)` for states `(N, inputs)`."""
        first = next(self.layers.parameters())
        share = self.layers(self.scale * state.to(first.dtype)).squeeze(1).sigmoid()
        return share if self.limits == (0.0, 1.0) else share.clamp(*self.limits)
