"""Multi-label distillation: answers per label, and label-wise embeddings within labels and within images."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stillroom.losses import (
    binary_cross_entropy,
    kl_divergence,
    led_class_aware_loss,
    led_instance_aware_loss,
    led_loss,
    mld_loss,
    rkd_distance_loss,
)

SMALL = 1e-8


def problem(images=7, labels=5, student=3, teacher=4):
    own = torch.randn(images, labels, student, dtype=torch.float64).requires_grad_()
    theirs = torch.randn(images, labels, teacher, dtype=torch.float64)
    return own, theirs, (torch.rand(images, labels) > 0.4).double()


def one_group(own, theirs, beta=1.0):
    """The loss of one group of rows by loops over pairs."""

    def relations(rows):
        count = len(rows)
        table = [
            [math.sqrt(max(float((rows[i] - rows[j]).square().sum()), 1e-12)) * (i != j) for j in range(count)]
            for i in range(count)
        ]
        positive = [value for row in table for value in row if value > 0]
        mean = sum(positive) / len(positive)
        return [[value / mean for value in row] for row in table]

    total = 0.0
    for first, second in zip(relations(own), relations(theirs), strict=True):
        for mine, other in zip(first, second, strict=True):
            apart = abs(mine - other)
            total += apart**2 / (2 * beta) if apart < beta else apart - beta / 2
    return total / len(own)


def by_loops(own, theirs, targets, beta=1.0):
    groups = [targets[row] == 1 for row in range(len(targets))]
    return [
        one_group(own[row][group], theirs[row][group], beta) if int(group.sum()) > 1 else 0.0
        for row, group in enumerate(groups)
    ]


def test_equal_logits_give_nothing():
    logits = torch.randn(6, 4).requires_grad_()
    loss = mld_loss(logits, logits)
    assert float(loss.detach()) == 0
    assert float(torch.autograd.grad(loss, logits)[0].abs().max()) < 1e-7


def test_the_exact_gradient_is_the_difference_of_the_probabilities():
    student = torch.tensor([[30.0, -2.0], [0.5, 400.0]], dtype=torch.float64).requires_grad_()
    teacher = torch.tensor([[-30.0, 1.0], [3.0, -400.0]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(3 * mld_loss(student, teacher, eps=0.0), student)
    torch.testing.assert_close(gradient, (3 * (student.sigmoid() - teacher.sigmoid()) / 2).detach())
    kept_back = torch.autograd.grad(mld_loss(student, teacher, reduction="sum"), student)[0]
    assert kept_back[0, 0] == kept_back[1, 1] == 0  # certain, wrong, and not corrected
    torch.testing.assert_close(kept_back[0, 1], gradient[0, 1] * 2 / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_students_are_kept_within_eps(dtype):
    student, teacher = torch.tensor([[25.0]], dtype=dtype), torch.tensor([[-25.0]], dtype=dtype)
    expected = (1 - 2 * SMALL) * (math.log1p(-SMALL) - math.log(SMALL))
    assert float(mld_loss(student, teacher)) == pytest.approx(expected, rel=1e-6)


def test_it_is_a_softmax_of_two_for_every_label():
    student, teacher = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    def two(logits, label):
        return torch.stack([logits[:, label], torch.zeros(5, dtype=torch.float64)], dim=1)

    labels = [kl_divergence(two(student, label), two(teacher, label), reduction="none") for label in range(3)]
    torch.testing.assert_close(mld_loss(student, teacher, eps=0.0, reduction="none"), torch.stack(labels).sum(0))


@pytest.mark.parametrize("beta", [1.0, 0.2])
def test_groups_by_padding_are_groups_by_loops(beta):
    own, theirs, targets = problem()
    targets[:, 0], targets[:2, 1], targets[2:, 1] = 0, 1, 0  # a label that nobody carries, and one of two images
    images = led_instance_aware_loss(own, theirs, targets, beta=beta, reduction="none")
    assert images.tolist() == pytest.approx(by_loops(own.detach(), theirs, targets, beta))
    labels = led_class_aware_loss(own, theirs, targets, beta=beta, reduction="none")
    turned = own.detach().transpose(0, 1), theirs.transpose(0, 1), targets.T
    assert labels.tolist() == pytest.approx(by_loops(*turned, beta))
    assert labels[0] == labels[1] == 0
    assert float(labels.detach().sum()) > 0
    total = led_loss(own, theirs, targets, class_aware_weight=2.0, instance_aware_weight=3.0, beta=beta)
    torch.testing.assert_close(total, 2 * labels.sum() + 3 * images.sum())
    count = (targets.sum(1) >= 3).sum()
    torch.testing.assert_close(
        led_instance_aware_loss(own, theirs, targets, beta=beta, reduction="mean"), images.sum() / count
    )


def test_gradients_are_those_of_differences():
    own, theirs, targets = problem(5, 4)
    assert torch.autograd.gradcheck(lambda rows: 3 * led_loss(rows, theirs, targets), (own,), fast_mode=True)


def test_one_group_is_the_relational_loss_of_its_rows():
    own, theirs, _ = problem(1, 6)
    loss = led_instance_aware_loss(own, theirs, torch.ones(1, 6))
    torch.testing.assert_close(loss, rkd_distance_loss(own[0], theirs[0], reduction="sum"))


def test_two_rows_say_nothing():
    for _ in range(5):
        own, theirs, _ = problem(2, 2)
        loss = led_loss(own, theirs, torch.ones(2, 2))
        assert float(loss.detach()) == 0
        assert not torch.autograd.grad(loss, own)[0].any()
        pair = rkd_distance_loss(own[0], theirs[0])
        assert abs(float(pair.detach())) < 1e-30
        assert float(torch.autograd.grad(pair, own)[0].abs().max()) < 1e-15


def test_only_the_shape_of_a_group_counts():
    own, theirs, _ = problem(1, 5, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    order = torch.randperm(5)
    everything = torch.ones(1, 5)
    loss = led_instance_aware_loss(own, theirs, everything)
    assert float(loss.detach()) > 0.01
    torch.testing.assert_close(led_instance_aware_loss(3 * own @ rotation + 7, theirs, everything), loss)
    torch.testing.assert_close(led_instance_aware_loss(own[:, order], theirs[:, order], everything), loss)
    wide = torch.cat([own, torch.zeros(1, 5, 9, dtype=torch.float64)], dim=2)
    torch.testing.assert_close(led_instance_aware_loss(wide, theirs, everything), loss)


@pytest.mark.parametrize("loss", [led_class_aware_loss, led_instance_aware_loss])
def test_labels_that_are_not_there_get_no_gradient(loss):
    own, theirs, targets = problem()
    targets[0, 0] = torch.nan  # unknown is not there
    assert int((targets.sum(0) >= 3).sum()) > 1
    (gradient,) = torch.autograd.grad(loss(own, theirs, targets), own)
    assert not gradient[targets != 1].any()
    assert gradient[targets == 1].any()
    with torch.no_grad():
        spoiled = torch.where((targets == 1).unsqueeze(-1), own, torch.nan)
    torch.testing.assert_close(loss(spoiled, theirs, targets), loss(own, theirs, targets))


@pytest.mark.parametrize("loss", [led_class_aware_loss, led_instance_aware_loss, led_loss])
def test_a_batch_without_a_group_gives_zero_and_finite_gradients(loss):
    own, theirs, _ = problem(4, 4)
    for targets in (torch.zeros(4, 4), torch.eye(4), torch.full((4, 4), torch.nan)):
        value = loss(own, theirs, targets)
        assert float(value.detach()) == 0
        assert torch.equal(torch.autograd.grad(value, own)[0], torch.zeros_like(own))


def test_equal_embeddings_keep_a_finite_gradient():
    own, theirs, _ = problem(1, 4)
    with torch.no_grad():
        own[0, 1] = own[0, 0]
    (gradient,) = torch.autograd.grad(led_instance_aware_loss(own, theirs, torch.ones(1, 4)), own)
    assert gradient.isfinite().all()
    assert float(led_instance_aware_loss(torch.ones(1, 4, 3), theirs.float(), torch.ones(1, 4))) > 0


def test_the_teacher_gets_no_gradient_and_half_precision_is_float32():
    own, theirs, targets = problem()
    theirs.requires_grad_()
    assert torch.autograd.grad(led_loss(own, theirs, targets), theirs, allow_unused=True) == (None,)
    half = own.detach().bfloat16(), theirs.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = led_loss(*half, targets)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, led_loss(*(one.float() for one in half), targets))


def test_the_label_loss_has_a_floor_where_one_is_asked_for():
    logits = torch.tensor([[-30.0, 2.0, -1.0]]).requires_grad_()
    labels = torch.tensor([[1.0, 0.0, torch.nan]])
    loss = binary_cross_entropy(logits, labels, smallest=SMALL, reduction="sum")
    exact = F.binary_cross_entropy_with_logits(logits[:, 1], labels[:, 1])
    torch.testing.assert_close(loss, exact - math.log(SMALL))
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    assert gradient[0, 0] == gradient[0, 2] == 0
    torch.testing.assert_close(gradient[0, 1], 3 * logits[0, 1].detach().sigmoid())
    with pytest.raises(ValueError, match=r"smallest must be a probability in \[0, 1\), given 1\.5"):
        binary_cross_entropy(logits, labels, smallest=1.5)


def test_what_cannot_be_is_refused():
    own, theirs, targets = problem()
    with pytest.raises(ValueError, match=r"student_logits have shape \(2, 3\).*\(2, 4\)"):
        mld_loss(torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"eps must be a probability in \[0, 0\.5\), given 0\.5"):
        mld_loss(torch.randn(2, 3), torch.randn(2, 3), eps=0.5)
    for loss in (led_class_aware_loss, led_instance_aware_loss, led_loss):
        with pytest.raises(ValueError, match=r"targets must be 0 or 1, given 0\.7.*soft targets"):
            loss(own, theirs, torch.full((7, 5), 0.7))
        with pytest.raises(ValueError, match="targets must be 0 or 1, given 2"):
            loss(own, theirs, torch.full((7, 5), 2))
        with pytest.raises(ValueError, match=r"targets have shape \(7, 4\).*student_embeddings are \(7, 5, 3\)"):
            loss(own, theirs, targets[:, :4])
        with pytest.raises(ValueError, match=r"targets have shape \(7, 5\).*teacher_embeddings are \(7, 6, 4\)"):
            loss(own, torch.randn(7, 6, 4), targets)
        with pytest.raises(ValueError, match=r"student_embeddings must be .*\(N, C, D\).*given \(7, 5\)"):
            loss(own[..., 0], theirs, targets)
        with pytest.raises(ValueError, match="beta must be a number above 0, given 0"):
            loss(own, theirs, targets, beta=0)
        with pytest.raises(ValueError, match="eps must be a number above 0, given 0"):
            loss(own, theirs, targets, eps=0)
    with pytest.raises(ValueError, match="instance_aware_weight must be a number of 0 or more, given -1"):
        led_loss(own, theirs, targets, instance_aware_weight=-1)
    with pytest.raises(ValueError, match="beta must be a number above 0, given -1"):
        rkd_distance_loss(own[0], theirs[0], beta=-1)
