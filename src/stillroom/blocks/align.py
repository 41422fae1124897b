"""Align: bring a feature of any shape to the shape of any other, by a small trainable map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stillroom.blocks.shapes import Shape, as_map, as_tokens, grid_of, kind_of, pooled, resize, shown


class Align(nn.Module):
    """Maps a student's feature linearly to the shape of a teacher's: width, size and kind.

    One linear map over channels (for maps a 1x1 convolution) brings the width; it is left out where the widths are
    equal, unless `always_project` keeps it. `resize` brings the size, of tokens as the square of their patches.
    Prefix tokens (class and register tokens) of both sides are matched in order: those that only the student has are
    dropped, those that only the teacher has are predicted by a linear map from the mean over the student's positions.
    Tokens of equal number need not form a square. To become a vector, a feature is averaged over its positions (of
    tokens, the patches). A vector that becomes a map or tokens is repeated at every position.

    Without shapes its first call, `align(student_feature, teacher_feature)`, builds it: make the optimizer after that.

    Args:
        student_shape: of one sample, `(C, H, W)`, `(T, C)` or `(C,)`.
        teacher_shape: of one sample; both shapes, or none of them.
        student_prefix_tokens: class and register tokens in front of the student's patches; None decides as `grid_of`.
        teacher_prefix_tokens: the same for the teacher.
        always_project: keep a linear map between equal widths too; two networks have no common order of channels.

    Raises:
        ValueError: one shape without the other, or shapes that cannot be brought to each other.

    Example:
        >>> align = Align((64, 8, 8), (17, 192))
        >>> align(torch.randn(2, 64, 8, 8)).shape
        torch.Size([2, 17, 192])
        >>> align.describe()
        'map 64x8x8 -> averaged to 4x4, 1x1 convolution to 192 channels, 1 prefix token from the mean -> tokens 17x192'
    """

    def __init__(
        self,
        student_shape: Sequence[int] | None = None,
        teacher_shape: Sequence[int] | None = None,
        *,
        student_prefix_tokens: int | None = None,
        teacher_prefix_tokens: int | None = None,
        always_project: bool = False,
    ) -> None:
        super().__init__()
        if (student_shape is None) != (teacher_shape is None):
            raise ValueError(
                f"Align needs both shapes or none, given student_shape={student_shape}, teacher_shape={teacher_shape}"
            )
        self.student_prefix_tokens = student_prefix_tokens
        self.teacher_prefix_tokens = teacher_prefix_tokens
        self.always_project = always_project
        self.student_shape: Shape = ()
        self.teacher_shape: Shape = ()
        if student_shape is not None and teacher_shape is not None:
            self._build(tuple(student_shape), tuple(teacher_shape))

    @classmethod
    def from_probe(
        cls,
        student_feature: Tensor,
        teacher_feature: Tensor,
        *,
        student_prefix_tokens: int | None = None,
        teacher_prefix_tokens: int | None = None,
        always_project: bool = False,
    ) -> Align:
        """Build for two features `(N, ...)` of a probe forward, on the device of the student's; options as above."""
        align = cls(
            tuple(student_feature.shape[1:]),
            tuple(teacher_feature.shape[1:]),
            student_prefix_tokens=student_prefix_tokens,
            teacher_prefix_tokens=teacher_prefix_tokens,
            always_project=always_project,
        )
        return align.to(student_feature.device)

    def _build(self, student_shape: Shape, teacher_shape: Shape) -> None:
        self.student_kind, self.teacher_kind = kind_of(student_shape), kind_of(teacher_shape)
        width = {"map": teacher_shape[0]}.get(self.teacher_kind, teacher_shape[-1])
        student_width = {"map": student_shape[0]}.get(self.student_kind, student_shape[-1])
        equal_prefix = self.student_prefix_tokens == self.teacher_prefix_tokens
        both_tokens = self.student_kind == self.teacher_kind == "tokens"
        self.one_by_one = both_tokens and student_shape[0] == teacher_shape[0] and equal_prefix
        self.student_prefix = self.teacher_prefix = 0
        self.size = (0, 0)
        try:
            if self.teacher_kind == "vector" or self.student_kind == "vector" or self.one_by_one:
                if self.student_kind == "tokens" and self.teacher_kind == "vector":
                    self.student_prefix = _prefix_or_none(student_shape[0], self.student_prefix_tokens)
            else:
                if self.student_kind == "tokens":
                    self.student_prefix, _ = grid_of(student_shape[0], self.student_prefix_tokens)
                if self.teacher_kind == "tokens":
                    self.teacher_prefix, side = grid_of(teacher_shape[0], self.teacher_prefix_tokens)
                    self.size = (side, side)
                else:
                    self.size = (teacher_shape[1], teacher_shape[2])
        except ValueError as error:
            raise ValueError(
                f"a student feature of {shown(student_shape)} cannot be brought to a teacher feature of "
                f"{shown(teacher_shape)}, since {error}"
            ) from None
        projected = self.always_project or student_width != width
        missing = max(self.teacher_prefix - self.student_prefix, 0)
        self.project = nn.Linear(student_width, width) if projected else nn.Identity()
        self.prefix = nn.Linear(student_width, missing * width) if missing else None
        self.student_shape, self.teacher_shape = student_shape, teacher_shape

    def forward(self, student_feature: Tensor, teacher_feature: Tensor | None = None) -> Tensor:
        """Bring a batch of student features `(N, *student_shape)` to `(N, *teacher_shape)`.

        Args:
            student_feature: what is mapped.
            teacher_feature: `(N, *teacher_shape)`; only its shape is used, to build the map where none was built.

        Raises:
            ValueError: the feature has another shape than the map was built for.
            RuntimeError: nothing is built yet, and there is no teacher feature to build it for.
        """
        if not self.student_shape:
            if teacher_feature is None:
                raise RuntimeError(
                    "this Align has no shapes yet and was given no teacher_feature, expected one in the first call: "
                    "call align(student_feature, teacher_feature) once, or give the shapes when you make it"
                )
            self._build(tuple(student_feature.shape[1:]), tuple(teacher_feature.shape[1:]))
            self.to(student_feature.device)
        if tuple(student_feature.shape[1:]) != self.student_shape:
            raise ValueError(
                f"the student's feature has shape {tuple(student_feature.shape[1:])} per sample, expected "
                f"{self.student_shape}: make an Align for inputs of this size"
            )
        if self.one_by_one:
            return self.project(student_feature)
        if self.teacher_kind == "vector":
            return self.project(pooled(student_feature, prefix_tokens=self.student_prefix))
        if self.student_kind == "vector":
            vector = self.project(student_feature)
            vector = vector[:, :, None, None] if self.teacher_kind == "map" else vector[:, None]
            return vector.expand(-1, *self.teacher_shape)
        patches = as_map(student_feature, prefix_tokens=self.student_prefix)
        if self._shrinks():
            aligned = self._project_map(resize(patches, self.size))
        else:
            aligned = resize(self._project_map(patches), self.size)
        if self.teacher_kind == "map":
            return aligned
        kept = min(self.student_prefix, self.teacher_prefix)
        parts = [self.project(student_feature[:, :kept])] if kept else []
        if self.prefix is not None:
            parts.append(self.prefix(pooled(patches)).unflatten(1, (-1, self.teacher_shape[-1])))
        return torch.cat([*parts, as_tokens(aligned)], dim=1)

    def _project_map(self, feature: Tensor) -> Tensor:
        return self.project(feature.movedim(1, -1)).movedim(-1, 1)

    def _student_size(self) -> tuple[int, int]:
        if self.student_kind == "map":
            return self.student_shape[1], self.student_shape[2]
        side = math.isqrt(self.student_shape[0] - self.student_prefix)
        return side, side

    def _shrinks(self) -> bool:
        return all(new <= old for new, old in zip(self.size, self._student_size(), strict=True))

    def describe(self) -> str:
        """Say in one sentence what is done: the kind and shape on both sides and the steps between them."""
        if not self.student_shape:
            return "not built yet: the first call builds it"
        width = self.teacher_shape[0] if self.teacher_kind == "map" else self.teacher_shape[-1]
        spatial = self.size != (0, 0)
        steps = []
        if isinstance(self.project, nn.Linear):
            steps = [
                f"1x1 convolution to {width} channels"
                if self.student_kind == "map" and spatial
                else f"linear map to {width}"
            ]
        if spatial:
            if self.student_prefix > self.teacher_prefix:
                steps.insert(0, f"{_count(self.student_prefix - self.teacher_prefix)} dropped")
            if self.size != self._student_size():
                how = "averaged" if self._shrinks() else "bilinear"
                steps.insert(0 if self._shrinks() else len(steps), f"{how} to {self.size[0]}x{self.size[1]}")
            if self.prefix is not None:
                steps.append(f"{_count(self.teacher_prefix - self.student_prefix)} from the mean")
        elif self.teacher_kind == "vector" and self.student_kind != "vector":
            behind = f" without {_count(self.student_prefix)}" if self.student_prefix else ""
            steps.insert(0, f"mean over positions{behind}")
        elif self.student_kind == "vector" and self.teacher_kind != "vector":
            steps.append("repeated at every position")
        return " -> ".join([shown(self.student_shape), ", ".join(steps) or "as it is", shown(self.teacher_shape)])

    def extra_repr(self) -> str:
        """Show the description where the module is printed."""
        return self.describe()


