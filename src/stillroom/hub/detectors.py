"""Two-stage detectors: torchvision's Faster R-CNNs, small embedded ones, and the wrapper that takes any of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from stillroom.hub.fetch import from_address, quiet
from stillroom.hub.model import Model, name_of
from stillroom.hub.plan import HALF, Plan, Wish

EMBEDDED = r"detector-(\d+)"
"""Names of the embedded detectors: the width of their first layer."""

SIDE = 128  # what the embedded detectors bring the short side of images to, where their size is not known
LARGEST_RATIO = 1333 / 800  # of the long to the short side, as torchvision's detectors have it


class Detector(Model):
    """Wraps a two-stage detector: images in [0, 1] in, boxes out; with targets, its losses.

    Images are a tensor `(N, channels, H, W)` or a list of `(channels, H, W)` of any sizes. The network's own transform
    resizes and normalises them, and gives boxes in the coordinates of what came in.

    Args:
        net: torchvision's FasterRCNN, or a module with its parts.
        channels: see `Model`, as for all that follow; `size`, `mean` and `std` are the network's own business.
        net_channels: what the network takes.
        size: must be None.
        mean: must be None.
        std: must be None.
        classes: without the background.
        image_size: height and width that callers give, where all images have one.
        source: where the network came from.
        notes: sentences for the user.
    """

    def forward(self, inputs: Any, targets: Sequence[dict[str, Tensor]] | None = None) -> Any:
        """Detect, in eval mode whatever the mode is; or, with targets, compute the training losses.

        Args:
            inputs: images.
            targets: per image `boxes` `(n, 4)` and `labels` `(n,)` from 1 to K.

        Returns:
            Per image `boxes`, `labels` and `scores`; with targets torchvision's dict of losses.
        """
        images = [self.prepare(image.unsqueeze(0))[0] for image in inputs]
        if targets is not None:
            return self.net(images, list(targets))
        modes = [(module, module.training) for module in self.net.modules() if module.training]
        self.net.eval()
        try:
            return self.net(images)
        finally:
            for module, mode in modes:
                module.training = mode

    def probe(self) -> None:
        """Check the number of classes; nothing is computed, since detectors take images of all sizes.

        Raises:
            ValueError: the network has another number of classes than `classes`.
        """
        found = classes_of(self.net)
        if self.classes is not None and found is not None and found != self.classes:
            raise ValueError(
                f"{name_of(self)} detects {found} classes, expected {self.classes} as the data has: build it with "
                f"{self.classes + 1} outputs (torchvision counts the background too)"
            )


def classes_of(net: nn.Module) -> int | None:
    """K, the number of classes without the background; None where the head does not tell."""
    head: Any = getattr(getattr(net, "roi_heads", None), "box_predictor", None)
    scores = getattr(head, "cls_score", None)
    return None if scores is None else int(scores.out_features) - 1


# ---- torchvision -----------------------------------------------------------------------------------------------------


def torchvision_names() -> list[str]:
    """Names of torchvision's Faster R-CNNs."""
    with quiet():
        from torchvision import models

        return [name for name in models.list_models(module=models.detection) if name.startswith("fasterrcnn")]


def torchvision_plans(name: str, wish: Wish) -> list[Plan]:
    """The way to build one of torchvision's Faster R-CNNs: RGB, at its own size or with the short side asked for."""
    weights = _weights(name)
    options: dict[str, Any] = {
        "num_classes": wish.classes or len(weights.meta["categories"]) - 1,
        "channels": 3,
        "frozen_norms": wish.pretrained and not name.endswith("_v2"),
    }
    if wish.size is not None:
        options["image_size"] = wish.size
    own = 320 if "_320_" in name else 800
    side = wish.image_size
    note = ""
    if side is not None and (wish.size or own) != side:
        note = f"torchvision/{name} brings the short side of images to {wish.size or own} pixels"
        note += "" if wish.size else f": write torchvision/{name}@{max(side, 64)} to save time on images of {side}"
    return [Plan("torchvision", name, options, 3, note=note)]


def build_torchvision(name: str, options: dict[str, Any], pretrained: bool) -> tuple[nn.Module, bool]:
    """Build a Faster R-CNN of torchvision; returns it and whether its head is new beside pretrained layers."""
    from torchvision import models
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    weights = _weights(name)
    classes = int(options["num_classes"])
    given = torchvision_arguments(options)
    if not pretrained:
        with quiet():
            net = models.get_model(name, weights=None, weights_backbone=None, **given)
        return _freeze_norms(net) if options.get("frozen_norms") else net, False
    with from_address(f"torchvision/{name} with pretrained weights", weights.url), quiet():
        net = models.get_model(name, weights=weights, **{**given, "num_classes": None})
    new = classes != classes_of(net)
    if new:
        heads: Any = net.roi_heads
        heads.box_predictor = FastRCNNPredictor(heads.box_predictor.cls_score.in_features, classes + 1)
    return net, new


