"""Names: local copies, the hub and torchvision, each without a network."""

import datasets
import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from stillroom.data import load_data


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("digits", "classification", (1, 8, 8)),
        ("shapes", "multi-label", (3, 24, 24)),
        ("scenes", "segmentation", (3, 24, 24)),
        ("blobs", "regression", (1, 16, 16)),
    ],
)
def test_built_in_names(name, kind, shape):
    splits = load_data(name, train_size=40, test_size=20)
    assert (splits.name, splits.kind, splits.train.shape) == (name, kind, shape)
    assert (len(splits.train), len(splits.test)) == (40, 20)
    numbers = torch.cat([splits.train.index, splits.validation.index, splits.test.index])
    assert len(numbers.unique()) == len(numbers)


def test_digits_have_a_tenth_for_validation_and_the_same_test_always():
    splits = load_data("digits", seed=5)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1077, 120, 600)
    assert torch.equal(splits.test.index, load_data("digits").test.index)
    whole = load_data("digits", validation_share=0)
    assert whole.validation is None
    assert len(whole.train) == 1197
    assert load_data("digits", image_size=16, channels=3).train.shape == (3, 16, 16)
    with pytest.raises(ValueError, match="image_column='image'"):
        load_data("digits", image_column="image")
    with pytest.raises(ValueError, match=r"task must be .*embeddings"):
        load_data("digits", task="guess")
    assert load_data("digits", task="embeddings").kind == "classification"


def test_unknown_names_list_the_known_ones(monkeypatch):
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"'nonsense'.*digits.*cifar10.*hf:"):
        load_data("nonsense")
    with pytest.raises(FileNotFoundError, match=r"'camvid'.*STILLROOM_DATA.*classes\.json"):
        load_data("camvid")


def tiny_images(root, classes=("a", "b")):
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(5):
            Image.new("L", (4, 4), number).save(root / name / f"{number}.png")


def test_local_copies_come_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    tiny_images(tmp_path / "cifar10")
    tiny_images(tmp_path / "my-own", classes=("x", "y", "z"))
    assert load_data("cifar10").classes == ["a", "b"]
    assert load_data("my-own").classes == ["x", "y", "z"]


def hub(found):
    """Stands for the hub: gives a data set, or raises, and remembers what was asked for."""

    def load(*asked):
        hub.asked = asked
        if isinstance(found, Exception):
            raise found
        return found

    return load


def test_the_hub_by_name(monkeypatch):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    images = [Image.new("RGB", (4, 4), (row, 0, 0)) for row in range(10)]
    part = datasets.Dataset.from_dict({"img": images, "label": [0, 1] * 5}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", hub(datasets.DatasetDict({"train": part, "test": part})))
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    splits = load_data("hf:somebody/insects:small", validation_share=0)
    assert hub.asked == ("somebody/insects", "small")
    assert splits.classes == ["ant", "bee"]
    batch = splits.train.batch(torch.arange(10))
    assert torch.equal((batch.inputs[:, 0, 0, 0] * 255).round().long(), torch.arange(10))
    load_data("cifar10")
    assert hub.asked == ("uoft-cs/cifar10", None)


def test_a_hub_that_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", hub(RuntimeError("no route\nsecond line")))
    with pytest.raises(ConnectionError, match=r"'somebody/insects'.*\(RuntimeError: no route\): check") as caught:
        load_data("hf:somebody/insects")
    assert "second line" not in str(caught.value)


class Insects:
    """Stands for a data set of torchvision."""

    classes = ("ant", "bee")

    def __init__(self, root, train=True, transform=None, download=False):
        if not download:
            raise RuntimeError("not downloaded")
        self.first = 0 if train else 100
        self.targets = [0, 1] * (5 if train else 2)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, row):
        return Image.new("L", (4, 4), self.first + row), self.targets[row]


class SplitInsects(Insects):
    def __init__(self, root, split="train", download=False):
        if split not in ("trainval", "test"):
            raise ValueError(f"unknown split {split}")
        super().__init__(root, split == "trainval", download=download)
        self.labels = np.array(self.targets)
        self.targets = None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return Image.new("L", (4, 4), self.first + row), int(self.labels[row])


class Unreachable(Insects):
    def __init__(self, root, train=True, download=False):
        raise RuntimeError("Error downloading x:\nmore")


@pytest.fixture
def torchvision_has(monkeypatch):
    for kind in (Insects, SplitInsects, Unreachable):
        monkeypatch.setattr(torchvision.datasets, kind.__name__, kind, raising=False)
    names = (*torchvision.datasets.__all__, "Insects", "SplitInsects", "Unreachable")
    monkeypatch.setattr(torchvision.datasets, "__all__", names)


@pytest.mark.usefixtures("torchvision_has")
@pytest.mark.parametrize("name", ["Insects", "SplitInsects"])
def test_torchvision_by_name(name):
    splits = load_data(f"torchvision:{name}", validation_share=0)
    assert splits.classes == ["ant", "bee"]
    assert splits.train.shape == (1, 4, 4)
    values = (splits.test.batch(torch.arange(4)).inputs[:, 0, 0, 0] * 255).round().tolist()
    assert values == [100, 101, 102, 103]
    assert splits.test.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.usefixtures("torchvision_has")
def test_torchvision_errors():
    with pytest.raises(ConnectionError, match=r"torchvision:Unreachable.*Error downloading x"):
        load_data("torchvision:Unreachable")
    with pytest.raises(ValueError, match="'Beetles'"):
        load_data("torchvision:Beetles")
    with pytest.raises(ValueError, match="FakeData has neither"):
        load_data("torchvision:FakeData")
