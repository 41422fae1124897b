import pytest
import torch

from stillroom.blocks import as_map, as_tokens, grid_of, kind_of, pooled, resize


def test_kinds_are_told_by_the_number_of_axes():
    assert [kind_of(shape) for shape in [(8, 4, 4), (17, 8), (8,)]] == ["map", "tokens", "vector"]


@pytest.mark.parametrize("shape", [(), (2, 3, 4, 5), (8, 0, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="per sample, given"):
        kind_of(shape)


@pytest.mark.parametrize(
    ("tokens", "prefix_tokens", "expected"),
    [
        (16, None, (0, 4)),
        (17, None, (1, 4)),
        (197, None, (1, 14)),
        (1, None, (0, 1)),
        (201, 5, (5, 14)),
        (2, 1, (1, 1)),
    ],
)
def test_tokens_are_a_prefix_and_a_square(tokens, prefix_tokens, expected):
    assert grid_of(tokens, prefix_tokens) == expected


@pytest.mark.parametrize(("tokens", "prefix_tokens"), [(18, None), (16, 1), (17, 0), (1, 1), (3, 5), (15, -1)])
def test_tokens_that_form_no_square_are_refused(tokens, prefix_tokens):
    with pytest.raises(ValueError, match=rf"^{tokens} tokens do not form a square"):
        grid_of(tokens, prefix_tokens)


def test_a_map_becomes_tokens_row_by_row_and_comes_back():
    feature = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    tokens = as_tokens(feature)
    assert tokens.shape == (2, 4, 3)
    assert tokens[1, 1].tolist() == feature[1, :, 0, 1].tolist()
    assert torch.equal(as_map(tokens), feature)
    with_prefix = torch.cat([torch.full((2, 2, 3), -1.0), tokens], dim=1)
    assert torch.equal(as_map(with_prefix, prefix_tokens=2), feature)
    assert torch.equal(as_map(with_prefix[:, 1:]), feature)  # one class token is found without being told


def test_vectors_are_one_position_and_kinds_that_fit_are_kept():
    vector, tokens, feature = torch.randn(2, 3), torch.randn(2, 5, 3), torch.randn(2, 3, 4, 4)
    assert as_map(vector).shape == (2, 3, 1, 1)
    assert torch.equal(as_tokens(vector)[:, 0], vector)
    assert as_tokens(tokens) is tokens
    assert as_map(feature) is feature
    assert pooled(vector) is vector


def test_pooled_is_the_mean_over_positions():
    feature = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, 4.0]]]])
    assert pooled(feature).tolist() == [[3, 1]]
    assert pooled(as_tokens(feature)).tolist() == [[3, 1]]
    assert pooled(as_tokens(feature), prefix_tokens=3).tolist() == [[6, 4]]
    with pytest.raises(ValueError, match=r"in \[0, 4\), given 4"):
        pooled(as_tokens(feature), prefix_tokens=4)


def test_resizing_averages_down_and_interpolates_up():
    feature = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert resize(feature, (1, 1)).item() == 3
    assert resize(feature, (2, 2)) is feature
    assert resize(feature, (1, 2)).flatten().tolist() == [2, 4]
    # bilinear: pixel centres of the new row stand at -0.25, 0.25, 0.75, 1.25 of the old; outside the edge counts
    assert resize(feature[..., :1, :], (1, 4)).flatten().tolist() == [1, 1.25, 1.75, 2]
