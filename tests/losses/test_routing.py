"""Learning from each other, from teachers that a router picks, and the balance of routers."""

from __future__ import annotations

import math

import pytest
import torch

from stillroom.losses import (
    all_pairs_kd_loss,
    balance_cv_loss,
    balance_kl_loss,
    kd_loss,
    mutual_kd_loss,
    routed_kd_loss,
)


def naive_response(learner, target, temperature):
    total = 0.0
    for row, wanted in zip(learner.tolist(), target.tolist(), strict=True):
        p = [math.exp(v / temperature) for v in wanted]
        q = [math.exp(v / temperature) for v in row]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        total += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(learner)


def test_mutual_distillation_is_hintons_loss_with_gradient_to_both_sides():
    one, other = (torch.randn(6, 5, dtype=torch.float64).requires_grad_() for _ in range(2))
    loss = mutual_kd_loss(one, other, temperature=3.0)
    torch.testing.assert_close(float(loss.detach()), naive_response(one, other, 3.0))
    torch.testing.assert_close(loss, kd_loss(one, other, temperature=3.0))
    mine, theirs = torch.autograd.grad(3 * loss, (one, other))
    fixed = torch.autograd.grad(3 * kd_loss(one, other, temperature=3.0), one)[0]
    torch.testing.assert_close(mine, fixed)
    assert float(theirs.abs().sum()) > 0
    assert torch.autograd.gradcheck(lambda a, b: mutual_kd_loss(a, b), (one, other), fast_mode=True)


def test_dense_predictions_are_averaged_over_samples_and_positions():
    one, other = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    rows = one.permute(0, 2, 3, 1).reshape(-1, 5), other.permute(0, 2, 3, 1).reshape(-1, 5)
    torch.testing.assert_close(float(mutual_kd_loss(one, other)), naive_response(*rows, 4.0), rtol=1e-4, atol=1e-6)
    assert mutual_kd_loss(one, other, reduction="none").shape == (24,)


def test_all_pairs_are_six_for_three_networks():
    said = {name: torch.randn(4, 5, dtype=torch.float64).requires_grad_() for name in "abc"}
    loss = all_pairs_kd_loss(said, temperature=2.0)
    expected = sum(naive_response(said[m], said[n], 2.0) for m in said for n in said if m != n)
    torch.testing.assert_close(float(loss.detach()), expected)
    assert all(float(grad.abs().sum()) > 0 for grad in torch.autograd.grad(loss, list(said.values())))
    same = torch.randn(4, 5)
    assert abs(float(all_pairs_kd_loss({"a": same, "b": same.clone(), "c": same.clone()}))) < 1e-6


def test_each_sample_learns_from_its_own_teachers():
    student, teachers = torch.randn(3, 5, dtype=torch.float64).requires_grad_(), torch.randn(4, 3, 5).double()
    teachers.requires_grad_()
    picks = torch.tensor([[2, 0], [1, 3], [0, 1]])
    loss = routed_kd_loss(student, teachers, picks, temperature=2.0)
    expected = sum(
        naive_response(student[[row]], teachers[pick, [row]], 2.0) / 6
        for row in range(3)
        for pick in picks[row].tolist()
    )
    torch.testing.assert_close(float(loss.detach()), expected)
    loss.backward()
    assert teachers.grad is None
    assert float(student.grad.abs().sum()) > 0
    values = routed_kd_loss(student, teachers, picks, temperature=2.0, reduction="none")
    torch.testing.assert_close(values.mean(), loss)
    torch.testing.assert_close(routed_kd_loss(student, teachers, picks, temperature=2.0, reduction="sum"), values.sum())


def test_all_teachers_picked_is_the_mean_over_teachers():
    student, teachers = torch.randn(6, 5), torch.randn(4, 6, 5)
    everybody = torch.stack([torch.randperm(4) for _ in range(6)])
    mean = torch.stack([kd_loss(student, teacher) for teacher in teachers]).mean()
    torch.testing.assert_close(routed_kd_loss(student, teachers, everybody), mean)


def test_of_identical_teachers_any_will_do():
    student, teacher = torch.randn(6, 5), torch.randn(1, 6, 5)
    losses = {float(routed_kd_loss(student, teacher.expand(4, 6, 5), torch.full((6, 1), pick))) for pick in range(4)}
    assert len(losses) == 1


def test_dense_routing_is_the_mean_over_positions():
    student, teachers, picks = torch.randn(2, 5, 3, 4), torch.randn(3, 2, 5, 3, 4), torch.tensor([[2], [0]])
    expected = [kd_loss(student[[i]].flatten(2)[0].T, teachers[picks[i, 0], i].flatten(1).T) for i in range(2)]
    torch.testing.assert_close(routed_kd_loss(student, teachers, picks), torch.stack(expected).mean())


