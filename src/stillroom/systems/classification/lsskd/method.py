"""LSSKD in its three forms: by itself, from a teacher that has heads too, and together with another network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.blocks import AuxiliaryHeads, Frozen, Observed, WithHeads
from stillroom.data.batch import Batch
from stillroom.data.transforms import TransformTask
from stillroom.losses import kd_loss, layered_feature_loss, layered_kd_loss, marginal_kd_loss
from stillroom.losses._shared import check_not_negative, check_positive
from stillroom.losses.layers import TeacherStage, check_same_width, teacher_stages
from stillroom.method import Losses, Method, Needs
from stillroom.online import OnlineDistillation
from stillroom.systems.classification.lsskd.heads import (
    HeadKind,
    between_heads,
    check_same_heads,
    described,
    heads_for,
    supervised_terms,
    transforms_for,
)


class LSSKD(Method):
    """Trains a network by its labels, by joint labels of class and transform behind every stage, and by itself.

    Heads behind the stages must say class and transform (rotation) of transformed copies of every image; each also
    learns from the head behind it. The heads are left out of what ships.

    Args:
        student: images `(N, channels, H, W)` -> logits `(N, C)`.
        teacher: there is none; anything but None is refused (see `TaughtLSSKD` and `MutualLSSKD`).
        probe: images, or a batch of them, to learn shapes from; two are enough.
        stages: module names of the stages; None for those that `stillroom.blocks.default_taps` finds.
        heads: "stage-copy" (own copies of the remaining stages, for conv nets), "light" (mean and two linear maps, for
            any network), or `AuxiliaryHeads` of your own with C times M outputs.
        transforms: "rotations", "flips", "channels" or a `TransformTask` of M transforms, the first without effect.
        temperature: T of all divergences, above 0.
        joint_weight: of the joint labels, 0 or more.
        kd_weight: of the divergences between stages, 0 or more (unconfirmed).
        feature_weight: of the squared differences between stages' embeddings, 0 or more (unconfirmed).
        main_weight: of the divergence of the network from its deepest head's class probabilities, 0 or more
            (unconfirmed, off).
        teacher_stage: whether a head learns from the "next" or the "last" one (unconfirmed).
        detach_backbone: let no gradient of the heads into the network.

    Losses:
        label: cross-entropy of the untransformed images.
        joint: the sum over heads of the cross-entropy with the joint labels.
        stages: `layered_kd_loss` of the heads; with two heads or more.
        features: `layered_feature_loss` of their embeddings; likewise, where its weight is not 0.
        main: `marginal_kd_loss`, where its weight is not 0.

    Source: Dahri et al. 2025, arXiv:2506.07055; Yang et al. 2021, arXiv:2107.13715.

    Example:
        >>> from stillroom.blocks import build
        >>> images, labels = torch.rand(8, 1, 8, 8), torch.arange(8) % 3
        >>> method = LSSKD(build("conv-4-8", classes=3, in_channels=1, image_size=8), probe=images)
        >>> optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
        >>> method(Batch(images, labels)).total.backward()
        >>> optimizer.step()
        >>> method.product(images).shape
        torch.Size([8, 3])
    """

    needs = Needs(labels="some", teacher=False, takes_teacher=False, features=True)

    def __init__(
        self,
        student: nn.Module,
        teacher: None = None,
        *,
        probe: Any,
        stages: Sequence[str] | None = None,
        heads: HeadKind | AuxiliaryHeads = "stage-copy",
        transforms: str | TransformTask = "rotations",
        temperature: float = 3.0,
        joint_weight: float = 1.0,
        kd_weight: float = 1.0,
        feature_weight: float = 0.1,
        main_weight: float = 0.0,
        teacher_stage: TeacherStage = "next",
        detach_backbone: bool = False,
    ) -> None:
        if teacher is not None:
            raise ValueError(
                f"LSSKD is its own teacher, given a {type(teacher).__name__} as teacher: leave it out, or take "
                "TaughtLSSKD (a trained teacher with heads) or MutualLSSKD (two networks that train together)"
            )
        super().__init__(student)
        check_positive(temperature=temperature)
        check_not_negative(
            joint_weight=joint_weight, kd_weight=kd_weight, feature_weight=feature_weight, main_weight=main_weight
        )
        self.transforms = transforms_for(transforms, probe)
        self.heads = heads_for(student, probe, heads, self.transforms, stages)
        teacher_stages(len(self.heads), teacher_stage)
        if feature_weight:
            check_same_width(self.heads.probe(student, probe).embeddings)
        self.temperature, self.joint_weight, self.kd_weight = temperature, joint_weight, kd_weight
        self.feature_weight, self.main_weight = feature_weight, main_weight
        self.teacher_stage: TeacherStage = teacher_stage
        self.detach_backbone = detach_backbone

    def forward(self, batch: Batch) -> Losses:
        """Return the terms of a batch; images and heads are run once, on all transformed copies."""
        images = self.transforms.apply(batch.inputs)
        observed = self.heads.observe(self.student, images, detach_backbone=self.detach_backbone)
        return self.losses_of(observed, batch.labels)

    def losses_of(self, observed: Observed, labels: Tensor | None) -> Losses:
        """The terms of what network and heads said of transformed images `(N M, ...)`.

        Args:
            observed: logits `(N M, C)`, of every head `(N M, C M)`, embeddings `(N M, D)`, image by image.
            labels: `(N,)` of the images, -100 for none; None leaves the terms of the labels out.
        """
        terms, weights = supervised_terms(observed, labels, self.transforms, self.joint_weight)
        outputs = self.transforms.originals(observed.logits)
        if len(observed.head_logits) > 1:
            terms["stages"], weights["stages"] = self.stage_loss(observed.head_logits), self.kd_weight
            if self.feature_weight:
                terms["features"], weights["features"] = self.feature_loss(observed.embeddings), self.feature_weight
        if self.main_weight:
            deepest = self.transforms.originals(observed.head_logits[-1])
            terms["main"] = marginal_kd_loss(outputs, deepest, temperature=self.temperature)
            weights["main"] = self.main_weight
        if not terms:
            raise ValueError("a single head learns from labels alone, and this batch has none: give labels")
        return Losses(outputs=outputs, weights=weights, **terms)

    def stage_loss(self, head_logits: Sequence[Tensor]) -> Tensor:
        """Divergence of every head from the one it learns from."""
        return layered_kd_loss(head_logits, teacher_stage=self.teacher_stage, temperature=self.temperature)

    def feature_loss(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Squared difference of every head's embedding from the one it learns from."""
        return layered_feature_loss(embeddings, teacher_stage=self.teacher_stage)

    @property
    def with_heads(self) -> WithHeads:
        """The network with its heads, to teach another (`TaughtLSSKD`) or to be asked as `HeadEnsemble`.

        Train with `keep="last"` and without `ema_decay` for this: with the best or the averaged weights `fit` gives the
        network alone, beside heads of the last step.
        """
        return WithHeads(self.product, self.heads)

    def describe_features(self) -> list[str]:
        """What was attached where, and what it costs in training."""
        return [described(self.student, self.heads, self.transforms)]


