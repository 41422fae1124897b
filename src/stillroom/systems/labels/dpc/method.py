"""The methods: the evidential loss for one network, and the two networks that sort each other's samples by margins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.clean import label_margins
from stillroom.blocks.heads import SecondHead
from stillroom.codivide import DivideMix
from stillroom.data.augment import Augmentation
from stillroom.data.batch import Batch, map_tensors
from stillroom.data.mixing import Mixture
from stillroom.losses import calibrated_softmax, edl_loss
from stillroom.losses._shared import check_not_negative, check_positive
from stillroom.losses.distributions import kl_of_log_probabilities
from stillroom.method import Losses, Method, Needs


class EDL(Method):
    """Trains one network with the evidential loss in place of cross-entropy.

    Args:
        student: inputs -> logits `(N, C)`.
        teacher: taken and ignored, so that every arm is built alike.
        gamma: of `stillroom.losses.calibrated_softmax`, above 0; 10 / C where not given.
        kl_weight: weight of the evidence for other classes, 0 or more.

    Losses:
        edl: `stillroom.losses.edl_loss`.

    Source: Zong et al. 2024, arXiv:2401.07062.

    Example:
        >>> from stillroom.blocks import clean_probability, label_margins
        >>> network = nn.Linear(4, 3)
        >>> batch = Batch(torch.randn(20, 4), torch.randint(3, (20,)))
        >>> EDL(network)(batch).total.backward()
        >>> clean_probability(label_margins(network(batch.inputs), batch.labels)).shape  # is each label right?
        torch.Size([20])
    """

    needs = Needs(labels="every", teacher=False)

    def __init__(
        self, student: nn.Module, teacher: Any = None, *, gamma: float | None = None, kl_weight: float = 0.5
    ) -> None:
        super().__init__(student)
        check_positive(**({} if gamma is None else {"gamma": gamma}))
        check_not_negative(kl_weight=kl_weight)
        self.gamma, self.kl_weight = gamma, kl_weight

    def forward(self, batch: Batch) -> Losses:
        """Return the evidential loss of a batch."""
        if batch.labels is None or not len(batch):
            raise ValueError(f"EDL learns from batches of 1 or more labelled samples, given {batch}")
        logits = self.student(batch.inputs)
        return Losses(edl=edl_loss(logits, batch.labels, gamma=self.gamma, kl_weight=self.kl_weight), outputs=logits)


class DPC(DivideMix):
    """Trains two networks on labels of which many are wrong; they ship together, their logits added.

    As `DivideMix`, with four differences: every probability is the calibrated softmax, trusted samples are learned with
    the evidential loss, samples are sorted by the margin of their label, and what is learned from the others goes
    through a second head on the same features, which is thrown away in the end.

    Args:
        network: inputs -> logits `(N, C)`; its last linear layer is the first head.
        second_network: the same, with other initial weights.
        gamma: of the calibrated softmax, above 0; 10 / C where not given.
        kl_weight: of the evidence for other classes, 0 or more.
        hidden: width of the second head.
        dropout: share of its hidden values that training drops, in [0, 1).
        largest_kurtosis: of margins that a mixture is fitted to; see `stillroom.blocks.clean_probability`.
        strong_augment: a stronger augmentation: the consistency term is added (the variant DPC*); None for none.
        consistency_weight: of that term, 0 or more; 3 for CIFAR-100.
        warm_up_share: the part of all steps that the warm-up takes, in (0, 1).
        unlabelled_weight: largest weight of what is learned from untrusted samples, 0 or more.
        clean_threshold: tau in (0, 1).
        sharpening: T of the targets, above 0.
        beta: of the mixing shares, above 0.
        ramp_epochs: epochs after the warm-up over which `unlabelled_weight` rises.
        entropy_weight: of the negative entropy in the warm-up; 1 for noise between certain classes.

    Losses:
        warm_up: `stillroom.losses.edl_loss` of the given labels, in the first stage, beside `entropy`.
        labelled: the evidential loss of the favourites of both mixed targets, weighted by their shares.
        unlabelled: mean squared difference of the second head's probabilities and the mixed targets.
        prior: `stillroom.losses.prior_penalty` of the first head over all rows.
        consistency: KL divergence from the first head on weakly to strongly augmented mixtures; with `strong_augment`.
        second_labelled, ...: the second network's.

    Source: Zong et al. 2024, arXiv:2401.07062.

    Example:
        >>> from stillroom import fit
        >>> from stillroom.data import TensorSamples
        >>> from stillroom.training import Training
        >>> noisy = TensorSamples(torch.randn(60, 4), torch.randint(3, (60,)))
        >>> method = DPC(nn.Linear(4, 3), nn.Linear(4, 3), warm_up_share=0.5, hidden=16)
        >>> network = fit(method, noisy, Training(epochs=2, batch_size=20), progress=False).product
        >>> network(torch.randn(5, 4)).shape
        torch.Size([5, 3])
        >>> method.trusted(0, noisy.index).shape  # how far the first network trusts each label
        torch.Size([60])
    """

    def __init__(
        self,
        network: nn.Module,
        second_network: nn.Module,
        *,
        gamma: float | None = None,
        kl_weight: float = 0.5,
        hidden: int = 1024,
        dropout: float = 0.5,
        largest_kurtosis: float = 1.2,
        strong_augment: Augmentation | None = None,
        consistency_weight: float = 1.0,
        warm_up_share: float = 1 / 30,
        unlabelled_weight: float = 25.0,
        clean_threshold: float = 0.5,
        sharpening: float = 0.5,
        beta: float = 4.0,
        ramp_epochs: float = 16.0,
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__(
            network,
            second_network,
            warm_up_share=warm_up_share,
            unlabelled_weight=unlabelled_weight,
            clean_threshold=clean_threshold,
            sharpening=sharpening,
            beta=beta,
            ramp_epochs=ramp_epochs,
            entropy_weight=entropy_weight,
        )
        check_positive(**({} if gamma is None else {"gamma": gamma}))
        check_not_negative(kl_weight=kl_weight, consistency_weight=consistency_weight)
        self.gamma, self.kl_weight, self.largest_kurtosis = gamma, kl_weight, largest_kurtosis
        self.strong_augment, self.consistency_weight = strong_augment, consistency_weight
        self.heads = nn.ModuleList(SecondHead(one, hidden=hidden, dropout=dropout) for one in (network, second_network))

    def probabilities(self, logits: Tensor) -> Tensor:
        """The calibrated softmax."""
        return calibrated_softmax(logits, gamma=self.gamma)

    def warm_up_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The evidential loss of the given labels."""
        return edl_loss(logits, labels, gamma=self.gamma, kl_weight=self.kl_weight)

    def labelled_loss(self, logits: Tensor, own: Tensor, partner: Tensor, share: Tensor) -> Tensor:
        """The evidential loss of the classes that both targets favour, weighted by their shares."""
        share = share.to(own)
        first, second = (
            edl_loss(logits, targets.argmax(dim=1), gamma=self.gamma, kl_weight=self.kl_weight, reduction="none")
            for targets in (own, partner)
        )
        return (share * first + (1 - share) * second).sum() / max(len(logits), 1)

    def cleanness(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The margin of the given label."""
        return label_margins(logits, labels)

    def both_heads(self, number: int, inputs: Any) -> tuple[Tensor, Tensor]:
        """Logits of both heads from one forward pass."""
        head: Any = self.heads[number]
        return head.both(self.student.networks[number], inputs)

    def parameters_of(self, number: int) -> list[nn.Parameter]:
        """A network and its second head."""
        return [*super().parameters_of(number), *self.heads[number].parameters()]

    def policies(self) -> list[Augmentation | None]:
        """Two weak views, and with a strong augmentation two strong ones."""
        strong = [] if self.strong_augment is None else [self.strong_augment] * 2
        return [*super().policies(), *strong]

    def further(
        self, number: int, strong: Any, mixture: Mixture, probabilities: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The consistency term, where there are strong views."""
        if strong is None:
            return {}, {}
        answer = self.probabilities(self.student.networks[number](map_tensors(strong, mixture.apply)))
        weak = probabilities.detach()
        tiny = torch.finfo(weak.dtype).tiny
        apart = kl_of_log_probabilities(weak.clamp_min(tiny).log(), answer.clamp_min(tiny).log()).mean()
        return {"consistency": apart}, {"consistency": self.consistency_weight}
