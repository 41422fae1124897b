"""Parquet files and Hugging Face data sets, made here."""

import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stillroom.data import load_data


def encoded(value, size=(6, 6), mode="L"):
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, "PNG")
    return buffer.getvalue()


def cells(count, first=0, **options):
    return [{"bytes": encoded(first + row, **options), "path": f"{first + row}.png"} for row in range(count)]


def write(path, columns, features=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=4)


CLASSES = {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}


def two_classes(count, first=0):
    return {"image": cells(count, first), "label": [row % 2 for row in range(count)]}


def values_of(samples):
    return (samples.batch(torch.arange(len(samples))).inputs[:, 0, 0, 0] * 255).round().long()


def test_a_folder_with_splits_and_names(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", two_classes(10), CLASSES)
    write(tmp_path / "train-00001-of-00002.parquet", two_classes(10, 10), CLASSES)
    write(tmp_path / "test.parquet", two_classes(4, 50), CLASSES)
    write(tmp_path / "extra.parquet", two_classes(4, 50), CLASSES)
    splits = load_data(tmp_path, validation_share=0)
    assert splits.classes == ["ant", "bee"]
    assert (len(splits.train), len(splits.test)) == (20, 4)
    assert values_of(splits.train).tolist() == list(range(20))
    assert splits.train.labels.tolist() == [0, 1] * 10
    assert values_of(splits.test).tolist() == [50, 51, 52, 53]
    assert any("extra.parquet" in note for note in splits.notes)


def test_rows_are_chosen_before_they_are_decoded(tmp_path, monkeypatch):
    write(tmp_path / "data.parquet", two_classes(100))
    opened = []
    monkeypatch.setattr("stillroom.data.images.PROBED", 3)
    monkeypatch.setattr(
        "stillroom.data.tables.Image.open", lambda source, original=Image.open: opened.append(1) or original(source)
    )
    splits = load_data(tmp_path / "data.parquet", train_size=6, test_size=4, validation_share=0)
    assert (len(splits.train), len(splits.test)) == (6, 4)
    assert splits.train.labels.bincount().tolist() == [3, 3]
    assert torch.equal(values_of(splits.train), splits.train.index)
    assert len(opened) < 20


def test_a_folder_per_split(tmp_path):
    write(tmp_path / "train" / "0.parquet", two_classes(10))
    write(tmp_path / "validation" / "0.parquet", two_classes(4, 20))
    splits = load_data(tmp_path)
    assert values_of(splits.test).tolist() == [20, 21, 22, 23]


def test_words_gaps_and_raw_bytes(tmp_path):
    columns = {"img": [encoded(row) for row in range(10)], "class": ["b", "a", None, "b", "a"] * 2}
    write(tmp_path / "data.parquet", columns)
    splits = load_data(tmp_path / "data.parquet", validation_share=0)
    assert splits.classes == ["a", "b"]
    assert sorted(values_of(splits.unlabelled).tolist()) == [2, 7]
    assert any("2 training samples have no label" in note for note in splits.notes)
    for part in (splits.train, splits.test):
        assert torch.equal(part.labels, torch.tensor([1, 0, -1, 1, 0] * 2)[values_of(part)])


def test_columns_by_name(tmp_path):
    columns = {"left": cells(12), "right": cells(12, 100), "size": [row / 7 for row in range(12)]}
    write(tmp_path / "data.parquet", columns)
    with pytest.raises(ValueError, match="several image columns"):
        load_data(tmp_path / "data.parquet")
    splits = load_data(tmp_path / "data.parquet", image_column="right", label_column="size", validation_share=0)
    assert splits.kind == "regression"
    torch.testing.assert_close(splits.train.labels[:, 0], (values_of(splits.train) - 100) / 7.0)
    with pytest.raises(ValueError, match=r"'middle'.*left, right, size"):
        load_data(tmp_path / "data.parquet", image_column="middle")


def test_several_labels_in_a_list_column(tmp_path):
    rng = np.random.default_rng(0)
    write(tmp_path / "data.parquet", {"image": cells(10), "labels": rng.integers(0, 2, (10, 3)).tolist()})
    splits = load_data(tmp_path / "data.parquet", validation_share=0)
    assert splits.kind == "multi-label"
    assert splits.train.labels.shape == (8, 3)


def test_tables_without_images_or_labels(tmp_path):
    write(tmp_path / "numbers.parquet", {"x": [1.0, 2.0], "label": [0, 1]})
    with pytest.raises(ValueError, match=r"no image column among x, label"):
        load_data(tmp_path / "numbers.parquet")
    write(tmp_path / "sound.parquet", {"audio": [{"bytes": b"RIFF", "path": None}] * 4, "label": [0, 1, 0, 1]})
    with pytest.raises(ValueError, match="no image column"):
        load_data(tmp_path / "sound.parquet")
    write(tmp_path / "images.parquet", {"image": cells(10), "camera": ["x"] * 10})
    splits = load_data(tmp_path / "images.parquet")
    assert splits.kind == "unlabelled"
    assert any("no label column" in note for note in splits.notes)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"broken\.parquet.*cannot be read"):
        load_data(tmp_path / "broken.parquet")


def test_cells_that_cannot_be_read_are_named(tmp_path):
    columns = two_classes(10)
    columns["image"][3] = {"bytes": b"rubbish", "path": "broken.png"}
    columns["image"][6] = {"bytes": None, "path": None}
    write(tmp_path / "data.parquet", columns)
    splits = load_data(tmp_path / "data.parquet", validation_share=0)
    assert len(splits.train) + len(splits.test) == 8
    assert any("row 3 (broken.png)" in note and "row 6 (the cell is empty)" in note for note in splits.notes)


