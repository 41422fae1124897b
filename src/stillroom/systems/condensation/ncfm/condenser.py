"""The algorithm: synthetic images against frequencies, class by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.blocks import FrequencySampler
from stillroom.blocks.frequencies import Form
from stillroom.condense import DSA, CheckpointPairs, CutMix
from stillroom.condense.harness import CUTMIX, EVALUATION_AUGMENT, Network
from stillroom.condense.initial import Initialise, from_mixed
from stillroom.data.augment import Augmentation
from stillroom.data.condensed import CondensedSet
from stillroom.losses import characteristic_function_discrepancy
from stillroom.losses._shared import check_not_negative
from stillroom.systems.condensation.ncfm.loop import Condensation
from stillroom.training import Optim, Training

Matching = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(synthetic features, real features, frequencies) -> scalar`."""

PRETRAINING = Training(
    epochs=60,
    batch_size=128,
    optimizer=Optim(
        "sgd", lr=0.01, momentum=0.9, weight_decay=5e-4, schedule="step", milestones=(2 / 3, 5 / 6), gamma=0.2
    ),
    keep="last",
)
MATCHING_AUGMENT = DSA(first=("color",), choose=("crop",), last=("cutout",))
IMAGE_OPTIMIZER = partial(torch.optim.AdamW, lr=1e-3, weight_decay=5e-4)
SAMPLER_OPTIMIZER = partial(torch.optim.SGD, lr=1e-3, momentum=0.5)


def matching_loss(
    synthetic_features: Tensor,
    real_features: Tensor,
    frequencies: Tensor,
    *,
    amplitude_weight: float = 0.5,
    phase_weight: float = 0.5,
    scale: float = 300.0,
) -> Tensor:
    """The discrepancy of two samples' characteristic functions, their rows normalised to length 1, times a scale.

    Args:
        synthetic_features: `(N, D)`.
        real_features: `(M, D)`; receives no gradient.
        frequencies: `(K, D)`.
        amplitude_weight: see `stillroom.losses.characteristic_function_discrepancy`.
        phase_weight: see there.
        scale: 0 or more.

    Returns:
        A scalar.
    """
    check_not_negative(scale=scale)
    return scale * characteristic_function_discrepancy(
        F.normalize(synthetic_features, dim=1),
        F.normalize(real_features, dim=1),
        frequencies,
        amplitude_weight=amplitude_weight,
        phase_weight=phase_weight,
    )


