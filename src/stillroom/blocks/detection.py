"""Two-stage detectors opened up: features, proposals, what is said of any regions, decoded and mined boxes.

`TwoStage` reads a torchvision Faster R-CNN (or any module with its parts) without changing it. Everything it returns
has the background LAST among the K + 1 columns; torchvision's own logits and deltas have it first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.blocks.taps import tap_root, unwrapped
from stillroom.losses._shared import at_least_float32

LARGEST_SCALE = math.log(1000 / 16)
"""Log-size deltas are clamped here, as in the Faster R-CNNs of torchvision and detectron2."""

PARTS = ("transform", "backbone", "rpn", "roi_heads")
Targets = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class Regions:
    """What a detector's second stage says of some boxes, all images' rows one after the other.

    Attributes:
        features: `(R, C)`, what the class scores are computed from; the mean over positions where it is a map.
        logits: `(R, K + 1)`, background last.
        deltas: `(R, K, 4)` per class, or `(R, 1, 4)` where all classes share a box.
        counts: how many regions each image has.
    """

    features: Tensor
    logits: Tensor
    deltas: Tensor
    counts: tuple[int, ...]

    def per_image(self) -> Iterator[Regions]:
        """The same, image by image."""
        parts = [part.split(self.counts) for part in (self.features, self.logits, self.deltas)]
        for count, features, logits, deltas in zip(self.counts, *parts, strict=True):
            yield Regions(features, logits, deltas, (count,))


class TwoStage:
    """Asks a two-stage detector step by step, in the coordinates of the images as its transform resizes them.

    It holds nothing of its own, so it is made where it is needed. Modes (batch norm, dropout) are the network's;
    whether the two stages sample boxes to train on (`supervised`) or propose and detect is decided by what is called.

    Args:
        network: torchvision's FasterRCNN, a `stillroom.hub` model around one, or a module with the parts `transform`,
            `backbone`, `rpn` and `roi_heads` (that with `box_roi_pool`, `box_head`, `box_predictor`, `box_coder`).
        background: which column of the network's own logits and deltas the background is.

    Raises:
        TypeError: it is something else.

    Example:
        >>> from stillroom import hub
        >>> detector = TwoStage(hub.load("detector-8", classes=3, channels=1, image_size=32).eval())
        >>> images = detector.prepare(torch.rand(2, 1, 32, 32))
        >>> features = detector.features(images)
        >>> said = detector.regions(features, detector.propose(images, features, most=5), images.image_sizes)
        >>> said.logits.shape  # 5 regions of 2 images; 3 classes and the background
        torch.Size([10, 4])
    """

    def __init__(self, network: Any, *, background: Literal["first", "last"] = "first") -> None:
        if not is_two_stage(network):
            raise TypeError(
                f"{type(network).__name__} is no two-stage detector: expected torchvision's FasterRCNN, or a module "
                f"with its parts {', '.join(PARTS)}"
            )
        self.network = unwrapped(network)
        self.net: Any = tap_root(network)
        self.background = background

    @property
    def classes(self) -> int:
        """K, the number of classes without the background."""
        return int(self.net.roi_heads.box_predictor.cls_score.out_features) - 1

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.net.parameters()).device

    def prepare(self, inputs: Any) -> Any:
        """Bring images `(N, C, H, W)`, or a list of `(C, H, W)`, in [0, 1] to the network's size and statistics.

        The size is the one that the network tests at, also in training mode, so that two detectors of one kind see the
        same geometry.

        Returns:
            torchvision's ImageList: `tensors` and, per image, `image_sizes`.
        """
        images = list(inputs)
        adapt = getattr(self.network, "prepare", None)
        if adapt is not None:
            images = [adapt(image.unsqueeze(0))[0] for image in images]
        with _flag(self.net.transform, False):
            return self.net.transform(images)[0]

    def features(self, images: Any) -> dict[str, Tensor]:
        """Feature maps of prepared images, by name."""
        found = self.net.backbone(images.tensors)
        return {"0": found} if isinstance(found, Tensor) else found

    def propose(self, images: Any, features: dict[str, Tensor], *, most: int | None = None) -> list[Tensor]:
        """Boxes of each image that the first stage takes for objects, the best first; no gradient.

        Args:
            images: prepared.
            features: of these images.
            most: per image; None for as many as the network itself goes on with.
        """
        with torch.no_grad(), _flag(self.net.rpn, False):
            return [at_least_float32(boxes[:most]) for boxes in self.net.rpn(images, features)[0]]

    def regions(self, features: dict[str, Tensor], boxes: Sequence[Tensor], image_sizes: Any) -> Regions:
        """What the second stage says of any boxes, one tensor `(R, 4)` per image."""
        heads = self.net.roi_heads
        pooled = heads.box_head(heads.box_roi_pool(features, list(boxes), image_sizes))
        logits, deltas = heads.box_predictor(pooled)
        counts = tuple(len(of_image) for of_image in boxes)
        vectors = pooled.flatten(2).mean(-1) if pooled.ndim > 2 else pooled
        return Regions(vectors, *background_last(logits, deltas, background=self.background), counts)

    @torch.no_grad()
    def detect(self, features: dict[str, Tensor], boxes: Sequence[Tensor], image_sizes: Any) -> list[dict[str, Tensor]]:
        """Final detections from proposals (after the network's own threshold and NMS), in prepared coordinates."""
        with _flag(self.net.roi_heads, False):
            found = self.net.roi_heads(features, list(boxes), image_sizes)[0]
        return [{key: at_least_float32(value) for key, value in one.items()} for one in found]

    def supervised(self, images: Any, features: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The four losses of Faster R-CNN against boxes in prepared coordinates.

        Args:
            images: prepared.
            features: of these images.
            targets: per image `boxes` `(n, 4)` and `labels` `(n,)` from 1 to K; n may be 0.

        Raises:
            ValueError: a label is outside 1 to K (looked at on the CPU).
        """
        check_classes(targets, self.classes)
        with _flag(self.net.rpn, True), _flag(self.net.roi_heads, True):
            proposals, first = self.net.rpn(images, features, list(targets))
            _, second = self.net.roi_heads(features, proposals, images.image_sizes, list(targets))
        return {**first, **second}

    def first_stage(self, images: Any, features: dict[str, Tensor], targets: Targets) -> Tensor:
        """The sum of the first stage's two losses against boxes in prepared coordinates."""
        with _flag(self.net.rpn, True):
            return torch.stack(list(self.net.rpn(images, features, list(targets))[1].values())).sum()

    def scaled(self, inputs: Any, targets: Targets, images: Any) -> list[dict[str, Tensor]]:
        """Bring the boxes of targets from the coordinates of the inputs to those of the prepared images."""
        return [
            {
                "boxes": rescale_boxes(target["boxes"], image.shape[-2:], size),
                "labels": target["labels"],
            }
            for image, target, size in zip(inputs, targets, images.image_sizes, strict=True)
        ]

    @staticmethod
    def rows(images: Any, features: dict[str, Tensor], rows: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """Take some of the images with their features."""
        if len(rows) == len(images.image_sizes):
            return images, features
        sizes = [images.image_sizes[row] for row in rows.tolist()]
        return type(images)(images.tensors[rows], sizes), {name: maps[rows] for name, maps in features.items()}


def is_two_stage(network: Any) -> bool:
    """Whether a network (or what wraps it) has the parts of torchvision's two-stage detectors."""
    return isinstance(network, nn.Module) and all(hasattr(tap_root(network), part) for part in PARTS)


@contextmanager
def _flag(module: nn.Module, training: bool) -> Iterator[None]:
    """Set what a part does (not the layers inside it) for a while."""
    before, module.training = module.training, training
    try:
        yield
    finally:
        module.training = before


def background_last(
    logits: Tensor, deltas: Tensor, *, background: Literal["first", "last"] = "first"
) -> tuple[Tensor, Tensor]:
    """Bring a detector's own columns to the library's order: classes, then background.

    Args:
        logits: `(R, K + 1)`.
        deltas: `(R, 4 (K + 1))` with a box for the background too, `(R, 4 K)` without, or `(R, 4)`.
        background: which column it is now.

    Returns:
        Logits `(R, K + 1)`, background last; deltas `(R, K, 4)`, or `(R, 1, 4)` where all classes share a box.

    Raises:
        ValueError: another word, or deltas that do not fit the logits.
    """
    if background not in ("first", "last"):
        raise ValueError(f'background must be "first" or "last", given {background!r}')
    classes = logits.shape[1] - 1
    if deltas.shape[1] not in (4, 4 * classes, 4 * (classes + 1)):
        raise ValueError(
            f"deltas have {deltas.shape[1]} columns for logits of {logits.shape[1]}: expected {4 * classes} or "
            f"{4 * (classes + 1)} (four per class), or 4; do the logits have a background column?"
        )
    boxes = deltas.unflatten(1, (-1, 4))
    first = background == "first"
    if boxes.shape[1] == classes + 1:
        boxes = boxes[:, 1:] if first else boxes[:, :-1]
    return logits.roll(-1, dims=1) if first else logits, boxes


def rescale_boxes(boxes: Tensor, size: Sequence[int], to: Sequence[int]) -> Tensor:
    """Bring boxes `(n, 4)` (x1, y1, x2, y2) from an image of `size` (height, width) to one of size `to`."""
    high, wide = to[0] / size[0], to[1] / size[1]
    return boxes * boxes.new_tensor([wide, high, wide, high])


def decode_boxes(boxes: Tensor, deltas: Tensor, *, weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0)) -> Tensor:
    """Move and stretch boxes by deltas (dx, dy, dw, dh), divided by their weights.

    The centre moves by dx and dy widths and heights, the sides grow by exp(dw) and exp(dh), which are clamped at
    1000 / 16.

    Args:
        boxes: `(R, 4)` x1, y1, x2, y2.
        deltas: `(R, 4)`.
        weights: of the four deltas, above 0.
    """
    dx, dy, dw, dh = (deltas / deltas.new_tensor(list(weights))).unbind(-1)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + 0.5 * width + dx * width, boxes[:, 1] + 0.5 * height + dy * height
    half_width = 0.5 * width * dw.clamp(max=LARGEST_SCALE).exp()
    half_height = 0.5 * height * dh.clamp(max=LARGEST_SCALE).exp()
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)


@dataclass(frozen=True)
class Mined:
    """Proposals that are uncertain objects.

    Attributes:
        kept: `(n,)` int64, rising: which proposals.
        refined_boxes: `(R, 4)` of all proposals: moved by the deltas of the favourite class, or where they were when
            that is the background.
    """

    kept: Tensor
    refined_boxes: Tensor


@torch.no_grad()
def mine_low_confidence(
    proposals: Tensor,
    teacher_deltas: Tensor,
    teacher_logits: Tensor,
    high_confidence_boxes: Tensor,
    *,
    iou: float = 0.4,
    foreground: float = 0.9,
    background: float = 0.99,
    delta_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    require_confident: bool = True,
    image_size: Sequence[int] | None = None,
) -> Mined:
    """Find proposals that are likely objects, of a clear class, which no confident detection covers.

    Kept are those whose refined box overlaps every confident box by at most `iou`, whose largest class probability
    without the background column is at least `foreground`, and whose background probability among all columns is at
    most `background`.

    Args:
        proposals: `(R, 4)` x1, y1, x2, y2.
        teacher_deltas: `(R, K, 4)`, or `(R, 1, 4)` shared by all classes.
        teacher_logits: `(R, K + 1)`, background last.
        high_confidence_boxes: `(P, 4)`; P may be 0.
        iou: largest overlap, in [0, 1].
        foreground: least probability of the favourite class among the classes, in [0, 1].
        background: largest probability of the background, in [0, 1].
        delta_weights: of the detector's box coder.
        require_confident: keep nothing in an image without a confident box, as the authors' code; else such an image
            has overlap 0 everywhere.
        image_size: (height, width), to refuse proposals of another scale; None: not checked.

    Raises:
        ValueError: shapes that do not fit, NaN, fewer than two classes, thresholds outside [0, 1], proposals outside
            the image or on another device.

    Source: Yoon et al. 2024, arXiv:2407.13524, and the authors' code (junia3/LPLD).
    """
    from torchvision.ops import box_iou

    for name, value in (("iou", iou), ("foreground", foreground), ("background", background)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], given {value}")
    _check_mining(proposals, teacher_deltas, teacher_logits, high_confidence_boxes, image_size)
    classes = teacher_logits.shape[1] - 1
    favourite = teacher_logits.argmax(-1)
    row = torch.arange(len(proposals), device=proposals.device)
    shared = teacher_deltas.shape[1] == 1
    chosen = teacher_deltas[row, torch.zeros_like(favourite) if shared else favourite.clamp(max=classes - 1)]
    moved = decode_boxes(proposals, chosen, weights=delta_weights)
    refined = torch.where((favourite < classes).unsqueeze(-1), moved, proposals)
    if not len(high_confidence_boxes):
        overlap = refined.new_zeros(len(refined))
        covered = torch.full_like(favourite, require_confident, dtype=torch.bool)
    else:
        overlap = box_iou(refined, high_confidence_boxes).amax(1)
        covered = overlap > iou
    sure = teacher_logits[:, :-1].softmax(-1).amax(-1) >= foreground
    possible = teacher_logits.softmax(-1)[:, -1] <= background
    return Mined((~covered & sure & possible).nonzero().flatten(), refined)


def _check_mining(
    proposals: Tensor, deltas: Tensor, logits: Tensor, confident: Tensor, image_size: Sequence[int] | None
) -> None:
    for name, boxes in (("proposals", proposals), ("high_confidence_boxes", confident)):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} must have shape (R, 4), given {tuple(boxes.shape)}")
    if devices := {tensor.device for tensor in (deltas, logits, confident)} - {proposals.device}:
        raise ValueError(
            f"proposals are on {proposals.device}, but what belongs to them is on {devices.pop()}: move it"
        )
    classes = logits.shape[-1] - 1
    if logits.ndim != 2 or len(logits) != len(proposals):
        raise ValueError(
            f"teacher_logits must have shape ({len(proposals)}, K + 1), a row per proposal, given {tuple(logits.shape)}"
        )
    if classes < 2:
        raise ValueError(
            f"mining needs 2 classes or more beside the background, given teacher_logits of {classes + 1} columns: "
            "with one class the favourite is always certain"
        )
    if deltas.ndim != 3 or deltas.shape[1] not in (1, classes) or deltas.shape[2] != 4 or len(deltas) != len(logits):
        raise ValueError(
            f"teacher_deltas must have shape ({len(logits)}, {classes}, 4) for teacher_logits of {classes + 1} "
            f"columns, given {tuple(deltas.shape)}: do the logits have a background column, the last?"
        )
    for name, tensor in (("proposals", proposals), ("teacher_deltas", deltas), ("teacher_logits", logits)):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite, given NaN or infinite values: check the teacher's weights")
    if image_size is not None and len(proposals):
        height, width = image_size
        low, high = float(proposals.min()), proposals[:, 2:].amax(0).tolist()
        if low < -1 or high[0] > width + 1 or high[1] > height + 1:
            raise ValueError(
                f"proposals run from {low:.1f} to ({high[0]:.1f}, {high[1]:.1f}), but the image is {width} wide and "
                f"{height} high: are they in the coordinates of another scale?"
            )


def check_classes(targets: Targets, classes: int) -> None:
    """Refuse class numbers outside 1 to K, on the CPU (elsewhere reading them would stall every step).

    Raises:
        ValueError: with the range found.
    """
    labels = [target["labels"] for target in targets if len(target["labels"]) and target["labels"].device.type == "cpu"]
    if not labels:
        return
    low, high = (int(getattr(torch.cat(labels), end)()) for end in ("min", "max"))
    if low < 1 or high > classes:
        raise ValueError(
            f"box labels run from {low} to {high}, but the detector has {classes} classes (1 to {classes}; 0 is the "
            "background): number them from 1, or build it with more classes"
        )