class TaughtLSSKD(Method):
    """Trains a network and its heads to say what a trained teacher and its heads say of transformed images.

    Args:
        student: images -> logits `(N, C)`.
        teacher: a `stillroom.blocks.WithHeads`, such as `LSSKD(...).with_heads` after training, over the same classes
            and transforms, with as many heads as the student gets; frozen here.
        probe: images, or a batch of them.
        stages: module names of the student's stages; None to find them.
        heads: as `LSSKD`.
        transforms: the ones that the teacher's heads were trained with.
        temperature: T, above 0.

    Losses:
        label: cross-entropy of the untransformed images.
        heads: the sum over heads of `T^2 KL(teacher's head || own head)` over all copies.
        distill: `T^2 KL(teacher || student)` over all copies.

    Source: Yang et al. 2021, arXiv:2107.13715 (HSAKD), whose student has no labels for its heads.
    """

    needs = Needs(labels="some", features=True, teacher_at="own")
    zero_at_teacher = ("distill",)

    def __init__(
        self,
        student: nn.Module,
        teacher: WithHeads | Frozen,
        *,
        probe: Any,
        stages: Sequence[str] | None = None,
        heads: HeadKind | AuxiliaryHeads = "stage-copy",
        transforms: str | TransformTask = "rotations",
        temperature: float = 3.0,
    ) -> None:
        super().__init__(student, teacher)
        check_positive(temperature=temperature)
        if not isinstance(self.teacher.network, WithHeads):
            raise TypeError(
                f"the teacher must come with its heads, given a {type(self.teacher.network).__name__}: train it by "
                "LSSKD and give method.with_heads, or use LSSKD, which needs no teacher"
            )
        self.transforms = transforms_for(transforms, probe)
        self.heads = heads_for(student, probe, heads, self.transforms, stages)
        check_same_heads("the teacher", self.teacher.network.heads, self.heads)
        self.temperature = temperature

    def forward(self, batch: Batch) -> Losses:
        """Return the terms of a batch."""
        images = self.transforms.apply(batch.inputs)
        observed = self.heads.observe(self.student, images)
        network = self.teacher.network
        if network.training:
            network.eval()
        with torch.no_grad():
            said: Observed = network.observe(images)
        terms, weights = supervised_terms(observed, batch.labels, self.transforms, None)
        terms["heads"] = between_heads(observed, said, self.temperature)
        terms["distill"] = kd_loss(observed.logits, said.logits, temperature=self.temperature)
        return Losses(outputs=self.transforms.originals(observed.logits), weights=weights, **terms)

    def describe_features(self) -> list[str]:
        """What was attached where, and what it costs in training."""
        return [described(self.student, self.heads, self.transforms)]


