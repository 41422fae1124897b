"""DKD, DIST and LSKD as methods."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stillroom import losses as L
from stillroom.data.batch import Batch
from stillroom.systems.classification.logit_kd import DIST, DKD, LSKD, LSKDDKD
from tests.systems.classification.toys import ConvNet, accuracy, problem, segmenter, train, trained_teacher

METHODS = [DKD, DIST, LSKD, LSKDDKD]
SOME = [DIST, LSKD]
EVERY = [DKD, LSKDDKD]


def both_logits(method, batch):
    return method(batch).outputs, method.teacher(batch)


@pytest.mark.parametrize("kind", METHODS)
def test_a_student_learns_from_the_teacher_without_the_label_term(kind):
    method = kind(ConvNet(2), trained_teacher(), label_weight=0.0)
    first, *_, last = train(method, problem(50))
    weights = method(problem(50)).weights
    assert weights["label"] == 0
    assert sum(weights[name] * last[name] for name in last) < 0.8 * sum(weights[name] * first[name] for name in first)
    assert accuracy(method.product) > 0.45  # chance is 0.2


def test_dkd_at_its_published_defaults():
    method, batch = DKD(ConvNet(2), ConvNet(4)), problem(10)
    losses = method(batch)
    student, teacher = losses.outputs, method.teacher(batch)
    term = L.dkd_loss(student, teacher, batch.labels, alpha=1, beta=8, temperature=4)
    torch.testing.assert_close(losses.total, F.cross_entropy(student, batch.labels) + term)


def test_dist_at_its_published_defaults():
    method, batch = DIST(ConvNet(2), ConvNet(4)), problem(10)
    losses = method(batch)
    student, teacher = losses.outputs, method.teacher(batch)
    term = L.dist_loss(student, teacher, beta=2, gamma=2, temperature=4)
    torch.testing.assert_close(losses.total, F.cross_entropy(student, batch.labels) + term)


def test_lskd_at_its_published_defaults():
    method, batch = LSKD(ConvNet(2), ConvNet(4)), problem(10)
    losses = method(batch)
    student, teacher = losses.outputs, method.teacher(batch)
    term = 9 * L.kd_loss(L.standardize_logits(student), L.standardize_logits(teacher), temperature=2)
    torch.testing.assert_close(losses.total, 0.1 * F.cross_entropy(student, batch.labels) + term)


def test_lskd_with_dkd_at_its_published_defaults():
    method, batch = LSKDDKD(ConvNet(2), ConvNet(4)), problem(10)
    losses = method(batch)
    student, teacher = losses.outputs, method.teacher(batch)
    standard = L.standardize_logits(student), L.standardize_logits(teacher)
    term = L.dkd_loss(*standard, batch.labels, alpha=9, beta=72, temperature=2)
    torch.testing.assert_close(losses.total, F.cross_entropy(student, batch.labels) + term)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(("progress", "ramp"), [(0.0, 0.0), (10 / 240, 0.5), (20 / 240, 1.0), (0.7, 1.0)])
def test_warm_up_over_20_of_240_epochs(kind, progress, ramp):
    method = kind(ConvNet(2), ConvNet(4))
    full = method(problem(10)).weights
    method.tell_time(step=3, epoch=1.0, progress=progress)
    weights = method(problem(10)).weights
    assert weights["label"] == full["label"] == 1.0
    for name in ("target", "non_target"):
        assert weights[name] == pytest.approx(ramp * full[name])


def test_a_warm_up_can_be_left_out_and_others_have_none():
    for method in (DKD(ConvNet(2), ConvNet(4), warmup_share=0.0), DIST(ConvNet(2), ConvNet(4))):
        full = method(problem(10)).weights
        method.tell_time(step=0, epoch=0.0, progress=0.0)
        assert method(problem(10)).weights == full


def test_the_scale_of_the_students_logits_does_not_matter_to_lskd():
    student, teacher, batch = ConvNet(2).eval(), ConvNet(4), problem(10)
    before = LSKD(student, teacher)(batch)["distill"]
    with torch.no_grad():
        student.head.weight.mul_(5)
        student.head.bias.mul_(5).add_(3)
    after = LSKD(student, teacher)(batch)["distill"]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SOME)
def test_samples_without_label_are_distilled_and_not_labelled(kind):
    method, batch = kind(ConvNet(2), ConvNet(4)), problem(10)
    labels = batch.labels.clone()
    labels[4:] = -100
    full, some = method(batch), method(batch.replace(labels=labels))
    torch.testing.assert_close(some["label"], F.cross_entropy(some.outputs[:4], labels[:4]))
    for name in set(full) - {"label"}:
        torch.testing.assert_close(some[name], full[name])
    none = method(batch.replace(labels=None))
    assert set(none) == set(full) - {"label"}


@pytest.mark.parametrize("kind", EVERY)
def test_samples_without_label_are_refused(kind):
    method, batch = kind(ConvNet(2), ConvNet(4)), problem(10)
    labels = batch.labels.clone()
    labels[4:] = -100
    with pytest.raises(ValueError, match="given labels from -100 to 3"):
        method(batch.replace(labels=labels))
    with pytest.raises(ValueError, match=f"{kind.__name__} needs a label for every sample, but this batch has no"):
        method(batch.replace(labels=None))


@pytest.mark.parametrize("kind", METHODS)
def test_positions_are_rows(kind):
    method = kind(segmenter(), segmenter(8))
    labels = torch.randint(5, (3, 4, 4))
    labels[:, 0] = -100
    batch = Batch(torch.rand(3, 1, 8, 8), labels)
    losses = method(batch)
    torch.testing.assert_close(losses["label"], F.cross_entropy(losses.outputs, labels))

    class Rows(torch.nn.Module):
        """A network whose samples are the positions of another's outputs."""

        def __init__(self, outputs):
            super().__init__()
            self.rows = torch.nn.Parameter(outputs.detach().movedim(1, -1).reshape(-1, 5))

        def forward(self, index):
            return self.rows[index]

    as_rows = kind(Rows(losses.outputs), Rows(method.teacher(batch)))
    kept = torch.arange(48) if kind in SOME else (labels.flatten() >= 0).nonzero().squeeze(1)
    expected = as_rows(Batch(kept, labels.flatten()[kept]))
    for name in set(losses) - {"label"}:
        torch.testing.assert_close(losses[name], expected[name])


