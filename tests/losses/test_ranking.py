"""Plackett-Luce losses: the paper's vectors, the special cases, the shape of the loss, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stillroom import losses
from stillroom.losses import plackett_luce_loss, pld_loss, teacher_optimal_permutation
from tests.golden_cases import golden_cases


def drawn(samples=8, classes=6):
    return (
        3 * torch.randn(samples, classes, dtype=torch.float64),
        3 * torch.randn(samples, classes, dtype=torch.float64),
        torch.randint(classes, (samples,)),
    )


@pytest.mark.parametrize("case", golden_cases("pld", "pld_loss"), ids=str)
def test_value_and_gradient_match_the_papers_listing(case):
    inputs = case.inputs
    student_logits = inputs["student_logits"].requires_grad_()
    loss = pld_loss(student_logits, inputs["teacher_logits"], inputs["labels"], **case.params)
    (gradient,) = torch.autograd.grad(3 * loss, student_logits)
    case.check(loss=loss, grad_of_student_logits=gradient / 3)


def test_a_certain_teacher_gives_cross_entropy_and_its_gradient():
    student, _, labels = drawn()
    student.requires_grad_()
    loss = pld_loss(student, 1000.0 * F.one_hot(labels, 6).double(), labels)
    expected = F.cross_entropy(student, labels)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, student)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_one_hot_weights_are_cross_entropy():
    student, teacher, labels = drawn()
    student.requires_grad_()
    weights = torch.zeros_like(student).index_fill(1, torch.tensor([0]), 1.0)
    loss = plackett_luce_loss(student, teacher_optimal_permutation(teacher, labels), weights)
    torch.testing.assert_close(loss, F.cross_entropy(student, labels))
    gradients = [torch.autograd.grad(v, student)[0] for v in (loss, F.cross_entropy(student, labels))]
    torch.testing.assert_close(*gradients)


def test_uniform_weights_are_the_likelihood_of_the_order():
    student, teacher, labels = drawn(samples=2, classes=4)
    order = teacher_optimal_permutation(teacher, labels)
    expected = []
    for row, chosen in zip(student, order.tolist(), strict=True):
        chance = 1.0
        for rank in range(4):
            chance *= float(row[chosen[rank]].exp() / row[chosen[rank:]].exp().sum())
        expected.append(-torch.log(torch.tensor(chance, dtype=torch.float64)) / 4)
    loss = plackett_luce_loss(student, order, torch.full_like(student, 0.25), reduction="none")
    torch.testing.assert_close(loss, torch.stack(expected))


def test_a_shift_of_a_row_changes_nothing_and_gradient_rows_sum_to_0():
    student, teacher, labels = drawn()
    student.requires_grad_()
    loss = pld_loss(student, teacher, labels)
    shifted = pld_loss(student + 10 * torch.randn(8, 1), teacher, labels)
    torch.testing.assert_close(loss, shifted)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-12)
    assert not torch.allclose(pld_loss(2 * student, teacher, labels), loss)


def test_it_is_convex_in_the_students_logits():
    for _ in range(20):
        first, teacher, labels = drawn()
        second = drawn()[0]
        middle = pld_loss((first + second) / 2, teacher, labels, reduction="none")
        ends = [pld_loss(end, teacher, labels, reduction="none") for end in (first, second)]
        assert bool((middle <= (ends[0] + ends[1]) / 2 + 1e-12).all())


def test_renaming_the_classes_changes_nothing():
    student, teacher, labels = drawn()
    new = torch.tensor([4, 2, 0, 5, 1, 3])  # class c is now called new[c]
    old = new.argsort()
    torch.testing.assert_close(
        pld_loss(student[:, old], teacher[:, old], new[labels]), pld_loss(student, teacher, labels)
    )


def test_exchanging_the_teachers_wrong_classes_changes_the_loss():
    student, teacher, _ = drawn()
    labels = torch.zeros(8, dtype=torch.int64)
    other = teacher.clone()
    other[:, [1, 2]] = teacher[:, [2, 1]]
    values = pld_loss(student, teacher, labels, reduction="none")
    assert not torch.isclose(pld_loss(student, other, labels, reduction="none"), values).any()


def test_the_temperature_softens_the_weights_and_never_the_order():
    student, teacher, labels = drawn()
    hot = pld_loss(student, teacher, labels, teacher_temperature=1e6)
    uniform = plackett_luce_loss(student, teacher_optimal_permutation(teacher, labels), torch.full_like(student, 1 / 6))
    torch.testing.assert_close(hot, uniform, rtol=1e-4, atol=1e-4)


def test_it_falls_towards_0_as_the_student_spreads_the_right_order():
    teacher = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    values = [float(pld_loss(scale * teacher, teacher, torch.tensor([0]))) for scale in (1, 10, 100)]
    assert values[0] > values[1] > values[2] >= 0
    assert values[2] < 1e-6
    assert float(pld_loss(100 * teacher.flip(1), teacher, torch.tensor([0]))) > 50


def test_ties_keep_the_order_of_the_classes():
    order = teacher_optimal_permutation(torch.zeros(2, 5), torch.tensor([3, 0]))
    assert order.tolist() == [[3, 0, 1, 2, 4], [0, 1, 2, 3, 4]]


def test_the_label_comes_first_wherever_the_teacher_puts_it():
    teacher = torch.tensor([[5.0, -9.0, 7.0, 6.0]])
    assert teacher_optimal_permutation(teacher, torch.tensor([1])).tolist() == [[1, 2, 3, 0]]


def test_ignored_rows_count_for_nothing():
    student, teacher, labels = drawn()
    student.requires_grad_()
    labels[[1, 4]] = -1
    kept = labels >= 0
    loss = pld_loss(student, teacher, labels, ignore_index=-1)
    torch.testing.assert_close(loss, pld_loss(student[kept], teacher[kept], labels[kept]))
    assert float(torch.autograd.grad(loss, student)[0][[1, 4]].abs().sum()) == 0
    values = pld_loss(student, teacher, labels, ignore_index=-1, reduction="none")
    assert values.shape == (8,)
    assert values[[1, 4]].tolist() == [0.0, 0.0]
    torch.testing.assert_close(values.sum() / 6, loss)


def test_ignored_rows_may_hold_anything():
    student, teacher, labels = drawn()
    teacher[1], labels[1] = float("nan"), -1
    assert bool(pld_loss(student, teacher, labels, ignore_index=-1).isfinite())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_teacher_that_is_not_finite_is_refused(value):
    student, teacher, labels = drawn()
    teacher[3, 2] = value
    with pytest.raises(ValueError, match="teacher_logits must be finite, given NaN or infinite"):
        pld_loss(student, teacher, labels)


def test_half_precision_is_computed_in_float32():
    student, teacher, labels = torch.randn(8, 5).bfloat16(), torch.randn(8, 5), torch.arange(8) % 5
    assert torch.equal(pld_loss(student, teacher, labels), pld_loss(student.float(), teacher, labels))


def test_weights_and_orders_of_other_shapes_are_refused():
    student, teacher, labels = drawn()
    order = teacher_optimal_permutation(teacher, labels)
    with pytest.raises(ValueError, match=r"\(8, 6\), but rank_weights has shape \(8, 5\)"):
        plackett_luce_loss(student, order, torch.ones(8, 5))
    with pytest.raises(ValueError, match=r"\(8, 6\), but permutation has shape \(8, 5\)"):
        plackett_luce_loss(student, order[:, :5], torch.ones(8, 6))
    with pytest.raises(ValueError, match=r"permutation must be int64 class numbers, given dtype torch\.float32"):
        plackett_luce_loss(student, order.float(), torch.ones(8, 6))


def test_rank_weights_receive_no_gradient():
    student, teacher, labels = drawn()
    weights = torch.rand_like(student).requires_grad_()
    loss = losses.plackett_luce_loss(student.requires_grad_(), teacher_optimal_permutation(teacher, labels), weights)
    loss.backward()
    assert weights.grad is None
