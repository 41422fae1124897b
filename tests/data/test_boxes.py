"""Images with boxes: digit scenes, data sets as torchvision has them, COCO folders."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from stillroom.data import Batch, Ragged, Stream, digit_scenes, load_data
from stillroom.data.augment import augmentation


class Boxed(Dataset):
    """Images of several sizes, as torchvision's detectors take them."""

    classes = ("background", "disc", "square")

    def __init__(self, count=10, targets=True):
        self.count = count
        if targets:
            self.targets = [self.target(row) for row in range(count)]

    def target(self, row):
        return {"boxes": torch.tensor([[1.0, 2, 11, 12 + row]]), "labels": torch.tensor([1 + row % 2]), "image_id": row}

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return torch.full((3, 30 + row, 40), row / 10), self.target(row)


def coco_folder(root, *, images=6, parts=("train", "test")):
    for part in parts:
        folder = root / part
        (folder / "images").mkdir(parents=True)
        listed, annotations = [], []
        for number in range(images):
            Image.new("RGB", (40, 32), (10 * number, 50, 50)).save(folder / "images" / f"{number}.png")
            listed.append({"id": 100 + number, "file_name": f"{number}.png", "width": 40, "height": 32})
            annotations.append(
                {"id": number, "image_id": 100 + number, "category_id": 7 if number % 2 else 3, "bbox": [4, 5, 10, 12]}
            )
        annotations.append({"id": 98, "image_id": 100, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1})
        annotations.append({"id": 99, "image_id": 100, "category_id": 3, "bbox": [0, 0, 0, 9]})
        categories = [{"id": 7, "name": "square"}, {"id": 3, "name": "disc"}]
        content = {"images": listed, "annotations": annotations, "categories": categories}
        (folder / "annotations.json").write_text(json.dumps(content))
    return root


# ---- digit scenes ----------------------------------------------------------------------------------------------------


def test_scenes_hold_their_digits():
    splits = digit_scenes(train=6, test=2)
    assert splits.kind == "detection"
    assert splits.classes == ["0", "1", "2", "3", "4"]
    batch = splits.train.batch([0, 1, 2])
    assert batch.inputs.shape == (3, 1, 40, 40)
    for image, target in zip(batch.inputs, batch.labels, strict=True):
        assert 1 <= len(target["boxes"]) <= 4
        assert target["labels"].min() >= 1
        assert target["labels"].max() <= 5
        for left, top, right, bottom in target["boxes"].long().tolist():
            assert 0 <= left < right <= 40
            assert image[0, top:bottom, left:right].max() > 0.7


def test_the_shifted_domain_is_fainter_and_smaller_and_seeds_count():
    plain, shifted = digit_scenes(train=12, test=1).train, digit_scenes(train=12, test=1, shifted=True).train
    contrast = [float(part.batch(range(12)).inputs.flatten(1).std(1).mean()) for part in (plain, shifted)]
    assert contrast[1] < 0.7 * contrast[0]

    def areas(part):
        boxes = torch.cat([target["boxes"] for target in part.labels])
        return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

    assert (areas(shifted) < 50).any()
    assert not (areas(plain) < 20).any()
    same, other = digit_scenes(train=2, test=1), digit_scenes(train=2, test=1, seed=1)
    assert torch.equal(same.train.batch([0]).inputs, plain.batch([0]).inputs)
    assert not torch.equal(other.train.batch([0]).inputs, plain.batch([0]).inputs)
    assert torch.equal(other.test.batch([0]).inputs, same.test.batch([0]).inputs)
    with pytest.raises(ValueError, match="size must be 32 or more, given 20"):
        digit_scenes(size=20)


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_batches_are_cut_moved_and_followed():
    images = [torch.rand(1, 4 + row, 5) for row in range(3)]
    targets = [{"boxes": torch.full((row, 4), 1.0), "labels": torch.ones(row).long()} for row in range(3)]
    batch = Batch(images, targets, torch.arange(3))
    assert len(batch) == 3
    assert isinstance(batch.inputs, Ragged)
    part = batch[torch.tensor([2, 0])]
    assert [len(target["labels"]) for target in part.labels] == [2, 0]
    assert [image.shape[1] for image in part.inputs] == [6, 4]
    assert part.index.tolist() == [2, 0]
    assert [len(one) for one in (batch[1::2], batch[torch.tensor([True, False, True])])] == [1, 2]
    assert batch.to("meta").labels[1]["boxes"].device.type == "meta"
    assert batch.replace(labels=[targets[0], None, targets[2]]).labelled.tolist() == [True, False, True]
    with pytest.raises(ValueError, match=r"labels has 2 rows, but batch.inputs has 3"):
        Batch(images, targets[:2])


