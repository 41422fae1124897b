"""Divergences over large vocabularies, from hidden states and output matrices: the logits are never all held."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stillroom.extras import require
from stillroom.losses._chunked import LOGITS_AT_ONCE, Divergence, Plan
from stillroom.losses._shared import Reduction, check_positive, outside_autocast, reduce, spread

Backend = Literal["torch", "liger"]


@outside_autocast
def vocabulary_kl(
    student_hidden: Tensor,
    student_matrix: Tensor,
    teacher_hidden: Tensor,
    teacher_matrix: Tensor,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    valid: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    tail: bool = True,
    chunk_size: int | None = None,
    backend: Backend = "torch",
    reduction: Reduction = "mean",
) -> Tensor:
    """Forward KL per token, `token_kl` without its logits: T^2 * KL(softmax(teacher / T) || softmax(student / T)).

    The logits are hidden @ matrix^T + bias. They are made for a chunk of tokens at a time, and for "mean" and "sum" the
    gradients with respect to the student's hidden states, matrix and bias are computed on the way, so that nothing of
    size tokens x vocabulary is kept for the backward pass. For "none", and for a second backward pass through a
    retained graph, the backward pass computes the logits once more.

    With `top_k` the teacher's k likeliest tokens are compared one by one. All others are one further outcome with
    their summed probability (`tail`: never above the whole divergence), or are left out and both distributions
    renormalised on the k; then the student computes only k logits per token.

    Args:
        student_hidden: `(..., D_s)`, one row per token, any float dtype; computed in float32 or wider, also under
            autocast.
        student_matrix: `(V, D_s)`, the weight of the output layer.
        teacher_hidden: `(..., D_t)`, the same tokens; the teacher's side receives no gradient.
        teacher_matrix: `(V, D_t)`.
        student_bias: `(V,)`, or None.
        teacher_bias: `(V,)`, or None.
        valid: `(...)`, 1 or True where a token counts (`labels != -100`); None for all. Others may hold anything.
        temperature: T, above 0.
        top_k: k, in [1, V); None for the whole vocabulary.
        tail: whether the tokens outside the k count as one outcome.
        chunk_size: tokens at a time; None for as many as have 2^24 logits.
        backend: "torch", or "liger" for the chunked loss of Liger-Kernel (`pip install liger-kernel`): meant for GPUs;
            it computes in the dtype of what it is given, and has neither `top_k` nor the reduction "none".
        reduction: over the tokens that count: "mean", "sum" or "none". Without any, mean and sum are 0 and connected to
            the graph.

    Returns:
        Nats: a scalar, or `(...)` for "none", 0 where a token does not count.

    Raises:
        ValueError: shapes disagree (vocabularies of two sizes), a number out of range, or the backend cannot do it.

    Example:
        >>> hidden, matrix = torch.randn(4, 10, 16, requires_grad=True), torch.randn(1000, 16, requires_grad=True)
        >>> loss = vocabulary_kl(hidden, matrix, torch.randn(4, 10, 32), torch.randn(1000, 32), chunk_size=8)
        >>> loss.backward()
        >>> matrix.grad.shape
        torch.Size([1000, 16])
    """
    student = _Head(student_hidden, student_matrix, student_bias)
    teacher = _Head(teacher_hidden, teacher_matrix, teacher_bias)
    plan = Plan(_forward_kl, temperature, top_k, tail, chunk_size)
    return _divergence(student, teacher, valid, plan, reduction, backend, 0.0)


@outside_autocast
def vocabulary_reverse_kl(
    student_hidden: Tensor,
    student_matrix: Tensor,
    teacher_hidden: Tensor,
    teacher_matrix: Tensor,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    valid: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    tail: bool = True,
    chunk_size: int | None = None,
    backend: Backend = "torch",
    reduction: Reduction = "mean",
) -> Tensor:
    """Reverse KL per token, in chunks: T^2 * KL(softmax(student / T) || softmax(teacher / T)).

    As `reverse_kl_divergence` (times T^2) of logits hidden @ matrix^T + bias that are never all held; see
    `vocabulary_kl` for how, for what `top_k` and `tail` keep, and for all arguments.

    Args:
        student_hidden: `(..., D_s)`.
        student_matrix: `(V, D_s)`.
        teacher_hidden: `(..., D_t)`.
        teacher_matrix: `(V, D_t)`.
        student_bias: `(V,)`, or None.
        teacher_bias: `(V,)`, or None.
        valid: `(...)`, 1 or True where a token counts; None for all.
        temperature: T, above 0.
        top_k: k, in [1, V); None for the whole vocabulary.
        tail: whether the tokens outside the k count as one outcome.
        chunk_size: tokens at a time; None for as many as have 2^24 logits.
        backend: "torch" or "liger".
        reduction: over the tokens that count: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(...)` for "none", 0 where a token does not count.

    Raises:
        ValueError: as for `vocabulary_kl`.

    Source: Gu et al. 2024, arXiv:2306.08543 (its use in distillation).
    """
    student = _Head(student_hidden, student_matrix, student_bias)
    teacher = _Head(teacher_hidden, teacher_matrix, teacher_bias)
    plan = Plan(_reverse_kl, temperature, top_k, tail, chunk_size)
    return _divergence(student, teacher, valid, plan, reduction, backend, 1.0)


@outside_autocast
def vocabulary_jensen_shannon(
    student_hidden: Tensor,
    student_matrix: Tensor,
    teacher_hidden: Tensor,
    teacher_matrix: Tensor,
    *,
    teacher_share: float = 0.5,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    valid: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    tail: bool = True,
    chunk_size: int | None = None,
    backend: Backend = "torch",
    reduction: Reduction = "mean",
) -> Tensor:
    """Generalised Jensen-Shannon divergence per token, in chunks, times T^2.

    As `generalized_jensen_shannon` (times T^2) of logits hidden @ matrix^T + bias that are never all held; see
    `vocabulary_kl` for how, for what `top_k` and `tail` keep, and for all arguments.

    Args:
        student_hidden: `(..., D_s)`.
        student_matrix: `(V, D_s)`.
        teacher_hidden: `(..., D_t)`.
        teacher_matrix: `(V, D_t)`.
        teacher_share: b, in (0, 1); 0.5 is the usual Jensen-Shannon divergence.
        student_bias: `(V,)`, or None.
        teacher_bias: `(V,)`, or None.
        valid: `(...)`, 1 or True where a token counts; None for all.
        temperature: T, above 0.
        top_k: k, in [1, V); None for the whole vocabulary.
        tail: whether the tokens outside the k count as one outcome.
        chunk_size: tokens at a time; None for as many as have 2^24 logits.
        backend: "torch" or "liger".
        reduction: over the tokens that count: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(...)` for "none", 0 where a token does not count.

    Raises:
        ValueError: as for `vocabulary_kl`, or the share is not inside (0, 1).

    Source: Agarwal et al. 2024, arXiv:2306.13649, equation 1.
    """
    if not 0 < teacher_share < 1:
        raise ValueError(
            f"teacher_share must lie inside (0, 1), given {teacher_share}: at its ends use vocabulary_kl or "
            "vocabulary_reverse_kl"
        )

    def kernel(student: Tensor, teacher: Tensor) -> Tensor:
        mixture = torch.logaddexp(teacher + math.log(teacher_share), student + math.log1p(-teacher_share))
        from_teacher = (teacher - mixture).mul_(teacher.exp_()).mul_(teacher_share)
        torch.sub(student, mixture, out=teacher)
        teacher.mul_(student.exp_()).mul_(1 - teacher_share)
        return from_teacher.add_(teacher)

    student = _Head(student_hidden, student_matrix, student_bias)
    teacher = _Head(teacher_hidden, teacher_matrix, teacher_bias)
    plan = Plan(kernel, temperature, top_k, tail, chunk_size)
    return _divergence(student, teacher, valid, plan, reduction, backend, teacher_share)


def _forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    terms = teacher - student
    terms.mul_(teacher.exp_())
    student.exp_()
    teacher.neg_()
    return terms


def _reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    torch.sub(student, teacher, out=teacher)
    return teacher.mul_(student.exp_())


# ---- what is asked for -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Head:
    """Hidden states and the output layer that makes logits of them."""

    hidden: Tensor
    matrix: Tensor
    bias: Tensor | None


def _divergence(
    student: _Head,
    teacher: _Head,
    valid: Tensor | None,
    plan: Plan,
    reduction: Reduction,
    backend: str,
    beta: float,
) -> Tensor:
    reduce(student.hidden.new_zeros(1), reduction)  # refuses another word before any work
    _check(student, teacher, valid, plan)
    _check_backend(backend, plan, reduction)
    places = student.hidden.shape[:-1]
    kept = torch.ones(places, dtype=torch.bool, device=student.hidden.device) if valid is None else valid.bool()
    own, theirs = (
        head.hidden.reshape(-1, head.hidden.shape[-1]) if valid is None else head.hidden[kept]
        for head in (student, teacher)
    )
    bias = None if teacher.bias is None else teacher.bias.detach()
    tensors = (own, student.matrix, student.bias, theirs.detach(), teacher.matrix.detach(), bias)
    weight = 1 / max(len(own), 1) if reduction == "mean" else 1.0
    if backend == "liger" and len(own):
        return _liger(tensors, plan, beta, times=weight * len(own))
    if reduction != "none" and torch.is_grad_enabled():
        return Divergence.apply(plan, weight, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    values: Tensor = Divergence.apply(plan, None, *tensors)  # type: ignore[no-untyped-call]
    return spread(values, kept) if reduction == "none" else values.sum() * weight


def _check(student: _Head, teacher: _Head, valid: Tensor | None, plan: Plan) -> None:
    """Refuse shapes that do not fit and numbers out of range."""
    check_positive(temperature=plan.temperature)
    for whose, head in (("student", student), ("teacher", teacher)):
        if head.hidden.ndim < 2 or head.matrix.ndim != 2 or head.hidden.shape[-1] != head.matrix.shape[1]:
            raise ValueError(
                f"{whose}_hidden must have shape (..., D) and {whose}_matrix (V, D), given {tuple(head.hidden.shape)} "
                f"and {tuple(head.matrix.shape)}: take what the output layer reads, and that layer's weight"
            )
        if head.bias is not None and head.bias.shape != head.matrix.shape[:1]:
            raise ValueError(
                f"{whose}_bias must have shape ({len(head.matrix)},), one entry per row of {whose}_matrix, given "
                f"{tuple(head.bias.shape)}"
            )
    places, size = student.hidden.shape[:-1], len(student.matrix)
    if teacher.hidden.shape[:-1] != places:
        raise ValueError(
            f"student_hidden has shape {tuple(student.hidden.shape)}, but teacher_hidden has shape "
            f"{tuple(teacher.hidden.shape)}: both models must see the same tokens"
        )
    if len(teacher.matrix) != size:
        raise ValueError(
            f"student_matrix has {size} rows, but teacher_matrix has {len(teacher.matrix)}: cut padded vocabularies to "
            "their tokenizer's true size first (stillroom.language.cut_to_vocabulary with dim=0)"
        )
    if valid is not None and valid.shape != places:
        raise ValueError(
            f"valid must have shape {tuple(places)}, one entry per token of student_hidden, given {tuple(valid.shape)}"
        )
    if plan.top_k is not None and not 1 <= plan.top_k < size:
        raise ValueError(
            f"top_k must lie in [1, {size}) for a vocabulary of {size} tokens, given {plan.top_k}: None takes all"
        )
    if plan.chunk_size is not None and plan.chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 token or more, given {plan.chunk_size}")


def _check_backend(backend: str, plan: Plan, reduction: Reduction) -> None:
    if backend not in ("torch", "liger"):
        raise ValueError(f'backend must be "torch" or "liger", given {backend!r}')
    if backend == "liger" and (plan.top_k is not None or reduction == "none"):
        raise ValueError(
            f'backend="liger" has neither top_k nor reduction="none", given top_k={plan.top_k} and '
            f'reduction={reduction!r}: use backend="torch"'
        )


def _liger(tensors: tuple[Any, ...], plan: Plan, beta: float, *, times: float) -> Tensor:
    """Liger-Kernel's chunked loss, a mean over tokens; it is compiled on GPUs only."""
    hidden, matrix, bias, their_hidden, their_matrix, their_bias = tensors
    loss = require("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=times * plan.temperature**2,
        beta=beta,
        temperature=plan.temperature,
        compiled=hidden.is_cuda,
        chunk_size=plan.chunk_size or max(LOGITS_AT_ONCE // len(matrix), 1),
    )
    labels = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    found: Tensor = loss(hidden, matrix, their_hidden, their_matrix, labels, bias, their_bias)
    return found
