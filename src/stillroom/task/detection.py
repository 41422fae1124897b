"""Detection: which objects are where. Boxes and classes as torchvision's detectors take and give them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stillroom.blocks.detection import TwoStage, rescale_boxes
from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch, Ragged
from stillroom.extras import require
from stillroom.losses import region_box_loss, region_kd_loss
from stillroom.task.base import Task

Boxes = Sequence[dict[str, Tensor]]
CONFIDENT = 0.5  # a teacher's detection above this is a box for the student's first stage
EDGE = 1.0  # pixels by which annotations may overlap the image's edge


class Detection(Task):
    """Objects in images. Labels are, per image, `boxes` `(n, 4)` (x1, y1, x2, y2 in pixels) and `labels` `(n,)` from 1.

    Networks are two-stage detectors (torchvision's Faster R-CNN, alone or in a `stillroom.hub` model). They give, per
    image, `boxes`, `labels` and `scores`. Evaluation needs `pycocotools` (the extra "detection").

    A student is taught on boxes by Faster R-CNN's own four losses. From a teacher it learns what that says of its own
    proposals (classes by tempered KL divergence, boxes by smooth L1), and its first stage learns to propose what the
    teacher detects with more than 0.5; so images without labels teach too.
    """

    name = "detection"
    metric = "map_50"
    augments: ClassVar[bool] = False
    verb: ClassVar[str] = "find objects in"
    proposals: ClassVar[int] = 100
    """How many of a teacher's proposals are compared, per image."""

    demonstration: ClassVar[dict[str, Any]] = {
        "data": "digit-scenes",
        "teacher": "detector-16",
        "student": "detector-4",
        "train_size": 240,
        "test_size": 100,
        "labels": 60,
        "teacher_epochs": 12.0,
        "epochs": 20.0,
        "batch_size": 8,
        "lr": 5e-3,
        "seeds": 3,
    }

    def learn(
        self, student: nn.Module, batch: Batch, teacher: Any = None, *, temperature: float = 1.0
    ) -> tuple[dict[str, Tensor], Any]:
        """What a student is taught on a batch; see the class.

        Returns:
            "label" (over the images with labels), "distill" and "propose" (over all images, with a teacher); and the
            student's regions, None without a teacher.
        """
        detector = TwoStage(student)
        images = detector.prepare(batch.inputs)
        features = detector.features(images)
        terms: dict[str, Tensor] = {}
        said = None
        if teacher is not None:
            taught, confident, boxes = self._ask(teacher, batch.inputs, images.image_sizes)
            said = detector.regions(features, boxes, images.image_sizes)
            kd = region_kd_loss(said.logits, taught.logits, temperature=temperature)
            terms["distill"] = kd + region_box_loss(said.deltas, taught.deltas, taught.logits)
            terms["propose"] = detector.first_stage(images, features, confident)
        if batch.labels is not None:
            rows = batch.labelled.nonzero().flatten()
            images, features = detector.rows(images, features, rows)
            targets = detector.scaled([batch.inputs[row] for row in rows.tolist()], batch.labels[rows], images)
            losses = detector.supervised(images, features, targets) if len(rows) else {}
            terms["label"] = torch.stack(list(losses.values())).sum() if losses else 0 * _sum(features)
        return terms, said

    @torch.no_grad()
    def _ask(self, teacher: Any, inputs: Any, sizes: Any) -> tuple[Any, list[dict[str, Tensor]], list[Tensor]]:
        """What a teacher says of its proposals, its confident detections, and its proposals, in the student's sizes."""
        network = teacher.network if isinstance(teacher, Frozen) else teacher
        detector = TwoStage(network)
        images = detector.prepare(inputs)
        features = detector.features(images)
        proposals = detector.propose(images, features, most=self.proposals)
        said = detector.regions(features, proposals, images.image_sizes)
        found = detector.detect(features, proposals, images.image_sizes)
        pairs = list(zip(images.image_sizes, sizes, strict=True))
        confident = [
            {"boxes": rescale_boxes(one["boxes"][sure], *pair), "labels": one["labels"][sure]}
            for one, pair in zip(found, pairs, strict=True)
            for sure in [one["scores"] > CONFIDENT]
        ]
        return said, confident, [rescale_boxes(boxes, *pair) for boxes, pair in zip(proposals, pairs, strict=True)]

    def width_of(self, outputs: Any) -> Any:
        """None: detections do not tell how many classes a network knows."""
        return None

    def check(self, batch: Batch, outputs: Any = None) -> None:
        """Check inputs, boxes (inside their image, with an area) and classes (from 1) on the first batch.

        Raises:
            ValueError: with the image, what was found, what is expected and the remedy.
        """
        super().check(batch.replace(labels=None))
        for row, target in enumerate(batch.labels or ()):
            if target is not None:
                _check_target(row, target, tuple(batch.inputs[row].shape[-2:]))
        for row, found in enumerate(outputs or ()):
            if not bool(found["scores"].isfinite().all()) or not bool(found["boxes"].isfinite().all()):
                raise ValueError(f"the network gives NaN or infinite boxes for image {row}: check its weights")

    def chance(self, labels: Any) -> dict[str, float]:
        """What somebody scores who gives every image each class's mean box, the commonest class first."""
        known = [target for target in labels if target is not None]
        boxes, classes = (torch.cat([target[key] for target in known]) for key in ("boxes", "labels"))
        if not len(classes):
            return {}
        present, counts = classes.unique(return_counts=True)
        guess = {
            "boxes": torch.stack([boxes[classes == one].mean(0) for one in present]),
            "labels": present,
            "scores": counts / counts.sum(),
        }
        return {self.metric: score_boxes([guess] * len(known), known)[self.metric]}

    @torch.no_grad()
    def evaluate(
        self,
        network: nn.Module | Callable[[Any], Any],
        batches: Iterable[Batch],
        *,
        teacher: Callable[[Any], Any] | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, float]:
        """Measure a detector on batches with boxes; see `score_boxes` for the metrics.

        Args:
            network: images -> per image `boxes`, `labels` and `scores`; a module is measured in eval mode and set back.
            batches: labelled batches; images without labels are left out.
            teacher: not asked.
            device: where batches are moved; None for the network's own.
        """
        module = network if isinstance(network, nn.Module) else None
        training = module is not None and module.training
        if module is not None:
            module.eval()
            device = device or next((p.device for p in module.parameters()), torch.device("cpu"))
        found: list[dict[str, Tensor]] = []
        truth: list[dict[str, Tensor]] = []
        try:
            for batch in batches:
                batch = batch.to(device or "cpu")
                outputs = network(batch) if isinstance(network, Frozen) else network(_as_list(batch.inputs))
                for one, target in zip(outputs, batch.labels or (), strict=False):
                    if target is not None:
                        found.append({key: one[key].cpu() for key in ("boxes", "labels", "scores")})
                        truth.append({key: target[key].cpu() for key in ("boxes", "labels")})
        finally:
            if module is not None and training:
                module.train()
        if not truth:
            raise ValueError("there is nothing to measure on: no image of the evaluation split has labels")
        return score_boxes(found, truth)


def score_boxes(found: Boxes, truth: Boxes) -> dict[str, float]:
    """COCO's metrics of detections.

    Args:
        found: per image `boxes`, `labels` and `scores`.
        truth: per image `boxes` and `labels`.

    Returns:
        `map_50` (average precision at an overlap of half, mean over classes), `map_75`, `map` (mean over overlaps from
        0.5 to 0.95), `recall` (with up to 100 detections per image, mean over the same overlaps), and `map_small`,
        `map_medium` and `map_large` where there are such boxes.

    Raises:
        ImportError: pycocotools is missing.
        ValueError: no image has a box.
    """
    require("pycocotools")
    from torchmetrics.detection import MeanAveragePrecision

    metric: Any = MeanAveragePrecision()
    metric.warn_on_many_detections = False
    metric.update(list(found), list(truth))
    said = metric.compute()
    names = {name: name for name in ("map_50", "map", "map_75", "map_small", "map_medium", "map_large")}
    named = {**names, "recall": "mar_100"}
    if float(said["map_50"]) < 0:
        raise ValueError(f"there is nothing to find: none of the {len(truth)} images has a box")
    return {ours: float(said[theirs]) for ours, theirs in named.items() if float(said[theirs]) >= 0}


def recall_at_precision(
    found: Boxes, truth: Boxes, *, precision: float = 0.5, largest_area: float = float("inf"), iou: float = 0.5
) -> float:
    """Share of objects up to a size that a detector finds when it is as bold as a precision allows.

    Detections, the surest first, take the object of their class that they overlap most; each object is taken once. The
    detector works at the lowest score at which the precision over objects of all sizes is still `precision`.

    Args:
        found: per image `boxes`, `labels` and `scores`.
        truth: per image `boxes` and `labels`.
        precision: in (0, 1].
        largest_area: of the objects that are counted, in square pixels.
        iou: least overlap of a hit.

    Returns:
        In [0, 1]; 0 where no score reaches the precision. NaN without such an object.
    """
    from torchvision.ops import box_iou

    if not 0 < precision <= 1:
        raise ValueError(f"precision must lie in (0, 1], given {precision}")
    scores: list[float] = []
    hits: list[tuple[bool, bool]] = []  # whether it hits, whether what it hits counts
    counted = 0
    for said, target in zip(found, truth, strict=True):
        boxes = target["boxes"]
        small = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) < largest_area
        counted += int(small.sum())
        free = torch.ones(len(boxes), dtype=torch.bool)
        overlap = box_iou(said["boxes"].float(), boxes.float())
        for row in said["scores"].argsort(descending=True).tolist():
            fits = overlap[row] * (free & (target["labels"] == said["labels"][row]))
            best = int(fits.argmax()) if len(fits) else -1
            hit = best >= 0 and float(fits[best]) >= iou
            if hit:
                free[best] = False
            scores.append(float(said["scores"][row]))
            hits.append((hit, hit and bool(small[best])))
    if not counted:
        return float("nan")
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    right = small_right = best_small = 0
    for place, row in enumerate(order, start=1):
        right += hits[row][0]
        small_right += hits[row][1]
        if right / place >= precision:
            best_small = small_right
    return best_small / counted


