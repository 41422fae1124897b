"""The block that distils information inside a network, and its contrast-aware attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.blocks import ContrastAttention, InformationDistillation, contrast
from stillroom.blocks.imdb import deviation
from tests.golden_cases import golden_cases


@pytest.mark.parametrize("case", golden_cases("imdn", "contrast_statistic"), ids=str)
def test_the_statistic_is_the_papers(case):
    x = case.inputs["x"].double()
    case.check(std=deviation(x), std_plus_mean=contrast(x))


def test_the_deviation_is_of_the_population():
    features = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(deviation(features).flatten(), features.flatten(2).std(2, correction=0).flatten())


def test_a_constant_added_to_a_channel_moves_the_mean_alone():
    features = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(deviation(features + 7), deviation(features))
    torch.testing.assert_close(contrast(features + 7), contrast(features) + 7)


def test_a_constant_channel_has_finite_gradients():
    features = torch.full((1, 4, 5, 5), 0.3, requires_grad=True)
    (3 * ContrastAttention(4, 2)(features)).sum().backward()
    assert features.grad.isfinite().all()
    assert contrast(features).sub(0.3).abs().max() < 2e-6


def test_the_gradient_of_the_attention_is_right():
    attention = ContrastAttention(4, 2).double()
    assert torch.autograd.gradcheck(attention, torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True))


def test_pixels_in_another_order_come_out_in_that_order():
    attention = ContrastAttention(8, 4).double()
    features = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    order = torch.randperm(30)
    moved = features.flatten(2)[:, :, order].view_as(features)
    expected = attention(features).flatten(2)[:, :, order].view_as(features)
    torch.testing.assert_close(attention(moved), expected)


def test_the_first_channels_are_kept_and_the_others_go_on():
    """A block written out once more, in one line a step, by the sentence of its docstring."""
    block = InformationDistillation(12, rate=0.25, reduction=4).double()
    x = torch.randn(2, 12, 6, 5, dtype=torch.float64)
    first = F.leaky_relu(block.c1(x), 0.05)
    second = F.leaky_relu(block.c2(first[:, 3:]), 0.05)
    third = F.leaky_relu(block.c3(second[:, 3:]), 0.05)
    kept = torch.cat([first[:, :3], second[:, :3], third[:, :3], block.c4(third[:, 3:])], dim=1)
    torch.testing.assert_close(block(x), block.c5(block.attention(kept)) + x)


@pytest.mark.parametrize(("channels", "rate", "kept"), [(10, 0.25, 2), (12, 0.5, 6), (9, 0.12, 1)])
def test_a_rate_need_not_divide_the_channels(channels, rate, kept):
    block = InformationDistillation(channels, rate=rate, reduction=2)
    assert block.c5.in_channels == 4 * kept == block.attention.squeeze.in_channels
    assert block(torch.rand(1, channels, 4, 4)).shape == (1, channels, 4, 4)


def test_wrong_widths_are_refused():
    with pytest.raises(ValueError, match="reduction must lie between 1 and the 8 channels, given 16"):
        ContrastAttention(8, 16)
    with pytest.raises(ValueError, match=r"rate 1.0 keeps 8 of 8 channels at each step, expected between 1 and 7"):
        InformationDistillation(8, rate=1.0, reduction=2)
    assert isinstance(InformationDistillation(8, reduction=None).attention, nn.Identity)
