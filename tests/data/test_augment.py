import time

import pytest
import torch

from stillroom.data import AUGMENTATIONS, Batch, ResizedCropFlip, Shift, augmentation

NOTHING = {  # uniform numbers that leave a batch as it is
    "none": torch.zeros(4, 0),
    "shift": torch.full((4, 2), 0.5),
    "crop_flip": torch.full((4, 3), 0.5),
    "resized_crop_flip": torch.tensor([[0.0, 0.5, 0.5, 0.5, 0.5]]).expand(4, 5),
    "flip_transpose": torch.full((4, 3), 0.5),
}


def some_batch(size=8):
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    masks = torch.randint(5, (4, size, size), generator=torch.Generator().manual_seed(1))
    return Batch(images, masks, torch.arange(4), depth=torch.arange(4.0))


def test_every_policy_has_a_uniform_that_changes_nothing():
    assert sorted(NOTHING) == sorted(AUGMENTATIONS)
    for name, uniform in NOTHING.items():
        batch = some_batch()
        out = augmentation(name)(batch, uniform)
        torch.testing.assert_close(out.inputs, batch.inputs, atol=1e-5, rtol=0)
        assert torch.equal(out.labels, batch.labels), name
        assert out.index.tolist() == [0, 1, 2, 3]
        assert out.depth.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["shift", "crop_flip"])
def test_whole_pixels_stay_exact(name):
    batch = some_batch()
    assert torch.equal(augmentation(name)(batch, NOTHING[name]).inputs, batch.inputs)


def shifted_by_hand(image, down, right, flip, outside):
    height, width = image.shape[-2:]
    out = torch.full_like(image, outside)
    for row in range(height):
        for column in range(width):
            target = width - 1 - column if flip else column
            if 0 <= row + down < height and 0 <= column + right < width:
                out[..., row, target] = image[..., row + down, column + right]
    return out


@pytest.mark.parametrize("pixels", [1, 4])
def test_shift_and_flip_match_a_loop_over_pixels(pixels):
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        batch, uniform = some_batch(), torch.rand(4, 3, generator=generator)
        out = Shift(pixels, flip=True)(batch, uniform)
        for row in range(4):
            down = int(uniform[row, 0] * (2 * pixels + 1)) - pixels
            right = int(uniform[row, 1] * (2 * pixels + 1)) - pixels
            flip = bool(uniform[row, 2] < 0.5)
            assert torch.equal(out.inputs[row], shifted_by_hand(batch.inputs[row], down, right, flip, 0.0))
            assert torch.equal(out.labels[row], shifted_by_hand(batch.labels[row], down, right, flip, -100))


def test_the_ends_of_the_interval_are_the_largest_shifts():
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 1, 1] = 1
    just_below_one = 1 - 2**-24
    low = Shift(1)(Batch(image), torch.zeros(1, 2)).inputs
    high = Shift(1)(Batch(image), torch.full((1, 2), just_below_one)).inputs
    assert low[0, 0].nonzero().tolist() == [[2, 2]]
    assert high[0, 0].nonzero().tolist() == [[0, 0]]


def test_oblong_images_are_shifted_too():
    batch = Batch(torch.rand(2, 1, 3, 7))
    assert Shift(2)(batch, torch.rand(2, 2)).inputs.shape == (2, 1, 3, 7)


def test_a_quarter_of_an_image_is_enlarged():
    """A linear ramp stays linear under bilinear interpolation: half its range, stretched over the whole width."""
    ramp = (torch.arange(16) + 0.5).expand(1, 1, 16, 16) / 16
    policy = ResizedCropFlip(smallest_area=0.25, largest_aspect=1.0)
    left_half = policy(Batch(ramp), torch.tensor([[1.0, 0.5, 0.0, 0.0, 0.9]])).inputs
    expected = (torch.arange(16) + 0.5) / 32
    torch.testing.assert_close(left_half[0, 0, 5, 1:], expected[1:])  # the first pixel reads past the edge
    mirrored = policy(Batch(ramp), torch.tensor([[1.0, 0.5, 0.0, 0.0, 0.1]])).inputs
    torch.testing.assert_close(mirrored, left_half.flip(-1))
    right_half = policy(Batch(ramp), torch.tensor([[1.0, 0.5, 0.0, 1.0, 0.9]])).inputs
    torch.testing.assert_close(right_half[0, 0, 5, :-1], expected[:-1] + 0.5)


def test_masks_move_with_the_images_and_stay_classes():
    generator = torch.Generator().manual_seed(3)
    masks = torch.randint(2, (4, 8, 8), generator=generator) * 7
    masks[:, :2] = -100
    images = masks[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3).float()
    masks = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    out = ResizedCropFlip(smallest_area=0.5)(Batch(images, masks), torch.rand(4, 5, generator=generator))
    assert set(out.labels.unique().tolist()) <= {-100, 0, 7}
    agreeing = (out.inputs[:, 0] - out.labels).abs() < 1e-3
    assert agreeing.double().mean() > 0.5, "away from class borders, where bilinear mixes, both must be equal"


def test_class_labels_are_left_alone():
    batch = Batch(torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 2, 3]))
    assert augmentation("crop_flip")(batch, torch.zeros(4, 3)).labels.tolist() == [0, 1, 2, 3]


def test_crops_stay_inside_for_any_numbers():
    uniform = torch.rand(500, 5, generator=torch.Generator().manual_seed(4))
    out = ResizedCropFlip()(Batch(torch.ones(500, 1, 6, 9)), uniform).inputs
    torch.testing.assert_close(out, torch.ones_like(out))


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 7\)"):
        augmentation("shift")(Batch(torch.rand(4, 7)), torch.rand(4, 2))
    with pytest.raises(ValueError, match=r"\(4, 2\).*\(3, 2\)"):
        augmentation("shift")(Batch(torch.rand(4, 1, 7, 7)), torch.rand(3, 2))
    with pytest.raises(ValueError, match="'mixup'"):
        augmentation("mixup")
    with pytest.raises(ValueError, match="given 0"):
        Shift(0)
    with pytest.raises(ValueError, match=r"given 1\.5"):
        ResizedCropFlip(smallest_area=1.5)
    with pytest.raises(ValueError, match=r"given 0\.5"):
        ResizedCropFlip(largest_aspect=0.5)


@pytest.mark.parametrize("name", ["shift", "crop_flip", "resized_crop_flip"])
def test_a_batch_of_small_images_takes_less_than_two_milliseconds(name):
    batch, uniform = Batch(torch.rand(64, 3, 32, 32)), torch.rand(64, 5)
    taken = []
    for _ in range(40):
        begun = time.thread_time()
        augmentation(name)(batch, uniform)
        taken.append(time.thread_time() - begun)
    assert min(taken) < 0.002
