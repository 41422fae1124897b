"""Squared differences of probabilities, and the sum of norms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stillroom.losses import label_mse_loss, mixed_mse_loss, norm_penalty, probability_mse_loss
from tests.golden_cases import golden_cases

LABELS = torch.tensor([0, 3, 1, 2])


def logits():
    return torch.randn(4, 5, dtype=torch.float64)


@pytest.mark.parametrize("case", golden_cases("kernel-self-distillation", "probability_mse_loss"), ids=str)
def test_value_and_gradient_match_the_authors_formula(case):
    student = case.inputs["student_logits"].requires_grad_()
    weight = case.params["alpha"]
    loss = mixed_mse_loss(student, case.inputs["teacher_logits"], case.inputs["labels"], label_weight=weight)
    (gradient,) = torch.autograd.grad(3 * loss, student)
    case.check(loss=loss, grad_of_student_logits=gradient / 3)


def test_they_are_mse_losses_of_the_probabilities():
    student, teacher = logits().requires_grad_(), logits()
    onehot = F.one_hot(LABELS, 5).double()
    for ours, target in (
        (probability_mse_loss(student, teacher), teacher.softmax(1)),
        (label_mse_loss(student, LABELS), onehot),
    ):
        expected = F.mse_loss(student.softmax(1), target)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(torch.autograd.grad(3 * ours, student), torch.autograd.grad(3 * expected, student))


def test_the_mixture_pulls_as_the_mixed_target_does():
    student, teacher = logits().requires_grad_(), logits()
    target = 0.3 * F.one_hot(LABELS, 5) + 0.7 * teacher.softmax(1)
    ours = torch.autograd.grad(mixed_mse_loss(student, teacher, LABELS, label_weight=0.3), student)
    torch.testing.assert_close(ours, torch.autograd.grad(F.mse_loss(student.softmax(1), target), student))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_the_mixture(share):
    student, teacher = logits(), logits()
    expected = label_mse_loss(student, LABELS) if share else probability_mse_loss(student, teacher)
    torch.testing.assert_close(mixed_mse_loss(student, teacher, LABELS, label_weight=share), expected)


def test_unlabelled_rows_do_not_count():
    student = logits().requires_grad_()
    some = torch.tensor([0, -100, 1, -100])
    torch.testing.assert_close(label_mse_loss(student, some), label_mse_loss(student[::2], some[::2]))
    assert label_mse_loss(student, some, reduction="none")[1] == 0
    nothing = label_mse_loss(student, torch.full((4,), -100))
    nothing.backward()
    assert nothing.item() == 0
    assert not student.grad.any()


def test_a_confident_mistake_has_hardly_a_gradient():
    wrong = torch.tensor([[30.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(label_mse_loss(wrong, torch.tensor([1])), wrong)
    assert float(gradient.abs().max()) < 1e-10


def test_norms_are_not_squared():
    first, second = torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([[2.0]], requires_grad=True)
    penalty = norm_penalty(first, second)
    assert penalty.item() == 7
    gradients = torch.autograd.grad(3 * penalty, (first, second))
    torch.testing.assert_close(gradients[0], 3 * torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(gradients[1], torch.tensor([[3.0]]))


def test_a_parameter_of_zeros_has_gradient_0():
    zeros = torch.zeros(4, requires_grad=True)
    assert torch.autograd.grad(norm_penalty(zeros), zeros)[0].tolist() == [0, 0, 0, 0]
    assert norm_penalty(torch.ones(4).bfloat16()).dtype == torch.float32


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"label_weight must be a share in \[0, 1\], given -0\.5"):
        mixed_mse_loss(logits(), logits(), LABELS, label_weight=-0.5)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\), given labels from 0 to 7"):
        label_mse_loss(logits(), torch.tensor([0, 7, 1, 2]))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\), given labels from -100 to 2"):
        mixed_mse_loss(logits(), logits(), torch.tensor([0, -100, 1, 2]))
    with pytest.raises(ValueError, match=r"int64 class numbers, given dtype torch\.float32"):
        label_mse_loss(logits(), LABELS.float())
