"""What is asked of probabilities without a teacher: that a batch uses all classes, that a sample stays uncertain."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.losses._shared import Reduction, at_least_float32, outside_autocast, reduce


@outside_autocast
def prior_penalty(probabilities: Tensor, *, prior: Tensor | None = None) -> Tensor:
    """KL divergence from a prior over the classes to a batch's mean prediction.

    loss = sum_c prior_c log(prior_c / mean_n p_nc). It is 0 where the batch as a whole predicts the prior; a class that
    nothing is said to be of costs most.

    Args:
        probabilities: `(N, C)` with gradient, rows that sum to 1; computed in float32 or wider.
        prior: `(C,)` above 0, summing to 1; uniform where not given.

    Returns:
        Nats, a scalar: a mean over samples does not make it, so that there is no reduction.

    Raises:
        ValueError: probabilities of another shape, no samples, or a prior of another length.

    Source: Li et al. 2020, arXiv:2002.07394, equation 11.

    Example:
        >>> float(prior_penalty(torch.tensor([[1.0, 0.0], [0.0, 1.0]])))
        0.0
    """
    mean = _rows(probabilities, least=1).mean(dim=0)
    wanted = torch.full_like(mean, 1 / len(mean)) if prior is None else prior.to(mean)
    if wanted.shape != mean.shape:
        raise ValueError(f"prior must have one share for each of {len(mean)} classes, given {tuple(wanted.shape)}")
    return (wanted * (wanted / mean.clamp_min(torch.finfo(mean.dtype).tiny)).log()).sum()


@outside_autocast
def negative_entropy(probabilities: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Negative entropy of predictions: as a penalty it keeps a network from being sure.

    Per sample, loss = sum_c p_c log p_c, in [-log C, 0]; a probability of 0 adds nothing.

    Args:
        probabilities: `(N, C)`, rows that sum to 1; computed in float32 or wider.
        reduction: over samples.

    Returns:
        Nats: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: probabilities of another shape.

    Source: Pereyra et al. 2017, arXiv:1701.06548.
    """
    p = _rows(probabilities)
    return reduce((p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(dim=1), reduction)


def _rows(probabilities: Tensor, *, least: int = 0) -> Tensor:
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or len(probabilities) < least:
        raise ValueError(
            f"probabilities must be (N, C) of {least} or more samples and 2 or more classes, given "
            f"{tuple(probabilities.shape)}"
        )
    return at_least_float32(probabilities)