def torchvision_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """What torchvision calls our options: it counts the background as a class and bounds both sides."""
    given: dict[str, Any] = {"num_classes": int(options["num_classes"]) + 1}
    if side := options.get("image_size"):
        given |= {"min_size": side, "max_size": round(side * LARGEST_RATIO)}
    return given


def _weights(name: str) -> Any:
    with quiet():
        from torchvision import models
    return models.get_model_weights(name).DEFAULT


def _freeze_norms(net: nn.Module) -> nn.Module:
    """Exchange batch norms for the frozen ones that the pretrained networks have (which fixes names and shapes)."""
    from torchvision.ops.misc import FrozenBatchNorm2d

    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
    return net


# ---- embedded --------------------------------------------------------------------------------------------------------


def embedded_plans(name: str, wish: Wish) -> list[Plan]:
    """The way to build an embedded detector for the channels and the size at hand.

    Raises:
        ValueError: pretrained weights are wanted, or the number of classes is not given.
    """
    if wish.pretrained:
        raise ValueError(f"{name!r} has no pretrained weights: leave @pretrained out, or give weights=")
    if wish.classes is None:
        raise ValueError(f"{name!r} is built for the number of classes, given none: pass classes=")
    side = wish.size or wish.image_size or SIDE
    options = {"classes": wish.classes, "in_channels": wish.channels, "image_size": side}
    return [Plan("embedded", name, options, wish.channels)]


def build_embedded(name: str, *, classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Build a small Faster R-CNN with fresh weights from torch's global random state.

    "detector-16": three 3x3 convolutions of 16, 32 and 64 channels with batch norm (two of stride 2), anchors of 0.15,
    0.25 and 0.4 of the image's side, 60 proposals, and a head of 64 units on 4x4 regions.

    Args:
        name: "detector-WIDTH".
        classes: without the background.
        in_channels: of the images.
        image_size: the short side that images are brought to, in pixels, 16 or more.

    Raises:
        ValueError: a size below 16.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    match = re.fullmatch(EMBEDDED, name)
    if match is None or not int(match[1]):
        raise ValueError(f"embedded detectors are called detector-WIDTH, such as detector-16, given {name!r}")
    if image_size < 16:
        raise ValueError(f"{name} needs images of 16 pixels or more, given image_size={image_size}")
    width = int(match[1])
    widths = [in_channels, width, 2 * width, 4 * width]
    layers: list[nn.Module] = []
    for row in range(3):
        layers += [
            nn.Conv2d(widths[row], widths[row + 1], 3, 2 if row else 1, padding=1, bias=False),
            nn.BatchNorm2d(widths[row + 1]),
            nn.ReLU(),
        ]
    backbone: Any = nn.Sequential(*layers)
    backbone.out_channels = 4 * width
    anchors = tuple(round(share * image_size) for share in (0.15, 0.25, 0.4))
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * width * 16, 64), nn.ReLU())
    with quiet():
        return FasterRCNN(
            backbone,
            min_size=image_size,
            max_size=2 * image_size,
            size_divisible=4,
            image_mean=[HALF] * in_channels,
            image_std=[HALF] * in_channels,
            rpn_anchor_generator=AnchorGenerator((anchors,), ((1.0,),)),
            rpn_pre_nms_top_n_train=120,
            rpn_pre_nms_top_n_test=120,
            rpn_post_nms_top_n_train=60,
            rpn_post_nms_top_n_test=60,
            rpn_batch_size_per_image=64,
            box_roi_pool=MultiScaleRoIAlign(["0"], output_size=4, sampling_ratio=2),
            box_head=head,
            box_predictor=_Predictor(64, classes),
            box_batch_size_per_image=64,
            box_detections_per_img=20,
        )


class _Predictor(nn.Module):
    """Class scores (background first) and box deltas per class, as torchvision's detectors have them."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, classes + 1)
        self.bbox_pred = nn.Linear(features, 4 * (classes + 1))

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(R, features)` to `(R, K + 1)` and `(R, 4 (K + 1))`."""
        return self.cls_score(regions), self.bbox_pred(regions)