def test_images_may_be_paths(tmp_path):
    for row in range(10):
        Image.new("L", (6, 6), row).save(tmp_path / f"{row}.png")
    paths = [{"bytes": None, "path": str(tmp_path / f"{row}.png")} for row in range(10)]
    write(tmp_path / "table" / "data.parquet", {"image": paths, "label": [0, 1] * 5}, CLASSES)
    splits = load_data(tmp_path / "table", validation_share=0)
    assert torch.equal(values_of(splits.train), splits.train.index)


def masks(count, size=(6, 6)):
    found = []
    for row in range(count):
        mask = np.full((size[1], size[0]), row % 3, dtype=np.uint8)
        mask[0, 0], mask[0, 1] = 3, 255
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, "PNG")
        found.append({"bytes": buffer.getvalue(), "path": None})
    return found


@pytest.mark.parametrize("lazy", [False, True])
def test_masks_make_a_segmentation(tmp_path, monkeypatch, lazy):
    write(tmp_path / "train.parquet", {"image": cells(9), "mask": masks(9)})
    write(tmp_path / "val.parquet", {"image": cells(3, 20), "mask": masks(3)})
    (tmp_path / "classes.json").write_text(json.dumps(["sky", "road", "car", "unlabelled"]))
    if lazy:
        monkeypatch.setattr("stillroom.data.cut.MEMORY_BUDGET", 10)
    splits = load_data(tmp_path, validation_share=0)
    assert splits.kind == "segmentation"
    assert splits.classes == ["sky", "road", "car"]
    assert splits.train.lazy == lazy
    batch = splits.train.batch([4, 5])
    assert batch.labels.dtype == torch.int64
    assert batch.labels[0, 0].tolist() == [-100, -100, 1, 1, 1, 1]
    assert batch.labels[:, 1:].flatten(1).unique(dim=1).tolist() == [[1], [2]]
    assert load_data(tmp_path, validation_share=0, image_size=3).train.batch([4]).labels.shape == (1, 3, 3)
    few = load_data(tmp_path, validation_share=0, labels=4)
    assert len(few.unlabelled) == 5
    assert few.unlabelled.batch([0]).labels is None
    assert few.train.batch([0]).labels.shape == (1, 6, 6)
    (tmp_path / "classes.json").unlink()
    assert load_data(tmp_path, validation_share=0).classes == ["0", "1", "2", "3"]
    (tmp_path / "classes.json").write_text(json.dumps(["sky", "road"]))
    with pytest.raises(ValueError, match=r"class [23].* 2 classes"):
        load_data(tmp_path, validation_share=0).train.batch(torch.arange(9))
    (tmp_path / "classes.json").write_text('{"sky": 0}')
    with pytest.raises(ValueError, match="list of class names"):
        load_data(tmp_path)


def test_a_mask_of_another_size_is_named(tmp_path):
    write(tmp_path / "data.parquet", {"image": cells(6), "mask": [*masks(5), *masks(1, (4, 4))]})
    splits = load_data(tmp_path / "data.parquet", validation_share=0)
    assert any("row 5" in note and "4x4, the image 6x6" in note for note in splits.notes)


def hugging_face(count=20, first=0, names=("ant", "bee")):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict(two_classes(count, first), features=features)


def test_hugging_face_objects_and_saved_folders(tmp_path):
    whole = datasets.DatasetDict({"train": hugging_face(), "test": hugging_face(4, 50), "extra": hugging_face(2)})
    whole.save_to_disk(str(tmp_path / "saved"))
    for spec in (whole, tmp_path / "saved"):
        splits = load_data(spec, validation_share=0)
        assert splits.classes == ["ant", "bee"]
        assert values_of(splits.train).tolist() == list(range(20))
        assert values_of(splits.test).tolist() == [50, 51, 52, 53]
        assert any("'extra' is not used" in note for note in splits.notes)
    pair = load_data((hugging_face(), hugging_face(4, 50)), validation_share=0)
    assert pair.classes == ["ant", "bee"]
    assert values_of(pair.test).tolist() == [50, 51, 52, 53]
    shuffled = hugging_face().select([7, 3, 4, 11, 2])
    shuffled.save_to_disk(str(tmp_path / "part"))
    for spec in (shuffled, tmp_path / "part"):
        splits = load_data(spec, validation_share=0, train_size=4)
        found = torch.cat([values_of(splits.train), values_of(splits.test)])
        assert sorted(found.tolist()) == [2, 3, 4, 7, 11]
        assert torch.equal(splits.train.labels, values_of(splits.train) % 2)


def test_hidden_labels_of_a_test_split_are_no_labels():
    features = hugging_face().features
    hidden = datasets.Dataset.from_dict({"image": cells(3), "label": [-1] * 3}, features=features)
    splits = load_data(datasets.DatasetDict({"train": hugging_face(), "test": hidden}), validation_share=0)
    assert splits.test.labels.min() >= 0
    assert len(splits.test) == 4


def test_streams_and_odd_splits_are_refused():
    with pytest.raises(TypeError, match="streaming"):
        load_data(hugging_face().to_iterable_dataset())
    with pytest.raises(ValueError, match="'one', 'two'"):
        load_data(datasets.DatasetDict({"one": hugging_face(), "two": hugging_face()}))
    two_labels = hugging_face().rename_column("label", "first").add_column("second", [0, 1] * 10)
    two_labels = two_labels.cast_column("second", datasets.ClassLabel(names=["x", "y"]))
    with pytest.raises(ValueError, match="first, second"):
        load_data(two_labels)
    assert load_data(two_labels, label_column="second").classes == ["x", "y"]