def test_half_labelled_streams():
    splits = load_data("digit-scenes", train_size=12, labels=8)
    assert len(splits.unlabelled) == 4
    stream = Stream(splits.train, batch_size=4, seed=0, unlabelled=splits.unlabelled, unlabelled_batch=2)
    batch = stream.batch(0)
    assert batch.labelled.tolist() == [True] * 4 + [False] * 2
    mixed = load_data(Boxed(), unlabelled=Boxed(4))
    stream = Stream(mixed.train, batch_size=2, seed=0, unlabelled=mixed.unlabelled, unlabelled_batch=2)
    assert stream.batch(0).labelled.tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="would move images away from their boxes"):
        augmentation("crop_flip")(batch, torch.rand(6, 8))


# ---- data sets of users ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_a_data_set_as_torchvision_has_it(known):
    splits = load_data((Boxed(targets=known), Boxed(4, targets=known)))
    assert splits.kind == "detection"
    assert splits.classes == ["disc", "square"]
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (9, 1, 4)
    assert any("read once" in note for note in splits.notes) != known
    batch = splits.test.batch([3, 0])
    assert [tuple(image.shape) for image in batch.inputs] == [(3, 33, 40), (3, 30, 40)]
    assert batch.labels[0]["boxes"].tolist() == [[1, 2, 11, 15]]
    assert batch.labels[0]["labels"].tolist() == [2]
    assert set(batch.labels[0]) == {"boxes", "labels"}


def test_loaders_and_lists():
    loader = DataLoader(Boxed(), batch_size=2, collate_fn=lambda items: tuple(zip(*items, strict=True)))
    splits = load_data(loader)
    assert splits.kind == "detection"
    assert any("without its collate_fn" in note for note in splits.notes)
    images, targets = zip(*(Boxed()[row] for row in range(5)), strict=True)
    assert load_data((list(images), list(targets)), validation_share=0).classes == ["1", "2"]


def test_boxes_that_move_with_the_image_go_before_those_known():
    class Moving(Boxed):
        def __getitem__(self, row):
            image, target = super().__getitem__(row)
            return image, {**target, "boxes": target["boxes"] + 5}

    splits = load_data(Moving(), validation_share=0)
    row = int((splits.train.index == 2).nonzero()) if bool((splits.train.index == 2).any()) else 0
    known, read = splits.train.labels[row]["boxes"], splits.train.batch([row]).labels[0]["boxes"]
    assert torch.equal(read, known + 5)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"boxes": torch.rand(2, 3), "labels": torch.ones(2).long()}, r"boxes of image 0 must have .*given \(2, 3\)"),
        ({"boxes": torch.rand(2, 4), "labels": torch.ones(3).long()}, r"2 boxes, but labels of shape \(3,\)"),
        ({"boxes": torch.rand(2, 4), "labels": torch.ones(2)}, "whole class numbers from 1, given dtype torch.float32"),
    ],
)
def test_targets_of_another_form_are_refused(target, message):
    with pytest.raises(ValueError, match=message):
        load_data(([torch.rand(3, 8, 8)] * 2, [target] * 2))


def test_size_and_channels_are_the_detectors_business():
    with pytest.raises(ValueError, match="leave image_size and channels out"):
        load_data("digit-scenes", image_size=32)


# ---- COCO ------------------------------------------------------------------------------------------------------------


def test_a_coco_folder(tmp_path):
    splits = load_data(coco_folder(tmp_path / "photos"), validation_share=0)
    assert (splits.kind, splits.name, splits.classes) == ("detection", "photos", ["disc", "square"])
    assert splits.train.shape == (3, 32, 40)
    batch = splits.train.batch([1])
    assert batch.inputs[0].shape == (3, 32, 40)
    assert batch.labels[0]["boxes"].tolist() == [[4, 5, 14, 17]]
    assert batch.labels[0]["labels"].tolist() == [2]
    assert len(splits.train.batch([0]).labels[0]["boxes"]) == 1
    assert any("1 crowd annotations" in note for note in splits.notes)
    assert any("1 boxes without an area" in note for note in splits.notes)


def test_a_coco_folder_in_one_piece_and_a_pool(tmp_path):
    coco_folder(tmp_path, parts=("all",))
    pool = tmp_path / "all" / "images"
    splits = load_data(tmp_path / "all", unlabelled=pool)
    assert (len(splits.train), len(splits.validation), len(splits.test), len(splits.unlabelled)) == (4, 1, 1, 6)
    assert splits.unlabelled.batch([0]).labels is None


def test_broken_coco_folders_are_refused(tmp_path):
    coco_folder(tmp_path, images=2)
    (tmp_path / "train" / "images" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"names the image '1.png', which is not in"):
        load_data(tmp_path)
    (tmp_path / "train" / "annotations.json").write_text("[]")
    with pytest.raises(ValueError, match="is no COCO file: expected the keys images, annotations and categories"):
        load_data(tmp_path)
    with pytest.raises(ValueError, match=r"has no annotations.json"):
        load_data(tmp_path / "train" / "images", task="detection")
