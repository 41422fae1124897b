"""Images of several digits: the labels are what is to be seen, and no written digit is on both sides."""

from __future__ import annotations

import pytest
import torch

from stillroom.data import digit_grids, digits, load_data


@pytest.fixture(scope="module")
def clean():
    return digit_grids(train=300, test=100, noise=0.0)


def test_the_labels_are_the_digits_in_the_cells(clean):
    written = digits()
    for samples, source in ((clean.train, written.train), (clean.test, written.test)):
        place = {int(number): row for row, number in enumerate(source.index)}
        batch = samples.batch(torch.arange(len(samples)))
        for row in range(0, len(batch), 7):
            labels = torch.zeros(10)
            for cell, number in enumerate(batch.written[row].tolist()):
                top, left = 8 * (cell // 2), 8 * (cell % 2)
                shown = batch.inputs[row, 0, top : top + 8, left : left + 8]
                if number < 0:
                    assert not shown.any()
                    continue
                digit = source.batch([place[number]])
                torch.testing.assert_close(shown, digit.inputs[0, 0], atol=0.003, rtol=0)
                assert labels[digit.labels] == 0, "a digit twice"
                labels[digit.labels] = 1
            assert torch.equal(batch.labels[row], labels)


def test_three_or_four_digits_each_as_often(clean):
    labels = clean.train.labels
    assert labels.sum(1).unique().tolist() == [3, 4]
    assert 0.4 < float((labels.sum(1) == 4).float().mean()) < 0.6
    shares = digit_grids().train.labels.mean(0)
    assert 0.3 < float(shares.min()) < float(shares.max()) < 0.4  # 3.5 of 10


def test_no_written_digit_is_in_training_and_test():
    grids = digit_grids()
    sides = [
        set(part.batch(torch.arange(len(part))).written.unique().tolist()) - {-1} for part in (grids.train, grids.test)
    ]
    assert len(sides[0]) > 1100
    assert len(sides[1]) > 550
    assert sides[0].isdisjoint(sides[1])


def test_seeds_and_noise(clean):
    again = digit_grids(train=300, test=100, noise=0.0)
    other = digit_grids(train=300, test=100, noise=0.3, seed=1)
    images = [part.batch(torch.arange(50)).inputs for part in (clean.train, again.train, other.train)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert torch.equal(clean.test.labels, other.test.labels)
    assert float(other.test.batch([0]).inputs.std()) > float(clean.test.batch([0]).inputs.std()) / 2
    loaded = load_data("digit-grids", train_size=40, test_size=20, task="multi-label")
    assert (loaded.kind, loaded.train.shape, len(loaded.classes)) == ("multi-label", (1, 16, 16), 10)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="train must be 1 or more, given 0"):
        digit_grids(train=0)
    with pytest.raises(ValueError, match="noise must be a number of 0 or more, given -1"):
        digit_grids(noise=-1)
