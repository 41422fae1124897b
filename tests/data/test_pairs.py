"""Pairs for super-resolution: aligned patches, disjoint photographs, folders, test sets by name."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from stillroom.data import Batch, ImagePairs, PatchPairs, Stream, augmentation, bicubic_resize, load_pairs, sequential
from stillroom.data.degrade import crop_to_multiple, shrink
from stillroom.data.pairs import make_pairs
from stillroom.data.photographs import TEST_REGIONS, TRAIN_REGIONS, Region, photograph_regions

REAL = pytest.mark.skipif("STILLROOM_DATA" not in os.environ, reason="STILLROOM_DATA names no folder")


def numbered(height, width, scale, first=0):
    """A small image whose pixels are numbered, and the large one in which each number fills a square."""
    low = torch.arange(first, first + height * width).remainder(256).view(1, height, width).expand(3, -1, -1)
    low = low.to(torch.uint8).contiguous()
    return low, low.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


# ---- making images small ---------------------------------------------------------------------------------------------


def test_shrinking_agrees_with_pillow():
    """Pillow's bicubic filter widens its kernel as ours does; it rounds its weights to 8 bits and more."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8))
    for scale in (2, 3, 4):
        theirs = np.array(Image.fromarray(image.numpy()).resize((36 // scale, 24 // scale), Image.Resampling.BICUBIC))
        ours = shrink(image.permute(2, 0, 1), scale).permute(1, 2, 0)
        assert (ours.int() - torch.from_numpy(theirs).int()).abs().max() <= 1


def test_shrinking_does_not_alias():
    """Stripes finer than the small image can show become grey; without the wider kernel they stay stripes."""
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1
    inside = (..., slice(4, -4))
    assert (bicubic_resize(stripes, 16, 16)[inside] - 0.5).abs().max() < 0.01
    careless = F.interpolate(stripes[..., 1:], size=(16, 16), mode="bicubic", align_corners=False)
    assert (careless[inside] - 0.5).abs().max() > 0.2


def test_sides_that_are_no_multiples_are_cut_before():
    image = torch.randint(256, (3, 25, 38), dtype=torch.uint8)
    (low,), (high,) = make_pairs([image], 4)
    assert torch.equal(high, image[:, :24, :36])
    assert low.shape == (3, 6, 9)
    with pytest.raises(ValueError, match="25x38 pixels cannot be made 4 times smaller: crop it"):
        shrink(image, 4)
    with pytest.raises(ValueError, match="3x38 pixels has no part whose sides are multiples of 4"):
        crop_to_multiple(image[:, :3], 4)


# ---- patches ---------------------------------------------------------------------------------------------------------


def test_patches_of_both_images_show_the_same_part():
    low, high = numbered(15, 17, 3)
    samples = PatchPairs([low], [high], scale=3, patch_size=5)
    stream = Stream(samples, batch_size=4, seed=0)
    for step in range(10):
        batch = stream.batch(step)
        assert torch.equal(batch.labels[:, :, ::3, ::3], batch.inputs)
        assert torch.equal(batch.labels[:, :, 2::3, 2::3], batch.inputs)


def test_mirrored_and_turned_patches_still_show_the_same_part():
    low, high = numbered(20, 20, 2)
    stream = Stream(
        PatchPairs([low], [high], scale=2, patch_size=6), batch_size=8, seed=0, augment=augmentation("flip_transpose")
    )
    plain = Stream(PatchPairs([low], [high], scale=2, patch_size=6), batch_size=8, seed=0)
    changed = 0
    for step in range(5):
        batch = stream.batch(step)
        assert torch.equal(batch.labels[:, :, ::2, ::2], batch.inputs)
        changed += int((batch.inputs != plain.batch(step).inputs).flatten(1).any(1).sum())
    assert 25 <= changed <= 40  # seven in eight of 40


def test_each_of_the_eight_symmetries_comes_out():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    policy = augmentation("flip_transpose")
    found = set()
    for number in range(8):
        uniform = torch.tensor([[0.1 if number >> bit & 1 else 0.9 for bit in range(3)]])
        batch = policy(Batch(image, image.clone()), uniform)
        assert torch.equal(batch.inputs, batch.labels)
        found.add(tuple(batch.inputs.flatten().tolist()))
    assert len(found) == 8
    with pytest.raises(ValueError, match=r"square images, given \(1, 1, 3, 2\)"):
        policy(Batch(image[..., :2]), torch.rand(1, 3))


def test_every_position_is_drawn_and_none_beyond_the_image():
    low, high = numbered(6, 7, 2)
    samples = PatchPairs([low], [high], scale=2, patch_size=4)
    places = samples.places(torch.zeros(2000, dtype=torch.int64), torch.rand(2000, 2))
    assert {(top, left) for _, top, left in places} == {(top, left) for top in range(3) for left in range(4)}
    assert samples.places(torch.tensor([0]), torch.tensor([[0.9999999, 0.9999999]])) == [(0, 2, 3)]
    assert len(samples) == 6 * 7 // 16


def test_larger_images_have_more_rows():
    pairs = [numbered(8, 8, 2), numbered(16, 24, 2)]
    samples = PatchPairs(*map(list, zip(*pairs, strict=True)), scale=2, patch_size=8)
    assert samples.image_of.tolist() == [0] + [1] * 6


def test_a_step_has_one_batch_whenever_and_by_however_many_processes_it_is_made():
    low, high = numbered(30, 30, 2)
    samples = PatchPairs([low], [high], scale=2, patch_size=6)
    whole = Stream(samples, batch_size=4, seed=3).batch(7)
    again = Stream(samples, batch_size=4, seed=3)
    again.batch(2)
    assert torch.equal(again.batch(7).inputs, whole.inputs)
    for rank in range(2):
        share = Stream(samples, batch_size=4, seed=3, rank=rank, world=2).batch(7)
        assert torch.equal(share.labels, whole.labels[rank::2])
    assert not torch.equal(Stream(samples, batch_size=4, seed=3).batch(8).inputs, whole.inputs)


def test_outside_of_training_a_row_is_the_middle_of_its_image():
    low, high = numbered(10, 12, 2)
    samples = PatchPairs([low], [high], scale=2, patch_size=4)
    batch = samples.batch([0, 0])
    assert torch.equal(batch.inputs[0], low[:, 3:7, 4:8].float() / 255)
    assert torch.equal(batch.inputs[0], batch.inputs[1])


def test_images_too_small_for_a_patch_are_refused():
    low, high = numbered(10, 12, 2)
    with pytest.raises(ValueError, match="image 0 has 10x12 pixels when it is small, and no patch of 11"):
        PatchPairs([low], [high], scale=2, patch_size=11)
    with pytest.raises(
        ValueError, match=r"small image of \(10, 12\) and a large one of \(20, 24\), expected \(30, 36\)"
    ):
        ImagePairs([low], [high], scale=3)
    with pytest.raises(ValueError, match="there are 1 small and 0 large images"):
        ImagePairs([low], [], scale=2)


# ---- whole images ----------------------------------------------------------------------------------------------------


def test_images_of_different_sizes_are_measured_one_at_a_time():
    pairs = [numbered(8, 8, 2), numbered(9, 11, 2), numbered(8, 8, 2)]
    samples = ImagePairs(*map(list, zip(*pairs, strict=True)), scale=2, first=5)
    batches = list(sequential(samples, 256))
    assert [tuple(batch.inputs.shape) for batch in batches] == [(1, 3, 8, 8), (1, 3, 9, 11), (1, 3, 8, 8)]
    assert [int(batch.index) for batch in batches] == [5, 6, 7]
    assert samples.batch([0, 2]).inputs.shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="images of 2 sizes do not fit into one batch"):
        samples.batch([0, 1])


def test_large_images_can_be_left_out():
    low, high = numbered(8, 8, 2)
    for samples in (ImagePairs([low], [high], scale=2), PatchPairs([low], [high], scale=2, patch_size=4)):
        assert samples.has_labels
        without = samples.relabel(None)
        assert not without.has_labels
        assert without.batch([0]).labels is None
        assert samples.batch([0]).labels is not None


# ---- photographs -----------------------------------------------------------------------------------------------------


def test_what_is_reported_has_no_pixel_that_is_trained_on():
    assert len(TRAIN_REGIONS) == 2
    assert len(TEST_REGIONS) == 1
    assert not any(train.overlaps(test) for train in TRAIN_REGIONS for test in TEST_REGIONS)
    gaps = [
        test.left - train.right
        for train in TRAIN_REGIONS
        for test in TEST_REGIONS
        if train.photograph == test.photograph
    ]
    assert gaps == [32]
    assert Region("china.jpg", 0, 10).overlaps(Region("china.jpg", 9, 20))
    assert not Region("china.jpg", 0, 10).overlaps(Region("china.jpg", 10, 20))


def test_the_photographs_are_cut_where_it_says():
    splits = load_pairs("photographs", scale=2, validation_share=0.0)
    assert splits.validation is None
    (reported,) = photograph_regions(TEST_REGIONS)
    assert torch.equal(splits.test.high[0], reported[:, :426])
    assert [tuple(image.shape) for image in splits.train.high] == [(3, 426, 640), (3, 426, 384)]


def test_strips_are_held_out_where_images_are_few():
    whole = load_pairs("photographs", scale=2, validation_share=0.0)
    splits = load_pairs("photographs", scale=2, validation_share=0.1)
    for kept, held, image in zip(splits.train.high, splits.validation.high, whole.train.high, strict=True):
        assert torch.equal(torch.cat([kept, held], dim=2), image)
        assert 0.09 < held.shape[2] / image.shape[2] < 0.11
    assert torch.equal(splits.test.high[0], whole.test.high[0])
    numbers = torch.cat([splits.train.index, splits.validation.index, splits.test.index])
    assert len(numbers.unique()) == len(numbers)


# ---- folders ---------------------------------------------------------------------------------------------------------


def save(folder, name, height=40, width=48, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def test_a_folder_of_images_is_cut_once(tmp_path):
    for number in range(10):
        save(tmp_path / "photos", f"{number}", seed=number)
    found = [load_pairs(tmp_path / "photos", patch_size=8, seed=seed) for seed in range(6)]
    first, second = found[:2]
    assert [len(first.test), len(first.validation), len(first.train.low)] == [2, 1, 7]
    assert all(torch.equal(one, other) for one, other in zip(first.test.high, second.test.high, strict=True))
    assert len({float(splits.validation.high[0].float().mean()) for splits in found}) > 2
    assert "2 of 10 images are reported on, the same for every seed" in first.notes
    assert first.name == "photos"


def test_folders_of_pairs_are_taken_as_they_are(tmp_path):
    for part in ("train", "test"):
        high = save(tmp_path / part / "HR", "a", 40, 48)
        low = save(tmp_path / part / "LR", "a", 20, 24, seed=5)
    splits = load_pairs(str(tmp_path), patch_size=8, validation_share=0.0)
    assert torch.equal(splits.test.high[0], high)
    assert torch.equal(splits.test.low[0], low)
    with pytest.raises(ValueError, match=r"\(20, 24\) and a large one of \(40, 48\), expected \(60, 72\) for scale 3"):
        load_pairs(tmp_path, scale=3, patch_size=8)


def test_folders_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'.*photographs, set5"):
        load_pairs(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="'set5' is not in the folder that STILLROOM_DATA names: put the PNG"):
        load_pairs("set5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"'.*empty' holds no images"):
        load_pairs(tmp_path / "empty")
    save(tmp_path / "one", "a")
    with pytest.raises(ValueError, match="one image cannot be both trained on and reported"):
        load_pairs(tmp_path / "one")
    save(tmp_path / "half" / "LR", "a")
    with pytest.raises(ValueError, match="only one of the folders LR and HR"):
        load_pairs(tmp_path / "half")
    save(tmp_path / "half" / "HR", "b")
    with pytest.raises(ValueError, match="has 'a' in only one of LR and HR"):
        load_pairs(tmp_path / "half")
    save(tmp_path / "untrained" / "test", "a")
    with pytest.raises(ValueError, match="has a folder 'test', but none called 'train'"):
        load_pairs(tmp_path / "untrained")
    with pytest.raises(TypeError, match="given as lists of arrays; given int"):
        load_pairs(5)
    with pytest.raises(ValueError, match=r"validation_share must lie in \[0, 1\), given 1"):
        load_pairs(validation_share=1)
    with pytest.raises(ValueError, match="scale must be 1 or more, given 0"):
        load_pairs(scale=0)


def test_images_in_memory_are_taken_in_any_of_their_forms():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    given = [pixels, torch.from_numpy(pixels).permute(2, 0, 1), Image.fromarray(pixels)]
    splits = load_pairs((given, given[:1]), patch_size=8, validation_share=0.0, train_size=5)
    assert len(splits.train) == 5
    assert all(torch.equal(image, given[1]) for image in splits.train.high)
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\) or \(3, H, W\), given \(40, 48\) torch.uint8"):
        load_pairs([pixels[..., 0]])


@REAL
def test_test_sets_are_found_by_name():
    splits = load_pairs("set5", scale=2)
    assert [len(splits.test), len(splits.train.low) + len(splits.validation)] == [5, 50]
    assert splits.notes[0] == "trained on BSD100, reported on Set5"
    assert {tuple(image.shape[-2:]) for image in splits.test.high} >= {(512, 512), (288, 288), (256, 256)}
