"""What the three forms of LSSKD share: heads and transforms, terms of the labels, heads as classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.blocks import AuxiliaryHeads, Observed, WithHeads, light_heads, stage_copy_heads
from stillroom.blocks.auxiliary import probed
from stillroom.data.batch import Batch
from stillroom.data.transforms import TransformTask, transform_task
from stillroom.losses import class_probabilities, class_scores, cross_entropy, kd_loss

HeadKind = Literal["stage-copy", "light"]


class HeadEnsemble(nn.Module):
    """Classifies by the heads instead of the network: the mean over heads and transforms of their class scores.

    Args:
        network: with its heads (`LSSKD.with_heads`, which says how to train for this).
        transforms: the ones that the heads were trained with.
        scores: "logits" sums the joint logits of each class (the parent method's code), "probabilities" sums its joint
            probabilities.

    Raises:
        ValueError: another word.
    """

    def __init__(
        self, network: WithHeads, transforms: TransformTask, *, scores: Literal["logits", "probabilities"] = "logits"
    ) -> None:
        super().__init__()
        if scores not in ("logits", "probabilities"):
            raise ValueError(f'scores must be "logits" or "probabilities", given {scores!r}')
        self.network, self.transforms, self.scores = network, transforms, scores

    def forward(self, images: Tensor) -> Tensor:
        """Score classes, `(N, C)`; of "probabilities" the logarithm, so that softmax gives them back."""
        size = len(self.transforms)
        said = self.network.observe(self.transforms.apply(images)).head_logits
        score = class_scores if self.scores == "logits" else class_probabilities
        mean = torch.stack([score(one, size).unflatten(0, (-1, size)).mean(dim=1) for one in said]).mean(dim=0)
        return mean if self.scores == "logits" else mean.log()


def supervised_terms(
    observed: Observed, labels: Tensor | None, transforms: TransformTask, joint_weight: float | None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Terms of the labels: of the network on the images as they are, and (with a weight) of the heads on all copies."""
    if labels is None:
        return {}, {}
    terms = {"label": cross_entropy(transforms.originals(observed.logits), labels)}
    if joint_weight is None:
        return terms, {}
    joint = transforms.labels(labels)
    terms["joint"] = torch.stack([cross_entropy(logits, joint) for logits in observed.head_logits]).sum()
    return terms, {"joint": joint_weight}


def between_heads(own: Observed, other: Observed, temperature: float) -> Tensor:
    """The sum over heads of the divergence from the other network's head."""
    pairs = zip(own.head_logits, other.head_logits, strict=True)
    return torch.stack([kd_loss(mine, theirs, temperature=temperature) for mine, theirs in pairs]).sum()


def transforms_for(transforms: str | TransformTask, probe: Any) -> TransformTask:
    """The transforms, tried on a probe.

    Raises:
        ValueError: they cannot be applied to such images, or the first of them changes the image.
    """
    task = transform_task(transforms) if isinstance(transforms, str) else transforms
    images = probe.inputs if isinstance(probe, Batch) else probe
    if not torch.equal(task.originals(task.apply(images)), images):
        raise ValueError(
            f"the first transform must leave images as they are, given {task.transforms[0]}: put Rotate(0) or Flip() "
            "in front"
        )
    return task


def heads_for(
    network: nn.Module,
    probe: Any,
    heads: HeadKind | AuxiliaryHeads,
    transforms: TransformTask,
    stages: Sequence[str] | None,
) -> AuxiliaryHeads:
    """Attach heads for the joint labels of a network's classes, or try those that are given.

    Raises:
        ValueError: another word, stages that are not found, given heads with other outputs, or stages beside them.
    """
    makers = {"stage-copy": stage_copy_heads, "light": light_heads}
    classes = probed(network, probe).shape[1]
    if isinstance(heads, AuxiliaryHeads):
        if stages is not None:
            raise ValueError(f"the given heads name their stages {heads.stages}, and stages={stages} too: leave it out")
        for logits in heads.probe(network, probe).head_logits:
            if logits.shape[1] != classes * len(transforms):
                raise ValueError(
                    f"a head gives {logits.shape[1]} outputs, expected {classes} classes x {len(transforms)} "
                    f"transforms = {classes * len(transforms)}"
                )
        return heads
    if heads not in makers:
        raise ValueError(f'heads must be "stage-copy", "light" or AuxiliaryHeads, given {heads!r}')
    return makers[heads](network, probe, outputs=classes * len(transforms), stages=stages)


def check_same_heads(name: str, heads: AuxiliaryHeads, own: AuxiliaryHeads) -> None:
    """Refuse networks that have not as many heads as each other."""
    if len(heads) != len(own):
        raise ValueError(
            f"{name} has {len(heads)} heads ({', '.join(heads.stages)}), but the student has {len(own)} "
            f"({', '.join(own.stages)}): each head learns from the one of its number, so name as many stages"
        )


def described(network: nn.Module, heads: AuxiliaryHeads, transforms: TransformTask) -> str:
    """Say what was attached where, and what it costs in training."""
    extra, size = (sum(p.numel() for p in module.parameters()) for module in (heads, network))
    return (
        f"heads behind {', '.join(heads.stages)}: {extra:,} parameters in training only, beside {size:,} that ship; "
        f"{len(transforms)} copies of every image per step"
    )
