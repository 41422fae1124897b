"""What two language models say at each token: a KL over the clipped vocabulary, and correlations inside spans."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_label_range,
    check_not_negative,
    check_positive,
    outside_autocast,
    reduce,
    reduce_known,
)
from stillroom.losses.distributions import kl_of_log_probabilities

Limit = Tensor | float
Spans = Sequence[Sequence[tuple[int, int]]]
"""For each sequence its spans, half-open ranges `(start, end)` of token positions."""


@outside_autocast
def clipped_token_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    lower: Limit,
    upper: Limit,
    *,
    valid: Tensor | None = None,
    coordinates: Tensor | None = None,
    softness: float = 0.0,
    temperature: float = 1.0,
    renormalise: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Forward KL per token over the part of the vocabulary between two limits of the teacher's mass (DAC-KL).

    Per position, with p = softmax(teacher / T), q = softmax(student / T), m = `clipping_mask` (1 for the target),
    Z_p = sum_v m_v p_v and Z_q = sum_v m_v q_v:
    l = (1 / Z_p) sum_v m_v p_v (log p_v - log q_v) - log(Z_p / Z_q), the KL of the two distributions renormalised on
    what is kept, times T^2. It is never below 0. Limits 0 and 1 give the plain forward KL. With `softness` above 0
    gradients reach the limits; with a hard mask they do not.

    Args:
        student_logits: `(B, L, V)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: the same shape; receives no gradient.
        targets: `(B, L)`, int64 in [0, V): the token at each position, always kept. Not read where `valid` is 0.
        lower: the lower limit, `(B, L)` or a number, in [0, 1].
        upper: the upper limit, `(B, L)` or a number, above `lower`.
        valid: `(B, L)`, 1 or True where a position counts; None for all.
        coordinates: `(B, L, V)`, the teacher's `mass_coordinates` at T where they are at hand; None computes them.
        softness: width tau of the mask's edges; 0 cuts hard.
        temperature: T, above 0.
        renormalise: must be True: what is left of a KL after clipping can be below 0 and is no divergence.
        reduction: over the valid positions of the whole batch: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(B, L)` for "none", 0 where a position does not count.

    Raises:
        ValueError: shapes disagree (vocabularies of two sizes), a limit out of order, no valid position, T not above 0,
            or `renormalise` is False.

    Source: Liu et al. 2024, arXiv:2407.10068, token level; which quantiles, the treatment of the target and the soft
        mask are not confirmed by the paper's text.
    """
    if not renormalise:
        raise ValueError("renormalise=False is refused: a clipped sum without renormalisation is no divergence")
    check_not_negative(softness=softness)
    check_positive(temperature=temperature)
    counted = check_sequences(student_logits, teacher_logits, targets, valid)
    _check_limits(lower, upper)
    safe = torch.where(counted, targets, 0)
    check_label_range(safe, student_logits.shape[-1])
    student = (at_least_float32(student_logits) / temperature).log_softmax(dim=-1)
    teacher = (at_least_float32(teacher_logits.detach()) / temperature).log_softmax(dim=-1)
    places = mass_coordinates(teacher.exp()) if coordinates is None else coordinates
    log_mask = _log_mask(places, safe, lower, upper, softness)
    kept_teacher = (teacher + log_mask).logsumexp(dim=-1, keepdim=True)
    kept_student = (student + log_mask).logsumexp(dim=-1)
    weight = (teacher + log_mask - kept_teacher).exp()
    kl = (weight * (teacher - student)).sum(dim=-1) - kept_teacher.squeeze(-1) + kept_student
    return reduce_known(temperature**2 * kl, counted, reduction)


@outside_autocast
def mass_coordinates(probabilities: Tensor) -> Tensor:
    """Where each token stands in its distribution, by mass: rare tokens near 0, the likeliest near 1 - p_max / 2.

    With the tokens ordered by falling probability (ties: lower number first),
    s_v = 1 - (sum of p over the tokens before v + p_v / 2).

    Args:
        probabilities: `(..., V)`, each row sums to 1; receives no gradient.

    Returns:
        `(..., V)`, in (0, 1).

    Source: Liu et al. 2024, arXiv:2407.10068; the paper's own definition of the quantile is not confirmed.
    """
    falling, order = at_least_float32(probabilities.detach()).sort(dim=-1, descending=True, stable=True)
    middle = falling.cumsum(dim=-1) - falling / 2
    return torch.zeros_like(falling).scatter(-1, order, 1 - middle)


