"""What defines each loss on logits, and where it must refuse."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stillroom import losses


def logits(*shape):
    return torch.randn(shape, dtype=torch.float64) * 3


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_its_two_parts_with_the_teachers_doubt_between_them(temperature):
    student, teacher, labels = logits(8, 5), logits(8, 5), torch.arange(8) % 5
    options = {"temperature": temperature, "reduction": "none"}
    doubt = 1 - (teacher / temperature).softmax(1)[torch.arange(8), labels]
    parts = losses.tckd_loss(student, teacher, labels, **options)
    parts = parts + doubt * losses.nckd_loss(student, teacher, labels, **options)
    torch.testing.assert_close(losses.kd_loss(student, teacher, **options), parts, rtol=1e-12, atol=1e-12)


def test_kd_at_infinite_temperature_is_half_the_centred_squared_difference_over_classes():
    student, teacher = logits(6, 7), logits(6, 7)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = centred.square().sum(1) / (2 * 7)
    torch.testing.assert_close(
        losses.kd_loss(student, teacher, temperature=1e4, reduction="none"), limit, rtol=3e-3, atol=0
    )


def test_kd_at_temperature_1_trains_as_the_teachers_soft_labels_do():
    student, teacher = logits(6, 5).requires_grad_(), logits(6, 5)
    (of_kd,) = torch.autograd.grad(losses.kd_loss(student, teacher, temperature=1.0), student)
    (of_soft_labels,) = torch.autograd.grad(F.cross_entropy(student, teacher.softmax(1)), student)
    torch.testing.assert_close(of_kd, of_soft_labels)


def test_kd_of_a_uniform_teacher_knows_no_class():
    student = logits(4, 5)
    permuted = student[:, torch.tensor([3, 0, 4, 1, 2])]
    uniform = torch.zeros(4, 5)
    torch.testing.assert_close(losses.kd_loss(student, uniform), losses.kd_loss(permuted, uniform))


def test_sure_students_keep_a_gradient():
    """Where a probability is rounded to 1, log(1 - p) would be -inf: the parts of DKD stay finite and still push."""
    student = torch.tensor([[200.0, 0.0, 1.0], [-200.0, 0.0, 1.0]], requires_grad=True)
    teacher, labels = torch.tensor([[0.0, 5.0, 1.0], [90.0, 0.0, 1.0]]), torch.tensor([0, 0])
    loss = losses.dkd_loss(student, teacher, labels, temperature=1.0, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    # by hand: the first teacher gives the label p = 1 / (1 + e^5 + e), the student margin is 200 - log(1 + e)
    p, margin = 1 / (1 + math.e**5 + math.e), 200 - math.log(1 + math.e)
    expected = (1 - p) * margin + p * math.log(p) + (1 - p) * math.log(1 - p)
    found = losses.tckd_loss(student, teacher, labels, temperature=1.0, reduction="none")[0]
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert bool(loss.isfinite().all())
    assert bool(gradient.isfinite().all())
    assert float(gradient[0, 0]) > 0.9  # too sure of the label
    assert float(gradient[1, 0]) < -0.9  # too sure of the others


@pytest.mark.parametrize("loss", [losses.kd_loss, losses.dist_loss, losses.bernoulli_kd_loss])
def test_huge_logits_stay_finite(loss):
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 5.0]], requires_grad=True)
    value = loss(student, -student.detach(), temperature=1.0)
    (gradient,) = torch.autograd.grad(value, student)
    assert bool(value.isfinite())
    assert bool(gradient.isfinite().all())


def test_dkd_ignores_rows_and_their_logits():
    student, teacher = logits(5, 4).requires_grad_(), logits(5, 4)
    labels = torch.tensor([1, -100, 3, -100, 0])
    kept = torch.tensor([0, 2, 4])
    options = {"temperature": 2.0, "beta": 3.0}
    ignoring = losses.dkd_loss(student, teacher, labels, ignore_index=-100, **options)
    alone = losses.dkd_loss(student[kept], teacher[kept], labels[kept], **options)
    torch.testing.assert_close(ignoring, alone)
    (gradient,) = torch.autograd.grad(ignoring, student)
    assert gradient[[1, 3]].abs().sum() == 0
    values = losses.dkd_loss(student, teacher, labels, ignore_index=-100, reduction="none", **options)
    assert values.shape == (5,)
    assert values[[1, 3]].tolist() == [0.0, 0.0]
    torch.testing.assert_close(values[kept].mean(), alone)


@pytest.mark.parametrize("loss", [losses.dkd_loss, losses.tckd_loss, losses.nckd_loss, losses.pld_loss])
class TestLabels:
    def test_nothing_left_is_refused(self, loss):
        labels = torch.full((3,), -100)
        with pytest.raises(ValueError, match="all 3 labels are the ignored -100"):
            loss(logits(3, 4), logits(3, 4), labels, ignore_index=-100)

    @pytest.mark.parametrize("wrong", [-1, 4, -100])
    def test_out_of_range_is_refused(self, loss, wrong):
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, 4\), given labels from .*{wrong}"):
            loss(logits(3, 4), logits(3, 4), torch.tensor([2, wrong, 3] if wrong > 0 else [0, wrong, 1]))

    def test_floats_are_refused(self, loss):
        with pytest.raises(ValueError, match=r"labels must be int64 class numbers, given dtype torch\.float32"):
            loss(logits(3, 4), logits(3, 4), torch.tensor([1.0, 0.0, 2.0]))

    def test_other_shapes_are_refused(self, loss):
        with pytest.raises(ValueError, match=r"labels must have shape \(3,\).* given \(3, 1\)"):
            loss(logits(3, 4), logits(3, 4), torch.tensor([[1], [0], [2]]))

    def test_positions_are_refused(self, loss):
        with pytest.raises(ValueError, match=r"must have shape \(N, C\), given \(2, 4, 3, 3\).*flatten_positions"):
            loss(logits(2, 4, 3, 3), logits(2, 4, 3, 3), torch.zeros(2, 3, 3, dtype=torch.int64))

    def test_an_empty_batch_is_refused(self, loss):
        with pytest.raises(ValueError, match="at least 1 samples in a batch, given 0"):
            loss(logits(0, 4), logits(0, 4), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(
    "loss",
    [
        losses.dist_loss,
        losses.dist_inter_class_loss,
        losses.dist_intra_class_loss,
        lambda s, t: losses.dkd_loss(s, t, torch.zeros(len(s), dtype=torch.int64)),
    ],
)
def test_two_classes_are_too_few(loss):
    with pytest.raises(ValueError, match="at least 3 classes, given logits of 2"):
        loss(logits(4, 2), logits(4, 2))


def test_two_classes_are_too_few_to_be_standardised():
    with pytest.raises(ValueError, match=r"3 or more classes to be standardised, given \(4, 2\)"):
        losses.standardize_logits(logits(4, 2))
    with pytest.raises(ValueError, match=r"given \(4, 3, 2\)"):
        losses.standardize_logits(logits(4, 3, 2))


@pytest.mark.parametrize("loss", [losses.dist_loss, losses.dist_inter_class_loss, losses.dist_intra_class_loss])
def test_one_sample_has_no_correlation(loss):
    with pytest.raises(ValueError, match="at least 2 samples in a batch, given 1"):
        loss(logits(1, 4), logits(1, 4))


def test_standardised_logits_have_mean_0_and_deviation_1_whatever_the_scale():
    given = logits(5, 6)
    standard = losses.standardize_logits(given)
    torch.testing.assert_close(standard.mean(1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(standard.std(1), torch.ones(5, dtype=torch.float64), rtol=1e-6, atol=0)
    scale, shift = torch.rand(5, 1) + 0.5, torch.randn(5, 1)
    torch.testing.assert_close(losses.standardize_logits(scale * given + shift), standard, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(losses.standardize_logits(-given), standard)


def test_standardising_passes_the_gradient_through_mean_and_deviation():
    given = logits(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: 3 * losses.standardize_logits(z).pow(3).sum(), (given,))
    # along z itself and along a constant nothing changes, so the gradient has no part there
    (gradient,) = torch.autograd.grad(losses.standardize_logits(given).pow(3).sum(), given)
    assert float(gradient.sum(1).abs().max()) < 1e-9
    assert float((gradient * given.detach()).sum(1).abs().max()) < 1e-5


def test_equal_logits_are_standardised_to_0_without_nan():
    given = torch.full((2, 4), 3.0, requires_grad=True)
    standard = losses.standardize_logits(given)
    standard.square().sum().backward()
    assert torch.equal(standard, torch.zeros(2, 4))
    assert bool(given.grad.isfinite().all())


def test_dist_is_blind_to_an_affine_change_of_probabilities_and_not_of_logits():
    teacher = (logits(6, 5) / 3).softmax(1)
    mixed = 0.4 * teacher + 0.6 / 5  # still probabilities
    inside = losses.dist_loss(mixed.log(), teacher.log(), temperature=1.0)
    assert abs(float(inside)) < 1e-5
    doubled = losses.dist_loss(2 * teacher.log(), teacher.log(), temperature=1.0)
    assert float(doubled) > 1e-3


def test_dist_sees_rows_and_columns_apart():
    teacher = logits(6, 5)
    rolled = teacher.roll(1, dims=0)  # every row is right, at another sample
    assert float(losses.dist_inter_class_loss(teacher, teacher)) < 1e-3
    assert float(losses.dist_inter_class_loss(rolled, teacher)) > 1.0
    values = losses.dist_intra_class_loss(rolled, teacher, reduction="none")
    assert values.shape == (5,)


def test_bernoulli_kd_is_two_class_kd_of_each_entry():
    student, teacher = logits(4, 3), logits(4, 3)
    pairs = [torch.stack([z.flatten(), torch.zeros(12)], dim=1) for z in (student, teacher)]
    expected = losses.kd_loss(*pairs, temperature=2.0, reduction="none").view(4, 3)
    found = losses.bernoulli_kd_loss(student, teacher, temperature=2.0, reduction="none")
    torch.testing.assert_close(found, expected)


def test_bernoulli_kd_pushes_a_sure_and_wrong_student():
    student = torch.tensor([[60.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.bernoulli_kd_loss(student, torch.tensor([[-3.0]])), student)
    torch.testing.assert_close(gradient, 1 - torch.sigmoid(torch.tensor([[-3.0]])))


def test_jensen_shannon_tends_to_both_divergences():
    student, teacher = logits(5, 4), logits(5, 4)
    small = 1e-7
    forward = losses.generalized_jensen_shannon(student, teacher, teacher_share=small) / small
    reverse = losses.generalized_jensen_shannon(student, teacher, teacher_share=1 - small) / small
    torch.testing.assert_close(forward, losses.kl_divergence(student, teacher), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(reverse, losses.reverse_kl_divergence(student, teacher), rtol=1e-3, atol=1e-4)


def test_jensen_shannon_is_symmetric_and_bounded():
    student, teacher = 100 * logits(5, 4), 100 * logits(5, 4)
    value = losses.generalized_jensen_shannon(student, teacher, reduction="none")
    torch.testing.assert_close(value, losses.generalized_jensen_shannon(teacher, student, reduction="none"))
    assert float(value.max()) <= torch.log(torch.tensor(2.0, dtype=torch.float64)) + 1e-12


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_jensen_shannon_refuses_its_ends(share):
    with pytest.raises(ValueError, match=rf"inside \(0, 1\), given {share}"):
        losses.generalized_jensen_shannon(logits(2, 3), logits(2, 3), teacher_share=share)


def test_forward_and_reverse_divergence_punish_opposite_faults():
    both = torch.tensor([[0.0, 0.0, -20.0]])  # the teacher takes either of two classes
    one = torch.tensor([[0.0, -20.0, -20.0]])  # a student that left one out
    assert float(losses.kl_divergence(one, both)) > 5
    assert float(losses.reverse_kl_divergence(one, both)) < 1
