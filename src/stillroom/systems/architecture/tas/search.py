"""The search: weights and architecture as two players, each with its own half of the training data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.search import (
    ResNetShape,
    SearchableResNet,
    cost_loss,
    full_shape,
    shape_cost,
    temperature_at,
)
from stillroom.checkpoint import seed_everything
from stillroom.data.batch import Batch
from stillroom.data.samples import Samples
from stillroom.fit import fit
from stillroom.losses import cross_entropy
from stillroom.losses._shared import check_not_negative
from stillroom.method import Losses, Method, Needs
from stillroom.training import Optim, Training

ARCHITECTURE_OPTIM = Optim("adam", lr=1e-3, betas=(0.5, 0.999), weight_decay=1e-3, schedule="constant")
"""What the paper trains the architecture's logits with."""


class TAS(Method):
    """Searches widths and depths of a residual network.

    Each step has two turns: "weights" learns from the batch it is given, "architecture" from a batch of other samples,
    with a cost loss; both with fresh draws.

    Args:
        network: holds all candidates; it is also what evaluation sees, as the network that would be derived now.
        teacher: taken and ignored, so that it is built like every method.
        architecture_data: the other half of the training data; disjoint from what the weights see.
        target: share of the full network's cost, in (0, 1].
        tolerance: share of the full cost below the target that is fine, 0 or more.
        cost_weight: lambda, 0 or more.
        highest_temperature: of the draws, at the start.
        lowest_temperature: at the end.
        seed: of the architecture's batches.

    Losses:
        label: cross-entropy of the player's batch.
        cost: `stillroom.blocks.search.cost_loss`; the architecture's only.

    Attributes:
        within: logits of the latest architecture whose derived cost was within tolerance; None before there is one.

    Source: Dong and Yang 2019, arXiv:1905.09717, algorithm 1.
    """

    needs = Needs(
        labels="every",
        teacher=False,
        index=True,
        whole_batch="every step draws one architecture for the whole batch",
    )
    may_be_negative = ("cost",)

    def __init__(
        self,
        network: SearchableResNet,
        teacher: Any = None,
        *,
        architecture_data: Samples,
        target: float = 0.5,
        tolerance: float = 0.05,
        cost_weight: float = 2.0,
        highest_temperature: float = 5.0,
        lowest_temperature: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(network)
        if not isinstance(network, SearchableResNet):
            raise TypeError(f"network must be a SearchableResNet, given {type(network).__name__}")
        if not 0 < target <= 1:
            raise ValueError(f"target is a share of the full network's cost, in (0, 1], given {target}")
        check_not_negative(tolerance=tolerance, cost_weight=cost_weight)
        if not 0 < lowest_temperature <= highest_temperature:
            raise ValueError(
                f"temperatures must be above 0 and fall, given {highest_temperature} to {lowest_temperature}"
            )
        self.architecture_data = architecture_data
        full = full_shape(network.widths, network.count, in_channels=network.in_channels, classes=network.classes)
        self.full_cost = shape_cost(full, network.side)
        self.target, self.tolerance = target * self.full_cost, tolerance * self.full_cost
        self.cost_weight = cost_weight
        self.highest_temperature, self.lowest_temperature = highest_temperature, lowest_temperature
        self.seed = seed
        self.register_buffer("kept", torch.tensor(False))
        self.register_buffer("kept_widths", network.width_logits.detach().clone())
        self.register_buffer("kept_depths", network.depth_logits.detach().clone())

    @property
    def network(self) -> SearchableResNet:
        """The network that holds all candidates."""
        return self.student  # type: ignore[return-value]

    def players(self) -> dict[str, list[nn.Parameter]]:
        """Weights and architecture, apart."""
        return {"weights": self.network.weights(), "architecture": self.network.architecture()}

    def forward(self, batch: Batch) -> Losses:
        """Return the weights' loss on a batch."""
        if batch.labels is None or not len(batch):
            raise ValueError("a search learns from labelled samples, but this batch has no samples or no labels")
        logits = self.student(batch.inputs)
        return Losses(label=cross_entropy(logits, batch.labels), outputs=logits)

    def turns(self, batch: Batch) -> Iterator[tuple[str, Losses]]:
        """The weights take the batch, the architecture one of its own."""
        self.network.temperature = temperature_at(
            min(self.clock.progress, 1.0), highest=self.highest_temperature, lowest=self.lowest_temperature
        )
        if batch.index is not None and bool(torch.isin(batch.index.cpu(), self.architecture_data.index).any()):
            raise ValueError(
                "some samples are in the weights' data and in the architecture's: cut the training data in two first"
            )
        yield "weights", self(batch)
        other = self.draw(len(batch)).to(batch.inputs.device)
        yield "architecture", self.architecture_losses(other.replace(inputs=other.inputs.to(batch.inputs.dtype)))

    def architecture_losses(self, batch: Batch) -> Losses:
        """Return the architecture's losses on a batch."""
        logits = self.student(batch.inputs)
        derived = shape_cost(self.network.derived_shape(), self.network.side)
        cost = cost_loss(self.network.expected_cost(), derived, target=self.target, tolerance=self.tolerance)
        label = cross_entropy(logits, batch.labels)  # type: ignore[arg-type]
        return Losses(label=label, cost=cost, weights={"cost": self.cost_weight}, outputs=logits)

    def draw(self, size: int) -> Batch:
        """The architecture's batch of this step: the same in a run that is resumed."""
        chosen = torch.Generator().manual_seed(hash((self.seed, self.clock.step)) % 2**63)
        return self.architecture_data.batch(torch.randint(len(self.architecture_data), (size,), generator=chosen))

    @torch.no_grad()
    def after_step(self, player: str) -> None:
        """Remember an architecture whose cost is right."""
        if player != "architecture":
            return
        cost = shape_cost(self.network.derived_shape(), self.network.side)
        if self.target - self.tolerance <= cost <= self.target:
            self.kept.fill_(True)  # type: ignore[operator]
            self.kept_widths.copy_(self.network.width_logits)  # type: ignore[operator]
            self.kept_depths.copy_(self.network.depth_logits)  # type: ignore[operator]

    @property
    def within(self) -> tuple[Tensor, Tensor] | None:
        """Width and depth logits of the latest architecture within tolerance."""
        return (self.kept_widths, self.kept_depths) if bool(self.kept) else None  # type: ignore[arg-type, return-value]

    @torch.no_grad()
    def derive(self) -> ResNetShape:
        """The shape that was found: the latest one within tolerance of the target, else the last one."""
        if self.within is None:
            return self.network.derived_shape()
        now = [logits.clone() for logits in self.network.architecture()]
        for logits, kept in zip(self.network.architecture(), self.within, strict=True):
            logits.copy_(kept)
        try:
            return self.network.derived_shape()
        finally:
            for logits, before in zip(self.network.architecture(), now, strict=True):
                logits.copy_(before)


def search(
    network: SearchableResNet,
    samples: Samples,
    *,
    target: float = 0.5,
    tolerance: float = 0.05,
    cost_weight: float = 2.0,
    training: Training | None = None,
    architecture: Optim = ARCHITECTURE_OPTIM,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
) -> ResNetShape:
    """Cut the samples in two, search, and return the shape that was found; build it with `ShapedResNet(shape)`.

    Args:
        network: holds all candidates.
        samples: labelled training samples.
        target: share of the full network's cost, in (0, 1].
        tolerance: share of the full cost below the target that is fine.
        cost_weight: of the cost loss, 0 or more.
        training: of the weights; 600 epochs of SGD, as the paper trains, when not given.
        architecture: the optimizer of the architecture's logits.
        seed: of the cut, the orders and the draws.
        folder: where checkpoints go; None keeps nothing.
        resume: go on from the folder's checkpoint.
        device: None for the machine's own choice.

    Source: Dong and Yang 2019, arXiv:1905.09717, algorithm 1.

    Example:
        >>> from stillroom.data.samples import TensorSamples
        >>> samples = TensorSamples(torch.rand(32, 1, 8, 8), torch.arange(32) % 4)
        >>> network = SearchableResNet((8, 16), 2, in_channels=1, classes=4, side=8)
        >>> shape = search(network, samples, target=0.6, training=Training(steps=3, batch_size=8))
        >>> len(shape.stages), shape.classes
        (2, 4)
    """
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    half = len(samples) // 2
    if not half:
        raise ValueError(f"a search needs two samples or more, one for each player, given {len(samples)}")
    method = TAS(
        network,
        architecture_data=samples.subset(order[half:]),
        target=target,
        tolerance=tolerance,
        cost_weight=cost_weight,
        seed=seed,
    )
    sgd = Optim("sgd", lr=0.1, momentum=0.9, weight_decay=5e-4)
    training = training or Training(epochs=600, batch_size=256, optimizer=sgd)
    training = replace(training, players={**training.players, "architecture": architecture}, keep="last")
    seed_everything(seed)
    fit(
        method,
        samples.subset(order[:half]),
        training,
        seed=seed,
        folder=folder,
        resume=resume,
        device=device,
        progress=False,
        trackers=(),
    )
    return method.derive()
