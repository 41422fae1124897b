"""Losses on a detector's regions: LPLD, its weights, distilled classes and boxes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from stillroom.losses import lpld_loss, lpld_weights, region_box_loss, region_kd_loss
from tests.golden_cases import golden_cases


@pytest.mark.parametrize("case", golden_cases("lpld", "lpld_loss"), ids=str)
def test_value_and_gradient_match_the_authors_code(case):
    student = case.inputs["student_logits"].requires_grad_()
    loss = lpld_loss(student, case.inputs["teacher_logits"], case.inputs["weights"], scale=case.params["scale"])
    (gradient,) = torch.autograd.grad(3 * loss, student)
    case.check(loss=loss, grad_of_student_logits=gradient / 3)


def naive(student, teacher, weights, scale, background):
    total = 0.0
    for row in range(len(student)):
        foreground = [*torch.softmax(teacher[row, :-1], 0).tolist(), background]
        said = torch.softmax(student[row], 0).tolist()
        for q, r in zip(foreground, said, strict=True):
            total += float(weights[row]) * q * (torch.log(torch.tensor(q)) - torch.log(torch.tensor(r))).item()
    return scale * total / len(student)


def test_it_is_the_formula_in_a_loop():
    student, teacher, weights = torch.randn(7, 5), 3 * torch.randn(7, 5), torch.rand(7)
    loss = lpld_loss(student, teacher, weights, scale=0.3, background=1e-6)
    assert float(loss) == pytest.approx(naive(student, teacher, weights, 0.3, 1e-6), rel=1e-4)
    rows = lpld_loss(student, teacher, weights, reduction="none")
    torch.testing.assert_close(lpld_loss(student, teacher, weights, reduction="sum"), rows.sum())


def test_a_student_that_says_the_same_of_the_classes_and_rules_out_the_background_is_at_nearly_0():
    teacher = torch.randn(6, 4).double()
    student = teacher.clone()
    student[:, -1] = teacher[:, :-1].amax(1) - 50
    loss = lpld_loss(student, teacher, torch.ones(6), scale=1.0)
    assert abs(float(loss)) < 1e-7


def test_constants_and_the_teachers_background_play_no_part():
    student, teacher, weights = torch.randn(6, 4).double(), torch.randn(6, 4).double(), torch.rand(6)
    loss = lpld_loss(student, teacher, weights)
    shift = torch.randn(6, 1).double()
    torch.testing.assert_close(lpld_loss(student + shift, teacher, weights), loss)
    torch.testing.assert_close(lpld_loss(student, teacher - shift, weights), loss)
    other = teacher.clone()
    other[:, -1] += 7
    torch.testing.assert_close(lpld_loss(student, other, weights), loss)


def test_it_pushes_the_background_down_and_only_the_student_moves():
    student, teacher = torch.zeros(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    weights = torch.ones(3, requires_grad=True)
    lpld_loss(student, teacher, weights).backward()
    assert bool((student.grad[:, -1] > 0).all())
    assert teacher.grad is None
    assert weights.grad is None


def test_no_region_is_0_and_connected():
    student = torch.randn(0, 4, requires_grad=True)
    loss = lpld_loss(student, torch.randn(0, 4), torch.rand(0))
    loss.backward()
    assert loss.item() == 0


def test_half_precision_is_computed_in_float32():
    student, teacher, weights = torch.randn(5, 4).bfloat16(), torch.randn(5, 4), torch.rand(5)
    expected = lpld_loss(student.float(), teacher, weights)
    assert torch.equal(lpld_loss(student, teacher, weights), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lpld_loss(student, teacher, weights), expected)


def test_a_class_the_teacher_rules_out_gives_no_nan():
    teacher = torch.tensor([[200.0, -200.0, 0.0]])
    student = torch.zeros(1, 3, requires_grad=True)
    lpld_loss(student, teacher, torch.ones(1)).backward()
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 5), (4, 4), r"\(4, 5\).*\(4, 4\): one of the two lacks the background column"),
        ((4, 5), (3, 5), r"\(4, 5\).*\(3, 5\): both must score the same regions"),
        ((4, 2), (4, 2), "needs 2 classes or more beside the background, given 2 columns"),
        ((4, 5, 1), (4, 5, 1), r"student_logits must have shape \(R, K \+ 1\).*\(4, 5, 1\)"),
    ],
)
def test_what_cannot_be_right_is_refused(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        lpld_loss(torch.randn(student), torch.randn(teacher), torch.rand(4))


def test_nan_weights_of_another_length_and_scales_are_refused():
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    with pytest.raises(ValueError, match=r"each of the 4 regions, given \(3,\)"):
        lpld_loss(student, teacher, torch.rand(3))
    with pytest.raises(ValueError, match="scale must be a number of 0 or more, given -1"):
        lpld_loss(student, teacher, torch.rand(4), scale=-1)
    teacher[2, 1] = float("nan")
    with pytest.raises(ValueError, match="teacher_logits must be finite, given NaN"):
        lpld_loss(student, teacher, torch.rand(4))


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_one_minus_the_cosine_without_gradient():
    student, teacher = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8)
    weights = lpld_weights(student, teacher)
    torch.testing.assert_close(weights, 1 - F.cosine_similarity(student.detach(), teacher))
    assert not weights.requires_grad
    torch.testing.assert_close(lpld_weights(teacher, 3 * teacher), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(lpld_weights(teacher, -teacher), torch.full((6,), 2.0))
    with pytest.raises(ValueError, match=r"\(6, 8\).*\(5, 8\)"):
        lpld_weights(student, teacher[:5])


def test_equal_features_make_the_loss_0():
    features, logits = torch.randn(5, 8), torch.randn(5, 4)
    weights = lpld_weights(features, features)
    assert float(lpld_loss(torch.randn(5, 4), logits, weights)) == pytest.approx(0, abs=1e-6)


# ---- distilled regions -----------------------------------------------------------------------------------------------


def test_distilled_classes_are_hintons_loss():
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    loss = region_kd_loss(student, teacher, temperature=3.0)
    expected = 9 * F.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(loss, expected)
    (ours,) = torch.autograd.grad(3 * loss, student)
    (theirs,) = torch.autograd.grad(3 * expected, student)
    torch.testing.assert_close(ours, theirs)
    assert float(region_kd_loss(teacher, teacher)) == pytest.approx(0, abs=1e-6)


def test_distilled_boxes_are_those_of_the_favourite_class_as_far_as_it_is_an_object():
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 3.0, 50.0]])
    student, teacher = torch.randn(2, 2, 4, requires_grad=True), torch.randn(2, 2, 4)
    rows = region_box_loss(student, teacher, logits, reduction="none")
    expected = F.smooth_l1_loss(student[0, 0], teacher[0, 0], beta=1 / 9, reduction="sum")
    torch.testing.assert_close(rows[0], (1 - logits[0].softmax(0)[-1]) * expected)
    assert float(rows[1].detach()) < 1e-12
    rows.sum().backward()
    assert bool((student.grad[0, 1] == 0).all())
    shared = region_box_loss(student[:, :1], teacher[:, :1], logits, reduction="none")
    torch.testing.assert_close(shared[0], rows[0])
    with pytest.raises(ValueError, match=r"deltas must have shape \(2, K, 4\).*given \(2, 8\)"):
        region_box_loss(student.flatten(1), teacher.flatten(1), logits)
