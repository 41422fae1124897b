"""Logits divided by their own deviation, and soft labels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stillroom.losses import kl_divergence, soft_cross_entropy, unit_deviation_kd_loss, unit_deviation_logits


def pair(samples=6, classes=5):
    return torch.randn(samples, classes, dtype=torch.float64), torch.randn(samples, classes, dtype=torch.float64)


def test_every_row_has_deviation_1_and_keeps_its_mean_sign():
    logits, _ = pair()
    divided = unit_deviation_logits(3 * logits)
    torch.testing.assert_close(divided.std(dim=1), torch.ones(6).double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(divided, logits / logits.std(dim=1, keepdim=True), rtol=1e-5, atol=0)
    assert torch.equal(divided.argmax(1), logits.argmax(1))


def test_scale_does_not_matter():
    student, teacher = pair()
    labels = pair()[0].softmax(1)
    for ours, theirs in ((7.0, 0.2), (0.01, 50.0)):
        torch.testing.assert_close(
            unit_deviation_kd_loss(ours * student, theirs * teacher),
            unit_deviation_kd_loss(student, teacher),
            rtol=1e-4,
            atol=1e-6,
        )
        torch.testing.assert_close(
            soft_cross_entropy(unit_deviation_logits(ours * student), labels),
            soft_cross_entropy(unit_deviation_logits(student), labels),
            rtol=1e-4,
            atol=1e-6,
        )


def test_the_gradient_is_orthogonal_to_the_centred_logits_and_to_1():
    student, teacher = pair()
    student.requires_grad_()
    loss = unit_deviation_kd_loss(student, teacher) + soft_cross_entropy(
        unit_deviation_logits(student), teacher.softmax(1)
    )
    (gradient,) = torch.autograd.grad(3 * loss, student)
    centred = (student - student.mean(1, keepdim=True)).detach()
    assert float(gradient.norm()) > 0.1
    assert float((gradient * centred).sum(1).abs().max()) < 1e-6
    assert float(gradient.sum(1).abs().max()) < 1e-12


def test_equal_deviations_are_a_fixed_temperature():
    student, teacher = ((logits - logits.mean(1, keepdim=True)) for logits in pair())
    student, teacher = (2.5 * logits / logits.std(1, keepdim=True) for logits in (student, teacher))
    torch.testing.assert_close(
        unit_deviation_kd_loss(student, teacher), kl_divergence(student, teacher, temperature=2.5), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(("classes", "bound"), [(3, 0.739), (10, 0.724), (100, 0.9955)])
def test_confidence_is_bounded(classes, bound):
    surest = unit_deviation_logits(1e3 * torch.eye(classes, dtype=torch.float64)).softmax(1).max()
    assert float(surest) == pytest.approx(math.exp(classes**0.5) / (math.exp(classes**0.5) + classes - 1), rel=1e-5)
    assert float(surest) == pytest.approx(bound, abs=1e-3)
    assert float(unit_deviation_logits(torch.randn(500, classes).double()).softmax(1).max()) < float(surest)


def test_constant_logits_give_equal_probabilities_and_finite_gradients():
    student = torch.zeros(2, 4).requires_grad_()
    loss = unit_deviation_kd_loss(student, torch.randn(2, 4))
    (gradient,) = torch.autograd.grad(loss, student)
    assert bool(gradient.isfinite().all())
    torch.testing.assert_close(unit_deviation_logits(torch.full((1, 4), 2.0)).softmax(1), torch.full((1, 4), 0.25))


def test_soft_labels_are_as_torch_has_them():
    logits, other = pair()
    logits.requires_grad_()
    soft = other.softmax(1)
    torch.testing.assert_close(soft_cross_entropy(logits, soft), F.cross_entropy(logits, soft))
    assert torch.autograd.gradcheck(lambda z: 3 * soft_cross_entropy(z, soft), (logits,))
    hard = F.one_hot(torch.arange(6) % 5, 5)
    torch.testing.assert_close(soft_cross_entropy(logits, hard), F.cross_entropy(logits, torch.arange(6) % 5))


def test_gradients_are_those_of_differences_and_the_teacher_gets_none():
    student, teacher = (logits.requires_grad_() for logits in pair())
    assert torch.autograd.gradcheck(lambda s: 3 * unit_deviation_kd_loss(s, teacher.detach()), (student,))
    unit_deviation_kd_loss(student, teacher).backward()
    assert teacher.grad is None
    same = unit_deviation_kd_loss(student, student.detach())
    (gradient,) = torch.autograd.grad(same, student)
    assert abs(same.item()) < 1e-12
    assert float(gradient.abs().max()) < 1e-12


def test_half_precision_and_autocast_are_computed_in_float32():
    student, teacher = torch.randn(6, 5).bfloat16(), torch.randn(6, 5)
    for loss in (unit_deviation_kd_loss, lambda s, t: soft_cross_entropy(s, t.softmax(1))):
        assert torch.equal(loss(student, teacher), loss(student.float(), teacher))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(student, teacher), loss(student.float(), teacher))


def test_reductions_agree():
    student, teacher = pair()
    for loss in (unit_deviation_kd_loss, lambda s, t, **o: soft_cross_entropy(s, t.softmax(1), **o)):
        values = loss(student, teacher, reduction="none")
        assert values.shape == (6,)
        torch.testing.assert_close(loss(student, teacher), values.mean())
        torch.testing.assert_close(loss(student, teacher, reduction="sum"), values.sum())


def test_two_classes_say_nothing_and_are_refused_unless_forced():
    student, teacher = pair(classes=2)
    with pytest.raises(ValueError, match=r"3 classes or more, given 2.*same probabilities"):
        unit_deviation_kd_loss(student, teacher)
    forced = unit_deviation_logits(student, allow_two_classes=True).softmax(1).max(1).values
    torch.testing.assert_close(forced, torch.full((6,), 1 / (1 + math.exp(-(2**0.5)))).double(), rtol=1e-5, atol=0)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"\(6, 5\).* teacher_logits .*\(6, 7\).*same classes"):
        unit_deviation_kd_loss(torch.randn(6, 5), torch.randn(6, 7))
    with pytest.raises(ValueError, match=r"logits has shape \(6, 5\), but soft_labels has shape \(6, 4\)"):
        soft_cross_entropy(torch.randn(6, 5), torch.rand(6, 4))
    with pytest.raises(ValueError, match="eps must be a number above 0, given 0"):
        unit_deviation_logits(torch.randn(6, 5), eps=0)
