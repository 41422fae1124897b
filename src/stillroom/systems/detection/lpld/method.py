"""The method: a slow teacher, confident boxes, and uncertain proposals taught softly."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.blocks.detection import Mined, Regions, TwoStage, mine_low_confidence
from stillroom.blocks.taps import unwrapped
from stillroom.data.batch import Batch
from stillroom.data.views import StrongView
from stillroom.losses import lpld_loss, lpld_weights
from stillroom.losses._shared import check_not_negative
from stillroom.method import Losses, Method, Needs


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, *, keep_rate: float = 0.75) -> None:
    """Move a teacher towards its student: teacher = keep_rate * teacher + (1 - keep_rate) * student, buffers too.

    Integer entries (step counters) are copied.

    Args:
        teacher: is changed.
        student: the same architecture.
        keep_rate: in [0, 1].

    Raises:
        ValueError: keep_rate is out of range, or the two have other entries.
    """
    if not 0 <= keep_rate <= 1:
        raise ValueError(f"keep_rate must lie in [0, 1], given {keep_rate}")
    mine, theirs = teacher.state_dict(), student.state_dict()
    if {name: value.shape for name, value in mine.items()} != {name: value.shape for name, value in theirs.items()}:
        raise ValueError(
            f"teacher and student have {len(mine)} and {len(theirs)} entries that do not all agree: they must be one "
            "architecture"
        )
    for name, value in mine.items():
        if value.is_floating_point():
            value.mul_(keep_rate).add_(theirs[name].to(value), alpha=1 - keep_rate)
        else:
            value.copy_(theirs[name])


class LPLD(Method):
    """Adapts a detector to unlabelled images by confident boxes and by its softly taught uncertain proposals.

    The teacher starts as the detector's copy, sees the images as they are, and takes a quarter of the student at the
    end of every epoch; the student sees a strong view. Batch norm keeps its statistics and its affine part.

    Args:
        student: a two-stage detector trained on the source domain; it is adapted in place.
        teacher: taken and ignored, so that every arm is built alike.
        confident: score above which the teacher's detections count as boxes, in [0, 1].
        iou: largest overlap of an uncertain proposal with a confident box, in [0, 1].
        foreground: least probability of an uncertain proposal's class among the classes, in [0, 1].
        background: largest background probability of an uncertain proposal, in [0, 1].
        scale: factor of the distillation term, 0 or more; 0 leaves it out (a mean teacher).
        keep_rate: of the teacher per epoch, in [0, 1].
        proposals: most proposals that are looked at, per image.
        require_confident: learn from uncertain proposals only in images with a confident box, as the authors' code.
        ships: which of the two is the product.
        strong_view: makes the student's images from the teacher's; boxes must stay where they are.
        background_column: which column of the detector's own scores the background is (torchvision: the first).

    Losses:
        propose: the first stage's losses against the confident boxes.
        detect: the second stage's losses against the confident boxes.
        lpld: `stillroom.losses.lpld_loss` on uncertain proposals; 0 where there are none.

    Attributes:
        kept: how many uncertain proposals the last batch had, per image.

    Source: Yoon et al. 2024, arXiv:2407.13524, and the authors' code (junia3/LPLD).

    Example:
        >>> from stillroom import hub
        >>> detector = hub.load("detector-8", classes=3, channels=1, image_size=32)  # yours, trained
        >>> method = LPLD(detector)
        >>> losses = method(Batch(torch.rand(2, 1, 32, 32)))  # unlabelled images of the new domain
        >>> sorted(losses)
        ['detect', 'lpld', 'propose']
        >>> method.end_epoch()  # `stillroom.fit` does that at the end of each
    """

    needs = Needs(
        labels="none",
        teacher=False,
        tasks=("detection",),
        whole_batch="a detector's losses are means over regions that are sampled from the whole batch",
    )

    def __init__(
        self,
        student: nn.Module,
        teacher: Any = None,
        *,
        confident: float = 0.7,
        iou: float = 0.4,
        foreground: float = 0.9,
        background: float = 0.99,
        scale: float = 0.1,
        keep_rate: float = 0.75,
        proposals: int = 300,
        require_confident: bool = True,
        ships: Literal["teacher", "student"] = "teacher",
        strong_view: Callable[[Any], Any] | None = None,
        background_column: Literal["first", "last"] = "first",
    ) -> None:
        super().__init__(student)
        shares = {"confident": confident, "iou": iou, "foreground": foreground, "background": background}
        for name, value in (shares | {"keep_rate": keep_rate}).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], given {value}")
        check_not_negative(scale=scale)
        if proposals < 1:
            raise ValueError(f"proposals must be 1 or more, given {proposals}")
        if ships not in ("teacher", "student"):
            raise ValueError(f'ships must be "teacher" or "student", given {ships!r}')
        if (classes := TwoStage(student).classes) < 2:
            raise ValueError(
                f"LPLD needs a detector of 2 classes or more, given one of {classes}: with one class every proposal "
                "would count as certain of its class"
            )
        self.confident = confident
        self.mining = {"iou": iou, "foreground": foreground, "background": background}
        self.scale = scale
        self.keep_rate = keep_rate
        self.proposals = proposals
        self.require_confident = require_confident
        self.ships = ships
        self.strong_view = strong_view or StrongView()
        self.background_column = background_column
        for norm in _norms(student):
            norm.requires_grad_(False)
        self.average = copy.deepcopy(unwrapped(student)).requires_grad_(False).eval()
        self.kept: list[int] = []
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.train(self.training)

    epochs: Tensor

    def train(self, mode: bool = True) -> LPLD:
        """Set the mode; the teacher, and batch norm of the student, stay in eval mode."""
        super().train(mode)
        self.average.eval()
        for norm in _norms(self.student):
            norm.eval()
        return self

    def forward(self, batch: Batch) -> Losses:
        """Return the losses of a batch of unlabelled images; labels are not looked at."""
        self._catch_up()
        confident, boxes, taught, _ = self.ask_teacher(batch.inputs)
        detector = TwoStage(self.student, background=self.background_column)
        images = detector.prepare(self.strong_view(batch.inputs))
        features = detector.features(images)
        losses = detector.supervised(images, features, confident)
        first = losses.pop("loss_objectness") + losses.pop("loss_rpn_box_reg")
        terms = {"propose": first, "detect": torch.stack(list(losses.values())).sum()}
        said = None
        if self.scale:
            said = detector.regions(features, boxes, images.image_sizes)
            terms["lpld"] = self._distill(said, taught, self.mine(taught, boxes, confident, images.image_sizes))
        return Losses(outputs=None if said is None else said.logits, weights=None, **terms)

    @torch.no_grad()
    def ask_teacher(self, inputs: Any) -> tuple[list[dict[str, Tensor]], list[Tensor], Regions, list[Any]]:
        """Its confident boxes, its proposals, what it says of them, and the sizes of the images they lie in."""
        teacher = TwoStage(self.average, background=self.background_column)
        images = teacher.prepare(inputs)
        features = teacher.features(images)
        boxes = teacher.propose(images, features, most=self.proposals)
        found = teacher.detect(features, boxes, images.image_sizes)
        for row, one in enumerate(found):
            if not bool(one["scores"].isfinite().all()):
                raise ValueError(f"the teacher scores image {row} with NaN: check the detector's weights")
        confident = [{key: one[key][one["scores"] > self.confident] for key in ("boxes", "labels")} for one in found]
        return confident, boxes, teacher.regions(features, boxes, images.image_sizes), images.image_sizes

    def _distill(self, said: Regions, taught: Regions, mined: Sequence[Mined]) -> Tensor:
        terms: list[Tensor] = []
        self.kept = []
        for student, teacher, found in zip(said.per_image(), taught.per_image(), mined, strict=True):
            kept = self.choose(found.kept, len(teacher.logits))
            self.kept.append(len(kept))
            weights = self.weigh(student.features[kept], teacher.features[kept])
            terms.append(lpld_loss(student.logits[kept], teacher.logits[kept], weights, scale=self.scale))
        return torch.stack(terms).mean()

    def mine(
        self, taught: Regions, boxes: Sequence[Tensor], confident: Sequence[dict[str, Tensor]], sizes: Sequence[Any]
    ) -> list[Mined]:
        """Find the uncertain proposals of each image."""
        weights: Any = TwoStage(self.average).net.roi_heads.box_coder.weights
        return [
            mine_low_confidence(
                proposals,
                teacher.deltas,
                teacher.logits,
                sure["boxes"],
                delta_weights=weights,
                require_confident=self.require_confident,
                image_size=size,
                **self.mining,
            )
            for teacher, proposals, sure, size in zip(taught.per_image(), boxes, confident, sizes, strict=True)
        ]

    def weigh(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """The weights `(n,)` of uncertain proposals."""
        return lpld_weights(student_features, teacher_features)

    def choose(self, kept: Tensor, count: int) -> Tensor:
        """Which of an image's `count` proposals are distilled: those that were mined."""
        return kept

    # ---- the teacher's time --------------------------------------------------------------------------------------

    def end_epoch(self) -> None:
        """Let the teacher take over its share of the student; `fit` has it done at the end of each epoch."""
        follow(self.average, unwrapped(self.student), keep_rate=self.keep_rate)
        self.epochs += 1

    def after_step(self, player: str) -> None:
        """End the epoch where the next step would begin another."""
        steps, epoch = self.clock.step, self.clock.epoch
        if math.isfinite(epoch) and steps > 0 and (steps + 1) % max(round(steps / epoch), 1) == 0:
            while int(self.epochs) < (steps + 1) // max(round(steps / epoch), 1):
                self.end_epoch()

    def _catch_up(self) -> None:
        """End an epoch of a single first step, which cannot be told before the second."""
        if math.isfinite(self.clock.epoch):
            while int(self.epochs) < math.floor(self.clock.epoch + 1e-9):
                self.end_epoch()

    @property
    def product(self) -> nn.Module:
        """The teacher, or the student where `ships` says so."""
        return self.average if self.ships == "teacher" else unwrapped(self.student)


def _norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class EqualWeights(LPLD):
    """LPLD whose uncertain proposals all weigh 1 (an ablation of the paper); see `LPLD`."""

    def weigh(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(lpld_weights(student_features, teacher_features))


class Shuffled(LPLD):
    """A control: as many proposals are distilled as LPLD mines, but drawn from all of the image's; see `LPLD`."""

    def choose(self, kept: Tensor, count: int) -> Tensor:
        """Any proposals, as many as were mined."""
        return torch.randperm(count)[: len(kept)].to(kept.device)
