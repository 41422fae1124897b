"""Attention, context, hint and generation losses: what they do not see, what they must see, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stillroom import losses


def maps(*shape):
    return torch.randn(shape, dtype=torch.float64)


def test_hint_is_the_mean_squared_error():
    student, teacher = maps(3, 2, 4, 4), maps(3, 2, 4, 4)
    torch.testing.assert_close(losses.hint_loss(student, teacher), F.mse_loss(student, teacher))


def test_generation_is_the_sum_of_squares_over_samples():
    student, teacher = maps(3, 2, 4, 4), maps(3, 2, 4, 4)
    expected = F.mse_loss(student, teacher, reduction="sum") / 3
    torch.testing.assert_close(losses.masked_generative_loss(student, teacher), expected)


@pytest.mark.parametrize("loss", [losses.hint_loss, losses.masked_generative_loss, losses.review_context_loss])
def test_other_shapes_are_refused(loss):
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).* has shape \(2, 5, 4, 4\)"):
        loss(maps(2, 3, 4, 4), maps(2, 5, 4, 4))


def test_attention_sees_no_channels_and_no_scale():
    student, teacher = maps(3, 6, 4, 4), maps(3, 5, 4, 4)
    loss = losses.attention_transfer_loss(student, teacher)
    shuffled = 7.0 * student[:, torch.randperm(6)]
    torch.testing.assert_close(losses.attention_transfer_loss(shuffled, 0.1 * teacher), loss)
    moved = student.roll(1, dims=3)  # the places do matter
    assert not torch.isclose(losses.attention_transfer_loss(moved, teacher), loss)


@pytest.mark.parametrize(("student_size", "teacher_size"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((4, 2), (8, 6))])
def test_the_larger_map_is_averaged_to_the_smaller(student_size, teacher_size):
    student, teacher = maps(2, 3, *student_size), maps(2, 3, *teacher_size)
    size = tuple(map(min, student_size, teacher_size))
    both = [F.adaptive_avg_pool2d(feature, size) for feature in (student, teacher)]
    torch.testing.assert_close(losses.attention_transfer_loss(student, teacher), losses.attention_transfer_loss(*both))


def test_maps_that_are_larger_on_different_sides_are_refused():
    with pytest.raises(ValueError, match=r"map of \(4, 8\) and teacher_feature of \(8, 4\)"):
        losses.attention_transfer_loss(maps(2, 3, 4, 8), maps(2, 3, 8, 4))


@pytest.mark.parametrize("loss", [losses.attention_transfer_loss, losses.review_context_loss])
def test_what_is_no_map_is_refused(loss):
    with pytest.raises(ValueError, match=r"student_feature must be a map \(N, C, H, W\), given shape \(2, 9, 3\)"):
        loss(maps(2, 9, 3), maps(2, 3, 3, 3))
    with pytest.raises(ValueError, match=r"teacher_feature must be a map \(N, C, H, W\), given shape \(2, 3\)"):
        loss(maps(2, 3, 3, 3), maps(2, 3))


@pytest.mark.parametrize("power", [0, -2, 1.5])
def test_powers_that_are_no_whole_number_are_refused(power):
    with pytest.raises(ValueError, match=f"power must be a whole number of 1 or more, given {power}"):
        losses.attention_transfer_loss(maps(2, 3, 4, 4), maps(2, 3, 4, 4), power=power)


def test_a_higher_power_looks_at_the_peaks():
    """By hand: one channel, two positions of 1 and 2; A = (1, 2^p) / sqrt(1 + 4^p), the teacher's map (0, 1)."""
    student, teacher = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    for power in (2, 4):
        length = (1 + 4.0**power) ** 0.5
        expected = ((1 / length) ** 2 + (2.0**power / length - 1) ** 2) / 2
        found = losses.attention_transfer_loss(student, teacher, power=power)
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_dead_maps_have_no_attention_and_no_nan():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = losses.attention_transfer_loss(student, torch.rand(2, 3, 4, 4))
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize(("side", "levels"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3)])
def test_context_takes_only_sizes_below_the_maps(side, levels):
    """A constant difference of 2 is 4 at every level, and weights are divided out; a checkered one only at the top."""
    zeros = torch.zeros(1, 1, side, side)
    assert float(losses.review_context_loss(zeros + 2, zeros)) == pytest.approx(4.0)
    if side % 4 == 0 or side == 2:
        checkered = (torch.arange(side).view(-1, 1) + torch.arange(side)).remainder(2).mul(2.0).sub(1).view_as(zeros)
        survivors = 1.0  # it averages to 0 at every coarser level, for even ratios
        weights = 1 + sum(0.5**level for level in range(1, levels + 1))
        assert float(losses.review_context_loss(checkered, zeros)) == pytest.approx(survivors / weights)
