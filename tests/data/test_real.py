"""The real data sets that lie in STILLROOM_DATA, a small part of each."""

import os

import pytest
import torch

from stillroom.data import load_data

pytestmark = pytest.mark.skipif(not os.environ.get("STILLROOM_DATA"), reason="STILLROOM_DATA is not set")


def test_cifar10():
    splits = load_data("cifar10", train_size=200, test_size=100, validation_share=0.002)
    assert splits.classes[:3] == ["airplane", "automobile", "bird"]
    assert splits.train.shape == (3, 32, 32)
    assert splits.train.labels.bincount().tolist() == [20] * 10
    assert splits.test.labels.bincount().tolist() == [10] * 10
    assert len(splits.validation) == 100
    assert int(splits.test.index.min()) >= 50000
    inputs = splits.train.batch(torch.arange(200)).inputs
    mean = inputs.mean((0, 2, 3))  # of the whole training set: 0.4914, 0.4822, 0.4465
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.05, rtol=0)


def test_tiny_imagenet():
    splits = load_data("tiny-imagenet-100", train_size=200, test_size=100, validation_share=0.002)
    assert len(splits.classes) == 100
    assert splits.train.labels.bincount().tolist() == [2] * 100
    assert splits.train.shape == (3, 32, 32)
    assert int(splits.test.index.min()) >= 50000, "the validation split is what is reported"


def test_camvid():
    splits = load_data("camvid", train_size=4, test_size=2, image_size=96)
    assert splits.kind == "segmentation"
    assert len(splits.classes) == 11
    assert "unlabelled" not in splits.classes
    assert len(splits.validation) == 101
    batch = splits.train.batch(torch.arange(4))
    assert batch.labels.shape == (4, 96, 96)
    assert set(batch.labels.unique().tolist()) <= {-100, *range(11)}
    top, bottom = batch.labels[:, :20], batch.labels[:, -20:]
    assert (top <= 1).logical_or(top == 5).double().mean() > 0.6, "sky, buildings and trees are above"
    assert (bottom == 3).logical_or(bottom == 4).double().mean() > 0.4, "road and pavement are below"
