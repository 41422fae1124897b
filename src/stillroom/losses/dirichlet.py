"""Losses on the evidence for each class: logits that are read as the parameters of a Dirichlet distribution."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_finite,
    check_label_range,
    check_logits,
    check_not_negative,
    check_positive,
    outside_autocast,
    reduce,
)

LARGE = 64.0  # from here on the asymptotic series of lnGamma and digamma are exact to the last digits
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@outside_autocast
def calibrated_softmax(logits: Tensor, *, gamma: float | None = None) -> Tensor:
    """Softmax with a constant added to every exponential, so that the size of the logits counts and not their order.

    p_c = (e^{z_c} + gamma) / (sum_j e^{z_j} + C gamma), which is the mean of a Dirichlet distribution with the
    parameters e^{z_c} / gamma + 1. A constant added to all logits changes it; gamma -> 0 gives the softmax, and logits
    far below log(gamma) give the uniform distribution.

    Args:
        logits: `(N, C)`, C of 2 or more, any float dtype; computed in float32 or wider.
        gamma: above 0; 10 / C where not given.

    Returns:
        `(N, C)`, each row sums to 1.

    Raises:
        ValueError: logits of another shape or fewer than 2 classes, not finite, or gamma not above 0.

    Source: Zong et al. 2024, arXiv:2401.07062; gamma as in the authors' code.

    Example:
        >>> calibrated_softmax(torch.tensor([[0.0, 2.0, 0.0, 0.0], [-2.0, 0.0, -2.0, -2.0]]), gamma=1.0)[:, 1]
        tensor([0.5830, 0.3700])
    """
    return _raised(logits, gamma)[0].softmax(dim=1)


@outside_autocast
def calibrated_cross_entropy(
    logits: Tensor, labels: Tensor, *, gamma: float | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Negative log-likelihood of the labels under the calibrated softmax.

    Per sample, loss = log sum_j (e^{z_j} + gamma) - log(e^{z_y} + gamma). Its gradient on a wrong class is that of the
    cross-entropy times (e^{z_c} / sum_j (e^{z_j} + gamma)) / softmax(z)_c, which vanishes where no class has evidence.

    Args:
        logits: `(N, C)`, C of 2 or more; computed in float32 or wider, also under autocast.
        labels: `(N,)`, int64 in [0, C).
        gamma: above 0; 10 / C where not given.
        reduction: over samples: "mean", "sum" or "none". The mean over no samples is 0 and connected to the graph.

    Returns:
        Nats: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, fewer than 2 classes, labels not int64 or (on the CPU) out of range, logits not
            finite, or gamma not above 0.

    Source: Zong et al. 2024, arXiv:2401.07062.
    """
    raised, _ = _raised(logits, gamma)
    _check_labels(logits, labels)
    return reduce(raised.logsumexp(dim=1) - raised.gather(1, labels.unsqueeze(1)).squeeze(1), reduction)


@outside_autocast
def wrong_evidence_kl(
    logits: Tensor, labels: Tensor, *, gamma: float | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Evidence for the classes other than the label: KL divergence from a Dirichlet distribution to the flat one.

    With a_c = 1 + e^{z_c} / gamma for the other classes, a_c = 1 for the label and A = sum_c a_c:
    KL = lnGamma(A) - lnGamma(C) - sum_c lnGamma(a_c) + sum_c (a_c - 1) (psi(a_c) - psi(A)). It is 0 where no other
    class has evidence, and does not look at the label's own logit. Parameters above 64 go through the asymptotic series
    of lnGamma and psi, whose large parts cancel by algebra and not by subtraction; exponents stop before they overflow
    (80 in float32, 600 in float64), beyond which there is no gradient.

    Args:
        logits: `(N, C)`, C of 2 or more; computed in float32 or wider, also under autocast.
        labels: `(N,)`, int64 in [0, C).
        gamma: above 0; 10 / C where not given.
        reduction: over samples.

    Returns:
        Nats: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: as `calibrated_cross_entropy`.

    Source: Sensoy et al. 2018, arXiv:1806.01768, equation 5; the parameters as in Zong et al. 2024, arXiv:2401.07062.
    """
    _, gamma = _raised(logits, gamma)
    _check_labels(logits, labels)
    logits = at_least_float32(logits)
    classes = logits.shape[1]
    others = 1 - F.one_hot(labels, classes).to(logits.dtype)
    highest = 600.0 if logits.dtype == torch.float64 else 80.0
    evidence = others * (logits - math.log(gamma)).clamp(max=highest).exp()
    whole = classes + evidence.sum(dim=1)
    each = _stirling(1 + evidence, 1.0).sum(dim=1)
    return reduce(_stirling(whole, float(classes)) - math.lgamma(classes) - each, reduction)


@outside_autocast
def edl_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float | None = None,
    kl_weight: float = 0.5,
    reduction: Reduction = "mean",
) -> Tensor:
    """Evidential loss for labels that may be wrong: few classes get evidence, and what has none is not pulled apart.

    Per sample, loss = calibrated_cross_entropy + kl_weight * wrong_evidence_kl / C.

    Args:
        logits: `(N, C)`, C of 2 or more; computed in float32 or wider, also under autocast.
        labels: `(N,)`, int64 in [0, C).
        gamma: above 0; 10 / C where not given.
        kl_weight: beta, 0 or more.
        reduction: over samples. The mean over no samples is 0 and connected to the graph.

    Returns:
        Nats: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: as `calibrated_cross_entropy`; kl_weight is below 0.

    Source: Zong et al. 2024, arXiv:2401.07062.

    Example:
        >>> float(edl_loss(torch.zeros(2, 10), torch.tensor([3, 7]), kl_weight=0.0))  # log 10: nothing is known
        2.3025851249694824
    """
    check_not_negative(kl_weight=kl_weight)
    likelihood = calibrated_cross_entropy(logits, labels, gamma=gamma, reduction="none")
    evidence = wrong_evidence_kl(logits, labels, gamma=gamma, reduction="none")
    return reduce(likelihood + kl_weight / logits.shape[1] * evidence, reduction)


def _raised(logits: Tensor, gamma: float | None) -> tuple[Tensor, float]:
    """log(e^z + gamma), and gamma."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be (N, C) with C of 2 or more classes, given {tuple(logits.shape)}")
    gamma = 10 / logits.shape[1] if gamma is None else gamma
    check_positive(gamma=gamma)
    check_finite(logits=logits)
    logits = at_least_float32(logits)
    return torch.logaddexp(logits, torch.full_like(logits, math.log(gamma))), gamma


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    check_logits(logits, logits, labels, min_samples=0)
    check_label_range(labels, logits.shape[1])


def _stirling(x: Tensor, shift: float) -> Tensor:
    """lnGamma(x) - (x - shift) psi(x) + x, which grows like (shift - 1/2) log x only."""
    small, large = x.clamp(max=LARGE), x.clamp(min=LARGE)
    direct = torch.lgamma(small) - (small - shift) * torch.digamma(small) + small
    one = 1 / large
    two = one * one
    gamma_rest = one * (1 / 12 - two * (1 / 360 - two / 1260))
    psi_rest = -0.5 - one * (1 / 12 - two * (1 / 120 - two / 252))  # times x
    series = (shift - 0.5) * large.log() + HALF_LOG_2PI + gamma_rest - (1 - shift * one) * psi_rest
    return torch.where(x <= LARGE, direct, series)