def clipping_mask(coordinates: Tensor, targets: Tensor, lower: Limit, upper: Limit, *, softness: float = 0.0) -> Tensor:
    """Which tokens are kept: those whose coordinate lies between the limits, and the target.

    Hard (softness 0): m = 1 where lower <= s <= upper, else 0. Soft: m = sigmoid((s - lower) / softness) *
    sigmoid((upper - s) / softness). The target has m = 1 in both.

    Args:
        coordinates: `(..., V)`, of `mass_coordinates`.
        targets: `(...)`, int64 in [0, V).
        lower: `(...)` or a number.
        upper: `(...)` or a number, above `lower`.
        softness: width of the edges, 0 or more.

    Returns:
        `(..., V)`, in [0, 1].

    Raises:
        ValueError: the lower limit is not below the upper one, or softness is below 0.
    """
    check_not_negative(softness=softness)
    _check_limits(lower, upper)
    return _log_mask(coordinates, targets, lower, upper, softness).exp()


@outside_autocast
def span_correlation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    spans: Spans,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """How far the correlations of neighbouring tokens inside linguistic spans differ between two language models.

    With p = softmax(teacher / T) and q = softmax(student / T), both `(V,)` per position: for a span [a, e) the loss is
    the mean over k = a, ..., e - 2 of || p_k * p_(k+1) - q_k * q_(k+1) ||^2, products per token of the vocabulary and
    squares summed over it. Spans of one token have no pair and are left out.

    Args:
        student_logits: `(B, L, V)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: the same shape; receives no gradient.
        spans: per sequence, half-open ranges of positions in [0, L].
        temperature: T, above 0.
        reduction: over the spans of two tokens or more: "mean", "sum" or "none". Without any, mean and sum are 0 and
            connected to the graph.

    Returns:
        A scalar, or one value per span of two tokens or more, in order, for "none".

    Raises:
        ValueError: shapes disagree, a span is outside its sequence or empty, or T is not above 0.

    Source: Liu et al. 2024, arXiv:2407.10068, span level; the product of neighbours (Hadamard) is not confirmed.
    """
    check_positive(temperature=temperature)
    check_sequences(student_logits, teacher_logits)
    rows, firsts, owners, sizes = _pairs(spans, student_logits)
    student = (at_least_float32(student_logits) / temperature).softmax(dim=-1)
    teacher = (at_least_float32(teacher_logits.detach()) / temperature).softmax(dim=-1)
    ours = student[rows, firsts] * student[rows, firsts + 1]
    theirs = teacher[rows, firsts] * teacher[rows, firsts + 1]
    distance = (theirs - ours).square().sum(dim=-1)
    per_span = distance.new_zeros(len(sizes)).index_add(0, owners, distance) / sizes.to(distance.dtype)
    return reduce(per_span, reduction)


