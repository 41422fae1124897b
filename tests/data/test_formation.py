"""Grids of tiles in one image."""

import pytest
import torch
import torch.nn.functional as F

from stillroom.data import decode_formation, encode_formation


def test_tiles_come_row_by_row_and_place_by_place():
    images = torch.rand(3, 2, 6, 4, dtype=torch.float64)
    decoded, labels = decode_formation(images, torch.tensor([5, 6, 7]), 2)
    corners = [images[:, :, r : r + 3, c : c + 2] for r in (0, 3) for c in (0, 2)]
    expected = torch.cat([F.interpolate(part, size=(6, 4), mode="bilinear") for part in corners])
    torch.testing.assert_close(decoded, expected)
    assert labels.tolist() == [5, 6, 7] * 4


def test_sides_that_do_not_fit_are_padded_with_a_half():
    decoded, _ = decode_formation(torch.ones(1, 1, 5, 5), torch.tensor([0]), 2)
    assert decoded.shape == (4, 1, 5, 5)
    assert float(decoded[0].min()) == 1
    assert decoded[3, 0, -1, -1] == 0.5
    assert decoded[1, 0, 0].tolist()[0] == 1


def test_a_factor_of_1_changes_nothing_and_gradients_flow_back():
    images = torch.rand(2, 1, 4, 4, requires_grad=True)
    assert decode_formation(images, torch.arange(2), 1)[0] is images
    decoded, _ = decode_formation(images, torch.arange(2), 2)
    (gradient,) = torch.autograd.grad(3 * decoded.sum(), images)
    torch.testing.assert_close(gradient.sum(), torch.tensor(3.0 * decoded.numel()))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_soft_labels_go_along(factor):
    soft = torch.rand(2, 3)
    assert torch.equal(decode_formation(torch.rand(2, 1, 6, 6), soft, factor)[1], torch.cat([soft] * factor**2))


@pytest.mark.parametrize(("factor", "side"), [(2, 8), (3, 9), (2, 5), (1, 4)])
def test_what_was_encoded_is_decoded_in_its_order(factor, side):
    shades = torch.linspace(0, 1, 2 * factor**2).view(-1, 1, 1, 1).expand(-1, 3, side, side)
    stored = encode_formation(shades, factor)
    assert stored.shape == (2, 3, side, side)
    decoded, _ = decode_formation(stored, torch.zeros(2), factor)
    torch.testing.assert_close(decoded[:, :, 0, 0], shades[:, :, 0, 0])


def test_refusals():
    images, labels = torch.rand(2, 1, 4, 4), torch.zeros(2)
    with pytest.raises(ValueError, match=r"factor .*\[1, 4\].*given 0"):
        decode_formation(images, labels, 0)
    with pytest.raises(ValueError, match="given 5"):
        decode_formation(images, labels, 5)
    with pytest.raises(ValueError, match="labels has 3 rows, but there are 2 images"):
        decode_formation(images, torch.zeros(3), 2)
    with pytest.raises(ValueError, match=r"\(2, 4, 4\)"):
        decode_formation(images[:, 0], labels, 2)
    with pytest.raises(ValueError, match="2 images do not fill grids of 2 x 2: give a multiple of 4"):
        encode_formation(images, 2)
