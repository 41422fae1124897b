"""Losses per token: the clipped KL against loops and its closed-form gradient, correlations in spans, refusals."""

import math

import pytest
import torch

from stillroom import losses
from tests.losses.naive import kl, softmax

B, L, V = 3, 4, 9


def problem(seed: int = 0, vocabulary: int = V):
    draws = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(B, L, vocabulary, generator=draws, dtype=torch.float64) for _ in range(2))
    targets = torch.randint(vocabulary, (B, L), generator=draws)
    lower = 0.15 * torch.rand(B, L, generator=draws, dtype=torch.float64)
    upper = 0.9 + 0.09 * torch.rand(B, L, generator=draws, dtype=torch.float64)
    valid = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]])
    return student.requires_grad_(), teacher, targets, lower, upper, valid


def naive_mask(teacher, target, low, high, softness, temperature):
    p = softmax(teacher, temperature)
    order = sorted(range(len(p)), key=lambda v: (-p[v], v))
    mask, before = [0.0] * len(p), 0.0
    for v in order:
        s = 1 - (before + p[v] / 2)
        before += p[v]
        if softness:
            edge = [1 / (1 + math.exp(-(s - low) / softness)), 1 / (1 + math.exp(-(high - s) / softness))]
            mask[v] = edge[0] * edge[1]
        else:
            mask[v] = float(low <= s <= high)
    mask[target] = 1.0
    return mask


def naive_loss(student, teacher, target, low, high, softness, temperature):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    m = naive_mask(teacher, target, low, high, softness, temperature)
    kept_p, kept_q = ([a * b for a, b in zip(m, x, strict=True)] for x in (p, q))
    kept_p, kept_q = ([a / sum(x) for a in x] for x in (kept_p, kept_q))
    return temperature**2 * kl(kept_p, kept_q), m, p, q