def _check_target(row: int, target: dict[str, Tensor], size: tuple[int, int]) -> None:
    boxes, labels = target["boxes"], target["labels"]
    if not len(boxes):
        return
    if not bool(boxes.isfinite().all()):
        raise ValueError(f"image {row} has a box with NaN or infinite edges: clean the annotations first")
    flat = ((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])).nonzero().flatten()
    if len(flat):
        raise ValueError(
            f"image {row} has the box {_shown(boxes[flat[0]])}, expected x1, y1, x2, y2 with x2 > x1 and y2 > y1: "
            "turn boxes given as x, y, width, height into corners (torchvision.ops.box_convert)"
        )
    edge = boxes.new_tensor([size[1], size[0], size[1], size[0]]) + EDGE
    outside = ((boxes < -EDGE) | (boxes > edge)).any(1).nonzero().flatten()
    if len(outside):
        raise ValueError(
            f"image {row} has the box {_shown(boxes[outside[0]])}, but is only {size[1]} wide and {size[0]} high: give "
            "boxes in pixels of the image as it is passed"
        )
    if int(labels.min()) < 1:
        raise ValueError(
            f"image {row} has a box of class {int(labels.min())}, but classes are numbered from 1 (0 is the "
            "background): add 1 to all of them"
        )


def _shown(box: Tensor) -> str:
    return "(" + ", ".join(f"{edge:g}" for edge in box.tolist()) + ")"


def _as_list(inputs: Any) -> Any:
    """Detectors take lists; a tensor of images is one as well."""
    return inputs if isinstance(inputs, (Tensor, Ragged)) else list(inputs)


def _sum(features: dict[str, Tensor]) -> Tensor:
    return torch.stack([maps.sum() for maps in features.values()]).sum()