class NCFM:
    """Condenses a labelled image data set into `images_per_class` stored images of each class.

    Every iteration blends the initial and final weights of one of several pretrained networks; then, class by class,
    real and synthetic images pass the same random augmentation and that network, and the images lower the discrepancy
    of their features' characteristic functions while the frequency sampler raises it. A calibration follows: the
    images lower the cross-entropy of the pretrained network itself. Networks are only read.

    An own loop and no `Method`: what is trained is data, and each iteration visits all classes.

    Args:
        network: a name that `stillroom.blocks.build` knows, or a function that makes a fresh network whose last linear
            layer gives the logits. It is given normalised images.
        images_per_class: stored images of each class, 1 or more.
        factor: tiles per side of a stored image, 1 or more; each decodes to factor^2 training images.
        initialise: how the images begin: `stillroom.condense.from_mixed`, `from_real` or `from_noise`.
        iterations: passes over all classes, 0 or more.
        real_batch: real images of a class per step; all of them where there are fewer.
        matching: the discrepancy; `matching_loss` or a partial of it for other weights.
        matching_weight: 0 or more; 0 leaves matching out.
        calibration_weight: 0 or more; 0 leaves calibration out.
        frequencies: how many there are per step; for a learned sampler a multiple of 16, 32 or more.
        learned_frequencies: train a sampler; False draws standard normal frequencies.
        sampler_form: see `stillroom.blocks.FrequencySampler`.
        layers: names of modules whose outputs are matched, summed, instead of the features before the last linear layer
            (the authors do so for networks deeper than five blocks, with normal frequencies).
        pretrained: how many networks are trained first, 1 or more.
        pretraining: how.
        pretraining_augment: what they see.
        cutmix: mixing of their batches; None for none.
        augment: of real and synthetic images together.
        image_optimizer: `parameters -> optimizer`; one for all images, stepped once per class.
        sampler_optimizer: the same for the sampler.
        plateau_factor: what the learning rate of the images is multiplied by when the loss no longer falls.
        plateau_patience: iterations that are waited for that.
        seed: of everything random.
        device: None for an accelerator where there is one.

    Raises:
        ValueError: a number out of range, or a sampler beside named layers.

    Source: Wang et al. 2025, arXiv:2502.20653; defaults as in its table for CIFAR-10 (1024 frequencies; the shipped
        configurations have 4096 normal ones).

    Example:
        >>> images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 2  # yours
        >>> network = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> short = Training(epochs=1, batch_size=20)
        >>> ncfm = NCFM(network, images_per_class=1, iterations=2, frequencies=32, pretrained=1, pretraining=short)
        >>> condensed = ncfm.condense((images, labels), progress=False)
        >>> condensed.images.shape, len(condensed)
        (torch.Size([2, 1, 8, 8]), 8)
    """

    def __init__(
        self,
        network: Network = "convnet-3-128",
        *,
        images_per_class: int = 10,
        factor: int = 2,
        initialise: Initialise = from_mixed,
        iterations: int = 20000,
        real_batch: int = 1024,
        matching: Matching = matching_loss,
        matching_weight: float = 1.0,
        calibration_weight: float = 1.0,
        frequencies: int = 1024,
        learned_frequencies: bool = True,
        sampler_form: Form = "mixture",
        layers: Sequence[str] = (),
        pretrained: int = 20,
        pretraining: Training = PRETRAINING,
        pretraining_augment: Augmentation | None = EVALUATION_AUGMENT,
        cutmix: CutMix | None = CUTMIX,
        augment: DSA = MATCHING_AUGMENT,
        image_optimizer: Callable[..., torch.optim.Optimizer] = IMAGE_OPTIMIZER,
        sampler_optimizer: Callable[..., torch.optim.Optimizer] = SAMPLER_OPTIMIZER,
        plateau_factor: float = 0.5,
        plateau_patience: int = 500,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        wholes = {"images_per_class": images_per_class, "factor": factor, "real_batch": real_batch}
        for name, value in (wholes | {"frequencies": frequencies, "pretrained": pretrained}).items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, given {value}")
        if iterations < 0 or seed < 0:
            raise ValueError(f"iterations and seed must be 0 or more, given {iterations} and {seed}")
        check_not_negative(matching_weight=matching_weight, calibration_weight=calibration_weight)
        if matching_weight == 0 and calibration_weight == 0 and iterations:
            raise ValueError("matching_weight and calibration_weight are both 0: use iterations=0 to keep the images")
        if layers and learned_frequencies:
            raise ValueError("named layers are matched at normal frequencies: pass learned_frequencies=False")
        if learned_frequencies:
            FrequencySampler(1, frequencies=frequencies, form=sampler_form)  # checks both
        self.network, self.images_per_class, self.factor, self.initialise = (
            network,
            images_per_class,
            factor,
            initialise,
        )
        self.iterations, self.real_batch, self.frequencies = iterations, real_batch, frequencies
        self.matching, self.matching_weight = matching, matching_weight
        self.calibration_weight, self.learned_frequencies = calibration_weight, learned_frequencies
        self.sampler_form, self.layers = sampler_form, tuple(layers)
        self.pretrained, self.pretraining, self.pretraining_augment = pretrained, pretraining, pretraining_augment
        self.cutmix, self.augment = cutmix, augment
        self.image_optimizer, self.sampler_optimizer = image_optimizer, sampler_optimizer
        self.plateau_factor, self.plateau_patience = plateau_factor, plateau_patience
        self.seed, self.device = seed, device

    def condense(
        self,
        data: Any,
        *,
        pairs: CheckpointPairs | None = None,
        folder: str | Path | None = None,
        resume: bool = False,
        checkpoint_every: int = 100,
        progress: bool = True,
    ) -> CondensedSet:
        """Make the condensed set.

        Args:
            data: `Splits` or whatever `stillroom.data.load_data` takes (its training part is used), `Samples`, or
                arrays `(X, y)`, which are used whole.
            pairs: pretrained networks, instead of training some first.
            folder: where pretrained networks and checkpoints go; None keeps nothing on disk.
            resume: go on from the folder's last checkpoint where there is one, to the same images bit for bit.
            checkpoint_every: iterations between two checkpoints.
            progress: show a bar, or plain lines where the output is no terminal.

        Returns:
            The images, clamped to [0, 1], in the order of their classes.

        Raises:
            FileExistsError: the folder holds a checkpoint and `resume` is not set.
            ValueError: data that cannot be condensed, or a checkpoint of other options.
            KeyboardInterrupt: after the running iteration; with a folder it can be resumed.
        """
        return Condensation(self, data, pairs, folder, resume).run(checkpoint_every, progress)

    def options(self) -> dict[str, str]:
        """The options in words, to recognise a checkpoint's."""
        return {name: _named(value) for name, value in vars(self).items() if name != "device"}


def _named(value: Any) -> str:
    if isinstance(value, partial):
        return f"{_named(value.func)}({value.args}, {value.keywords})"
    return getattr(value, "__qualname__", None) or repr(value)