@pytest.mark.parametrize("softness", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_clipped_kl_is_that_of_loops_and_its_gradient_the_closed_form(softness, temperature):
    student, teacher, targets, lower, upper, valid = problem()
    options = {"softness": softness, "temperature": temperature, "valid": valid}
    loss = losses.clipped_token_kl(student, teacher, targets, lower, upper, **options)
    (gradient,) = torch.autograd.grad(3 * loss, student)
    total, expected = 0.0, torch.zeros(B, L, V, dtype=torch.float64)
    for b in range(B):
        for t in range(L):
            rows = student[b, t].tolist(), teacher[b, t].tolist()
            limits = float(lower[b, t]), float(upper[b, t])
            one, m, p, q = naive_loss(*rows, int(targets[b, t]), *limits, softness, temperature)
            total += one * int(valid[b, t])
            parts = [torch.tensor([a * c for a, c in zip(m, x, strict=True)], dtype=torch.float64) for x in (q, p)]
            ours, theirs = (part / part.sum() for part in parts)
            expected[b, t] = temperature * int(valid[b, t]) / int(valid.sum()) * (ours - theirs)
    assert loss.item() == pytest.approx(total / int(valid.sum()), rel=1e-9)
    torch.testing.assert_close(gradient / 3, expected, rtol=1e-6, atol=1e-10)


def test_reductions_count_the_valid_positions_of_the_whole_batch():
    student, teacher, targets, lower, upper, valid = problem()
    each, total, mean = (
        losses.clipped_token_kl(student, teacher, targets, lower, upper, valid=valid, reduction=reduction)
        for reduction in ("none", "sum", "mean")
    )
    assert each.shape == (B, L)
    assert bool((each[valid == 0] == 0).all())
    torch.testing.assert_close(total, each.sum())
    torch.testing.assert_close(mean, each.sum() / 7)
    with pytest.raises(ValueError, match="given 'avg'"):
        losses.clipped_token_kl(student, teacher, targets, lower, upper, reduction="avg")


def test_it_is_a_divergence():
    for seed in range(20):
        student, teacher, targets, lower, upper, _ = problem(seed)
        for softness in (0.0, 0.02):
            each = losses.clipped_token_kl(student, teacher, targets, lower, upper, softness=softness, reduction="none")
            assert each.min().item() >= -1e-12
            shifted = (teacher + torch.randn(B, L, 1)).requires_grad_()
            same = losses.clipped_token_kl(shifted, teacher, targets, lower, upper, softness=softness)
            assert abs(same.item()) < 1e-12
            assert float(torch.autograd.grad(same, shifted)[0].abs().max()) < 1e-12


def test_a_constant_per_position_changes_nothing():
    student, teacher, targets, lower, upper, _ = problem()
    options = {"softness": 0.02, "reduction": "none"}
    plain = losses.clipped_token_kl(student, teacher, targets, lower, upper, **options)
    moved = losses.clipped_token_kl(
        student + torch.randn(B, L, 1), teacher + torch.randn(B, L, 1), targets, lower, upper, **options
    )
    torch.testing.assert_close(plain, moved)


def test_without_clipping_it_is_the_forward_kl():
    student, teacher, targets, *_ = problem()
    open_limits = losses.clipped_token_kl(student, teacher, targets, 0.0, 1.0, temperature=2.0)
    plain = losses.kd_loss(student.flatten(0, 1), teacher.flatten(0, 1), temperature=2.0)
    torch.testing.assert_close(open_limits, plain)
    torch.testing.assert_close(losses.token_kl(student, teacher, temperature=2.0), plain)
    valid = torch.tensor([[1, 0, 0, 0]] * B)
    torch.testing.assert_close(
        losses.token_kl(student, teacher, valid=valid), losses.kd_loss(student[:, 0], teacher[:, 0], temperature=1.0)
    )


def test_the_limits_get_a_gradient_from_a_soft_mask_and_none_from_a_hard_one():
    student, teacher, targets, lower, upper, valid = problem()
    lower.requires_grad_()
    upper.requires_grad_()
    soft = losses.clipped_token_kl(student, teacher, targets, lower, upper, valid=valid, softness=0.02)
    grads = torch.autograd.grad(soft, (lower, upper))
    assert all(float(grad.abs().max()) > 0 for grad in grads)
    assert bool((grads[0][valid == 0] == 0).all())
    hard = losses.clipped_token_kl(student, teacher, targets, lower, upper, valid=valid)
    assert torch.autograd.grad(hard, (lower, upper), allow_unused=True) == (None, None)
    assert torch.autograd.gradcheck(
        lambda a, b: 3 * losses.clipped_token_kl(student, teacher, targets, a, b, valid=valid, softness=0.1),
        (lower, upper),
    )


def test_the_teacher_and_unused_targets_do_not_matter_where_they_should_not():
    student, teacher, targets, lower, upper, valid = problem()
    teacher.requires_grad_()
    masked = torch.where(valid == 1, targets, -100)
    loss = losses.clipped_token_kl(student, teacher, masked, lower, upper, valid=valid, softness=0.02)
    loss.backward()
    assert teacher.grad is None
    torch.testing.assert_close(
        loss, losses.clipped_token_kl(student, teacher, targets, lower, upper, valid=valid, softness=0.02)
    )


def test_ties_are_ordered_by_number_and_coordinates_are_by_mass():
    p = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    torch.testing.assert_close(losses.mass_coordinates(p), torch.tensor([0.375, 0.75, 0.125], dtype=torch.float64))
    mask = losses.clipping_mask(losses.mass_coordinates(p), torch.tensor(2), 0.3, 0.7)
    assert mask.tolist() == [1, 0, 1]


def test_half_precision_and_autocast_compute_in_float32():
    student, teacher, targets, *_ = (value.float() if value.is_floating_point() else value for value in problem())
    for loss in (
        lambda s: losses.clipped_token_kl(s, teacher, targets, 0.05, 0.99, softness=0.02),
        lambda s: losses.token_kl(s, teacher),
        lambda s: losses.span_correlation_loss(s, teacher, [[(0, 3)]] * B),
    ):
        half = loss(student.bfloat16())
        assert half.dtype == torch.float32
        assert torch.equal(half, loss(student.bfloat16().float()))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(student), loss(student))
            assert loss(student).dtype == torch.float32


