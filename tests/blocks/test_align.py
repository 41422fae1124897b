import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.blocks import Align, HintRegressor


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


SHAPES = [(6, 8, 8), (4, 4, 4), (5, 2, 3), (3, 1, 1), (16, 7), (17, 7), (17, 4), (4, 6), (2, 3), (7,), (4,)]


@pytest.mark.parametrize(("student_shape", "teacher_shape"), list(itertools.product(SHAPES, SHAPES)))
def test_any_shape_becomes_any_other_and_every_weight_is_trained(student_shape, teacher_shape):
    align = Align(student_shape, teacher_shape, always_project=True)
    feature = torch.randn(3, *student_shape, requires_grad=True)
    aligned = align(feature)
    assert aligned.shape == (3, *teacher_shape)
    (aligned * torch.randn_like(aligned)).sum().backward()
    assert feature.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in align.parameters())
    assert len(list(align.parameters())) >= 2


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape", "sentence"),
    [
        ((64, 8, 8), (128, 4, 4), "map 64x8x8 -> averaged to 4x4, 1x1 convolution to 128 channels -> map 128x4x4"),
        ((64, 4, 4), (128, 8, 8), "map 64x4x4 -> 1x1 convolution to 128 channels, bilinear to 8x8 -> map 128x8x8"),
        ((64, 4, 4), (64, 4, 4), "map 64x4x4 -> as it is -> map 64x4x4"),
        (
            (197, 192),
            (64, 7, 7),
            "tokens 197x192 -> averaged to 7x7, 1 prefix token dropped, linear map to 64 -> map 64x7x7",
        ),
        ((49, 32), (50, 32), "tokens 49x32 -> 1 prefix token from the mean -> tokens 50x32"),
        ((77, 32), (77, 64), "tokens 77x32 -> linear map to 64 -> tokens 77x64"),
        ((50, 32), (64,), "tokens 50x32 -> mean over positions without 1 prefix token, linear map to 64 -> vector 64"),
        ((64,), (32, 4, 4), "vector 64 -> linear map to 32, repeated at every position -> map 32x4x4"),
    ],
)
def test_it_says_what_it_does(student_shape, teacher_shape, sentence):
    align = Align(student_shape, teacher_shape)
    assert align.describe() == sentence
    assert sentence in repr(align)


def test_a_map_is_convolved_and_averaged():
    align, feature = Align((6, 8, 8), (4, 4, 4)), torch.randn(2, 6, 8, 8)
    weight, bias = align.project.weight, align.project.bias
    expected = torch.stack([
        weight @ feature[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((2, 3)).T + bias[:, None]
        for row in range(4)
        for column in range(4)
    ]).permute(2, 1, 0)  # fmt: skip
    torch.testing.assert_close(align(feature).flatten(2), expected)


def test_a_map_grows_bilinearly():
    align, feature = Align((6, 4, 4), (4, 8, 6)), torch.randn(2, 6, 4, 4)
    convolved = F.conv2d(feature, align.project.weight[:, :, None, None], align.project.bias)
    torch.testing.assert_close(align(feature), F.interpolate(convolved, (8, 6), mode="bilinear"))


def test_patches_keep_their_places_between_tokens_and_maps():
    feature = torch.randn(2, 5, 4, 4)
    tokens = feature.flatten(2).transpose(1, 2)
    with_class_token = torch.cat([torch.full((2, 1, 5), 1e6), tokens], dim=1)
    assert torch.equal(Align((16, 5), (5, 4, 4))(tokens), feature)
    assert torch.equal(Align((17, 5), (5, 4, 4))(with_class_token), feature)
    assert torch.equal(Align((5, 4, 4), (16, 5))(feature), tokens)
    assert torch.equal(Align((17, 5), (16, 5))(with_class_token), tokens)
    assert torch.equal(Align((5, 4, 4), (17, 5))(feature)[:, 1:], tokens)
    torch.testing.assert_close(Align((17, 5), (5,))(with_class_token), feature.mean((2, 3)))


def test_class_tokens_meet_and_missing_ones_come_from_the_mean():
    student = torch.randn(2, 1 + 16, 5)
    align = Align((17, 5), (5 + 4, 3), teacher_prefix_tokens=5)
    aligned = align(student)
    torch.testing.assert_close(aligned[:, 0], F.linear(student[:, 0], align.project.weight, align.project.bias))
    mean = student[:, 1:].mean(1)
    expected = F.linear(mean, align.prefix.weight, align.prefix.bias).view(2, 4, 3)
    torch.testing.assert_close(aligned[:, 1:5], expected)


def test_tokens_of_equal_number_need_no_square():
    align, feature = Align((7, 5), (7, 3)), torch.randn(2, 7, 5)
    torch.testing.assert_close(align(feature), F.linear(feature, align.project.weight, align.project.bias))


def test_a_said_prefix_overrides_the_guess():
    assert Align((17, 3), (3, 2, 2), student_prefix_tokens=13).student_prefix == 13
    with pytest.raises(ValueError, match=r"tokens 16x3 cannot be brought to .*map 3x2x2, since 16 tokens do not form"):
        Align((16, 3), (3, 2, 2), student_prefix_tokens=1)


def test_equal_widths_are_left_alone_unless_told():
    assert list(Align((5, 4, 4), (5, 2, 2)).parameters()) == []
    assert Align((5, 4, 4), (5, 4, 4), always_project=True).project.weight.shape == (5, 5)


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"), [((7, 5), (5, 4, 4)), ((5, 4, 4), (7, 5)), ((7, 5), (9, 5)), ((8, 5), (7, 5))]
)
def test_impossible_pairs_are_refused_with_both_shapes(student_shape, teacher_shape):
    with pytest.raises(ValueError) as caught:
        Align(student_shape, teacher_shape)
    for shape in (student_shape, teacher_shape):
        assert "x".join(map(str, shape)) in str(caught.value)


