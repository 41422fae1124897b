"""Divergences over large vocabularies: values and gradients are those of the losses that hold all logits."""

import gc
import importlib.util
import math
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stillroom import losses
from stillroom.losses import _chunked

TOKENS, V, OWN, THEIRS = 11, 23, 5, 7
VALID = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 1, 0, 1])
CHUNKED = {
    "vocabulary_kl": losses.vocabulary_kl,
    "vocabulary_reverse_kl": losses.vocabulary_reverse_kl,
    "vocabulary_jensen_shannon": lambda *a, **o: losses.vocabulary_jensen_shannon(*a, teacher_share=0.3, **o),
}
NAIVE = {
    "vocabulary_kl": losses.kl_divergence,
    "vocabulary_reverse_kl": losses.reverse_kl_divergence,
    "vocabulary_jensen_shannon": lambda *a, **o: losses.generalized_jensen_shannon(*a, teacher_share=0.3, **o),
}
KINDS = pytest.mark.parametrize("kind", CHUNKED)
FORMS = pytest.mark.parametrize(("top_k", "tail"), [(None, True), (4, True), (4, False), (1, True), (22, True)])


def problem(seed=0, dtype=torch.float64, places=(TOKENS,), scale=1.5):
    draws = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (scale * torch.randn(*shape, generator=draws, dtype=torch.float64)).to(dtype)

    student = [draw(*places, OWN), draw(V, OWN), draw(V)]
    teacher = [draw(*places, THEIRS), draw(V, THEIRS), draw(V)]
    return [one.requires_grad_() for one in student], teacher


def call(loss, student, teacher, **options):
    biases = {"student_bias": student[2], "teacher_bias": teacher[2]}
    return loss(*student[:2], *teacher[:2], **biases, **options)


def outcomes(student, teacher, top_k, tail):
    """The log-probabilities of what is compared, by hand: the k likeliest of the teacher, and the sum of the others."""
    if top_k is None:
        return student, teacher
    top = teacher.argsort(dim=-1, descending=True)[:, :top_k]
    rest = torch.ones_like(teacher, dtype=torch.bool).scatter(-1, top, False)
    found = []
    for logits in (student, teacher):
        p = logits.softmax(-1)
        parts = [p.gather(-1, top)] + [torch.where(rest, p, 0).sum(-1, keepdim=True)] * tail
        found.append(torch.cat(parts, -1).log())  # the softmax of these logs renormalises
    return found


def naive(kind, student, teacher, *, temperature=1.0, top_k=None, tail=True, reduction="none"):
    logits = [head[0].flatten(0, -2) @ head[1].T + head[2] for head in (student, teacher)]
    pair = outcomes(*(one / temperature for one in logits), top_k, tail)
    return temperature**2 * NAIVE[kind](*pair, reduction=reduction)


@KINDS
@FORMS
@pytest.mark.parametrize("chunk_size", [1, 4, 11, 50, None])
def test_values_and_gradients_are_those_of_whole_logits(kind, top_k, tail, chunk_size, monkeypatch):
    monkeypatch.setattr(_chunked, "TILE", 20)  # tiles of 20 to 1 tokens of the vocabulary, the last one smaller
    student, teacher = problem()
    options = {"temperature": 1.7, "top_k": top_k, "tail": tail}
    expected = naive(kind, student, teacher, **options)
    options["chunk_size"] = chunk_size
    for reduction in ("none", "sum", "mean"):
        found = call(CHUNKED[kind], student, teacher, reduction=reduction, **options)
        reduced = losses.reduce(expected, reduction)
        torch.testing.assert_close(found, reduced, rtol=1e-12, atol=1e-13)
        upstream = torch.linspace(-2, 3, TOKENS, dtype=torch.float64) if reduction == "none" else torch.tensor(-2.5)
        ours, theirs = (
            torch.autograd.grad(one, student, upstream.to(one), retain_graph=True) for one in (found, reduced)
        )
        for own, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own, right, rtol=1e-11, atol=1e-12)