def test_large_logits_stay_finite():
    student = (torch.tensor([[[0.0, 200.0, -200.0, 5.0]]])).requires_grad_()
    teacher = torch.tensor([[[200.0, 0.0, 100.0, -200.0]]])
    for softness in (0.0, 0.02):
        loss = losses.clipped_token_kl(student, teacher, torch.tensor([[3]]), 0.05, 0.9, softness=softness)
        (gradient,) = torch.autograd.grad(loss, student)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_logits": torch.zeros(B, L, V + 1)}, r"student_logits .*\(3, 4, 10\).* teacher_logits .*\(3, 4, 9\)"),
        ({"student_logits": torch.zeros(B, V)}, r"\(B, L, V\), given \(3, 9\)"),
        ({"student_logits": torch.zeros(2, L, V)}, r"\(2, 4, 9\).*\(3, 4, 9\).*same sequences"),
        ({"lower": 0.9, "upper": 0.9}, "lower must be below upper, given 0.9 and 0.9"),
        ({"temperature": 0.0}, "temperature must be a number above 0, given 0.0"),
        ({"temperature": -1.0}, "temperature must be a number above 0, given -1.0"),
        ({"softness": -0.1}, "softness must be a number of 0 or more, given -0.1"),
        ({"valid": torch.zeros(B, L)}, "none of the 12 positions is valid"),
        ({"valid": torch.ones(B, L + 1)}, r"valid must have shape \(3, 4\).*given \(3, 5\)"),
        ({"renormalise": False}, "renormalise=False is refused"),
        ({"targets": torch.full((B, L), V)}, r"labels must lie in \[0, 9\), given labels from 9 to 9"),
        ({"targets": torch.zeros(B, L)}, r"int64 labels of shape \(3, 4\), given torch.float32"),
    ],
)
def test_what_cannot_be_right_is_refused(change, message):
    student, teacher, targets, *_ = problem()
    given = {"student_logits": student, "teacher_logits": teacher, "targets": targets, "lower": 0.1, "upper": 0.9}
    with pytest.raises(ValueError, match=message):
        losses.clipped_token_kl(**(given | change))


def test_limits_out_of_order_anywhere_are_refused():
    student, teacher, targets, lower, upper, _ = problem()
    lower[1, 2] = 0.97
    upper[1, 2] = 0.95
    with pytest.raises(ValueError, match=r"given 0\.97 and 0\.95"):
        losses.clipped_token_kl(student, teacher, targets, lower, upper)


# ---- spans -----------------------------------------------------------------------------------------------------------


def naive_spans(student, teacher, spans):
    found = []
    for b, ranges in enumerate(spans):
        for start, end in ranges:
            if end - start < 2:
                continue
            pairs = []
            for k in range(start, end - 1):
                p, p2, q, q2 = (softmax(x[b, j].tolist()) for x in (teacher, student) for j in (k, k + 1))
                pairs.append(sum((a * c - d * e) ** 2 for a, c, d, e in zip(p, p2, q, q2, strict=True)))
            found.append(sum(pairs) / len(pairs))
    return found


SPANS = [[(0, 3), (3, 4)], [(0, 2), (2, 4)], []]


def test_span_correlations_are_those_of_loops():
    student, teacher, *_ = problem()
    expected = naive_spans(student, teacher, SPANS)
    assert len(expected) == 3
    each = losses.span_correlation_loss(student, teacher, SPANS, reduction="none")
    assert each.tolist() == pytest.approx(expected)
    assert losses.span_correlation_loss(student, teacher, SPANS).item() == pytest.approx(sum(expected) / 3)
    assert losses.span_correlation_loss(student, teacher, SPANS, reduction="sum").item() == pytest.approx(sum(expected))
    assert torch.autograd.gradcheck(lambda s: 3 * losses.span_correlation_loss(s, teacher, SPANS), (student,))


def test_equal_models_have_no_span_loss_and_the_vocabulary_has_no_order():
    student, teacher, *_ = problem()
    same = losses.span_correlation_loss(student, student.detach() + 1.5, SPANS)
    assert abs(same.item()) < 1e-15
    order = torch.randperm(V)
    torch.testing.assert_close(
        losses.span_correlation_loss(student[..., order], teacher[..., order], SPANS),
        losses.span_correlation_loss(student, teacher, SPANS),
    )


@pytest.mark.parametrize("spans", [[[], [], []], [[(0, 1)], [], [(2, 3)]]])
def test_no_span_gives_0_with_a_graph(spans):
    student, teacher, *_ = problem()
    loss = losses.span_correlation_loss(student, teacher, spans)
    loss.backward()
    assert loss.item() == 0
    assert bool((student.grad == 0).all())


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[(0, 5)], [], []], r"the span \(0, 5\) of sequence 0 is empty or outside of \[0, 4\)"),
        ([[], [(-1, 2)], []], r"the span \(-1, 2\) of sequence 1"),
        ([[], [], [(2, 2)]], r"the span \(2, 2\) of sequence 2 is empty"),
        ([[]], "one list per sequence: given 1 for 3 sequences"),
    ],
)
def test_spans_outside_of_their_sequence_are_refused(spans, message):
    student, teacher, *_ = problem()
    with pytest.raises(ValueError, match=message):
        losses.span_correlation_loss(student, teacher, spans)
    with pytest.raises(ValueError, match="temperature must be a number above 0, given 0"):
        losses.span_correlation_loss(student, teacher, SPANS, temperature=0)
    with pytest.raises(ValueError, match=r"\(3, 4, 9\).*\(3, 4, 8\).*true size"):
        losses.span_correlation_loss(student, teacher[..., :8], SPANS)
