"""Distillation from teachers that a router picks per sample, and losses that keep a router balanced."""

from __future__ import annotations

import math

from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_positive,
    flatten_positions,
    outside_autocast,
    reduce,
)
from stillroom.losses.logits import kd_loss


@outside_autocast
def routed_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    picks: Tensor,
    *,
    temperature: float = 4.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Distillation of every sample from the teachers picked for it.

    Per sample, loss = (1 / k) * sum_c T^2 KL(softmax(z_{r_c} / T) || softmax(z_s / T)) over its picks r_1 ... r_k; for
    dense predictions the mean over positions.

    Args:
        student_logits: `(N, C)`, or `(N, C, ...)`; computed in float32 or wider, also under autocast.
        teacher_logits: `(M, N, C)` or `(M, N, C, ...)`, of all teachers; receives no gradient.
        picks: `(N, k)` int64 in [0, M), k of 1 or more.
        temperature: T, above 0.
        reduction: over samples: "mean", "sum" or "none".

    Returns:
        Nats, summed over classes: a scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree, a pick is out of range (on the CPU), or T is not above 0.

    Source: Li et al. 2025, arXiv:2507.07015, the third stage of the authors' code.
    """
    check_positive(temperature=temperature)
    if teacher_logits.ndim != student_logits.ndim + 1 or teacher_logits.shape[1:] != student_logits.shape:
        raise ValueError(
            f"teacher_logits must have shape (M, *{tuple(student_logits.shape)}) as the student's logits, given "
            f"{tuple(teacher_logits.shape)}: all teachers must have the student's classes and see the same batch"
        )
    samples, teachers = len(student_logits), len(teacher_logits)
    if picks.ndim != 2 or len(picks) != samples or not picks.shape[1]:
        raise ValueError(f"picks must have shape ({samples}, k) with k of 1 or more, given {tuple(picks.shape)}")
    if picks.device.type == "cpu" and picks.numel() and not 0 <= int(picks.min()) <= int(picks.max()) < teachers:
        raise ValueError(
            f"picks must lie in [0, {teachers}), given picks from {int(picks.min())} to {int(picks.max())}"
        )
    rows = picks.new_tensor(range(samples)).unsqueeze(1).expand_as(picks)
    chosen = teacher_logits[picks, rows]  # (N, k, C, ...)
    student = student_logits.unsqueeze(1).expand_as(chosen)
    values = kd_loss(
        flatten_positions(student.flatten(0, 1)),
        flatten_positions(chosen.flatten(0, 1)),
        temperature=temperature,
        reduction="none",
    )
    return reduce(values.view(samples, -1).mean(dim=1), reduction)


@outside_autocast
def balance_kl_loss(probabilities: Tensor) -> Tensor:
    """How far a router's mean probabilities over a batch are from uniform.

    With pbar_m the mean of p_m over the batch: loss = (1 / M) * sum_m (1 / M) * [log(1 / M) - log pbar_m], that is
    KL(uniform || pbar) / M; pbar is clamped at 1e-8, so that the loss stays finite.

    Args:
        probabilities: `(N, M)` over M experts, rows summing to 1; computed in float32 or wider.

    Returns:
        A scalar of 0 or more; 0 where pbar is uniform.

    Raises:
        ValueError: the shape is another, or there is no sample.

    Source: Li et al. 2025, arXiv:2507.07015; the division by M comes from torch's "batchmean" on a vector.
    """
    mean = _mean_probabilities(probabilities)
    experts = len(mean)
    return (-math.log(experts) - mean.clamp(min=1e-8).log()).mean() / experts


@outside_autocast
def balance_cv_loss(probabilities: Tensor) -> Tensor:
    """Coefficient of variation of the probability that a router gives to each expert over a batch.

    With P_m the sum of p_m over the batch: loss = std_m(P_m) / mean_m(P_m), the unbiased standard deviation.

    Args:
        probabilities: `(N, M)` over M experts, M of 2 or more; computed in float32 or wider.

    Returns:
        A scalar of 0 or more; 0 (without gradient where it is exactly so) where all get as much.

    Raises:
        ValueError: the shape is another, there is no sample, or only one expert.

    Source: Li et al. 2025, arXiv:2507.07015, an option of the authors' code; Shazeer et al. 2017, arXiv:1701.06538.
    """
    mean = _mean_probabilities(probabilities)
    if len(mean) < 2:
        raise ValueError("a spread over experts needs 2 or more of them, given 1: use balance_kl_loss")
    variance = mean.var()
    safe = variance.clamp(min=1e-24).sqrt()  # no infinite slope at 0
    return safe * (variance > 1e-24) / mean.mean()


def _mean_probabilities(probabilities: Tensor) -> Tensor:
    if probabilities.ndim != 2 or not probabilities.shape[0] or not probabilities.shape[1]:
        raise ValueError(
            f"probabilities must have shape (N, M) with samples and experts, given {tuple(probabilities.shape)}"
        )
    return at_least_float32(probabilities).mean(dim=0)