def test_the_forward_kl_is_token_kl():
    student, teacher = problem(places=(2, 4))
    valid = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]])
    logits = [head[0] @ head[1].T + head[2] for head in (student, teacher)]
    for reduction in ("none", "sum", "mean"):
        options = {"temperature": 2.5, "valid": valid, "reduction": reduction}
        expected = losses.token_kl(*logits, **options)
        found = call(losses.vocabulary_kl, student, teacher, chunk_size=3, **options)
        torch.testing.assert_close(found, expected)
        ours, right = (torch.autograd.grad((one * 3).sum(), student, retain_graph=True) for one in (found, expected))
        torch.testing.assert_close(ours, right)


@KINDS
@FORMS
def test_gradients_are_those_of_differences(kind, top_k, tail):
    student, teacher = problem()

    def loss(*own):
        return call(CHUNKED[kind], own, teacher, top_k=top_k, tail=tail, chunk_size=4, valid=VALID, temperature=1.5)

    assert torch.autograd.gradcheck(lambda *own: 3 * loss(*own), student)


@KINDS
@FORMS
def test_tokens_that_do_not_count_change_nothing_whatever_they_hold(kind, top_k, tail):
    student, teacher = problem()
    kept = VALID.bool()
    spoilt = [torch.where(kept.unsqueeze(-1), head[0].detach(), torch.nan) for head in (student, teacher)]
    spoilt[0].requires_grad_()
    options = {"top_k": top_k, "tail": tail, "chunk_size": 3}
    for reduction in ("sum", "mean", "none"):
        right = call(
            CHUNKED[kind],
            [student[0][kept], *student[1:]],
            [teacher[0][kept], *teacher[1:]],
            reduction=reduction,
            **options,
        )
        own = [spoilt[0], *student[1:]]
        found = call(CHUNKED[kind], own, [spoilt[1], *teacher[1:]], reduction=reduction, valid=VALID, **options)
        if reduction == "none":
            assert not found[~kept].any()
            torch.testing.assert_close(found[kept], right)
        else:
            torch.testing.assert_close(found, right)
        gradients = torch.autograd.grad(found.sum(), own)
        torch.testing.assert_close(gradients, torch.autograd.grad(right.sum(), student))
        assert not gradients[0][~kept].any()


@KINDS
@FORMS
@pytest.mark.parametrize("tokens", [0, TOKENS])
def test_nothing_that_counts_gives_0_connected_to_the_graph(kind, top_k, tail, tokens):
    student, teacher = problem(places=(tokens,))
    nothing = torch.zeros(tokens, dtype=torch.bool)
    for reduction in ("mean", "sum"):
        loss = call(CHUNKED[kind], student, teacher, valid=nothing, reduction=reduction, top_k=top_k, tail=tail)
        assert loss.item() == 0
        assert all(not gradient.any() for gradient in torch.autograd.grad(loss, student))
    values = call(CHUNKED[kind], student, teacher, valid=nothing, reduction="none", top_k=top_k, tail=tail)
    assert values.tolist() == [0.0] * tokens
    assert values.requires_grad


@KINDS
@FORMS
def test_half_precision_is_accumulated_in_float32(kind, top_k, tail):
    student, teacher = problem(dtype=torch.bfloat16)
    wide = [one.detach().float().requires_grad_() for one in student], [one.float() for one in teacher]
    options = {"top_k": top_k, "tail": tail, "chunk_size": 2}
    found, right = (call(CHUNKED[kind], *both, **options) for both in ((student, teacher), wide))
    assert found.dtype == torch.float32
    assert torch.equal(found, right)
    for own, exact in zip(torch.autograd.grad(found, student), torch.autograd.grad(right, wide[0]), strict=True):
        assert own.dtype == torch.bfloat16
        assert torch.equal(own, exact.bfloat16())  # rounded once, at the end


