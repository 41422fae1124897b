"""The recipe on digit scenes, and the paper's own settings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from stillroom import hub
from stillroom.baselines import Alone
from stillroom.checkpoint import seed_everything
from stillroom.data import Splits, digit_scenes, load_data, sequential
from stillroom.data.batch import Batch
from stillroom.data.cluttered import SMALL_AREA
from stillroom.data.samples import Samples
from stillroom.data.views import StrongView
from stillroom.experiment.arm import Context
from stillroom.experiment.claim import Claim
from stillroom.experiment.run import Experiment
from stillroom.fit import fit
from stillroom.method import Method
from stillroom.systems.detection.lpld.method import LPLD, EqualWeights, Shuffled
from stillroom.task import Detection, Measured, recall_at_precision, score_boxes
from stillroom.training import Optim, Training

_trained: dict[tuple[Any, ...], nn.Module] = {}


def digits_source(
    seed: int, *, detector: str = "detector-12", images: int = 300, steps: int = 300, device: str | None = None
) -> nn.Module:
    """Train a detector on the source domain of the digit scenes; kept in memory, so that all arms of a seed share it.

    Args:
        seed: of scenes, weights and order.
        detector: an embedded one.
        images: scenes of the source domain.
        steps: of AdamW over batches of 8.
        device: None for the machine's own choice.
    """
    key = (seed, detector, images, steps)
    if key not in _trained:
        _trained.clear()
        source = digit_scenes(train=images, test=1, seed=seed)
        seed_everything(seed)
        network = hub.load(detector, classes=len(source.classes or ()), channels=1, image_size=source.train.shape[-1])
        training = Training(steps=steps, batch_size=8, optimizer=Optim("adamw", lr=4e-3, weight_decay=1e-3))
        task = Detection()
        _trained[key] = fit(
            Alone(network, task=task), source.train, training, task=task, seed=seed, device=device, progress=False
        ).product
    return copy.deepcopy(_trained[key]).requires_grad_(True)


def adapt(
    seed: int,
    context: Context,
    *,
    method: Callable[[nn.Module], Method] | None,
    source: Callable[..., nn.Module],
    target: Callable[[int], Splits],
    training: Training,
    precision: float = 0.5,
    small: float = SMALL_AREA,
) -> dict[str, float]:
    """Adapt a source detector to unlabelled images of the target domain, and measure it on the target's test images.

    Args:
        seed: of source, images and order.
        context: device, and whether it is a test.
        method: from a detector to a method that needs no labels; None measures the source detector as it is.
        source: `(seed, device=) -> detector`.
        target: `seed -> Splits`, with labels that only the measurement looks at.
        training: of the adaptation.
        precision: at which recall is measured.
        small: objects of a smaller area in square pixels are small.

    Returns:
        `map_50`, `map`, `recall_small` and `recall_all` (at that precision) on the test images; for methods that mine
        uncertain proposals also what `mined` says.
    """
    splits = target(seed)
    network = source(seed, device=context.device)
    found: dict[str, float] = {}
    if method is not None:
        seed_everything(seed)
        built = method(network)
        if isinstance(built, LPLD) and built.scale:
            found |= mined(built, splits.train)
        fitted = fit(
            built,
            splits.train.relabel(None),
            training.change(steps=2) if context.tiny else training,
            task=Detection(),
            seed=seed,
            device=context.device,
            workers=context.workers,
            folder=context.folder,
            resume=context.resume,
            trackers=(),
            progress=False,
        )
        network = fitted.product
        context.extra.update(steps=fitted.steps, train_seconds=round(fitted.seconds, 3), terms=fitted.terms)
    return measured(network.eval(), splits.test, precision=precision, small=small) | found


@torch.no_grad()
def measured(network: nn.Module, samples: Samples, *, precision: float, small: float) -> dict[str, float]:
    """Average precision, and recall of small and of all objects at a precision."""
    said: list[dict[str, torch.Tensor]] = []
    truth: list[dict[str, torch.Tensor]] = []
    device = next(network.parameters()).device
    for batch in sequential(samples, 64):
        outputs = network(batch.to(device).inputs)
        said += [{key: value.cpu() for key, value in one.items()} for one in outputs]
        truth += list(batch.labels)
    scores = score_boxes(said, truth)
    return {
        "map_50": scores["map_50"],
        "map": scores["map"],
        "recall_small": recall_at_precision(said, truth, precision=precision, largest_area=small),
        "recall_all": recall_at_precision(said, truth, precision=precision),
    }


@torch.no_grad()
def mined(method: LPLD, samples: Samples) -> dict[str, float]:
    """What the teacher mines before it is adapted, against the true boxes, which it does not see.

    Returns:
        `mined_images`: share of images with an uncertain proposal; `mined_per_image`; `mined_precision`: share of them
        whose refined box has an overlap of half or more with an object; `mined_lift`: that minus the same share of all
        proposals that no confident box covers.
    """
    from torchvision.ops import box_iou

    counts: list[int] = []
    right, others = [], []
    device = next(method.average.parameters()).device
    for batch in sequential(samples, 16):
        batch = batch.to(device)
        confident, boxes, taught, sizes = method.ask_teacher(batch.inputs)
        targets = _in_prepared(batch, sizes)
        found = method.mine(taught, boxes, confident, sizes)
        for mine, sure, true in zip(found, confident, targets, strict=True):
            overlap = box_iou(mine.refined_boxes, true).amax(1) if len(true) else mine.refined_boxes.new_zeros(0)
            if not len(overlap) or not len(sure["boxes"]):
                counts.append(0)
                continue
            free = box_iou(mine.refined_boxes, sure["boxes"]).amax(1) <= method.mining["iou"]
            counts.append(len(mine.kept))
            right.append((overlap[mine.kept] >= 0.5).double())
            others.append((overlap[free] >= 0.5).double())
    any_mined = sum(counts) > 0
    hits, chance = (float(torch.cat(part).mean()) if any_mined else 0.0 for part in (right, others))
    return {
        "mined_images": sum(count > 0 for count in counts) / len(counts),
        "mined_per_image": sum(counts) / len(counts),
        "mined_precision": hits,
        "mined_lift": hits - chance,
    }


def _in_prepared(batch: Batch, sizes: list[Any]) -> list[torch.Tensor]:
    from stillroom.blocks.detection import rescale_boxes

    return [
        rescale_boxes(target["boxes"], image.shape[-2:], size)
        for image, target, size in zip(batch.inputs, batch.labels, sizes, strict=True)
    ]


def _shifted(seed: int, *, images: int, test_size: int) -> Splits:
    return digit_scenes(train=images, test=test_size, shifted=True, seed=seed, test_seed=seed)


def _experiment(
    source: Callable[..., nn.Module],
    target: Callable[[int], Splits],
    training: Training,
    common: dict[str, Any],
    *,
    ablations: bool,
    title: str,
    question: str,
    seeds: int,
    small: float = SMALL_AREA,
) -> Experiment:
    run = partial(adapt, source=source, target=target, training=training, small=small)
    arms: dict[str, Any] = {
        "source": partial(run, method=None),
        "mean-teacher": partial(run, method=partial(LPLD, **{**common, "scale": 0.0})),
        "lpld": partial(run, method=partial(LPLD, **common)),
    }
    claims = [
        Claim("mean-teacher", ">", "source", on="map_50"),
        Claim("lpld", ">", "mean-teacher", on="recall_small"),
        Claim("lpld", ">", "mean-teacher", on="map_50", by=-0.01),
    ]
    if ablations:
        lower = {**common, "scale": 0.0, "confident": common["confident"] - 0.2}
        arms |= {
            "lower-threshold": partial(run, method=partial(LPLD, **lower)),
            "equal-weights": partial(run, method=partial(EqualWeights, **common)),
            "shuffled": partial(run, method=partial(Shuffled, **common)),
        }
        claims += [
            Claim("lpld", ">", "lower-threshold", on="recall_small"),
            Claim("lpld", ">", "shuffled", on="recall_small"),
            Claim("shuffled", "<", "mean-teacher", on="recall_small", by=-0.01),
            Claim("lpld", ">", 0.5, on="mined_images", text="Most images have an uncertain proposal to learn from."),
            Claim("lpld", ">", 0.0, on="mined_lift", text="Mined proposals are objects more often than others are."),
        ]
    return Experiment(
        task=Measured("recall_small"),
        arms=arms,
        baseline="source",
        controls=("shuffled",) if ablations else (),
        rivals=("mean-teacher", *(("lower-threshold", "equal-weights") if ablations else ())),
        claims=claims,
        title=title,
        question=question,
        seeds=seeds,
    )


def recipe(
    *,
    detector: str = "detector-12",
    source_images: int = 300,
    source_steps: int = 250,
    images: int = 40,
    epochs: float = 3,
    batch_size: int = 1,
    lr: float = 1e-3,
    test_size: int = 200,
    confident: float = 0.5,
    foreground: float = 0.6,
    scale: float = 3.0,
) -> Experiment:
    """Does a detector that moves to another light find more small digits when it learns from what it is unsure of?

    A small Faster R-CNN is trained on bright digits, then adapted to unlabelled scenes of lower contrast, blurred and
    noisier, in which every other digit is much smaller. Recall of those is taken at a precision of one half.

    Settings were chosen on other seeds: the confident score by both mean teacher and LPLD (100 and 101), the learning
    rate by the mean teacher alone (100 to 102), the scale by LPLD (100 and 101, where it found more small digits than
    the mean teacher). The small detector is less sure of its classes than a large one and its features move less, so
    the scores are lower and the scale is thirty times larger than in the paper; erased patches are smaller, as the
    scenes are. The lower threshold (by 0.2) asks whether bolder boxes alone do the same.

    What was seen on the reported seeds: the gain did not come back. LPLD finds fewer small digits than bolder boxes do,
    and not more than the mean teacher; uncertain proposals are there in four of ten images only, and a fifth of them
    lie on digits. Without the weights they ruin the detector.

    Args:
        detector: an embedded detector.
        source_images: scenes it is trained on first, with boxes.
        source_steps: steps of that training.
        images: unlabelled scenes it is adapted to.
        epochs: passes over those; the teacher follows at the end of each.
        batch_size: scenes per step; 1 as in the paper.
        lr: of SGD, constant.
        test_size: scenes of the target domain that are reported.
        confident: score of a confident box, 0.2 or more; 0.7 in the paper.
        foreground: least probability of an uncertain proposal's class; 0.9 in the paper.
        scale: of the distillation term; 0.1 in the paper.
    """
    common: dict[str, Any] = {
        "confident": confident,
        "foreground": foreground,
        "scale": scale,
        "strong_view": StrongView(blur_sigma=(0.1, 0.8), erasings=((0.5, (0.02, 0.06), (0.5, 2.0)),)),
    }
    sgd = Optim("sgd", lr=lr, weight_decay=1e-4, schedule="constant")
    return _experiment(
        partial(digits_source, detector=detector, images=source_images, steps=source_steps),
        partial(_shifted, images=images, test_size=test_size),
        Training(epochs=epochs, batch_size=batch_size, optimizer=sgd, keep="last"),
        common,
        ablations=True,
        title="Low-confidence pseudo label distillation (LPLD) on digit scenes",
        question=(
            f"A {detector}, trained on {source_images} scenes of bright digits, is adapted to {images} unlabelled "
            "scenes under another light with smaller digits."
        ),
        seeds=5,
    )


def paper(
    data: Any = "foggy-cityscapes",
    *,
    detector: str = "detectors/cityscapes",
    epochs: float = 10,
    lr: float = 1e-3,
) -> Experiment:
    """Cityscapes to Foggy Cityscapes (8 classes): 10 epochs, batch 1, SGD 1e-3, teacher followed once per epoch.

    The numbers of the paper's tables could not be had; source only and the mean teacher run beside it, by the same
    code. A ResNet-50 takes about a day on one GPU.

    Args:
        data: images of the target domain with boxes for the measurement, as a COCO folder (train, test), or any
            detection data.
        detector: a detector trained on the source domain: a folder written by `stillroom.hub.save`, file.py:function
            (which loads its own weights), or another model name.
        epochs: passes over the target's training images.
        lr: of SGD, constant.
    """
    sgd = Optim("sgd", lr=lr, weight_decay=1e-4, schedule="constant")
    return _experiment(
        partial(_given_source, detector=detector, data=data),
        partial(_given_target, data=data),
        Training(epochs=epochs, batch_size=1, optimizer=sgd, keep="last"),
        {},
        ablations=False,
        title="Low-confidence pseudo label distillation (LPLD), Cityscapes to Foggy Cityscapes",
        question=f"{detector}, trained on another domain, is adapted to the unlabelled images of {data}.",
        seeds=3,
        small=32.0**2,
    )


def _given_target(seed: int, *, data: Any) -> Splits:
    return load_data(data, task="detection", validation_share=0.0)


def _given_source(seed: int, *, detector: str, data: Any, device: str | None = None) -> nn.Module:
    splits = _given_target(seed, data=data)
    network = hub.load(detector, classes=len(splits.classes or ()), channels=splits.train.shape[0])
    return network.to(device) if device else network
