"""Easy and hard positions, and cross-entropy over them."""

import pytest
import torch
import torch.nn.functional as F

from stillroom.losses import (
    hard_positions,
    head_agreement,
    resize_logits,
    selected_pixel_loss,
    weighted_pixel_loss,
)
from stillroom.losses.pixels import both, either, exclusive, students


def maps(classes=4, size=(6, 8)):
    return torch.randn(2, classes, *size, dtype=torch.float64)


def masks(classes=4, size=(6, 8), ignored=0.1):
    labels = torch.randint(classes, (2, *size))
    labels[torch.rand(labels.shape) < ignored] = -100
    return labels


class TestAgreement:
    def test_heads_that_agree_weigh_everything_alike(self):
        logits = maps()
        torch.testing.assert_close(head_agreement(logits, logits + 3), torch.ones(2, 6, 8, dtype=torch.float64))

    def test_it_is_the_exponential_of_the_divergence(self):
        primary, auxiliary = maps(), maps()
        p, a = primary.softmax(1), auxiliary.softmax(1)
        expected = (-(a * (a / p).log()).sum(1)).exp()
        torch.testing.assert_close(head_agreement(primary, auxiliary), expected)
        torch.testing.assert_close(
            head_agreement(primary, auxiliary, direction="primary||auxiliary"), (-(p * (p / a).log()).sum(1)).exp()
        )

    def test_no_gradient_reaches_the_teacher(self):
        primary, auxiliary = maps().requires_grad_(), maps().requires_grad_()
        assert not head_agreement(primary, auxiliary).requires_grad

    def test_half_precision_is_computed_in_float32(self):
        primary, auxiliary = maps().bfloat16(), maps().bfloat16()
        assert torch.equal(head_agreement(primary, auxiliary), head_agreement(primary.float(), auxiliary.float()))


class TestWeighted:
    def test_weights_of_one_give_the_mean_over_all_positions(self):
        logits, labels = maps(), masks()
        loss = weighted_pixel_loss(logits, labels, torch.ones(labels.shape))
        expected = F.cross_entropy(logits, labels, reduction="sum") / labels.numel()
        torch.testing.assert_close(loss, expected)

    def test_the_gradient_honours_what_comes_from_above(self):
        logits, labels, weights = maps().requires_grad_(), masks(), torch.rand(2, 6, 8)
        (3 * weighted_pixel_loss(logits, labels, weights)).backward()
        known = (labels >= 0).unsqueeze(1)
        target = F.one_hot(labels.clamp(min=0), 4).movedim(-1, 1)
        by_hand = 3 * weights.unsqueeze(1) * known * (logits.detach().softmax(1) - target) / labels.numel()
        torch.testing.assert_close(logits.grad, by_hand)

    def test_weights_of_another_shape_are_refused(self):
        with pytest.raises(ValueError, match=r"weights must have the labels' shape \(2, 6, 8\), given \(2, 3, 4\)"):
            weighted_pixel_loss(maps(), masks(), torch.ones(2, 3, 4))


class TestHard:
    def test_sets(self):
        student, teacher, labels = maps(), maps(), masks()
        one, other = hard_positions(student, labels), hard_positions(teacher, labels)
        assert not bool((exclusive(one, other) & both(one, other)).any())
        assert torch.equal(exclusive(one, other) | both(one, other), either(one, other))
        assert torch.equal(students(one, other), one)
        assert not bool(exclusive(one, one).any())

    def test_the_extreme_thresholds(self):
        logits, labels = maps(), masks()
        assert not bool(hard_positions(logits, labels, threshold=0.0).any())
        assert torch.equal(hard_positions(logits, labels, threshold=1.0), labels >= 0)

    def test_at_least_so_many_are_kept(self):
        logits, labels = 20 * F.one_hot(masks(ignored=0), 4).movedim(-1, 1).double() + maps(), masks(ignored=0)
        labels = logits.argmax(1)
        assert not bool(hard_positions(logits, labels, threshold=0.3).any())
        assert int(hard_positions(logits, labels, threshold=0.3, min_kept=17).sum()) == 17
        assert torch.equal(hard_positions(logits, labels, min_kept=10_000), labels >= 0)

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"threshold is a probability in \[0, 1\], given 1.5"):
            hard_positions(maps(), masks(), threshold=1.5)
        with pytest.raises(ValueError, match="min_kept is a number of positions of 0 or more, given -1"):
            hard_positions(maps(), masks(), min_kept=-1)
        with pytest.raises(ValueError, match=r"logits must be maps .* given \(4, 3\) and \(4,\)"):
            hard_positions(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))


class TestSelected:
    def test_everything_selected_is_the_ordinary_mean(self):
        logits, labels = maps(), masks()
        every = torch.ones_like(labels, dtype=torch.bool)
        torch.testing.assert_close(selected_pixel_loss(logits, labels, every), F.cross_entropy(logits, labels))
        weights = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
        torch.testing.assert_close(
            selected_pixel_loss(logits, labels, every, class_weights=weights), F.cross_entropy(logits, labels, weights)
        )

    def test_nothing_selected_is_nothing_and_still_connected(self):
        logits, labels = maps().requires_grad_(), masks()
        loss = selected_pixel_loss(logits, labels, torch.zeros_like(labels, dtype=torch.bool))
        loss.backward()
        assert loss.item() == 0
        assert bool((logits.grad == 0).all())

    def test_what_has_no_label_never_counts(self):
        logits, labels = maps(), masks(ignored=0.3)
        every = torch.ones_like(labels, dtype=torch.bool)
        other = torch.where((labels < 0).unsqueeze(1), logits + torch.randn_like(logits), logits)
        torch.testing.assert_close(
            selected_pixel_loss(logits, labels, every), selected_pixel_loss(other, labels, every)
        )
        torch.testing.assert_close(hard_positions(logits, labels), hard_positions(other, labels))

    def test_bad_input_is_refused(self):
        every = torch.ones(2, 6, 8, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"one weight per class, \(4,\), given \(19,\)"):
            selected_pixel_loss(maps(), masks(), every, class_weights=torch.ones(19))
        with pytest.raises(ValueError, match=r"selected must be bool of the labels' shape \(2, 6, 8\), given"):
            selected_pixel_loss(maps(), masks(), every.float())
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\)"):
            selected_pixel_loss(maps(), masks(classes=9, ignored=0), every)


def test_maps_are_resized_with_their_corners_aligned():
    logits = torch.arange(4.0).view(1, 1, 1, 4)
    torch.testing.assert_close(resize_logits(logits, (1, 7))[0, 0, 0], torch.arange(0, 3.5, 0.5))
    with pytest.raises(ValueError, match=r"logits must be maps \(N, C, h, w\), given shape \(3, 4\)"):
        resize_logits(torch.zeros(3, 4), (2, 2))
