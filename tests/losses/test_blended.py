"""Label and teacher weighed against each other, sample by sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stillroom.losses import blended_kd_loss, kd_loss, relative_alphas

LABELS = torch.tensor([0, 2, 1, 1])


def logits():
    return torch.randn(4, 3, dtype=torch.float64).requires_grad_(), torch.randn(4, 3, dtype=torch.float64)


def test_the_shares_1_and_0_are_the_teacher_alone_and_the_label_alone():
    student, teacher = logits()
    for alpha, alone in (
        (1.0, kd_loss(student, teacher, temperature=3.0)),
        (0.0, F.cross_entropy(student, LABELS)),
    ):
        for shares in (alpha, torch.full((4,), alpha, dtype=torch.float64)):
            blended = blended_kd_loss(student, teacher, LABELS, shares, temperature=3.0)
            assert torch.equal(blended, alone) or torch.allclose(blended, alone, rtol=1e-14)
            ours, theirs = (torch.autograd.grad(3 * loss, student, retain_graph=True)[0] for loss in (blended, alone))
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_every_sample_has_its_own_share_and_the_share_is_a_constant():
    student, teacher = logits()
    alphas = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64).requires_grad_()
    values = blended_kd_loss(student, teacher, LABELS, alphas, temperature=2.0, reduction="none")
    distill = 4 * F.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="none").sum(1)
    label = F.cross_entropy(student, LABELS, reduction="none")
    torch.testing.assert_close(values, alphas.detach() * distill + (1 - alphas.detach()) * label)
    (found,) = torch.autograd.grad(values.sum(), student)
    fixed = blended_kd_loss(student, teacher, LABELS, alphas.detach(), temperature=2.0, reduction="sum")
    assert torch.equal(found, torch.autograd.grad(fixed, student)[0])
    (by_alpha,) = torch.autograd.grad(values.sum() + 0 * alphas.sum(), alphas)
    assert by_alpha.tolist() == [0, 0, 0, 0]


def test_the_relative_share_is_small_where_the_teacher_is_far_from_the_label():
    student = torch.zeros(3, 2)
    teacher = torch.tensor([[0.0, 0.0], [-5.0, 5.0], [5.0, -5.0]])
    found = relative_alphas(student, teacher, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(found[0], 1 - torch.exp(torch.tensor(-1.0)))
    expected = 1 - torch.exp(-torch.log(torch.tensor(2.0)) / (10 + torch.log1p(torch.exp(torch.tensor(-10.0)))))
    torch.testing.assert_close(found[1], expected)
    assert float(found[2]) == pytest.approx(1.0)
    sure = relative_alphas(student[:1], torch.tensor([[500.0, -500.0]]), torch.tensor([0]))
    assert sure.tolist() == [1.0]


def test_what_cannot_be_is_refused():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"alphas have shape \(3,\), but there are 4 samples"):
        blended_kd_loss(student, teacher, LABELS, torch.rand(3))
    with pytest.raises(ValueError, match=r"float32 of shape \(4, 3\): soft labels"):
        blended_kd_loss(student, teacher, teacher.softmax(1), 0.5)
    with pytest.raises(ValueError, match="temperature must be a number above 0, given 0"):
        blended_kd_loss(student, teacher, LABELS, 0.5, temperature=0)
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 5\).*same classes"):
        blended_kd_loss(student, torch.randn(4, 5), LABELS, 0.5)
    with pytest.raises(ValueError, match="labels from 0 to 2"):
        relative_alphas(student[:, :2], teacher[:, :2], LABELS)