@KINDS
@FORMS
def test_confident_models_far_apart_stay_finite(kind, top_k, tail):
    student, teacher = problem(dtype=torch.float32, scale=30.0)
    loss = call(CHUNKED[kind], student, teacher, top_k=top_k, tail=tail, chunk_size=4)
    assert loss.item() > 0
    assert all(bool(gradient.isfinite().all()) for gradient in torch.autograd.grad(loss, student))


@KINDS
@pytest.mark.parametrize("top_k", [1, 4, 22])
def test_one_outcome_for_the_tail_never_adds_to_the_divergence(kind, top_k):
    student, teacher = problem()
    part = call(CHUNKED[kind], student, teacher, top_k=top_k, reduction="none")
    whole = call(CHUNKED[kind], student, teacher, reduction="none")
    assert bool((part <= whole + 1e-12).all())
    assert bool((part >= 0).all())
    if top_k == 22:  # one token is left, and is its own outcome
        torch.testing.assert_close(part, whole)


@KINDS
def test_backward_works_twice_where_the_graph_is_kept(kind):
    student, teacher = problem()
    loss = call(CHUNKED[kind], student, teacher, chunk_size=4)
    first = torch.autograd.grad(loss, student, torch.tensor(2.0), retain_graph=True)
    second = torch.autograd.grad(loss, student, torch.tensor(-6.0))
    torch.testing.assert_close([-3 * one for one in first], list(second))


@KINDS
@FORMS
def test_only_what_needs_a_gradient_gets_one(kind, top_k, tail):
    student, teacher = problem()
    right = torch.autograd.grad(call(CHUNKED[kind], student, teacher, top_k=top_k, tail=tail), student)
    for wanted in range(3):
        own = [one.detach().requires_grad_(place == wanted) for place, one in enumerate(student)]
        loss = call(CHUNKED[kind], own, teacher, top_k=top_k, tail=tail)
        torch.testing.assert_close(torch.autograd.grad(loss, own[wanted])[0], right[wanted])
    theirs = [one.clone().requires_grad_() for one in teacher]
    call(CHUNKED[kind], student, theirs, top_k=top_k, tail=tail).backward()
    assert [one.grad for one in theirs] == [None] * 3


@KINDS
@FORMS
def test_the_training_step_multiplies_the_matrices_once_and_evaluation_makes_no_gradient(kind, top_k, tail):
    class Largest(TorchDispatchMode):
        products, gradients = 0, 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.products += func.overloadpacket is torch.ops.aten.mm
            self.gradients += func.overloadpacket in (torch.ops.aten.addmm_, torch.ops.aten.index_add_)
            return func(*args, **(kwargs or {}))

    student, teacher = problem()
    with Largest() as count:
        call(CHUNKED[kind], student, teacher, top_k=top_k, tail=tail, chunk_size=TOKENS).backward()
    assert count.products == (2 if tail else 1)  # the student's logits of all tokens are not needed without a tail
    assert count.gradients == 2
    with torch.no_grad(), Largest() as count:
        found = call(CHUNKED[kind], student, teacher, top_k=top_k, tail=tail, chunk_size=TOKENS)
    assert not found.requires_grad
    assert count.gradients == 0


