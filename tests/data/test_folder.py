"""Image folders with every defect that people's folders have."""

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.data import load_data


def save(path, value=0, size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)


def numbered_folder(root, counts, size=(8, 8), first=0):
    """Grey images whose value is their number: two classes look alike, so only the folder tells them."""
    value = first
    for name, count in counts.items():
        for _ in range(count):
            save(root / name / f"{value:03}.png", value, size, "L")
            value += 1
    return value


def note(splits, *words):
    return any(all(word in text for word in words) for text in splits.notes)


def test_train_and_test_folders(tmp_path):
    count = numbered_folder(tmp_path / "train", {"cat": 10, "dog": 10})
    numbered_folder(tmp_path / "Test", {"cat": 2, "dog": 3}, first=count)
    splits = load_data(str(tmp_path), validation_share=0.2)
    assert splits.kind == "classification"
    assert splits.classes == ["cat", "dog"]
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (16, 4, 5)
    assert splits.train.shape == (1, 8, 8)
    assert splits.validation.labels.bincount().tolist() == [2, 2]
    batch = splits.train.batch(torch.arange(16))
    values = (batch.inputs[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(values, batch.index), "index is the place among the sorted files of the part"
    assert torch.equal(batch.labels, (values >= 10).long())
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 1]
    assert splits.test.index.tolist() == [20, 21, 22, 23, 24]
    assert splits.name == tmp_path.name


@pytest.mark.parametrize("word", ["val", "valid", "validation", "Valid"])
def test_a_validation_folder_without_test_is_what_is_reported(tmp_path, word):
    numbered_folder(tmp_path / "train", {"a": 9, "b": 9})
    numbered_folder(tmp_path / word, {"a": 2, "b": 2})
    splits = load_data(tmp_path)
    assert len(splits.test) == 4
    assert splits.validation.index.max() < 18, "the validation split is cut from the training data"
    assert note(splits, "validation split is what is reported")


def test_with_three_folders_each_is_what_it_is_called(tmp_path):
    for part, count in (("train", 8), ("val", 3), ("test", 2)):
        numbered_folder(tmp_path / part, {"a": count, "b": count})
    splits = load_data(tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (16, 6, 4)
    numbers = torch.cat([part.index for part in (splits.train, splits.validation, splits.test)])
    assert sorted(numbers.tolist()) == list(range(26)), "no two samples share a number"


def test_class_folders_alone_are_cut_stratified(tmp_path):
    numbered_folder(tmp_path, {"a": 50, "b": 25})
    splits = load_data(tmp_path)
    assert splits.test.labels.bincount().tolist() == [10, 5]
    assert note(splits, "15 of 75 samples are held out")
    other = load_data(tmp_path, seed=1)
    assert torch.equal(other.test.index, splits.test.index), "what is reported is the same for every seed"
    assert not torch.equal(other.validation.index, splits.validation.index)
    small = load_data(tmp_path, train_size=12)
    assert small.train.labels.bincount().tolist() == [8, 4]
    assert torch.equal(small.validation.index, splits.validation.index)
    everything = set(splits.train.index.tolist())
    assert set(small.train.index.tolist()) <= everything


def test_files_in_folders_below_a_class_belong_to_it(tmp_path):
    numbered_folder(tmp_path / "a", {"images": 5, "more": 5})
    numbered_folder(tmp_path, {"b": 10})
    splits = load_data(tmp_path)
    assert splits.classes == ["a", "b"]
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 20


def test_a_flat_folder_has_no_labels(tmp_path):
    numbered_folder(tmp_path, {"": 10})
    splits = load_data(tmp_path)
    assert splits.kind == "unlabelled"
    assert splits.classes is None
    assert splits.train.batch([0]).labels is None
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 10


def test_an_unlabelled_folder_beside_the_classes_is_the_pool(tmp_path):
    numbered_folder(tmp_path / "train", {"a": 9, "b": 9})
    numbered_folder(tmp_path / "test", {"a": 2, "b": 2})
    numbered_folder(tmp_path / "unlabeled", {"": 7})
    splits = load_data(tmp_path)
    assert len(splits.unlabelled) == 7
    assert splits.unlabelled.index.tolist() == list(range(22, 29))


def test_images_of_every_mode_become_one(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name / "plain.JPG", (10, 20, 30))
        save(tmp_path / name / "grey.png", 7, mode="L")
        save(tmp_path / name / "clear.PNG", (0, 0, 0, 0), mode="RGBA")
        save(tmp_path / name / "palette.gif", 0, mode="P")
        save(tmp_path / name / "binary.bmp", 1, mode="1")
        Image.fromarray(np.full((8, 8), 65535, dtype=np.uint16)).save(tmp_path / name / "deep.tiff")
        (tmp_path / name / ".hidden.png").write_bytes(b"nothing")
        (tmp_path / name / "notes.txt").write_text("nothing")
    (tmp_path / ".git").mkdir()
    splits = load_data(tmp_path, validation_share=0)
    assert len(splits.train) + len(splits.test) == 12
    assert splits.train.shape == (3, 8, 8)
    assert splits.classes == ["a", "b"]
    assert note(splits, "some images are grey and some in colour")
    assert note(splits, "notes.txt", "no images")
    assert not note(splits, "cannot be read")
    grey = load_data(tmp_path, channels=1, validation_share=0)
    batch = grey.train.batch(torch.arange(len(grey.train)))
    files = ["binary.bmp", "clear.PNG", "deep.tiff", "grey.png", "palette.gif", "plain.JPG"]
    expected = dict(zip(files, [255, 255, 255, 7, None, 18], strict=True))  # 18 = 0.299 * 10 + 0.587 * 20 + 0.114 * 30
    for image, number in zip(batch.inputs, batch.index.tolist(), strict=True):
        value = expected[files[number % 6]]
        assert value is None or abs(float(image.mean()) * 255 - value) < 1.5


def test_files_that_cannot_be_read_are_left_out_and_named(tmp_path):
    numbered_folder(tmp_path, {"a": 10, "b": 10})
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    (tmp_path / "b" / "words.jpg").write_text("no image")
    save(tmp_path / "b" / "cut.png", 9, (64, 64), "L")
    whole = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(whole).save(tmp_path / "b" / "cut.png")
    data = (tmp_path / "b" / "cut.png").read_bytes()
    (tmp_path / "b" / "cut.png").write_bytes(data[: len(data) // 2])
    splits = load_data(tmp_path)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 20
    assert note(splits, "3 of 23 files cannot be read", "a/empty.png", "b/words.jpg", "b/cut.png")
    for part in (splits.train, splits.validation, splits.test):
        batch = part.batch(torch.arange(len(part)))
        values = (batch.inputs[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(batch.labels, (values >= 10).long()), "the others keep their labels"


def test_sizes_that_differ_become_224_unless_said_otherwise(tmp_path):
    numbered_folder(tmp_path, {"a": 5}, size=(30, 20))
    numbered_folder(tmp_path, {"b": 5}, size=(20, 20), first=5)
    splits = load_data(tmp_path, validation_share=0)
    assert splits.train.shape == (1, 224, 224)
    assert note(splits, "2 different sizes", "224x224")
    assert load_data(tmp_path, validation_share=0, image_size=16).train.shape == (1, 16, 16)


def test_one_size_is_kept_also_where_it_is_oblong(tmp_path):
    numbered_folder(tmp_path, {"a": 5, "b": 5}, size=(30, 20))
    splits = load_data(tmp_path, validation_share=0)
    assert splits.train.shape == (1, 20, 30)
    assert load_data(tmp_path, validation_share=0, image_size=20, channels=3).train.shape == (3, 20, 20)


def test_turned_photographs_count_by_how_they_are_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        for number in range(3):
            save(tmp_path / name / f"{number}.jpg", size=(30, 20))
            save(tmp_path / name / f"turned{number}.jpg", size=(20, 30), exif=exif)
    assert load_data(tmp_path, validation_share=0).train.shape == (3, 20, 30)


def test_an_empty_class_is_noted_and_keeps_its_number(tmp_path):
    numbered_folder(tmp_path, {"a": 5, "c": 5})
    (tmp_path / "b").mkdir()
    splits = load_data(tmp_path, validation_share=0)
    assert splits.classes == ["a", "b", "c"]
    assert splits.train.labels.unique().tolist() == [0, 2]
    assert note(splits, "'b'", "no images")


def test_loose_images_beside_class_folders_are_noted(tmp_path):
    numbered_folder(tmp_path, {"a": 5, "b": 5, "": 1})
    splits = load_data(tmp_path, validation_share=0)
    assert len(splits.train) + len(splits.test) == 10
    assert note(splits, "1 images", "no class folder", "010.png")


def test_a_test_folder_without_classes_cannot_be_reported(tmp_path):
    numbered_folder(tmp_path / "train", {"a": 10, "b": 10})
    numbered_folder(tmp_path / "test", {"": 4})
    splits = load_data(tmp_path, validation_share=0)
    assert len(splits.test) == 4
    assert splits.test.labels is not None
    assert len(splits.train) == 16
    assert note(splits, "'test'", "not used")


@pytest.mark.parametrize(
    ("counts", "message"),
    [({}, "holds no images"), ({"only": 5}, r"one class only \('only'\)"), ({"only": 5, "empty": 0}, "one class only")],
)
def test_folders_without_a_task_are_refused(tmp_path, counts, message):
    numbered_folder(tmp_path, counts)
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path)


def test_missing_and_contradicting_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_data(tmp_path / "nowhere")
    numbered_folder(tmp_path / "one" / "val", {"a": 5, "b": 5})
    with pytest.raises(ValueError, match="none called 'train'"):
        load_data(tmp_path / "one")
    numbered_folder(tmp_path / "two" / "train", {"a": 5, "b": 5})
    numbered_folder(tmp_path / "two" / "test", {"a": 5, "x": 5})
    with pytest.raises(ValueError, match="class 'x'"):
        load_data(tmp_path / "two")
    for word in ("val", "valid"):
        numbered_folder(tmp_path / "three" / word, {"a": 5, "b": 5})
    with pytest.raises(ValueError, match=r"'val' and 'valid'"):
        load_data(tmp_path / "three")
    with pytest.raises(ValueError, match="label_column='label'"):
        load_data(tmp_path / "two", label_column="label")
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"data\.csv.*unknown type"):
        load_data(tmp_path / "data.csv")


def test_a_folder_of_rubbish_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="no image can be read"):
        load_data(tmp_path)


def test_what_does_not_fit_in_memory_is_decoded_when_needed(tmp_path, monkeypatch):
    numbered_folder(tmp_path, {"a": 10, "b": 10})
    held = load_data(tmp_path, seed=2)
    (tmp_path / "b" / "words.png").write_text("no image")
    monkeypatch.setattr("stillroom.data.cut.MEMORY_BUDGET", 100)
    lazy = load_data(tmp_path, seed=2)
    assert lazy.train.lazy
    assert not held.train.lazy
    assert note(lazy, "decoded when needed")
    assert note(lazy, "1 of 21 files", "b/words.png")
    rows = torch.arange(len(lazy.train))
    batch = lazy.train.batch(rows)
    assert torch.equal(batch.labels, lazy.train.labels)
    values = (batch.inputs[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(batch.labels, (values >= 10).long())
    (tmp_path / "a" / "000.png").unlink()
    (part,) = (part for part in (lazy.train, lazy.validation, lazy.test) if 0 in part.index)
    with pytest.raises(OSError, match=r"a/000\.png cannot be read"):
        part.batch(torch.arange(len(part)))


def test_a_pool_from_elsewhere_loses_its_classes(tmp_path):
    numbered_folder(tmp_path / "main", {"a": 10, "b": 10})
    numbered_folder(tmp_path / "pool", {"x": 6}, size=(12, 12))
    splits = load_data(tmp_path / "main", unlabelled=tmp_path / "pool")
    assert len(splits.unlabelled) == 6
    assert splits.unlabelled.shape == splits.train.shape == (1, 8, 8)
    assert splits.unlabelled.batch([0]).labels is None
    assert splits.unlabelled.index.tolist() == list(range(20, 26))
    with pytest.raises(ValueError, match="train_size=5"):
        load_data(tmp_path / "main", unlabelled=tmp_path / "pool", labels=5)
    with pytest.raises(ValueError, match="image_size"):
        load_data((np.zeros((10, 4)), [0, 1] * 5), unlabelled=tmp_path / "pool")
