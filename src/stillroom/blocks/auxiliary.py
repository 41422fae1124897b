"""Auxiliary heads: classifiers behind the stages of any network, attached by module name, for training only."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stillroom.blocks.shapes import pooled
from stillroom.blocks.stages import chained_after, default_taps, repeated_stage
from stillroom.blocks.taps import Taps
from stillroom.data.batch import Batch


class Observed(NamedTuple):
    """What a network and its auxiliary heads say of a batch.

    Attributes:
        logits: of the network itself, `(N, C)`.
        head_logits: of every head, `(N, K)`, from the first stage to the last.
        embeddings: what each head classifies by, `(N, D)`.
    """

    logits: Tensor
    head_logits: tuple[Tensor, ...]
    embeddings: tuple[Tensor, ...]


class AuxiliaryHeads(nn.Module):
    """Heads behind named modules of a network, which itself stays as it is and is not held here.

    Args:
        stages: names of modules of the network, from the first to the last, as `Taps` takes them.
        heads: as many modules, each `feature -> (logits (N, K), embedding (N, D))`.

    Raises:
        ValueError: there is none, or the numbers differ.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        >>> heads = AuxiliaryHeads(["1"], [LightHead(4, 8, outputs=12)])
        >>> [logits.shape for logits in heads.observe(network, torch.rand(2, 1, 8, 8)).head_logits]
        [torch.Size([2, 12])]
    """

    def __init__(self, stages: Sequence[str], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        if not stages or len(stages) != len(heads):
            raise ValueError(f"every stage needs one head, given {len(stages)} stages and {len(heads)} heads")
        self.stages = tuple(stages)
        self.heads = nn.ModuleList(heads)

    def __len__(self) -> int:
        return len(self.heads)

    def forward(self, features: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Classify by the features of the stages; returns the logits and the embeddings of all heads."""
        said = [head(feature) for head, feature in zip(self.heads, features, strict=True)]
        return tuple(logits for logits, _ in said), tuple(embedding for _, embedding in said)

    def observe(self, network: nn.Module, inputs: Any, *, detach_backbone: bool = False) -> Observed:
        """Run a network once and every head on the features it has on the way; no hook is left.

        Args:
            network: whose modules are named by `stages`.
            inputs: what it is called with.
            detach_backbone: let no gradient of the heads into it.
        """
        with Taps(network, self.stages) as taps:
            logits = network(inputs)
            features = [taps.features[name] for name in taps.tapped]
        return Observed(logits, *self([one.detach() for one in features] if detach_backbone else features))

    def probe(self, network: nn.Module, probe_inputs: Any) -> Observed:
        """The same in eval mode without gradients; modes, weights and buffers stay as they are.

        Args:
            network: whose modules are named by `stages`.
            probe_inputs: inputs, or a `Batch`.
        """
        modes = [(module, module.training) for module in self.modules()]
        try:
            with Taps(network, self.stages) as taps, torch.no_grad():
                logits = probed(network, probe_inputs)
                return Observed(logits, *self.eval()([taps.features[name] for name in taps.tapped]))
        finally:
            for module, training in modes:
                module.training = training


class LightHead(nn.Module):
    """Mean over positions, a linear map and ReLU to the embedding, a linear map to the logits.

    Args:
        inputs: channels of the feature: a map, tokens or a vector.
        width: D, of the embedding.
        outputs: number of logits.
    """

    def __init__(self, inputs: int, width: int, *, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())
        self.classify = nn.Linear(width, outputs)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Classify a feature."""
        embedding = self.embed(pooled(feature))
        return self.classify(embedding), embedding


class StageCopyHead(nn.Module):
    """Stages of its own, batch norm, ReLU and the mean over positions to the embedding, a linear map to the logits.

    Args:
        layers: from the feature, a map, to a map of `width` channels.
        width: D, of the embedding.
        outputs: number of logits.
    """

    def __init__(self, layers: nn.Module, width: int, *, outputs: int) -> None:
        super().__init__()
        self.layers = layers
        self.finish = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classify = nn.Linear(width, outputs)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Classify a map `(N, C, H, W)`."""
        embedding = self.finish(self.layers(feature))
        return self.classify(embedding), embedding