def test_no_samples_are_refused():
    student = torch.zeros(0, 5, requires_grad=True)
    with pytest.raises(ValueError, match="at least 1 samples in a batch, given 0"):
        routed_kd_loss(student, torch.zeros(2, 0, 5), torch.zeros(0, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 1 samples in a batch, given 0"):
        mutual_kd_loss(student, student)


def test_balance_is_0_where_all_get_as_much_and_has_no_gradient_there():
    for loss in (balance_kl_loss, balance_cv_loss):
        logits = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
        value = loss(logits.softmax(1))
        (gradient,) = torch.autograd.grad(3 * value, logits)
        assert abs(float(value.detach())) < 1e-12
        assert float(gradient.abs().max()) < 1e-12
    # uniform on average, though no sample is
    assert abs(float(balance_kl_loss(torch.eye(4)))) < 1e-6


def test_balance_grows_as_the_router_collapses_and_stays_finite():
    values = []
    for certainty in (1.0, 5.0, 20.0, 80.0, 1000.0):
        logits = torch.zeros(6, 4)
        logits[:, 0] = certainty
        logits.requires_grad_()
        value = balance_kl_loss(logits.softmax(1))
        value.backward()
        assert bool(logits.grad.isfinite().all())
        values.append(float(value.detach()))
    assert values[:3] == sorted(values[:3])
    assert values[-1] == values[-2]  # the clamp: (1/16) * (4 log(1/4) - 3 log 1e-8)
    assert abs(values[-1] - (4 * math.log(0.25) - 3 * math.log(1e-8)) / 16) < 1e-5


def test_balance_by_hand():
    probabilities = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    expected = 0.5 * (0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3))
    torch.testing.assert_close(float(balance_kl_loss(probabilities)), expected)
    torch.testing.assert_close(float(balance_cv_loss(probabilities)), (2 * 0.4**2) ** 0.5 / 1.0)  # sums 1.4, 0.6
    assert torch.autograd.gradcheck(balance_cv_loss, (probabilities.requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s: mutual_kd_loss(s, 2 * s.flip(0)),
        lambda s: routed_kd_loss(s, torch.ones(2, 6, 5), torch.ones(6, 1, dtype=torch.int64)),
        lambda s: balance_kl_loss(s.softmax(1)),
        lambda s: balance_cv_loss(s.softmax(1)),
        lambda s: all_pairs_kd_loss({"a": s, "b": s.flip(0)}),
    ],
)
def test_half_precision_and_autocast_are_computed_in_float32(loss):
    student = torch.randn(6, 5).bfloat16()
    assert loss(student).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(student.float()).dtype == torch.float32


def test_what_cannot_be_right_is_refused():
    student, teachers, picks = torch.randn(6, 5), torch.randn(3, 6, 5), torch.zeros(6, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(M, \*\(6, 5\)\).*given \(3, 6, 7\)"):
        routed_kd_loss(student, torch.randn(3, 6, 7), picks)
    with pytest.raises(ValueError, match=r"picks must have shape \(6, k\) with k of 1 or more, given \(6, 0\)"):
        routed_kd_loss(student, teachers, picks[:, :0])
    with pytest.raises(ValueError, match=r"picks must lie in \[0, 3\), given picks from 3 to 3"):
        routed_kd_loss(student, teachers, picks + 3)
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"temperature must be a number above 0, given {value}"):
            mutual_kd_loss(student, student, temperature=value)
        with pytest.raises(ValueError, match=f"temperature must be a number above 0, given {value}"):
            routed_kd_loss(student, teachers, picks, temperature=value)
    with pytest.raises(ValueError, match=r"\(6, 5\), but teacher_logits have shape \(6, 7\)"):
        mutual_kd_loss(student, torch.randn(6, 7))
    with pytest.raises(ValueError, match="in pairs, given 1"):
        all_pairs_kd_loss({"a": student})
    with pytest.raises(ValueError, match=r"a gives logits of shape \(6, 5\), but b of shape \(6, 4\)"):
        all_pairs_kd_loss({"a": student, "b": student[:, :4]})
    with pytest.raises(ValueError, match=r"\(N, M\) with samples and experts, given \(0, 4\)"):
        balance_kl_loss(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="2 or more of them, given 1"):
        balance_cv_loss(torch.ones(3, 1))
    with pytest.raises(ValueError, match="given 'avg'"):
        mutual_kd_loss(student, student, reduction="avg")
