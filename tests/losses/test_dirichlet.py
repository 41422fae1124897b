"""Evidence for classes: closed forms, the divergence of two Dirichlet distributions, limits, refusals."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Dirichlet, kl_divergence

from stillroom.losses import calibrated_cross_entropy, calibrated_softmax, edl_loss, wrong_evidence_kl


def naive(logits, labels, gamma, beta):
    """The loss of one sample after the other, as the equations are written."""
    classes, total = logits.shape[1], []
    for z, y in zip(logits, labels.tolist(), strict=True):
        raised = z.exp() + gamma
        nll = raised.sum().log() - raised[y].log()
        alpha = torch.stack([z.new_ones(()) if c == y else z[c].exp() / gamma + 1 for c in range(classes)])
        kl = kl_divergence(Dirichlet(alpha), Dirichlet(torch.ones_like(alpha)))
        total.append(nll + beta * kl / classes)
    return torch.stack(total)


def test_equal_differences_are_not_equal_confidence():
    logits = torch.tensor([[0.0, 2.0, 0.0, 0.0], [-2.0, 0.0, -2.0, -2.0]])
    ours = calibrated_softmax(logits, gamma=1.0)[:, 1]
    torch.testing.assert_close(ours, torch.tensor([0.583, 0.370]), atol=5e-4, rtol=0)
    theirs = logits.softmax(1)[:, 1]
    torch.testing.assert_close(theirs, torch.tensor([0.711, 0.711]), atol=5e-4, rtol=0)


def test_it_is_the_mean_of_the_dirichlet_distribution():
    logits = torch.randn(6, 5, dtype=torch.float64)
    gamma = 10 / 5
    mean = Dirichlet(logits.exp() / gamma + 1).mean
    torch.testing.assert_close(calibrated_softmax(logits), mean)


def test_without_evidence_nothing_is_known():
    torch.testing.assert_close(calibrated_softmax(torch.full((2, 5), -100.0)), torch.full((2, 5), 0.2))


def test_gamma_near_0_gives_softmax_and_cross_entropy():
    logits, labels = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 4
    torch.testing.assert_close(calibrated_softmax(logits, gamma=1e-9), logits.softmax(1), atol=1e-6, rtol=0)
    loss = edl_loss(logits, labels, gamma=1e-9, kl_weight=0.0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [None, 0.3, 1.0])
def test_value_and_gradient_are_those_of_naive_loops(gamma):
    logits, labels = (2 * torch.randn(9, 5, dtype=torch.float64)).requires_grad_(), torch.arange(9) % 5
    ours = edl_loss(logits, labels, gamma=gamma, kl_weight=0.7)
    theirs = naive(logits, labels, 10 / 5 if gamma is None else gamma, 0.7).mean()
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(*(torch.autograd.grad(3 * loss, logits) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("dtype", "largest", "tolerance"), [(torch.float64, 16.0, 1e-7), (torch.float32, 6.0, 1e-4)])
def test_the_divergence_is_that_of_two_dirichlet_distributions(dtype, largest, tolerance):
    """Across the place where the series takes over; the reference itself loses its digits further out."""
    first = torch.linspace(-6, largest, 40, dtype=dtype)
    logits = torch.stack([torch.zeros_like(first), first, first.flip(0), first / 2], dim=1).requires_grad_()
    labels = torch.zeros(40, dtype=torch.int64)
    ours = wrong_evidence_kl(logits, labels, reduction="none")
    wide = logits.detach().double().requires_grad_()
    alpha = torch.cat([torch.ones(40, 1, dtype=torch.float64), wide[:, 1:].exp() / 2.5 + 1], dim=1)
    assert float(alpha.detach().max()) > 64 > float(alpha.detach().min())
    theirs = kl_divergence(Dirichlet(alpha), Dirichlet(torch.ones_like(alpha)))
    torch.testing.assert_close(ours.double(), theirs, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), logits)[0].double(),
        torch.autograd.grad(theirs.sum(), wide)[0],
        atol=tolerance,
        rtol=tolerance,
    )


def test_the_divergence_is_0_only_where_no_other_class_has_evidence():
    labels = torch.tensor([1, 0])
    nothing = torch.tensor([[-1e4, 50.0, -1e4], [-80.0, -80.0, -80.0]])
    torch.testing.assert_close(wrong_evidence_kl(nothing, labels, reduction="none"), torch.zeros(2))
    logits = torch.randn(200, 3, dtype=torch.float64) * 5
    assert float(wrong_evidence_kl(logits, torch.arange(200) % 3, reduction="none").min()) > 0


def test_large_logits_stay_finite_and_keep_their_slope():
    """One other class with all the evidence: KL grows with (C - 1) per unit of its logit."""
    logits = torch.tensor([[0.0, 60.0, 0.0, 0.0]]).requires_grad_()
    loss = wrong_evidence_kl(logits, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert math.isfinite(float(loss.detach()))
    assert float(gradient[0, 1]) == pytest.approx(3.0, abs=1e-4)
    extreme = edl_loss(torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0]]), torch.tensor([0, 0]))
    assert math.isfinite(float(extreme))


def test_other_classes_are_pushed_down_less_than_by_cross_entropy_by_the_exact_difference():
    gamma, classes = 2.5, 4
    logits = torch.randn(6, classes, dtype=torch.float64).requires_grad_()
    labels = torch.zeros(6, dtype=torch.int64)
    ours = edl_loss(logits, labels, gamma=gamma, kl_weight=0.0, reduction="sum")
    theirs = F.cross_entropy(logits, labels, reduction="sum")
    first, second = (torch.autograd.grad(loss, logits)[0][:, 1:] for loss in (ours, theirs))
    z = logits.detach().exp()
    difference = z * classes * gamma / (z.sum(1) * (z + gamma).sum(1))[:, None]
    torch.testing.assert_close(second - first, difference[:, 1:])
    assert bool((second > first).all())


def test_no_samples_give_0_and_a_gradient():
    logits = torch.randn(5, 3, requires_grad=True)
    loss = edl_loss(logits[:0], torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert float(logits.grad.abs().sum()) == 0


def test_bad_input_is_refused():
    labels = torch.tensor([0, 1])
    for loss in (calibrated_cross_entropy, wrong_evidence_kl, edl_loss):
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\), given labels from 0 to 3"):
            loss(torch.zeros(2, 3), torch.tensor([0, 3]))
        with pytest.raises(ValueError, match=r"\[0, 3\), given labels from -1"):
            loss(torch.zeros(2, 3), torch.tensor([0, -1]))
        with pytest.raises(ValueError, match=r"2 or more classes, given \(2, 1\)"):
            loss(torch.zeros(2, 1), labels)
        with pytest.raises(ValueError, match="logits must be finite"):
            loss(torch.tensor([[0.0, torch.inf], [0.0, 0.0]]), labels)
        with pytest.raises(ValueError, match=r"int64 class numbers, given dtype torch\.float32"):
            loss(torch.zeros(2, 3), labels.float())
        with pytest.raises(ValueError, match="gamma must be a number above 0, given 0"):
            loss(torch.zeros(2, 3), labels, gamma=0)
    with pytest.raises(ValueError, match="kl_weight must be a number of 0 or more, given -1"):
        edl_loss(torch.zeros(2, 3), labels, kl_weight=-1)
    with pytest.raises(ValueError, match="logits must be finite"):
        calibrated_softmax(torch.full((1, 2), torch.nan))
