"""Train a fresh network and measure it: the same way for every set of images, with nothing chosen by the test split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.blocks.models import build
from stillroom.condense.augment import DSA
from stillroom.data.augment import Augmentation, draws_of
from stillroom.data.rows import generator
from stillroom.data.samples import Samples
from stillroom.data.stream import Stream, sequential
from stillroom.task import Classification
from stillroom.training import Optim, Training

AUGMENT, MIX = 22, 23  # what a seed's random numbers are for

Network = str | Callable[[], nn.Module]
"""A name that `stillroom.blocks.build` knows, or a function that makes a fresh network of the right size."""

EVALUATION_AUGMENT = DSA(first=("flip", "color"), choose=("crop", "scale", "rotate"))
"""How the networks that are trained from condensed sets see their images."""
EVALUATION = Training(
    epochs=2000,
    batch_size=128,
    optimizer=Optim("adamw", lr=1e-3, schedule="step", milestones=(0.2, 0.4, 0.6, 0.8), gamma=0.5),
    keep="last",
)
"""How they are trained: the published settings for small images."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of a data set's channels.

    Attributes:
        mean: one value per channel.
        std: one value per channel, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, samples: Samples) -> Statistics:
        """Measure them on all samples, image by image read once."""
        count, total, squares = 0, torch.zeros(1), torch.zeros(1)
        for batch in sequential(samples, 256):
            values = batch.inputs.double().movedim(1, 0).flatten(1)
            count += values.shape[1]
            total, squares = total + values.sum(1), squares + values.square().sum(1)
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        std = torch.where(std > 1e-8, std, 1.0)
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def normalise(self, images: Tensor) -> Tensor:
        """(x - mean) / std per channel of `(N, C, H, W)`."""
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(values).to(images).view(shape) for values in (self.mean, self.std))
        return (images - mean) / std


class Normalised(nn.Module):
    """A network that is trained on normalised images, as one that takes images in [0, 1]."""

    def __init__(self, network: nn.Module, statistics: Statistics) -> None:
        super().__init__()
        self.network = network
        self.statistics = statistics

    def forward(self, images: Tensor) -> Tensor:
        """Map images in [0, 1] to logits."""
        return self.network(self.statistics.normalise(images))


