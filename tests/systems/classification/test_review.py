"""ReviewKD: the fusion blocks, their order, the warm-up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stillroom.losses import review_context_loss
from stillroom.systems.classification.logit_kd import ReviewKD
from stillroom.systems.classification.logit_kd.review import Fusion
from tests.systems.classification.toys import ConvNet, TokenNet, problem


def build(student, teacher, **options):
    return ReviewKD(student, teacher, probe=problem(2), **options)


def test_a_block_mixes_by_two_attention_maps():
    block = Fusion(3, 4, 6, fuses=True).eval()
    feature, deeper = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 2, 2)
    predicted, passed = block(feature, deeper, (4, 4))
    own = block.enter(feature)
    larger = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    shares = torch.sigmoid(block.attention(torch.cat([own, larger], 1)))
    assert shares.shape == (2, 2, 4, 4)
    torch.testing.assert_close(passed, own * shares[:, 0:1] + larger * shares[:, 1:2])
    torch.testing.assert_close(predicted, block.leave(passed))
    assert predicted.shape == (2, 6, 4, 4)


def test_the_deepest_block_mixes_nothing_in():
    block = Fusion(3, 4, 6, fuses=False).eval()
    feature = torch.randn(2, 3, 1, 1)
    predicted, passed = block(feature, None, (1, 1))
    torch.testing.assert_close(passed, block.enter(feature))
    assert block.attention is None
    assert predicted.shape == (2, 6, 1, 1)


def test_a_block_brings_the_map_to_the_teachers_size():
    block = Fusion(3, 4, 6, fuses=True).eval()
    predicted, passed = block(torch.randn(2, 3, 4, 4), torch.randn(2, 4, 2, 2), (8, 8))
    assert predicted.shape == (2, 6, 8, 8)
    assert torch.equal(passed, F.interpolate(passed[:, :, ::2, ::2], scale_factor=2, mode="nearest"))


def test_stages_are_reviewed_from_the_pooled_last_one_to_the_first():
    method = build(ConvNet(2), ConvNet(4))
    widths = [(block.enter[0].in_channels, block.leave[0].out_channels) for block in method.fusions]
    assert widths == [(8, 16), (8, 16), (4, 8), (2, 4)]
    assert [block.attention is not None for block in method.fusions] == [False, True, True, True]
    assert {block.enter[0].out_channels for block in method.fusions} == {8}


def test_the_common_width_is_512_at_most():
    wide = torch.nn.Sequential(torch.nn.Conv2d(1, 600, 1), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Conv2d(600, 5, 1))
    layers = {"student_layers": ["0"], "teacher_layers": ["stage1"]}
    method = build(wide, ConvNet(2), **layers)
    assert method.fusions[0].enter[0].out_channels == 512


def test_the_term_is_the_sum_of_the_stages_context_losses():
    student, teacher, batch = ConvNet(2), ConvNet(4).eval(), problem(10)
    method = build(student, teacher).eval()
    found = method(batch)["review"]
    own, theirs = [], []
    for network, kept in ((student, own), (teacher, theirs)):
        inputs = batch.inputs
        for stage in (network.stage1, network.stage2, network.stage3):
            inputs = stage(inputs)
            kept.append(inputs)
        kept.append(inputs.mean((2, 3), keepdim=True))
    expected, passed = 0.0, None
    for block, feature, target in zip(method.fusions, own[::-1], theirs[::-1], strict=True):
        predicted, passed = block(feature, passed, tuple(target.shape[2:]))
        expected = expected + review_context_loss(predicted, target)
    torch.testing.assert_close(found, expected)


def test_deeper_stages_help_the_first_one():
    """The first stage's loss alone reaches the deepest block through what was passed on."""
    method, batch = build(ConvNet(2), ConvNet(4)), problem(10)
    _, _, pairs = method.ask(batch)
    passed = None
    deepest_first = [tuple(feature.mean((2, 3), keepdim=True) for feature in pairs[-1]), *reversed(pairs)]
    for block, (own, target) in zip(method.fusions, deepest_first, strict=True):
        predicted, passed = block(own, passed, tuple(target.shape[2:]))
    review_context_loss(predicted, target).backward()
    assert float(method.fusions[0].enter[0].weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (10 / 240, 2.5), (20 / 240, 5.0), (1.0, 5.0)])
def test_warm_up_over_20_of_240_epochs(progress, weight):
    method = build(ConvNet(2), ConvNet(4), review_weight=5.0)
    method.tell_time(step=1, epoch=1.0, progress=progress)
    assert method(problem(10)).weights["review"] == pytest.approx(weight)
    longer = build(ConvNet(2), ConvNet(4), warmup_share=1.0)
    longer.tell_time(step=1, epoch=1.0, progress=progress)
    assert longer(problem(10)).weights["review"] == pytest.approx(progress)


def test_a_warm_up_longer_than_training_is_refused():
    with pytest.raises(ValueError, match=r"warmup_share must lie in \[0, 1\], given 2"):
        build(ConvNet(2), ConvNet(4), warmup_share=2)


def test_tokens_are_reviewed_as_maps():
    method = build(TokenNet(4), ConvNet(4))
    assert len(method.fusions) == len(method.student_layers) + 1
    method(problem(10)).total.backward()