def test_unknown_kinds_and_half_of_the_shapes_are_refused():
    with pytest.raises(ValueError, match=r"given \(3, 4, 4, 4\)"):
        Align((3, 4, 4, 4), (3,))
    with pytest.raises(ValueError, match=r"both shapes or none, given student_shape=\(3,\), teacher_shape=None"):
        Align((3,))


def test_another_input_size_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 5, 5\) per sample, expected \(3, 4, 4\)"):
        Align((3, 4, 4), (2, 4, 4))(torch.randn(1, 3, 5, 5))


def test_it_can_be_built_from_features_or_by_its_first_call():
    student, teacher = torch.randn(2, 6, 8, 8), torch.randn(2, 17, 4)
    assert Align.from_probe(student, teacher)(student).shape == teacher.shape
    align = Align()
    assert align.describe() == "not built yet: the first call builds it"
    with pytest.raises(RuntimeError, match=r"given no teacher_feature"):
        align(student)
    assert align(student, teacher).shape == teacher.shape
    assert align(student).shape == teacher.shape
    assert len(list(align.parameters())) == 4


def test_it_works_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Align((6, 8, 8), (17, 4))(torch.randn(2, 6, 8, 8)).shape == (2, 17, 4)


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape", "kind", "kernel", "stride"),
    [
        ((4, 8, 8), (6, 4, 4), nn.Conv2d, (3, 3), (2, 2)),
        ((4, 4, 4), (6, 8, 8), nn.ConvTranspose2d, (4, 4), (2, 2)),
        ((4, 8, 9), (6, 6, 6), nn.Conv2d, (3, 4), (1, 1)),
        ((4, 8, 8), (6, 8, 8), nn.Conv2d, (1, 1), (1, 1)),
    ],
)
def test_the_hint_regressor_of_fitnets(student_shape, teacher_shape, kind, kernel, stride):
    regressor = HintRegressor(student_shape, teacher_shape)
    assert type(regressor.convolution) is kind
    assert (regressor.convolution.kernel_size, regressor.convolution.stride) == (kernel, stride)
    hint = regressor(torch.randn(5, *student_shape))
    assert hint.shape == (5, *teacher_shape)
    assert hint.min() == 0
    plain = HintRegressor(student_shape, teacher_shape, relu=False)(torch.randn(5, *student_shape))
    assert plain.min() < 0
    torch.testing.assert_close(plain.mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)  # batch norm


def test_what_the_hint_regressor_cannot_do_is_refused():
    with pytest.raises(ValueError, match="map 4x4x4 and a teacher feature of map 6x7x7: use Align"):
        HintRegressor((4, 4, 4), (6, 7, 7))
    with pytest.raises(ValueError, match="tokens 16x4 and a teacher feature of map 6x7x7: use Align"):
        HintRegressor((16, 4), (6, 7, 7))