class HintRegressor(nn.Module):
    """FitNets' regressor: a convolution from a student's map to the size of a teacher's hint, batch norm and ReLU.

    With sides Hs and Ht: 3x3 of stride 2 where Hs = 2 Ht, transposed 4x4 of stride 2 where 2 Hs = Ht, and else a
    convolution without padding of kernel 1 + Hs - Ht, which needs Hs >= Ht (height and width each).

    Args:
        student_shape: `(C, H, W)` of one sample.
        teacher_shape: `(C, H, W)` of one sample.
        batch_norm: normalise after the convolution.
        relu: end in a ReLU, as a hint taken after a ReLU does; False for hints that may be negative.

    Raises:
        ValueError: a feature is no map, or the student's map is smaller than the teacher's and not just half of it.

    Source: Romero et al. 2015, arXiv:1412.6550, section 2.2; the choice between the three follows what later
        comparisons of distillation methods use.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        batch_norm: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__()
        student_shape, teacher_shape = tuple(student_shape), tuple(teacher_shape)
        if kind_of(student_shape) != "map" or kind_of(teacher_shape) != "map":
            raise ValueError(
                f"HintRegressor maps a map (C, H, W) to a map, given a student feature of {shown(student_shape)} and a "
                f"teacher feature of {shown(teacher_shape)}: use Align for other kinds"
            )
        (student_width, *student_size), (width, *size) = student_shape, teacher_shape
        convolution: nn.Module
        if student_size == [2 * side for side in size]:
            convolution = nn.Conv2d(student_width, width, 3, stride=2, padding=1)
        elif size == [2 * side for side in student_size]:
            convolution = nn.ConvTranspose2d(student_width, width, 4, stride=2, padding=1)
        elif all(old >= new for old, new in zip(student_size, size, strict=True)):
            height, breadth = (1 + old - new for old, new in zip(student_size, size, strict=True))
            convolution = nn.Conv2d(student_width, width, (height, breadth))
        else:
            raise ValueError(
                f"HintRegressor needs a student map as large as the teacher's or just half of it, given a student "
                f"feature of {shown(student_shape)} and a teacher feature of {shown(teacher_shape)}: use Align"
            )
        self.convolution = convolution
        self.norm = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, student_feature: Tensor) -> Tensor:
        """Map `(N, *student_shape)` to `(N, *teacher_shape)`."""
        return self.activation(self.norm(self.convolution(student_feature)))


def _count(tokens: int) -> str:
    return f"{tokens} prefix token{'s' if tokens > 1 else ''}"


def _prefix_or_none(tokens: int, prefix_tokens: int | None) -> int:
    """Prefix tokens that a mean leaves out; tokens that form no square have none unless it is said."""
    if prefix_tokens is None:
        try:
            return grid_of(tokens)[0]
        except ValueError:
            return 0
    if not 0 <= prefix_tokens < tokens:
        raise ValueError(f"student_prefix_tokens must be in [0, {tokens}), given {prefix_tokens}")
    return prefix_tokens