class MutualLSSKD(OnlineDistillation):
    """Trains two networks with their heads together: joint labels for each, and each is taught by the other.

    Args:
        student: images -> logits `(N, C)`; ships.
        teacher: images -> logits over the same classes; trained beside it (a frozen one is copied).
        probe: images, or a batch of them.
        peers: further networks.
        heads: "stage-copy" or "light", for every network alike; all must have as many stages.
        transforms: as `LSSKD`.
        temperature: T, above 0.
        joint_weight: of the joint labels, 0 or more.
        kd_weight: of both divergences, 0 or more.
        update: see `OnlineDistillation`.

    Losses:
        label: cross-entropy of the untransformed images; teacher_label for the teacher, peer-1_label, ...
        joint: the sum over heads of the cross-entropy with the joint labels.
        heads: the mean over the other networks of the sum over heads of `T^2 KL(other's head || own head)`.
        distill: the mean over the other networks of `T^2 KL(other || own)`, over all copies.

    Source: the online form of Yang et al. 2021, arXiv:2107.13715.
    """

    needs = Needs(labels="some", teacher=False, features=True)

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        probe: Any,
        peers: Sequence[nn.Module] = (),
        heads: HeadKind = "stage-copy",
        transforms: str | TransformTask = "rotations",
        temperature: float = 3.0,
        joint_weight: float = 1.0,
        kd_weight: float = 1.0,
        update: Literal["simultaneous", "alternating"] = "simultaneous",
    ) -> None:
        super().__init__(student, teacher, peers=peers, update=update)
        check_positive(temperature=temperature)
        check_not_negative(joint_weight=joint_weight, kd_weight=kd_weight)
        self.transforms = transforms_for(transforms, probe)
        made = {name: heads_for(net, probe, heads, self.transforms, None) for name, net in self.networks.items()}
        for name in self.companions:
            check_same_heads(name, made[name], made["student"])
        self.heads = nn.ModuleDict(made)
        self.temperature, self.joint_weight, self.kd_weight = temperature, joint_weight, kd_weight

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters of each network and its heads."""
        found = super().players()
        for player in found:
            named = self.heads[player].named_parameters()
            found[player] += [one for name, one in named if one.requires_grad or f"heads.{player}.{name}" in self._held]
        return found

    def answer(self, player: str, batch: Batch) -> Observed:
        """What a network and its heads say of the transformed images."""
        heads: Any = self.heads[player]
        return heads.observe(self.networks[player], self.transforms.apply(batch.inputs))

    def losses_of(self, player: str, outputs: Mapping[str, Observed], batch: Batch) -> Losses:
        """The labels' terms, and the divergences from every other network and its heads."""
        own = outputs[player]
        others = [said for name, said in outputs.items() if name != player]
        terms, weights = supervised_terms(own, batch.labels, self.transforms, self.joint_weight)
        terms["heads"] = torch.stack([between_heads(own, said, self.temperature) for said in others]).mean()
        mains = [kd_loss(own.logits, said.logits, temperature=self.temperature) for said in others]
        terms["distill"] = torch.stack(mains).mean()
        weights |= {"heads": self.kd_weight, "distill": self.kd_weight}
        prefix = "" if player == "student" else f"{player}_"
        return Losses(
            outputs=self.transforms.originals(own.logits),
            weights={f"{prefix}{name}": weight for name, weight in weights.items()},
            **{f"{prefix}{name}": term for name, term in terms.items()},
        )
