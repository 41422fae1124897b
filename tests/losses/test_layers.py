"""Stages that teach each other: values by hand, gradients, and class scores of joint logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stillroom.losses import (
    class_probabilities,
    class_scores,
    cross_entropy,
    layered_feature_loss,
    layered_kd_loss,
    marginal_kd_loss,
)
from stillroom.losses.layers import teacher_stages


def stages(number=3, rows=4, width=6):
    return [torch.randn(rows, width, dtype=torch.float64).requires_grad_() for _ in range(number)]


def kl(teacher, student, heat):
    p, q = (teacher / heat).softmax(1), (student / heat).softmax(1)
    return heat**2 * (p * (p / q).log()).sum(1)


@pytest.mark.parametrize(("mode", "pairs"), [("next", [(0, 1), (1, 2)]), ("last", [(0, 2), (1, 2)])])
def test_values_and_gradients_are_those_of_the_formula(mode, pairs):
    assert teacher_stages(3, mode) == pairs
    logits = stages()
    loss = layered_kd_loss(logits, teacher_stage=mode, temperature=3.0)
    expected = sum(kl(logits[deep].detach(), logits[own], 3.0).mean() for own, deep in pairs)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(2 * loss, logits, allow_unused=True)
    wanted = torch.autograd.grad(2 * expected, logits, allow_unused=True)
    assert found[2] is None
    assert wanted[2] is None
    torch.testing.assert_close(found[:2], wanted[:2])
    features = stages()
    loss = layered_feature_loss(features, teacher_stage=mode)
    expected = sum((features[own] - features[deep].detach()).square().mean() for own, deep in pairs)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(2 * loss, features, allow_unused=True)
    assert found[2] is None
    torch.testing.assert_close(found[:2], torch.autograd.grad(2 * expected, features[:2]))


def test_reductions_agree():
    for loss in (layered_kd_loss, layered_feature_loss):
        values = loss(stages(rows=5), reduction="none")
        assert values.shape == (5,)
    logits = stages()
    values = layered_kd_loss(logits, reduction="none")
    torch.testing.assert_close(layered_kd_loss(logits), values.mean())
    torch.testing.assert_close(layered_kd_loss(logits, reduction="sum"), values.sum())


def test_one_stage_gives_a_connected_0():
    for loss in (layered_kd_loss, layered_feature_loss):
        (only,) = one = stages(1)
        loss(one).backward()
        assert float(loss(one).detach()) == 0
        assert float(only.grad.abs().sum()) == 0


def test_half_precision_is_computed_in_float32():
    logits = [one.detach().bfloat16() for one in stages()]
    assert torch.equal(layered_kd_loss(logits), layered_kd_loss([one.float() for one in logits]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layered_feature_loss(logits).dtype == torch.float32
        assert marginal_kd_loss(logits[0][:, :3], logits[1]).dtype == torch.float32


def test_joint_logits_say_classes():
    joint = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    assert class_scores(joint, 3).tolist() == [[6.0, 15.0]]
    assert class_scores(joint, 2).tolist() == [[3.0, 7.0, 11.0]]
    whole = joint.softmax(1)[0]
    torch.testing.assert_close(class_probabilities(joint, 3), torch.stack([whole[:3].sum(), whole[3:].sum()])[None])
    torch.testing.assert_close(class_probabilities(joint, 1), joint.softmax(1))


def test_the_marginal_teaches_the_plain_classifier():
    logits, joint = stages(1, width=3)[0], stages(1, width=12)[0]
    loss = marginal_kd_loss(logits, joint, temperature=2.0)
    teacher = (joint.detach() / 2).softmax(1).unflatten(1, (3, 4)).sum(2)
    expected = 4 * F.kl_div((logits / 2).log_softmax(1), teacher, reduction="batchmean")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, logits), torch.autograd.grad(3 * expected, logits))
    assert not torch.autograd.grad(marginal_kd_loss(logits, joint), joint, allow_unused=True)[0]
    same = joint.unflatten(1, (3, 4)).logsumexp(2)
    assert float(marginal_kd_loss(same, joint, temperature=1.0).detach().abs()) < 1e-12


def test_with_one_transform_joint_labels_are_labels():
    logits, labels = stages(1)[0], torch.tensor([0, 5, 2, 2])
    torch.testing.assert_close(cross_entropy(class_scores(logits, 1), labels), F.cross_entropy(logits, labels))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"widths 4, 6, .*project"):
        layered_feature_loss([torch.zeros(2, 4), torch.zeros(2, 6)])
    with pytest.raises(ValueError, match="temperature must be a number above 0, given 0"):
        layered_kd_loss(stages(), temperature=0)
    with pytest.raises(ValueError, match="temperature must be a number above 0, given -1"):
        marginal_kd_loss(torch.zeros(2, 3), torch.zeros(2, 6), temperature=-1)
    with pytest.raises(ValueError, match="one stage or more, given 0"):
        layered_kd_loss([])
    with pytest.raises(ValueError, match='"next" or "last", given \'first\''):
        layered_kd_loss(stages(), teacher_stage="first")
    with pytest.raises(ValueError, match=r"M = 4 .*given \(2, 6\)"):
        class_scores(torch.zeros(2, 6), 4)
    with pytest.raises(ValueError, match="multiple of the 4 classes, given 6 columns"):
        marginal_kd_loss(torch.zeros(2, 4), torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 6\)"):
        marginal_kd_loss(torch.zeros(2, 3), torch.zeros(3, 6))
