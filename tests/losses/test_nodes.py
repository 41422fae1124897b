"""Losses of nodes, against loops in float64 and at their limits."""

from __future__ import annotations

import math

import pytest
import torch

from stillroom.losses import (
    log_sum_uniformity_loss,
    node_contrast_loss,
    pairwise_soft_target_loss,
    subspace_uniformity_loss,
)
from tests.golden_cases import golden_cases


def nodes(count: int, width: int = 4) -> torch.Tensor:
    return torch.randn(count, width, dtype=torch.float64)


def contrast_by_loops(student, teacher, rows, temperature, eps):
    def cosine(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    values = []
    for row in rows.tolist():
        terms = [math.exp(cosine(teacher[row], other) / temperature) for other in student]
        values.append(-math.log(terms[row] / (sum(terms) + eps)))
    return values


@pytest.mark.parametrize("chunk_size", [1, 2, 100])
def test_contrast_is_the_loops_value(chunk_size):
    student, teacher, rows = nodes(6), nodes(6), torch.tensor([4, 0, 1])
    found = node_contrast_loss(
        student, teacher, rows, temperature=0.2, eps=0.5, chunk_size=chunk_size, reduction="none"
    )
    expected = contrast_by_loops(student, teacher, rows, 0.2, 0.5)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_contrast_is_least_where_the_student_points_where_its_teacher_does():
    teacher = torch.eye(5, dtype=torch.float64)
    same = node_contrast_loss(3 * teacher, teacher)
    assert same < 1e-3
    for _ in range(10):
        assert node_contrast_loss(teacher + 0.3 * nodes(5, 5), teacher) > same


def test_the_teacher_gets_no_gradient():
    student, teacher = nodes(4).requires_grad_(), nodes(4).requires_grad_()
    node_contrast_loss(student, teacher).backward()
    assert teacher.grad is None
    assert float(student.grad.abs().sum()) > 0
    margins, teacher_margins = nodes(3).requires_grad_(), nodes(3).requires_grad_()
    pairwise_soft_target_loss(margins, teacher_margins).backward()
    assert teacher_margins.grad is None
    assert float(margins.grad.abs().sum()) > 0


def test_a_row_of_zeros_has_no_direction_and_no_gradient():
    student = nodes(3).requires_grad_()
    with torch.no_grad():
        student[1] = 0
    node_contrast_loss(student, nodes(3)).backward()
    assert torch.isfinite(student.grad).all()
    assert float(student.grad[1].abs().sum()) == 0


def all_losses(chunk_size: int = 1024):
    ones, others = nodes(7).requires_grad_(), nodes(9).requires_grad_()
    first, second = (torch.rand(7, 4) < 0.6).double(), (torch.rand(9, 4) < 0.6).double()
    rows = torch.tensor([5, 1, 2, 6])
    yield node_contrast_loss(ones, nodes(7), rows, chunk_size=chunk_size), (ones,)
    yield log_sum_uniformity_loss(ones, others, rows, chunk_size=chunk_size), (ones, others)
    yield (
        subspace_uniformity_loss(ones, others, first, second, rows, tolerance=1, chunk_size=chunk_size),
        (ones, others),
    )


def test_chunks_change_neither_value_nor_gradient():
    seen = []
    for chunk_size in (1, 3, 1024):
        torch.manual_seed(0)
        parts = []
        for loss, inputs in all_losses(chunk_size):
            parts += [loss, *torch.autograd.grad(3 * loss, inputs)]
        seen.append(parts)
    assert len(seen[0]) == 8
    for parts in seen[:-1]:
        for part, whole in zip(parts, seen[-1], strict=True):
            torch.testing.assert_close(part, whole)


def test_no_rows_give_zero_that_is_connected():
    ones, nobody = nodes(3).requires_grad_(), torch.zeros(0, dtype=torch.int64)
    mask = torch.ones(3, 4)
    for loss in (
        node_contrast_loss(ones, nodes(3), nobody),
        log_sum_uniformity_loss(ones, ones, nobody),
        subspace_uniformity_loss(ones, ones, mask, mask, nobody),
    ):
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, ones, retain_graph=True)
        assert float(gradient.abs().sum()) == 0


def test_the_mean_is_over_the_rows_and_the_sum_is_their_sum():
    ones, rows = nodes(5), torch.tensor([0, 3])
    each = log_sum_uniformity_loss(ones, ones, rows, reduction="none")
    torch.testing.assert_close(log_sum_uniformity_loss(ones, ones, rows), each.mean())
    torch.testing.assert_close(log_sum_uniformity_loss(ones, ones, rows, reduction="sum"), each.sum())


