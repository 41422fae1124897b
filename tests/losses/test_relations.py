"""Relations between samples: what RKD and CRD do not see, what they must see, duplicates, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from stillroom import losses


def points(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("loss", [losses.rkd_loss, losses.rkd_distance_loss, losses.rkd_angle_loss])
class TestRelations:
    def test_rotation_translation_and_scale_change_nothing(self, loss):
        student, teacher = points(6, 4), points(6, 7)
        rotation, _ = torch.linalg.qr(points(4, 4))
        moved = 5.0 * student @ rotation + 10 * points(4)
        torch.testing.assert_close(loss(moved, teacher), loss(student, teacher))
        bent = student * torch.tensor([1.0, 1.0, 1.0, 3.0])
        assert not torch.isclose(loss(bent, teacher), loss(student, teacher))

    def test_a_similar_student_has_loss_0(self, loss):
        teacher = points(6, 4)
        rotation, _ = torch.linalg.qr(points(4, 4))
        assert abs(float(loss(3.0 * teacher @ rotation - 1, teacher))) < 1e-12

    def test_one_sample_has_no_relation(self, loss):
        with pytest.raises(ValueError, match="at least 2 samples in a batch, given 1"):
            loss(points(1, 4), points(1, 4))

    def test_different_batches_are_refused(self, loss):
        with pytest.raises(ValueError, match="student_feature has 5 samples, but teacher_feature has 6"):
            loss(points(5, 4), points(6, 4))

    def test_equal_samples_have_a_finite_gradient(self, loss):
        student = points(5, 4)
        student[3] = student[1]
        student.requires_grad_()
        loss(student, points(5, 4)).backward()
        assert bool(student.grad.isfinite().all())
        assert float(student.grad.abs().max()) < 1e3

    def test_a_collapsed_student_has_a_finite_gradient(self, loss):
        student = torch.ones(5, 4, requires_grad=True)
        value = loss(student, torch.randn(5, 4))
        value.backward()
        assert bool(value.isfinite())
        assert bool(student.grad.isfinite().all())

    def test_maps_are_flattened(self, loss):
        student, teacher = points(4, 2, 3, 3), points(4, 5)
        assert torch.equal(loss(student, teacher), loss(student.flatten(1), teacher))


def test_distances_by_hand():
    """Three points on a line at 0, 1 and 3, against an equilateral triangle: distances 1, 2, 3 of mean 2 against 1."""
    line = torch.tensor([[0.0], [1.0], [3.0]])
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    # differences -1/2 (0 and 1), 0 (1 and 2), +1/2 (0 and 2): each twice among 9 pairs, half its square
    assert float(losses.rkd_distance_loss(line, triangle)) == pytest.approx(2 * 2 * 0.125 / 9, rel=1e-5)
    # squares 1, 4, 9 of mean 14/3 against 1: 3/14 - 1, 12/14 - 1, 27/14 - 1
    expected = 2 * sum((square / (14 / 3) - 1) ** 2 / 2 for square in (1, 4, 9)) / 9
    assert float(losses.rkd_distance_loss(line, triangle, squared=True)) == pytest.approx(expected, rel=1e-5)


def test_angles_by_hand():
    """At each corner of an equilateral triangle cos 60 = 1/2; on a line the cosines are 1, -1 and 1."""
    line = torch.tensor([[0.0], [1.0], [3.0]])
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    # per corner two ordered pairs (j, k): differences 1/2, -3/2, 1/2; smooth L1: 1/8, 1, 1/8; among 27
    assert float(losses.rkd_angle_loss(line, triangle)) == pytest.approx(2 * (0.125 + 1 + 0.125) / 27, rel=1e-5)


def test_eps_raises_small_distances():
    student, teacher = points(5, 3), points(5, 3)
    assert not torch.isclose(
        losses.rkd_distance_loss(student, teacher, eps=2.0), losses.rkd_distance_loss(student, teacher)
    )
    flat = losses.rkd_distance_loss(student, teacher, eps=1e6)  # all distances are equal now
    assert abs(float(flat)) < 1e-12


def test_far_from_the_origin_distances_stay_exact():
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(
        losses.rkd_distance_loss(student + 300, teacher),
        losses.rkd_distance_loss(student, teacher),
        rtol=1e-3,
        atol=1e-6,
    )


def test_crd_by_hand():
    """All scores at the noise K / M: each of the 1 + K pairs is a coin flip, log 2."""
    noise = math.log(7 / 50)
    loss = losses.crd_loss(torch.full((3,), noise), torch.full((3, 7), noise), dataset_size=50, reduction="none")
    torch.testing.assert_close(loss, torch.full((3,), 8 * math.log(2)))


def test_crd_pulls_the_pair_and_pushes_the_others():
    positive, negative = torch.zeros(4, requires_grad=True), torch.zeros(4, 6, requires_grad=True)
    losses.crd_loss(positive, negative, dataset_size=30).backward()
    assert bool((positive.grad < 0).all())
    assert bool((negative.grad > 0).all())


def test_crd_of_extreme_scores_is_finite():
    positive = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss = losses.crd_loss(positive, torch.full((2, 3), 500.0), dataset_size=30, reduction="none")
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert float(positive.grad[0]) == pytest.approx(-1)


def test_crd_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"positive_log_scores \(3,\) and negative_log_scores \(4, 5\)"):
        losses.crd_loss(torch.zeros(3), torch.zeros(4, 5), dataset_size=10)
    with pytest.raises(ValueError, match="negatives must be a number above 0, given 0"):
        losses.crd_loss(torch.zeros(3), torch.zeros(3, 0), dataset_size=10)
