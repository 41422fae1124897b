"""Values of every loss against loops over plain numbers, and gradients against differences of those loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stillroom import losses
from tests.losses import naive

LABELS = [2, 0, 4, 2]


def rows(*shape):
    return torch.randn(shape, dtype=torch.float64) * 2


def log_scores(scores):
    """The loss takes log h; the first column is the positive pair."""
    return scores[:, 0], scores[:, 1:]


CASES = {
    "kl_divergence": (
        lambda s, t: losses.kl_divergence(s, t, temperature=2.0, reduction="none"),
        lambda s, t: naive.forward_kl(s, t, 2.0),
        (4, 5),
        (4, 5),
    ),
    "reverse_kl_divergence": (
        lambda s, t: losses.reverse_kl_divergence(s, t, temperature=2.0, reduction="none"),
        lambda s, t: naive.reverse_kl(s, t, 2.0),
        (4, 5),
        (4, 5),
    ),
    "generalized_jensen_shannon": (
        lambda s, t: losses.generalized_jensen_shannon(s, t, teacher_share=0.3, temperature=2.0, reduction="none"),
        lambda s, t: naive.jensen_shannon(s, t, 0.3, 2.0),
        (4, 5),
        (4, 5),
    ),
    "kd_loss": (
        lambda s, t: losses.kd_loss(s, t, temperature=3.0, reduction="none"),
        lambda s, t: naive.kd(s, t, 3.0),
        (4, 5),
        (4, 5),
    ),
    "bernoulli_kd_loss": (
        lambda s, t: losses.bernoulli_kd_loss(s, t, temperature=3.0, reduction="none"),
        lambda s, t: naive.bernoulli_kd(s, t, 3.0),
        (4, 5),
        (4, 5),
    ),
    "tckd_loss": (
        lambda s, t: losses.tckd_loss(s, t, torch.tensor(LABELS), temperature=3.0, reduction="none"),
        lambda s, t: naive.tckd(s, t, LABELS, 3.0),
        (4, 5),
        (4, 5),
    ),
    "nckd_loss": (
        lambda s, t: losses.nckd_loss(s, t, torch.tensor(LABELS), temperature=3.0, reduction="none"),
        lambda s, t: naive.nckd(s, t, LABELS, 3.0),
        (4, 5),
        (4, 5),
    ),
    "dkd_loss": (
        lambda s, t: losses.dkd_loss(
            s, t, torch.tensor(LABELS), alpha=0.5, beta=3.0, temperature=2.0, reduction="none"
        ),
        lambda s, t: 0.5 * np.array(naive.tckd(s, t, LABELS, 2.0)) + 3.0 * np.array(naive.nckd(s, t, LABELS, 2.0)),
        (4, 5),
        (4, 5),
    ),
    "lskd": (
        lambda s, t: losses.kd_loss(
            losses.standardize_logits(s), losses.standardize_logits(t), temperature=2.0, reduction="none"
        ),
        lambda s, t: naive.kd(naive.standardized(s), naive.standardized(t), 2.0),
        (4, 5),
        (4, 5),
    ),
    "dist_loss": (
        lambda s, t: losses.dist_loss(s, t, beta=0.7, gamma=3.0, temperature=2.0),
        lambda s, t: naive.dist(s, t, 0.7, 3.0, 2.0),
        (4, 5),
        (4, 5),
    ),
    "pld_loss": (
        lambda s, t: losses.pld_loss(s, t, torch.tensor(LABELS), teacher_temperature=2.0, reduction="none"),
        lambda s, t: naive.pld(s, t, LABELS, 2.0),
        (4, 5),
        (4, 5),
    ),
    "attention_transfer_loss": (
        lambda s, t: losses.attention_transfer_loss(s, t, power=4, reduction="none"),
        lambda s, t: naive.attention(s, np.stack([naive.shrink(f, 2) for f in t]), 4),
        (3, 2, 2, 2),
        (3, 4, 4, 4),
    ),
    "review_context_loss": (
        lambda s, t: losses.review_context_loss(s, t, reduction="none"),
        naive.review_context,
        (2, 2, 8, 8),
        (2, 2, 8, 8),
    ),
    "hint_loss": (
        lambda s, t: losses.hint_loss(s, t, reduction="none"),
        lambda s, t: [((a - b) ** 2).sum() / a.size for a, b in zip(s, t, strict=True)],
        (3, 2, 4, 1),
        (3, 2, 4, 1),
    ),
    "masked_generative_loss": (
        lambda s, t: losses.masked_generative_loss(s, t, reduction="none"),
        lambda s, t: [((a - b) ** 2).sum() for a, b in zip(s, t, strict=True)],
        (3, 2, 4, 1),
        (3, 2, 4, 1),
    ),
    "rkd_distance_loss": (
        lambda s, t: losses.rkd_distance_loss(s, t, reduction="none"),
        naive.rkd_distance,
        (4, 3),
        (4, 6),
    ),
    "rkd_distance_loss squared": (
        lambda s, t: losses.rkd_distance_loss(s, t, squared=True, reduction="none"),
        lambda s, t: naive.rkd_distance(s, t, squared=True),
        (4, 3),
        (4, 6),
    ),
    "rkd_angle_loss": (
        lambda s, t: losses.rkd_angle_loss(s, t, reduction="none"),
        naive.rkd_angle,
        (4, 3),
        (4, 6),
    ),
    "rkd_loss": (
        lambda s, t: losses.rkd_loss(s, t, distance_weight=2.0, angle_weight=3.0, reduction="none"),
        lambda s, t: 2 * np.array(naive.rkd_distance(s, t)) + 3 * np.array(naive.rkd_angle(s, t)),
        (4, 3),
        (4, 6),
    ),
    "symmetric_kl": (
        lambda s, t: losses.symmetric_kl(s, t, temperature=2.0, reduction="none"),
        lambda s, t: (np.array(naive.forward_kl(s, t, 2.0)) + np.array(naive.reverse_kl(s, t, 2.0))) / 2,
        (4, 6),
        (4, 6),
    ),
    "crd_loss": (
        lambda s, t: losses.crd_loss(*log_scores(s), dataset_size=50, reduction="none"),
        lambda s, t: naive.crd(np.exp(s[:, 0]), np.exp(s[:, 1:]), 50),
        (4, 6),
        (1,),
    ),
}


LOOPED_HOMES = ("logits", "ranking", "distributions", "features", "relations", "supervised", "_shared")
"""Losses in other files have golden vectors or loops of their own."""


def test_every_loss_between_two_networks_has_a_loop():
    looped = {name.split()[0] for name in CASES} - {"lskd"}
    supervised = {"binary_cross_entropy", "cross_entropy", "mean_absolute_error", "mean_squared_error"}
    parts = {"dist_inter_class_loss", "dist_intra_class_loss", "plackett_luce_loss"}  # looped inside a whole one
    others = {"Reduction", "flatten_positions", "labelled_rows", "reduce", "standardize_logits"}
    logits = {name for name, home in losses._EXPORTS.items() if home in LOOPED_HOMES}
    assert looped | supervised | parts | others | {"teacher_optimal_permutation"} == logits
    assert len(looped) == 19


@pytest.mark.parametrize("name", CASES)
def test_values(name):
    ours, loop, student_shape, teacher_shape = CASES[name]
    student, teacher = rows(*student_shape), rows(*teacher_shape)
    expected = torch.tensor(np.array(loop(student.numpy(), teacher.numpy())))
    torch.testing.assert_close(ours(student, teacher), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    ours, loop, student_shape, teacher_shape = CASES[name]
    student, teacher = rows(*student_shape).requires_grad_(), rows(*teacher_shape)
    (gradient,) = torch.autograd.grad(3 * ours(student, teacher).sum(), student)
    fixed = teacher.numpy()
    expected = naive.numeric_gradient(lambda point: np.sum(loop(point, fixed)), student.detach().numpy())
    torch.testing.assert_close(gradient / 3, torch.tensor(expected), rtol=1e-5, atol=1e-7)


def test_permutation_and_closed_form_gradient():
    student, teacher = rows(6, 7).requires_grad_(), rows(6, 7)
    labels = torch.tensor([0, 6, 3, 3, 1, 5])
    order = losses.teacher_optimal_permutation(teacher, labels)
    assert order.tolist() == naive.permutation(teacher.tolist(), labels.tolist())
    loss = losses.pld_loss(student, teacher, labels, teacher_temperature=1.5, reduction="sum")
    (gradient,) = torch.autograd.grad(3 * loss, student)
    expected = naive.pld_gradient(student.tolist(), teacher.tolist(), labels.tolist(), 1.5)
    torch.testing.assert_close(gradient / 3, torch.tensor(expected, dtype=torch.float64))


def test_standardized_logits():
    logits = rows(4, 5)
    expected = torch.tensor(naive.standardized(logits.tolist()), dtype=torch.float64)
    torch.testing.assert_close(losses.standardize_logits(logits), expected, rtol=1e-12, atol=1e-12)