def test_large_products_do_not_overflow():
    ones = 100 * nodes(4)
    assert torch.isfinite(log_sum_uniformity_loss(ones, ones)).all()
    far_apart = log_sum_uniformity_loss(torch.full((1, 1), 1e4), torch.full((3, 1), -1.0))
    torch.testing.assert_close(far_apart, torch.tensor(math.log(1e-5)))


def test_soft_targets_are_worked_by_hand():
    target, said = 0.8, 0.4
    margin = [0.5 * math.log(p / (1 - p)) for p in (target, said)]
    found = pairwise_soft_target_loss(torch.tensor([margin[1]]), torch.tensor([margin[0]]), temperature=0.5)
    expected = -0.8 * math.log(0.4) - 0.2 * math.log(0.6)
    torch.testing.assert_close(float(found), expected, rtol=1e-5, atol=0)


def test_soft_targets_saturate_at_the_logarithm_of_eps():
    found = pairwise_soft_target_loss(torch.tensor([-50.0]), torch.tensor([50.0]))
    torch.testing.assert_close(float(found), -math.log(1e-8), rtol=1e-5, atol=0)
    margins = torch.tensor([-50.0], requires_grad=True)
    pairwise_soft_target_loss(margins, torch.tensor([50.0])).backward()
    assert torch.isfinite(margins.grad).all()


def test_half_precision_is_computed_in_float32():
    ones, teacher = torch.randn(4, 3).bfloat16(), torch.randn(4, 3)
    assert torch.equal(node_contrast_loss(ones, teacher), node_contrast_loss(ones.float(), teacher))
    with torch.autocast("cpu", torch.bfloat16):
        inside = log_sum_uniformity_loss(ones.float(), teacher)
    assert torch.equal(inside, log_sum_uniformity_loss(ones.float(), teacher))


def partners_by_products(ones, others, rows):
    """What the subspace term is when everybody is everybody's partner."""
    logits = ones[rows] @ others.T
    return -logits.log_softmax(dim=1).sum(dim=1)


def test_a_tolerance_of_the_whole_width_makes_everybody_a_partner():
    ones, others, rows = nodes(5), nodes(6), torch.tensor([0, 4])
    masks = [(torch.rand(count, 4) < 0.5).double() for count in (5, 6)]
    found = subspace_uniformity_loss(ones, others, *masks, rows, tolerance=4, reduction="none")
    torch.testing.assert_close(found, partners_by_products(ones, others, rows))


def test_nothing_pruned_makes_everybody_a_partner_without_tolerance():
    ones, others, rows = nodes(5), nodes(6), torch.tensor([0, 4])
    found = subspace_uniformity_loss(ones, others, torch.ones(5, 4), torch.ones(6, 4), rows, reduction="none")
    torch.testing.assert_close(found, partners_by_products(ones, others, rows))


def test_partners_live_in_the_same_dimensions():
    ones, others = nodes(1, 3), nodes(3, 3)
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    other_masks = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    logs = (ones @ others.T).log_softmax(dim=1)[0]
    strict = subspace_uniformity_loss(ones, others, mask, other_masks)
    torch.testing.assert_close(strict, -logs[0])
    loose = subspace_uniformity_loss(ones, others, mask, other_masks, tolerance=1)
    torch.testing.assert_close(loose, -logs[0] - logs[1])


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"student_nodes has shape \(3, 4\), but teacher_nodes has shape \(4, 4\)"):
        node_contrast_loss(nodes(3), nodes(4))
    with pytest.raises(ValueError, match=r"student_nodes must be \(nodes, dimensions\), given \(3,\)"):
        node_contrast_loss(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="anchor_nodes have 4 dimensions, but other_nodes have 5"):
        log_sum_uniformity_loss(nodes(3), nodes(3, 5))
    with pytest.raises(ValueError, match="temperature must be a number above 0, given 0"):
        log_sum_uniformity_loss(nodes(3), nodes(3), temperature=0)
    with pytest.raises(ValueError, match="tolerance must be a number of 0 or more, given -1"):
        subspace_uniformity_loss(nodes(3), nodes(3), torch.ones(3, 4), torch.ones(3, 4), tolerance=-1)
    with pytest.raises(ValueError, match=r"anchor_mask has shape \(2, 4\)"):
        subspace_uniformity_loss(nodes(3), nodes(3), torch.ones(2, 4), torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"\(3, 4\), but teacher_margins has shape \(2, 4\)"):
        pairwise_soft_target_loss(nodes(3), nodes(2))
    with pytest.raises(ValueError, match="chunk_size must be a number above 0, given 0"):
        node_contrast_loss(nodes(3), nodes(3), chunk_size=0)


def test_the_golden_file_has_all_functions():
    assert {case.function for case in golden_cases("lightgnn")} == {
        "embedding_contrast",
        "masked_propagation",
        "pairwise_soft_target",
        "prune_step",
        "self_contrast_term",
        "subspace_uniformity_term",
    }
