"""Transforms as labels: their order, their labels, that they can be undone, and what they refuse."""

from __future__ import annotations

import pickle

import pytest
import torch

from stillroom.data.transforms import (
    Flip,
    PermuteChannels,
    Rotate,
    TransformTask,
    channel_permutations,
    flips,
    rotations,
    transform_task,
)

TASKS = {"rotations": rotations(), "flips": flips(), "channels": channel_permutations()}


def images(samples=3, side=5):
    return torch.randn(samples, 3, side, side)


@pytest.mark.parametrize("name", TASKS)
def test_undoing_gives_the_images_back_and_the_first_rows_are_the_images(name):
    task, given = TASKS[name], images()
    changed = task.apply(given)
    assert len(changed) == len(task) * len(given)
    assert torch.equal(task.originals(changed), given)
    assert torch.equal(task.undo(changed), task.repeat(given))
    assert torch.equal(pickle.loads(pickle.dumps(task)).apply(given), changed)
    assert len({tuple(one.flatten().tolist()) for one in changed}) == len(changed)  # all copies differ


def test_a_quarter_turn_is_counter_clockwise():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    turned = rotations().apply(image)
    assert turned.view(4, 4).tolist() == [[1, 2, 3, 4], [2, 4, 1, 3], [4, 3, 2, 1], [3, 1, 4, 2]]


def test_flips_mirror_left_right_then_upside_down_then_both():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    assert flips().apply(image).view(4, 4).tolist() == [[1, 2, 3, 4], [2, 1, 4, 3], [3, 4, 1, 2], [4, 3, 2, 1]]


def test_copies_and_labels_stand_image_by_image():
    task, given = rotations(), images()
    changed = task.apply(given)
    for image in range(3):
        for turn in range(4):
            assert torch.equal(changed[4 * image + turn], given[image].rot90(turn, (1, 2)))
    assert task.labels(torch.tensor([2, 0, -100])).tolist() == [8, 9, 10, 11, 0, 1, 2, 3, -100, -100, -100, -100]
    assert task.repeat(torch.tensor([2, 0])).tolist() == [2, 2, 2, 2, 0, 0, 0, 0]
    assert channel_permutations().labels(torch.tensor([1])).tolist() == [6, 7, 8, 9, 10, 11]


def test_one_transform_changes_nothing():
    task, given = TransformTask([Flip()]), images()
    assert torch.equal(task.apply(given), given)
    assert task.labels(torch.tensor([2, 0, 1])).tolist() == [2, 0, 1]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"square to be turned, given \(2, 3, 4, 5\)"):
        rotations().apply(torch.zeros(2, 3, 4, 5))
    assert len(flips().apply(torch.zeros(2, 3, 4, 5))) == 8
    with pytest.raises(ValueError, match=r"\(2, 7\)"):
        rotations().apply(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\) have 1 channels, but 3"):
        channel_permutations().apply(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"every channel from 0 to 1 once, given \(0, 0\)"):
        PermuteChannels((0, 0))
    with pytest.raises(ValueError, match=r"channels must lie in \[1, 4\], given 5"):
        channel_permutations(5)
    with pytest.raises(ValueError, match="multiples of it, given 6 rows"):
        rotations().originals(torch.zeros(6, 1))
    with pytest.raises(ValueError, match="at least one transform"):
        TransformTask([])
    with pytest.raises(ValueError, match=r"one of rotations, flips, channels, .*given 'turns'"):
        transform_task("turns")
    with pytest.raises(ValueError, match=r"\(2,\) torch.float32"):
        rotations().labels(torch.zeros(2))

    class Crop(Rotate):
        def __call__(self, images):
            return images[..., 1:]

    with pytest.raises(ValueError, match=r"into \(2, 3, 5, 4\): a transform must keep"):
        TransformTask([Flip(), Crop(1)]).apply(images(2))


def test_names_find_the_sets():
    assert [len(transform_task(name)) for name in ("rotations", "flips", "channels")] == [4, 4, 6]
