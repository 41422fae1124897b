"""How the nodes of a graph lie to each other: contrast of two networks' nodes, spread, soft order of pairs.

Sums over all nodes are made in chunks of rows, which are computed again in the backward pass, so that a graph of many
nodes fits where a matrix of rows x nodes does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stillroom.losses._shared import (
    Reduction,
    at_least_float32,
    check_not_negative,
    check_positive,
    check_same_shape,
    outside_autocast,
    reduce,
)


@outside_autocast
def node_contrast_loss(
    student_nodes: Tensor,
    teacher_nodes: Tensor,
    nodes: Tensor | None = None,
    *,
    temperature: float = 0.1,
    eps: float = 1e-8,
    chunk_size: int = 1024,
    reduction: Reduction = "mean",
) -> Tensor:
    """InfoNCE between a teacher's node and the same node of the student, against all nodes of the student.

    Per node v, with cos between the teacher's row h_v and the student's rows z,
    loss = -log( exp(cos(h_v, z_v) / tau) / (sum over all nodes u of exp(cos(h_v, z_u) / tau) + eps) ).

    Args:
        student_nodes: `(n, d)`, every node of one kind; computed in float32 or wider, also under autocast.
        teacher_nodes: `(n, d)`, the same nodes; receives no gradient. A row of zeros has no direction: its cosines
            are 0.
        nodes: `(B,)` numbers in [0, n) of the nodes that are pulled; None for all.
        temperature: tau, above 0.
        eps: added to the sum; 0 or more.
        chunk_size: rows of the `(B, n)` products that exist at a time, 1 or more.
        reduction: over nodes: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(B,)` for "none"; 0 and connected to the graph for no nodes.

    Raises:
        ValueError: the shapes differ, or a number out of range.

    Source: LightGNN (arXiv:2501.03228), the released code's embedding contrast.
    """
    _check_rows(student_nodes=student_nodes, teacher_nodes=teacher_nodes)
    check_same_shape(student_nodes=student_nodes, teacher_nodes=teacher_nodes)
    check_positive(temperature=temperature)
    check_not_negative(eps=eps)
    student = _directions(at_least_float32(student_nodes))
    teacher = _directions(at_least_float32(teacher_nodes.detach()).to(student.dtype))
    if nodes is None:
        nodes = torch.arange(len(student), device=student.device)

    def of_rows(chosen: Tensor, everybody: Tensor) -> Tensor:
        cosines = teacher[chosen] @ everybody.T / temperature
        own = (teacher[chosen] * everybody[chosen]).sum(dim=1) / temperature
        return _log_sum(cosines, eps) - own

    return reduce(_in_chunks(of_rows, nodes, student, chunk_size=chunk_size), reduction)


@outside_autocast
def pairwise_soft_target_loss(
    student_margins: Tensor,
    teacher_margins: Tensor,
    *,
    temperature: float = 0.03,
    eps: float = 1e-8,
    reduction: Reduction = "mean",
) -> Tensor:
    """Binary cross-entropy between how surely teacher and student prefer one item to another.

    With t = sigmoid(teacher_margin / tau) and s the same of the student,
    loss = -t log(s + eps) - (1 - t) log(1 - s + eps), without a factor tau^2. eps bounds it by -log(eps).

    Args:
        student_margins: any shape, score of the one minus score of the other; float32 or wider, also under autocast.
        teacher_margins: the same shape; receives no gradient.
        temperature: tau, above 0.
        eps: above 0.
        reduction: over pairs: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or one value per pair for "none".

    Raises:
        ValueError: the shapes differ, or a number is not above 0.

    Source: LightGNN (arXiv:2501.03228), the released code's prediction distillation.
    """
    check_same_shape(student_margins=student_margins, teacher_margins=teacher_margins)
    check_positive(temperature=temperature, eps=eps)
    student = at_least_float32(student_margins) / temperature
    target = (at_least_float32(teacher_margins.detach()).to(student.dtype) / temperature).sigmoid()
    preferred = _log_plus(F.logsigmoid(student), eps)
    other = _log_plus(F.logsigmoid(-student), eps)
    return reduce(-(target * preferred + (1 - target) * other), reduction)


@outside_autocast
def log_sum_uniformity_loss(
    anchor_nodes: Tensor,
    other_nodes: Tensor,
    anchors: Tensor | None = None,
    *,
    temperature: float = 1.0,
    eps: float = 1e-5,
    chunk_size: int = 1024,
    reduction: Reduction = "mean",
) -> Tensor:
    """Spread of nodes: how large an anchor's inner products with all nodes of a kind are.

    Per anchor v, loss = log( sum over j of exp(<a_v, z_j> / tau) + eps ). Nothing is normalised, and it may be below 0.

    Args:
        anchor_nodes: `(n, d)`; computed in float32 or wider, also under autocast.
        other_nodes: `(m, d)`, the nodes that are summed over; may be the same tensor.
        anchors: `(B,)` numbers in [0, n) of the rows that count; None for all.
        temperature: tau, above 0.
        eps: added to the sum; 0 or more.
        chunk_size: rows of the `(B, m)` products that exist at a time, 1 or more.
        reduction: over anchors: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(B,)` for "none".

    Raises:
        ValueError: the widths differ, or a number out of range.

    Source: LightGNN (arXiv:2501.03228), the released code's self contrast.
    """
    _check_widths(anchor_nodes, other_nodes)
    check_positive(temperature=temperature)
    check_not_negative(eps=eps)
    first, second = at_least_float32(anchor_nodes), at_least_float32(other_nodes)
    if anchors is None:
        anchors = torch.arange(len(first), device=first.device)

    def of_rows(chosen: Tensor, ones: Tensor, others: Tensor) -> Tensor:
        return _log_sum(ones[chosen] @ others.T / temperature, eps)

    return reduce(_in_chunks(of_rows, anchors, first, second, chunk_size=chunk_size), reduction)


@outside_autocast
def subspace_uniformity_loss(
    anchor_nodes: Tensor,
    other_nodes: Tensor,
    anchor_mask: Tensor,
    other_mask: Tensor,
    anchors: Tensor | None = None,
    *,
    tolerance: float = 0.0,
    temperature: float = 1.0,
    chunk_size: int = 1024,
    reduction: Reduction = "mean",
) -> Tensor:
    """Draws nodes together that live in the same dimensions after pruning.

    T_vj = 1 where |mask_v AND mask_j| >= max(|mask_v|, |mask_j|) - tolerance, else 0. Per anchor v,
    loss = -sum_j T_vj log softmax_j(<a_v, z_j> / tau). T is not normalised: anchors with many partners weigh more.

    Args:
        anchor_nodes: `(n, d)`; computed in float32 or wider, also under autocast.
        other_nodes: `(m, d)`; may be the same tensor.
        anchor_mask: `(n, d)` of zeros and ones: which entries are alive.
        other_mask: `(m, d)`, the same of the others.
        anchors: `(B,)` numbers in [0, n) of the rows that count; None for all.
        tolerance: by how many dimensions two may differ; 0 or more. The width d makes everybody a partner.
        temperature: tau, above 0.
        chunk_size: rows of the `(B, m)` products that exist at a time, 1 or more.
        reduction: over anchors: "mean", "sum" or "none".

    Returns:
        Nats: a scalar, or `(B,)` for "none".

    Raises:
        ValueError: the widths differ, a mask has another shape than its nodes, or a number out of range.

    Source: LightGNN (arXiv:2501.03228), the released code's subspace uniformity.
    """
    _check_widths(anchor_nodes, other_nodes)
    check_same_shape(anchor_nodes=anchor_nodes, anchor_mask=anchor_mask)
    check_same_shape(other_nodes=other_nodes, other_mask=other_mask)
    check_positive(temperature=temperature)
    check_not_negative(tolerance=tolerance)
    first, second = at_least_float32(anchor_nodes), at_least_float32(other_nodes)
    if anchors is None:
        anchors = torch.arange(len(first), device=first.device)
    ones_mask, others_mask = anchor_mask.to(first.dtype), other_mask.to(first.dtype)
    ones_size, others_size = ones_mask.sum(dim=1), others_mask.sum(dim=1)

    def of_rows(chosen: Tensor, ones: Tensor, others: Tensor) -> Tensor:
        overlap = ones_mask[chosen] @ others_mask.T
        largest = torch.maximum(ones_size[chosen].unsqueeze(1), others_size)
        partners = (overlap >= largest - tolerance).to(ones.dtype)
        logits = ones[chosen] @ others.T / temperature
        return partners.sum(dim=1) * logits.logsumexp(dim=1) - (partners * logits).sum(dim=1)

    return reduce(_in_chunks(of_rows, anchors, first, second, chunk_size=chunk_size), reduction)


def _in_chunks(of_rows: Callable[..., Tensor], rows: Tensor, *tensors: Tensor, chunk_size: int) -> Tensor:
    """Call `of_rows(part, *tensors)` on parts of the rows; more than one part is computed again in backward."""
    check_positive(chunk_size=chunk_size)
    if not len(rows):
        return 0 * torch.stack([tensor.sum() for tensor in tensors]).sum() * rows.to(tensors[0].dtype)
    if len(rows) <= chunk_size:
        return of_rows(rows, *tensors)
    parts = [
        checkpoint(of_rows, part, *tensors, use_reentrant=False, preserve_rng_state=False)
        for part in rows.split(chunk_size)
    ]
    return torch.cat(parts)


def _log_sum(logits: Tensor, eps: float) -> Tensor:
    """log(sum_j exp(logits_j) + eps) without overflow."""
    return _log_plus(logits.logsumexp(dim=1), eps)


def _log_plus(log_value: Tensor, eps: float) -> Tensor:
    """log(exp(log_value) + eps) without overflow."""
    return log_value if eps == 0 else torch.logaddexp(log_value, log_value.new_tensor(math.log(eps)))


def _directions(rows: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay, with a gradient of 0."""
    squared = rows.square().sum(dim=1, keepdim=True)
    alive = ~(squared <= torch.finfo(rows.dtype).tiny)  # NaN stays NaN
    return torch.where(alive, rows / torch.where(alive, squared, 1).sqrt(), 0)


def _check_rows(**named: Tensor) -> None:
    for name, tensor in named.items():
        if tensor.ndim != 2:
            raise ValueError(f"{name} must be (nodes, dimensions), given {tuple(tensor.shape)}")


def _check_widths(anchor_nodes: Tensor, other_nodes: Tensor) -> None:
    _check_rows(anchor_nodes=anchor_nodes, other_nodes=other_nodes)
    if anchor_nodes.shape[1] != other_nodes.shape[1]:
        raise ValueError(
            f"anchor_nodes have {anchor_nodes.shape[1]} dimensions, but other_nodes have {other_nodes.shape[1]}: "
            "inner products need the same"
        )