@KINDS
@FORMS
def test_no_tensor_of_all_logits_is_ever_made(kind, top_k, tail):
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for one in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(one, torch.Tensor):
                    self.elements = max(self.elements, one.untyped_storage().nbytes() // one.element_size())
            return result

    student, teacher = problem(places=(20, 10))
    with Largest() as seen:
        call(CHUNKED[kind], student, teacher, top_k=top_k, tail=tail, chunk_size=8).backward()
    assert seen.elements <= max(8 * V, 200 * THEIRS)
    assert seen.elements < 200 * V / 2


def test_the_default_chunk_holds_a_fixed_number_of_logits(monkeypatch):
    student, teacher = problem()
    right = call(losses.vocabulary_kl, student, teacher)
    monkeypatch.setattr(_chunked, "LOGITS_AT_ONCE", 3 * V)
    torch.testing.assert_close(call(losses.vocabulary_kl, student, teacher), right)
    monkeypatch.setattr(_chunked, "LOGITS_AT_ONCE", 1)
    torch.testing.assert_close(call(losses.vocabulary_kl, student, teacher), right)


def test_kept_gradients_are_given_away_and_not_copied():
    student, teacher = problem()
    loss = call(losses.vocabulary_kl, student, teacher)
    kept = [one.data_ptr() for one in loss.grad_fn.gradients]
    (loss * 2).backward()
    gc.collect()
    assert [one.grad.data_ptr() for one in student] == kept


def test_autocast_around_the_backward_pass_changes_nothing():
    student, teacher = problem(dtype=torch.float32)
    right = torch.autograd.grad(call(losses.vocabulary_kl, student, teacher, reduction="none").sum(), student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(call(losses.vocabulary_kl, student, teacher, reduction="none").sum(), student)
    assert all(torch.equal(*both) for both in zip(found, right, strict=True))


@KINDS
def test_bad_inputs_are_refused(kind):
    student, teacher = problem()
    loss = CHUNKED[kind]
    refused = [
        ({"temperature": 0.0}, "temperature must be a number above 0, given 0.0"),
        ({"top_k": 23}, r"top_k must lie in \[1, 23\) .*given 23"),
        ({"top_k": 0}, r"top_k must lie in \[1, 23\) .*given 0"),
        ({"chunk_size": 0}, "chunk_size must be 1 token or more, given 0"),
        ({"valid": torch.ones(4)}, r"valid must have shape \(11,\).*given \(4,\)"),
        ({"reduction": "avg"}, "given 'avg'"),
        ({"backend": "cuda"}, "backend must be .*given 'cuda'"),
        ({"backend": "liger", "top_k": 3}, "given top_k=3"),
        ({"backend": "liger", "reduction": "none"}, "reduction='none'"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            call(loss, student, teacher, **options)
    wrong = [
        ((student[0][:4], student[1], *teacher[:2]), r"student_hidden has shape \(4, 5\).*\(11, 7\)"),
        ((*student[:2], teacher[0], teacher[1][:20]), "student_matrix has 23 rows, but teacher_matrix has 20.*dim=0"),
        ((student[0], student[1].T, *teacher[:2]), r"student_hidden .*given \(11, 5\) and \(5, 23\)"),
        ((student[0][0], student[1], *teacher[:2]), r"student_hidden .*given \(5,\)"),
    ]
    for heads, message in wrong:
        with pytest.raises(ValueError, match=message):
            loss(*heads)
    with pytest.raises(ValueError, match=r"teacher_bias must have shape \(23,\).*given \(22,\)"):
        loss(*student[:2], *teacher[:2], teacher_bias=teacher[2][1:])


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5])
def test_shares_at_the_ends_are_refused(share):
    student, teacher = problem()
    with pytest.raises(ValueError, match=rf"inside \(0, 1\), given {share}"):
        call(losses.vocabulary_jensen_shannon, student, teacher, teacher_share=share)


@KINDS
@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="Liger-Kernel is not installed")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_liger_backend_agrees(kind, reduction):
    student, teacher = problem(dtype=torch.float32)
    options = {"valid": VALID, "temperature": 1.7, "reduction": reduction, "chunk_size": 3}
    found, right = (call(CHUNKED[kind], student, teacher, backend=name, **options) for name in ("liger", "torch"))
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(2.5 * one, student) for one in (found, right))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_missing_liger_is_named(monkeypatch):
    student, teacher = problem()
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setitem(sys.modules, "liger_kernel.chunked_loss", None)
    with pytest.raises(ImportError, match=r'needs liger_kernel.*stillroom\[benchmarks\]"'):
        call(losses.vocabulary_kl, student, teacher, backend="liger")


def test_hand_computed_values():
    hidden, eye = torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)  # 3/4 and 1/4 against 1/2 and 1/2
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(losses.vocabulary_kl(hidden, eye, teacher, eye)) == pytest.approx(expected, abs=1e-12)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(losses.vocabulary_reverse_kl(hidden, eye, teacher, eye)) == pytest.approx(reverse, abs=1e-12)
