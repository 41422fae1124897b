"""Both directions of the divergence and the rule that weighs them."""

from __future__ import annotations

import pytest
import torch

from stillroom.losses import balance_weights, entropy_gap, kl_divergence, reverse_kl_divergence, two_way_kd_loss


def pair(samples=6, classes=5):
    return torch.randn(samples, classes, dtype=torch.float64), torch.randn(samples, classes, dtype=torch.float64)


def test_the_gap_is_the_difference_of_two_entropies():
    flat, sharp = torch.zeros(2, 4), torch.tensor([[50.0, 0, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(entropy_gap(flat, sharp), torch.tensor([4.0, 1.0]).log())
    torch.testing.assert_close(entropy_gap(sharp, flat), -torch.tensor([4.0, 1.0]).log())
    student, teacher = pair()
    torch.testing.assert_close(
        entropy_gap(3 * student, 3 * teacher, entropy_temperature=3.0), entropy_gap(student, teacher)
    )
    assert not entropy_gap(student.requires_grad_(), teacher).requires_grad


def test_a_sharper_student_is_spread_and_an_uncertain_one_sharpened():
    teacher = torch.randn(8, 5)
    student = torch.where(torch.arange(8)[:, None] < 4, 3 * teacher, teacher / 3)  # the first four are sharper
    forward, reverse = balance_weights(entropy_gap(student, teacher), boost=3.0)
    assert forward.tolist() == [3.0] * 4 + [1.0] * 4
    assert reverse.tolist() == [1.0] * 4 + [3.0] * 4


def test_equal_certainty_counts_as_certain():
    forward, reverse = balance_weights(torch.zeros(2), boost=2.0)
    assert forward.tolist() == [2.0, 2.0]
    assert reverse.tolist() == [1.0, 1.0]


def test_the_slope_becomes_the_step():
    gap = torch.tensor([-1.2, -0.3, 0.2, 0.9])
    hard = torch.stack(balance_weights(gap, boost=4.0))
    torch.testing.assert_close(torch.stack(balance_weights(gap, boost=4.0, softness=1e-3)), hard)
    soft = torch.stack(balance_weights(gap, boost=4.0, softness=0.5))
    assert not torch.allclose(soft, hard, atol=0.1)
    torch.testing.assert_close(soft.sum(0), torch.full((4,), 5.0))
    torch.testing.assert_close(soft[1], 1 + 3 * (gap / 0.5).sigmoid())


def test_no_boost_is_the_symmetric_divergence_of_every_sample():
    student, teacher = pair()
    weights = balance_weights(entropy_gap(student, teacher), boost=1.0)
    both = kl_divergence(student, teacher, temperature=2.0, reduction="none")
    both = both + reverse_kl_divergence(student, teacher, temperature=2.0, reduction="none")
    torch.testing.assert_close(two_way_kd_loss(student, teacher, *weights, temperature=2.0, reduction="none"), 4 * both)


def test_equal_logits_have_no_divergence_and_no_gradient():
    student, _ = pair()
    loss = two_way_kd_loss(student.requires_grad_(), student.detach().clone(), 2.0, 3.0)
    (gradient,) = torch.autograd.grad(3 * loss, student)
    assert abs(loss.item()) < 1e-14
    assert float(gradient.abs().max()) < 1e-14


def test_exchanging_the_networks_exchanges_the_directions():
    student, teacher = pair()
    torch.testing.assert_close(two_way_kd_loss(student, teacher, 1, 0), two_way_kd_loss(teacher, student, 0, 1))


def test_gradients_are_those_of_the_formulas():
    student, teacher = pair()
    ours, theirs = (student / 2).softmax(1), (teacher / 2).softmax(1)
    student.requires_grad_()
    forward = two_way_kd_loss(student, teacher, 1, 0, temperature=2.0, reduction="sum")
    torch.testing.assert_close(torch.autograd.grad(3 * forward, student)[0], 3 * 4 * (ours - theirs) / 2)
    each = two_way_kd_loss(student, teacher, 0, 1, temperature=2.0, reduction="none")
    expected = ours * ((ours / theirs).log() - each.detach()[:, None] / 4) / 2
    torch.testing.assert_close(torch.autograd.grad(3 * each.sum(), student)[0], 3 * 4 * expected)


def test_no_gradient_flows_to_the_teacher_or_through_the_weights():
    student, teacher = (logits.requires_grad_() for logits in pair())
    weights = (student.sum(1).exp(), teacher.sum(1).exp())
    loss = two_way_kd_loss(student, teacher, *weights)
    (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
    fixed = two_way_kd_loss(student, teacher, *(weight.detach() for weight in weights))
    torch.testing.assert_close(gradient, torch.autograd.grad(fixed, student)[0])
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None,)
    assert torch.autograd.gradcheck(lambda s: 3 * two_way_kd_loss(s, teacher.detach(), 2.0, 1.0), (student,))


def test_a_very_sharp_teacher_stays_finite_also_under_autocast():
    student, teacher = torch.randn(4, 5).requires_grad_(), 1e4 * torch.eye(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = two_way_kd_loss(student, teacher, temperature=1.0)
    assert loss.dtype == torch.float32
    assert bool(torch.autograd.grad(loss, student)[0].isfinite().all())
    assert torch.equal(loss, two_way_kd_loss(student, teacher, temperature=1.0))
    half = student.detach().bfloat16()
    assert torch.equal(two_way_kd_loss(half, teacher), two_way_kd_loss(half.float(), teacher))


def test_reductions_agree():
    student, teacher = pair()
    values = two_way_kd_loss(student, teacher, 2.0, torch.arange(6.0), reduction="none")
    torch.testing.assert_close(two_way_kd_loss(student, teacher, 2.0, torch.arange(6.0)), values.mean())
    torch.testing.assert_close(two_way_kd_loss(student, teacher, 2.0, torch.arange(6.0), reduction="sum"), values.sum())


def test_what_cannot_be_is_refused():
    student, teacher = torch.randn(6, 5), torch.randn(6, 7)
    with pytest.raises(ValueError, match=r"\(6, 5\).* teacher_logits .*\(6, 7\).*same classes"):
        two_way_kd_loss(student, teacher)
    with pytest.raises(ValueError, match=r"\(6, 5\).* teacher_logits .*\(6, 7\).*same classes"):
        entropy_gap(student, teacher)
    with pytest.raises(ValueError, match=r"reverse_weights have shape \(4,\), but there are 6 samples"):
        two_way_kd_loss(student, student, 1.0, torch.ones(4))
    with pytest.raises(ValueError, match=r"\btemperature must be a number above 0, given 0"):
        two_way_kd_loss(student, student, temperature=0)
    with pytest.raises(ValueError, match="entropy_temperature must be a number above 0, given -1"):
        entropy_gap(student, student, entropy_temperature=-1)
    with pytest.raises(ValueError, match=r"boost must be a number of 1 or more, given 0\.5"):
        balance_weights(torch.zeros(3), boost=0.5)
    with pytest.raises(ValueError, match="softness must be a number of 0 or more, given -1"):
        balance_weights(torch.zeros(3), softness=-1)