def light_heads(
    network: nn.Module, probe_inputs: Any, *, outputs: int, stages: Sequence[str] | None = None
) -> AuxiliaryHeads:
    """Put a light head behind every stage of any network: conv net, transformer or perceptron.

    Args:
        network: which gets the heads; left as it is.
        probe_inputs: inputs (or a `Batch`) to learn shapes from.
        outputs: number of logits of each head.
        stages: module names; None for those that `default_taps` finds.

    Raises:
        ValueError: a name that no module has, or nothing that looks like a stage.
    """
    names, features = stage_features(network, probe_inputs, stages)
    widths = [feature.shape[1 if feature.ndim != 3 else 2] for feature in features]
    heads = AuxiliaryHeads(names, [LightHead(width, widths[-1], outputs=outputs) for width in widths])
    like = next(network.parameters())
    return heads.to(like.device, like.dtype)


def stage_copy_heads(
    network: nn.Module, probe_inputs: Any, *, outputs: int, stages: Sequence[str] | None = None
) -> AuxiliaryHeads:
    """Put a head with its own copies of the remaining stages behind every stage of a conv net.

    So every head sees the full depth and down-sampling, and all embeddings have the width of the last stage. The last
    head gets one stage more, with stride 1: as many copies of those blocks of the last stage that keep the shape as
    that stage has blocks, or, where there are none, one or two 3x3 convolutions with batch norm and ReLU. Copies
    begin with weights of their own wherever a module knows how to draw them. They can hold more parameters than the
    network.

    Args:
        network: a conv net whose stages follow each other; left as it is.
        probe_inputs: inputs (or a `Batch`) to learn shapes from.
        outputs: number of logits of each head.
        stages: module names; None for those that `default_taps` finds.

    Raises:
        ValueError: a name that no module has, a stage that gives no map, or stages that do not follow each other (tried
            on the probe: the later modules, run on a stage's feature, must give the last stage's feature).
    """
    names, features = stage_features(network, probe_inputs, stages)
    for name, feature in zip(names, features, strict=True):
        if feature.ndim != 4:
            raise ValueError(
                f"stage {name!r} gives features of shape {tuple(feature.shape)}, and only maps (N, C, H, W) go through "
                "copied stages: use light heads"
            )
    width = features[-1].shape[1]
    heads = [
        StageCopyHead(nn.Sequential(*map(_fresh_copy, modules)), width, outputs=outputs)
        for modules in chained_after(network, probe_inputs, names)
    ]
    extra = nn.Sequential(*map(_fresh_copy, repeated_stage(network, probe_inputs, names[-1])))
    like = next(network.parameters())
    return AuxiliaryHeads(names, [*heads, StageCopyHead(extra, width, outputs=outputs)]).to(like.device, like.dtype)


def stage_features(
    network: nn.Module, probe_inputs: Any, stages: Sequence[str] | None = None
) -> tuple[list[str], list[Tensor]]:
    """Names of a network's stages and what they give on a probe, in eval mode without gradients.

    Args:
        network: any module.
        probe_inputs: inputs (or a `Batch`) to call it with.
        stages: module names or patterns; None for those that `default_taps` finds.
    """
    names = default_taps(network, probe_inputs) if stages is None else list(stages)
    with Taps(network, names) as taps:
        probed(network, probe_inputs)
        found = taps.features
    return list(found), list(found.values())


def probed(network: nn.Module, probe_inputs: Any) -> Tensor:
    """What a network says of a probe, in eval mode without gradients; modes, weights and buffers stay as they are."""
    modes = [(module, module.training) for module in network.modules()]
    inputs = probe_inputs.inputs if isinstance(probe_inputs, Batch) else probe_inputs
    try:
        with torch.no_grad():
            return network.eval()(inputs)
    finally:
        for module, training in modes:
            module.training = training


class WithHeads(nn.Module):
    """A network together with its auxiliary heads, as a teacher of other heads; called, it is the network.

    Args:
        network: inputs -> logits.
        heads: attached to it.
    """

    def __init__(self, network: nn.Module, heads: AuxiliaryHeads) -> None:
        super().__init__()
        self.network = network
        self.heads = heads

    def forward(self, inputs: Any) -> Tensor:
        """The network's own answer."""
        return self.network(inputs)

    def observe(self, inputs: Any) -> Observed:
        """The network's answer and those of its heads."""
        return self.heads.observe(self.network, inputs)


def _fresh_copy(module: nn.Module) -> nn.Module:
    """A copy with new weights wherever a module can draw them, every one trainable, and nothing done in place."""
    other = copy.deepcopy(module).train()
    for inner in other.modules():
        if getattr(inner, "inplace", False):
            inner.inplace = False  # type: ignore[assignment]
        if callable(reset := getattr(inner, "reset_parameters", None)):
            reset()
    for parameter in other.parameters():
        parameter.requires_grad_(True)
    return other