@pytest.mark.parametrize("kind", EVERY)
def test_a_batch_without_any_labelled_position_counts_for_nothing(kind):
    method = kind(segmenter(), segmenter())
    losses = method(Batch(torch.rand(2, 1, 8, 8), torch.full((2, 4, 4), -100)))
    losses.total.backward()
    assert losses.total.item() == 0
    assert all(parameter.grad is not None for parameter in method.student.parameters())


@pytest.mark.parametrize("kind", METHODS)
def test_other_classes_and_too_few_are_refused(kind):
    with pytest.raises(ValueError, match=r"\(10, 5\), but teacher_logits have shape \(10, 7\).*same classes"):
        kind(ConvNet(2), ConvNet(2, classes=7))(problem(10))
    batch = problem(10).replace(labels=torch.arange(10) % 2)
    with pytest.raises(ValueError, match=r"3 (classes, given logits of 2|or more classes .* given \(10, 2\))"):
        kind(ConvNet(2, classes=2), ConvNet(4, classes=2))(batch)
    assert kind.needs.min_classes == 3


def test_dist_refuses_a_single_sample():
    with pytest.raises(ValueError, match="at least 2 samples in a batch, given 1"):
        DIST(ConvNet(2).eval(), ConvNet(4))(problem(1))
    assert DIST.needs.min_batch == 2


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (DKD, "temperature", 0),
        (DKD, "label_weight", -1),
        (DKD, "alpha", -1),
        (DKD, "beta", -1),
        (DKD, "warmup_share", 1.5),
        (DIST, "temperature", -1),
        (DIST, "label_weight", -1),
        (DIST, "beta", -1),
        (DIST, "gamma", -1),
        (LSKD, "base_temperature", 0),
        (LSKD, "label_weight", -1),
        (LSKD, "distill_weight", -1),
        (LSKDDKD, "base_temperature", 0),
        (LSKDDKD, "label_weight", -1),
        (LSKDDKD, "alpha", -1),
        (LSKDDKD, "beta", -1),
        (LSKDDKD, "distill_weight", -1),
        (LSKDDKD, "warmup_share", -0.1),
    ],
)
def test_wrong_arguments_are_refused(kind, option, value):
    with pytest.raises(ValueError, match=f"^{option} must .*{value}"):
        kind(ConvNet(2), ConvNet(4), **{option: value})


def test_every_argument_changes_the_loss():
    batch = problem(10)
    changes = {
        DKD: {"temperature": 2.0, "label_weight": 0.5, "alpha": 2.0, "beta": 2.0},
        DIST: {"temperature": 2.0, "label_weight": 0.5, "beta": 1.0, "gamma": 1.0},
        LSKD: {"base_temperature": 4.0, "label_weight": 0.5, "distill_weight": 1.0},
        LSKDDKD: {
            "base_temperature": 4.0,
            "label_weight": 0.5,
            "alpha": 2.0,
            "beta": 2.0,
            "distill_weight": 1.0,
        },
    }
    for kind, options in changes.items():
        student, teacher = ConvNet(2).eval(), ConvNet(4)
        plain = float(kind(student, teacher)(batch).total.detach())
        for option, value in options.items():
            changed = float(kind(student, teacher, **{option: value})(batch).total.detach())
            assert abs(changed - plain) > 1e-4, (kind, option)
