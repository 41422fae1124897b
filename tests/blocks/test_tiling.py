"""Adaptive cropping: what it must equal, and which images it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.blocks import adaptive_crop
from stillroom.blocks.tiling import crop_size


@pytest.mark.parametrize("sequential", [False, True])
def test_nothing_done_to_the_crops_is_nothing_done_to_the_image(sequential):
    shapes = 0
    for height in range(40, 91):
        for width in (40, 41, 57, 90, 130 - height):
            images = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
            same = adaptive_crop(lambda crop: crop, images, overlap=8, sequential=sequential)
            assert torch.equal(same, images), (height, width)
            shapes += 1
    assert shapes == 255


def test_a_network_that_sees_no_farther_than_the_overlap_gives_what_it_gives_on_the_whole():
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)]  # radius 2
    network = nn.Sequential(*layers).double()
    for height, width in ((40, 44), (41, 47), (43, 42)):
        images = torch.rand(2, 2, height, width, dtype=torch.float64)
        assert min(crop_size(side, overlap=6, multiple=4) - (side + 1) // 2 for side in (height, width)) >= 2
        for sequential in (False, True):
            found = adaptive_crop(network, images, overlap=6, sequential=sequential)
            torch.testing.assert_close(found, network(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3])
def test_a_network_that_enlarges_is_put_together_at_the_scale(scale):
    network = nn.Sequential(nn.Conv2d(3, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
    images = torch.rand(1, 3, 33, 46)
    found = adaptive_crop(network, images, overlap=6, scale=scale)
    torch.testing.assert_close(found, network(images), rtol=0, atol=1e-5)


def test_a_network_that_sees_farther_differs_at_the_seam_first():
    """The control of the test above: with too small an overlap the equality must break, and at the seam alone."""
    blur = torch.ones(1, 1, 9, 9) / 81
    images = torch.rand(1, 1, 48, 48)
    gap = (
        adaptive_crop(lambda x: F.conv2d(x, blur, padding=4), images, overlap=4) - F.conv2d(images, blur, padding=4)
    ).abs()
    assert gap.max() == 0  # the overlap is 4 and so is the radius
    wide = torch.ones(1, 1, 15, 15) / 225
    gap = (
        adaptive_crop(lambda x: F.conv2d(x, wide, padding=7), images, overlap=4) - F.conv2d(images, wide, padding=7)
    ).abs()
    assert gap[:, :, 22:26].max() > 0.01
    assert gap[:, :, :20, :20].max() == 0


def test_gradients_flow_to_every_pixel():
    images = torch.rand(1, 2, 21, 30, requires_grad=True)
    (3 * adaptive_crop(lambda crop: 2 * crop, images, overlap=8)).sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 6.0))


def test_one_crop_after_the_other_asks_for_a_quarter_at_a_time():
    seen = []
    adaptive_crop(lambda crop: seen.append(len(crop)) or crop, torch.rand(3, 1, 40, 40), overlap=8, sequential=True)
    adaptive_crop(lambda crop: seen.append(len(crop)) or crop, torch.rand(3, 1, 40, 40), overlap=8)
    assert seen == [3, 3, 3, 3, 12]


@pytest.mark.parametrize("side", [4, 5, 6, 7, 30, 50, 63])
def test_small_images_are_cropped_within_their_borders(side):
    images = torch.rand(1, 1, side, side + 3)
    assert torch.equal(adaptive_crop(lambda crop: crop, images, overlap=32), images)
    assert crop_size(side, overlap=32, multiple=4) <= side


def test_impossible_crops_are_refused():
    with pytest.raises(ValueError, match=r"side of 3 pixels cannot be covered .* crops of 0 pixels .*overlap 32"):
        adaptive_crop(lambda crop: crop, torch.rand(1, 1, 3, 50))
    with pytest.raises(ValueError, match=r"side of 16 pixels .* crops of 8 pixels .*overlap 2.*at least 4"):
        adaptive_crop(lambda crop: crop, torch.rand(1, 1, 16, 16), overlap=2)
    with pytest.raises(ValueError, match=r"made \(56, 56\) of a crop of \(28, 28\), expected \(28, 28\) for scale 1"):
        adaptive_crop(lambda crop: F.interpolate(crop, scale_factor=2), torch.rand(1, 1, 40, 40), overlap=8)
    with pytest.raises(ValueError, match="overlap must be 0 or more and multiple 1 or more, given -1 and 4"):
        crop_size(40, overlap=-1, multiple=4)
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), given \(3, 40, 40\)"):
        adaptive_crop(lambda crop: crop, torch.rand(3, 40, 40))
    with pytest.raises(ValueError, match="1 outputs for 4 crops"):
        adaptive_crop(lambda crop: crop[:1], torch.rand(1, 1, 40, 40), overlap=8)