@outside_autocast
def token_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    valid: Tensor | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Plain forward KL per token: T^2 * KL(softmax(teacher / T) || softmax(student / T)).

    Args:
        student_logits: `(B, L, V)`, any float dtype; computed in float32 or wider, also under autocast.
        teacher_logits: the same shape; receives no gradient.
        valid: `(B, L)`, 1 or True where a position counts; None for all.
        temperature: T, above 0.
        reduction: over the valid positions: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(B, L)` for "none", 0 where a position does not count.

    Raises:
        ValueError: shapes disagree, no valid position, or T is not above 0.
    """
    check_positive(temperature=temperature)
    counted = check_sequences(student_logits, teacher_logits, valid=valid)
    student = (at_least_float32(student_logits) / temperature).log_softmax(dim=-1)
    teacher = (at_least_float32(teacher_logits.detach()) / temperature).log_softmax(dim=-1)
    kl = kl_of_log_probabilities(teacher, student)
    return reduce_known(temperature**2 * kl, counted, reduction)


def check_sequences(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """Refuse logits, targets and masks of sequences whose shapes cannot be right; return `(B, L)` bool, what counts."""
    if student_logits.ndim != 3:
        raise ValueError(f"student_logits must have shape (B, L, V), given {tuple(student_logits.shape)}")
    if student_logits.shape != teacher_logits.shape:
        remedy = (
            "cut padded vocabularies to their tokenizer's true size first (stillroom.language.cut_to_vocabulary)"
            if student_logits.shape[:2] == teacher_logits.shape[:2]
            else "both models must see the same sequences"
        )
        raise ValueError(
            f"student_logits have shape {tuple(student_logits.shape)}, but teacher_logits have shape "
            f"{tuple(teacher_logits.shape)}: {remedy}"
        )
    places = student_logits.shape[:2]
    if targets is not None and (targets.shape != places or targets.dtype != torch.int64):
        raise ValueError(
            f"targets must be int64 labels of shape {tuple(places)}, given {targets.dtype} of {tuple(targets.shape)}"
        )
    if valid is None:
        counted = torch.ones(places, dtype=torch.bool, device=student_logits.device)
    elif valid.shape != places:
        raise ValueError(f"valid must have shape {tuple(places)}, one entry per position, given {tuple(valid.shape)}")
    else:
        counted = valid.bool()
    if not bool(counted.any()):
        raise ValueError(
            f"none of the {counted.numel()} positions is valid (0 rows, or all prompt and padding): this loss needs at "
            "least one"
        )
    return counted


def _check_limits(lower: Limit, upper: Limit) -> None:
    """Refuse limits out of order; on an accelerator, where reading them would stall it, only numbers."""
    for limit in (lower, upper):
        if isinstance(limit, Tensor) and limit.device.type != "cpu":
            return
    low, high = torch.as_tensor(lower).detach(), torch.as_tensor(upper).detach()
    if bool((low >= high).any()):
        where = (low >= high).broadcast_to(torch.broadcast_shapes(low.shape, high.shape))
        first = tuple(float(limit.broadcast_to(where.shape)[where][0]) for limit in (low, high))
        raise ValueError(f"lower must be below upper, given {first[0]:g} and {first[1]:g}: nothing would be kept")


def _log_mask(coordinates: Tensor, targets: Tensor, lower: Limit, upper: Limit, softness: float) -> Tensor:
    low, high = (limit.unsqueeze(-1) if isinstance(limit, Tensor) and limit.ndim else limit for limit in (lower, upper))
    if softness > 0:
        below, above = (coordinates - low) / softness, (high - coordinates) / softness
        outside = F.logsigmoid(below) + F.logsigmoid(above)
    else:
        kept = (coordinates >= low) & (coordinates <= high)
        outside = torch.zeros_like(coordinates).masked_fill(~kept, -torch.inf)
    return outside.scatter(-1, targets.unsqueeze(-1), 0.0)


def _pairs(spans: Spans, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row and first position of every pair of neighbours in a span, the span it is of, and the spans' pairs."""
    batch, length = logits.shape[:2]
    if len(spans) != batch:
        raise ValueError(f"spans must hold one list per sequence: given {len(spans)} for {batch} sequences")
    rows: list[int] = []
    firsts: list[int] = []
    owners: list[int] = []
    sizes: list[int] = []
    for row, ranges in enumerate(spans):
        for start, end in ranges:
            if not 0 <= start < end <= length:
                raise ValueError(f"the span ({start}, {end}) of sequence {row} is empty or outside of [0, {length})")
            if end - start > 1:
                rows += [row] * (end - start - 1)
                firsts += range(start, end - 1)
                owners += [len(sizes)] * (end - start - 1)
                sizes.append(end - start - 1)
    made = (torch.tensor(values, dtype=torch.int64, device=logits.device) for values in (rows, firsts, owners, sizes))
    return next(made), next(made), next(made), next(made)
