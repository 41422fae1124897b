"""The symmetric divergence and its relatives."""

from __future__ import annotations

import math

import pytest
import torch

from stillroom.losses import (
    generalized_jensen_shannon,
    kl_divergence,
    reverse_kl_divergence,
    symmetric_kl,
    two_way_kd_loss,
)


def pair(rows=6, classes=5):
    return torch.randn(rows, classes, dtype=torch.float64), torch.randn(rows, classes, dtype=torch.float64)


def test_it_is_half_of_both_directions():
    student, teacher = pair()
    both = kl_divergence(student, teacher, temperature=2.0) + reverse_kl_divergence(student, teacher, temperature=2.0)
    torch.testing.assert_close(symmetric_kl(student, teacher, temperature=2.0), both / 2)
    torch.testing.assert_close(
        symmetric_kl(student, teacher, temperature=2.0), two_way_kd_loss(student, teacher, temperature=2.0) / 8
    )


def test_a_case_worked_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    assert float(symmetric_kl(student, teacher)) == pytest.approx(0.5 * 0.25 * math.log(3))


def test_the_gradient_is_the_one_written_down():
    student, teacher = pair()
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(3 * symmetric_kl(student, teacher, reduction="sum"), student)
    own, theirs = student.detach().softmax(1), teacher.softmax(1)
    ratio = (own / theirs).log()
    reverse = (own * ratio).sum(1, keepdim=True)
    torch.testing.assert_close(gradient, 3 * 0.5 * ((own - theirs) + own * (ratio - reverse)))


def test_the_sides_may_be_exchanged_and_only_equal_distributions_give_0():
    student, teacher = pair()
    values = symmetric_kl(student, teacher, reduction="none")
    torch.testing.assert_close(values, symmetric_kl(teacher, student, reduction="none"))
    assert bool((values > 0).all())
    shifted = (teacher + 7.0).requires_grad_()  # another row of logits for the same distribution
    same = symmetric_kl(shifted, teacher)
    assert abs(float(same.detach())) < 1e-15
    assert float(torch.autograd.grad(same, shifted)[0].abs().max()) < 1e-15


def test_close_to_the_teacher_it_is_four_times_jensen_shannon():
    student, direction = pair()
    ratios = []
    for size in (1.0, 0.1, 0.01):
        teacher = student + size * direction
        ratios.append(float(symmetric_kl(student, teacher) / generalized_jensen_shannon(student, teacher)))
    assert ratios[2] == pytest.approx(4, abs=1e-4)
    assert abs(ratios[0] - 4) > abs(ratios[1] - 4) > abs(ratios[2] - 4)


def test_jensen_shannon_is_bounded_and_the_symmetric_divergence_is_not():
    student, teacher = torch.tensor([[40.0, -40.0]]), torch.tensor([[-40.0, 40.0]])
    assert float(generalized_jensen_shannon(student, teacher)) <= math.log(2) + 1e-7
    assert float(symmetric_kl(student, teacher)) == pytest.approx(80, rel=1e-6)
    student, teacher = pair(200)
    values = generalized_jensen_shannon(5 * student, 5 * teacher, reduction="none")
    assert float(values.max()) <= math.log(2)


def test_eps_caps_what_an_impossible_class_costs_and_changes_nothing_else():
    student, teacher = pair()
    exact, capped = symmetric_kl(student, teacher), symmetric_kl(student, teacher, eps=1e-12)
    assert 0 < abs(float(exact - capped)) < 1e-9
    far = torch.tensor([[200.0, 0.0]], dtype=torch.float64)
    assert float(symmetric_kl(-far, far)) == pytest.approx(200)
    assert float(symmetric_kl(-far, far, eps=1e-12)) == pytest.approx(-math.log(1e-12), rel=1e-6)
    assert float(symmetric_kl(-far, far, eps=1e-10)) == pytest.approx(-math.log(1e-10), rel=1e-6)


def test_it_does_not_grow_with_the_number_of_classes():
    student, teacher = pair(4, 3)
    nothing = torch.full((4, 5), -1e3, dtype=torch.float64)  # classes that neither believes in
    wide = symmetric_kl(torch.cat([student, nothing], 1), torch.cat([teacher, nothing], 1))
    torch.testing.assert_close(wide, symmetric_kl(student, teacher))


def test_what_cannot_be_is_refused():
    student, teacher = pair()
    with pytest.raises(ValueError, match=r"eps must be a number of 0 or more, given -1e-12"):
        symmetric_kl(student, teacher, eps=-1e-12)
