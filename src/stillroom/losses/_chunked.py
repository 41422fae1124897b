"""How `vocabulary.py` computes: a chunk of tokens at a time, in tiles of the vocabulary, gradients on the way."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 2**24
"""Logits of one network that are held at once where no `chunk_size` is given: 64 MiB in float32."""

TILE = 2**23
"""Logits in one tile, and in every temporary tensor: 32 MiB in float32. Smaller tiles would stay in the processor's
cache, but wait for all threads more often, which took three times as long on two cores that other work shared."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Student's and teacher's log-probabilities `(V, N)` -> terms that add up to the divergence d over V. In their place it
leaves the student's probabilities q, and a = q * dd/dq: the gradient to the student's logits is a - q * sum(a)."""

Finish = Callable[[slice, Tensor], Tensor]
"""A tile and the rows' weights `(N,)` -> the weighted gradient to the tile's logits, made in place."""


@dataclass(frozen=True)
class Plan:
    """Which divergence, and how it is computed."""

    kernel: Kernel
    temperature: float
    top_k: int | None
    tail: bool
    chunk_size: int | None


class Divergence(torch.autograd.Function):
    """The divergence of rows; the student's gradients are computed in the forward pass where its weight is known."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, weight: float | None, *tensors: Any) -> Tensor:
        """Give the rows' values `(N,)`; or, with a weight, their sum times it, and keep its gradients.

        Args:
            ctx: what the backward pass reads.
            plan: the divergence.
            weight: what every row's value is multiplied with; None for the values themselves.
            tensors: hidden states `(N, D)`, matrix `(V, D)` and bias `(V,)` or None, of the student and of the teacher.
        """
        ctx.plan, ctx.weight, ctx.gradients = plan, weight, None
        ctx.save_for_backward(*tensors)
        if weight is None:
            return _walk(plan, tensors, None, (False, False, False))[0]
        wanted = ctx.needs_input_grad[2:5]
        values, *ctx.gradients = _walk(plan, tensors, _weights(weight, tensors) if any(wanted) else None, wanted)
        return values.sum() * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that were kept; compute them where there are none, or none any more."""
        gradients, ctx.gradients = ctx.gradients, None  # given away, so that autograd takes them without a copy
        tensors = ctx.saved_tensors
        if gradients is None:
            weights = upstream if ctx.weight is None else _weights(ctx.weight, tensors)
            with torch.autocast(upstream.device.type, enabled=False):
                _, *gradients = _walk(ctx.plan, tensors, weights, ctx.needs_input_grad[2:5])
        student = []
        for gradient, like in zip(gradients, tensors[:3], strict=True):
            if gradient is not None and ctx.weight is not None:
                gradient.mul_(upstream)
            student.append(None if gradient is None else gradient.to(like.dtype))
        return None, None, *student, None, None, None


def _weights(weight: float, tensors: Sequence[Any]) -> Tensor:
    return torch.full((len(tensors[0]),), weight, dtype=_dtype(tensors), device=tensors[0].device)


def _walk(
    plan: Plan, tensors: Sequence[Any], weights: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Values `(N,)` of all rows, and the wanted gradients of their sum with these weights."""
    own_head, their_head, dtype = tensors[:3], tensors[3:], _dtype(tensors)
    hidden, matrix, _ = own_head
    tokens, size = len(hidden), len(matrix)
    values = hidden.new_empty(tokens, dtype=dtype)
    gradients = [torch.zeros_like(g, dtype=dtype) if want else None for g, want in zip(own_head, wanted, strict=True)]
    most = plan.chunk_size or max(LOGITS_AT_ONCE // size, 1)
    rows = math.ceil(tokens / max(math.ceil(tokens / most), 1))
    few = None if plan.tail else plan.top_k
    buffers = [hidden.new_empty(size * rows, dtype=dtype) for _ in range(2 if few is None else 1)]
    for first in range(0, tokens, max(rows, 1)):
        chunk = slice(first, min(first + rows, tokens))
        theirs, *own = (buffer[: size * (chunk.stop - first)].view(size, -1) for buffer in buffers)
        weight = None if weights is None else weights[chunk] * plan.temperature**2
        scaled = hidden[chunk].to(dtype) / plan.temperature
        total = _logits(their_head[0][chunk].to(dtype) / plan.temperature, their_head, plan.temperature, theirs)
        changes = [None if g is None else (g[chunk] if place == 0 else g) for place, g in enumerate(gradients)]
        if few is not None:
            values[chunk] = _few(plan, few, scaled, own_head, theirs, weight, changes)
            continue
        own_total = _logits(scaled, own_head, plan.temperature, own[0])
        if plan.top_k is None:
            values[chunk], finish = _whole(plan.kernel, own[0], own_total, theirs, total, weight)
        else:
            values[chunk], finish = _top_and_tail(plan.kernel, plan.top_k, own[0], theirs, weight)
        if weight is not None:
            _add_gradients(changes, own[0], finish, weight, scaled, matrix, plan.temperature)
    return values.mul_(plan.temperature**2), gradients[0], gradients[1], gradients[2]


def _dtype(tensors: Sequence[Any]) -> torch.dtype:
    """The widest dtype, float32 at least."""
    return functools.reduce(torch.promote_types, (one.dtype for one in tensors if one is not None), torch.float32)


def _tiles(logits: Tensor) -> Iterator[slice]:
    step = max(TILE // max(logits.shape[1], 1), 1)
    return (slice(first, first + step) for first in range(0, len(logits), step))


def _logits(scaled: Tensor, head: Sequence[Any], temperature: float, out: Tensor) -> Tensor:
    """Write a chunk's logits / T, `(V, N)`; give their log-sum-exp, taken online while the tiles are at hand."""
    _, matrix, bias = head
    total = scaled.new_full((len(scaled),), -torch.inf)
    for tile in _tiles(out):
        torch.mm(matrix[tile].to(scaled.dtype), scaled.T, out=out[tile])
        if bias is not None:
            out[tile].add_(bias[tile].to(scaled.dtype).div(temperature).unsqueeze(1))
        total = torch.logaddexp(total, out[tile].logsumexp(0))
    return total


def _whole(
    kernel: Kernel, own: Tensor, own_total: Tensor, theirs: Tensor, total: Tensor, weight: Tensor | None
) -> tuple[Tensor, Finish]:
    """Compare all of the vocabulary; what is returned beside the values makes the gradient."""
    value, pull = torch.zeros_like(total), torch.zeros_like(total)
    for tile in _tiles(own):
        value += kernel(own[tile].sub_(own_total), theirs[tile].sub_(total)).sum(0)
        if weight is not None:
            pull += theirs[tile].sum(0)

    def finish(tile: slice, weight: Tensor) -> Tensor:
        return own[tile].mul_(-pull * weight).addcmul_(theirs[tile], weight)

    return value, finish


def _top_and_tail(kernel: Kernel, k: int, own: Tensor, theirs: Tensor, weight: Tensor | None) -> tuple[Tensor, Finish]:
    """Compare the teacher's k likeliest tokens, and all others as one outcome; else as `_whole`."""
    top = theirs.topk(k, dim=0).indices
    outcomes, rest = [], own
    for logits in (theirs, own):
        kept = logits.gather(0, top)
        logits.scatter_(0, top, -torch.inf)
        rest = torch.stack([logits[tile].logsumexp(0) for tile in _tiles(logits)]).logsumexp(0)
        outcomes.append(torch.cat([kept, rest.unsqueeze(0)]))
    value, gradient = _compare(kernel, outcomes[1], outcomes[0], weight)
    if gradient is not None:
        for tile in _tiles(own):  # a token of the tail moves the tail's probability by its share of it
            own[tile].sub_(rest).exp_().mul_(gradient[-1])
        own.scatter_(0, top, gradient[:-1])
    return value, lambda tile, weight: own[tile]


def _few(
    plan: Plan,
    k: int,
    scaled: Tensor,
    head: Sequence[Any],
    theirs: Tensor,
    weight: Tensor | None,
    changes: Sequence[Tensor | None],
) -> Tensor:
    """Compare the teacher's k likeliest tokens alone; only their rows of the student's matrix are read and changed."""
    _, matrix, bias = head
    teacher, top = theirs.topk(k, dim=0)
    values = torch.empty_like(teacher[0])
    step = max(LOGITS_AT_ONCE // (len(top) * matrix.shape[1]), 1)
    for first in range(0, len(scaled), step):
        part = slice(first, first + step)
        chosen = top[:, part]
        taken = matrix[chosen].to(scaled.dtype)
        student = (taken * scaled[part]).sum(-1)
        if bias is not None:
            student += bias[chosen].to(scaled.dtype) / plan.temperature
        values[part], gradient = _compare(
            plan.kernel, student, teacher[:, part], None if weight is None else weight[part]
        )
        if gradient is None:
            continue
        to_hidden, to_matrix, to_bias = changes
        if to_hidden is not None:
            to_hidden[part] = torch.einsum("kn,knd->nd", gradient, taken) / plan.temperature
        if to_matrix is not None:
            to_matrix.index_add_(0, chosen.flatten(), (gradient.unsqueeze(-1) * scaled[part]).flatten(0, 1))
        if to_bias is not None:
            to_bias.index_add_(0, chosen.flatten(), gradient.flatten() / plan.temperature)
    return values


def _compare(kernel: Kernel, student: Tensor, teacher: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Values `(N,)` and weighted gradient `(K, N)` of logits `(K, N)` of a few outcomes."""
    q, a = student.log_softmax(0), teacher.log_softmax(0)
    value = kernel(q, a).sum(0)
    return value, None if weight is None else (a - q * a.sum(0)) * weight


def _add_gradients(
    changes: Sequence[Tensor | None],
    own: Tensor,
    finish: Finish,
    weight: Tensor,
    scaled: Tensor,
    matrix: Tensor,
    temperature: float,
) -> None:
    """Multiply the gradient to a chunk's logits through, a tile at a time."""
    to_hidden, to_matrix, to_bias = changes
    for tile in _tiles(own):
        gradient = finish(tile, weight)
        if to_matrix is not None:
            to_matrix[tile].addmm_(gradient, scaled)
        if to_bias is not None:
            to_bias[tile] += gradient.sum(1) / temperature
        if to_hidden is not None:
            to_hidden.addmm_(gradient.T, matrix[tile].to(scaled.dtype))
    if to_hidden is not None:
        to_hidden.div_(temperature)