@dataclass(frozen=True)
class CutMix:
    """CutMix (torchvision's) on a part of the steps.

    Attributes:
        probability: of a step to be mixed, in [0, 1].
        alpha: of the beta distribution that the area comes from, above 0.

    Source: Yun et al. 2019, arXiv:1905.04899.
    """

    probability: float = 0.5
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or not self.alpha > 0:
            raise ValueError(
                f"probability must lie in [0, 1] and alpha above 0, given {self.probability} and {self.alpha}"
            )

    def mix(self, images: Tensor, labels: Tensor, classes: int, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix a batch, or leave it; labels may become probabilities `(N, classes)`."""
        if float(torch.rand(1, generator=numbers)) >= self.probability:
            return images, labels
        from torchvision.transforms import v2

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=numbers)))
            mixed: tuple[Tensor, Tensor] = v2.CutMix(num_classes=classes, alpha=self.alpha)(images, labels)
        return mixed


CUTMIX = CutMix()


def device_of(device: str | torch.device | None) -> torch.device:
    """The device that was asked for; else an accelerator where there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def fresh_network(network: Network, samples: Samples, classes: int, seed: int) -> nn.Module:
    """Make a network with new weights that depend on the seed alone.

    Args:
        network: a name, or a function that makes one.
        samples: images that it is to take.
        classes: how many logits.
        seed: of its weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if callable(network):
            return network()
        channels, height, _ = samples.shape
        return build(network, classes=classes, in_channels=channels, image_size=height)


def train_network(
    network: nn.Module,
    samples: Samples,
    *,
    classes: int,
    training: Training = EVALUATION,
    augment: Augmentation | None = None,
    statistics: Statistics | None = None,
    cutmix: CutMix | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    after_epoch: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Train a network by cross-entropy on normalised, then augmented images, to the last step.

    Args:
        network: trained in place.
        samples: labelled by class numbers `(N,)` or probabilities `(N, classes)`.
        classes: how many there are.
        training: epochs or steps, batch size, optimizer; what else it names (averages, accumulation, precision) is not
            done here and refused.
        augment: `policy(batch, uniform)`, applied to normalised images.
        statistics: how images are normalised; None: by the samples' own.
        cutmix: mixing of batches.
        seed: of order, augmentation, mixing and dropout.
        device: None for an accelerator where there is one.
        after_epoch: called with (epochs done, network) after each epoch, and with 0 before the first.

    Returns:
        The network as one that takes images in [0, 1], in eval mode.

    Raises:
        ValueError: labels of another form, or options that this loop does not know.
    """
    _check(training, samples)
    statistics = Statistics.of(samples) if statistics is None else statistics
    where = device_of(device)
    stream = Stream(samples, batch_size=training.batch_size, seed=seed)
    steps = training.total_steps(len(stream))
    network.to(where).train()
    optimizer = training.optimizer.build(network.parameters())
    if after_epoch is not None:
        after_epoch(0, network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step, batch in enumerate(stream.batches(0, steps)):
            for group in optimizer.param_groups:
                group["lr"] = training.optimizer.rate(step, steps)
            numbers = generator(seed, AUGMENT, step)
            batch = batch.replace(inputs=statistics.normalise(batch.inputs))
            if augment is not None:
                batch = augment(batch, torch.rand(len(batch), draws_of(augment), generator=numbers))
            images, labels = batch.inputs, batch.labels
            if cutmix is not None:
                images, labels = cutmix.mix(images, labels, classes, generator(seed, MIX, step))
            loss = F.cross_entropy(network(images.to(where)), labels.to(where))
            optimizer.zero_grad()
            loss.backward()
            if training.optimizer.clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), training.optimizer.clip)
            optimizer.step()
            if after_epoch is not None and (step + 1) % len(stream) == 0:
                after_epoch((step + 1) // len(stream), network)
    return Normalised(network, statistics).eval()


def train_and_test(
    network: Network,
    samples: Samples,
    test: Samples,
    *,
    classes: int,
    training: Training = EVALUATION,
    augment: Augmentation | None = EVALUATION_AUGMENT,
    statistics: Statistics | None = None,
    cutmix: CutMix | None = CUTMIX,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> dict[str, float]:
    """Train a fresh network on a set of images and measure the last step's weights on real ones.

    Nothing is chosen by the test images: no stopping, no best epoch.

    Args:
        network: a name, or a function that makes one.
        samples: what is trained on (a `CondensedSet`'s `samples`, real ones, ...).
        test: real images to report on.
        classes: how many there are.
        training: see `train_network`.
        augment: see `train_network`.
        statistics: how images are normalised; give those of the real data, so that every set is treated alike.
        cutmix: see `train_network`.
        seed: of weights, order and augmentation: equal for the arms of a comparison.
        device: None for an accelerator where there is one.

    Returns:
        Metrics of `stillroom.task.Classification`.
    """
    fresh = fresh_network(network, samples, classes, seed)
    trained = train_network(
        fresh,
        samples,
        classes=classes,
        training=training,
        augment=augment,
        statistics=statistics,
        cutmix=cutmix,
        seed=seed,
        device=device,
    )
    return Classification().evaluate(trained, sequential(test, 512), device=device_of(device))


@torch.no_grad()
def soft_labels(samples: Samples, network: nn.Module, *, temperature: float = 1.0) -> Samples:
    """Exchange labels for what a trained network says of the images as they are: softmax(logits / T).

    Args:
        samples: images.
        network: takes images in [0, 1] (`train_network` returns such a one).
        temperature: T, above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be a number above 0, given {temperature}")
    where: Any = next(network.parameters()).device
    network.eval()
    logits = torch.cat([network(batch.inputs.to(where)).cpu() for batch in sequential(samples, 256)])
    return samples.relabel((logits / temperature).softmax(1))


def _check(training: Training, samples: Samples) -> None:
    plain = Training(epochs=1)
    for name in ("accumulate", "precision", "ema_decay", "augment", "unlabelled_batch"):
        if getattr(training, name) != getattr(plain, name):
            raise ValueError(
                f"training.{name} is {getattr(training, name)!r}, which this loop does not know: leave it out"
            )
    labels = samples.labels
    if labels is None or labels.ndim > 2 or (labels.ndim == 2) != labels.is_floating_point():
        raise ValueError("labels must be class numbers (N,) or probabilities (N, classes), given others or none")
