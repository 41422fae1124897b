"""Condensed sets: a Dataset, a folder, and data that anybody trains on."""

import pytest
import torch

from stillroom.data import CondensedSet, Splits, TensorSamples, load_data


def made(**changes) -> CondensedSet:
    given = {"images": torch.rand(4, 1, 8, 8), "labels": torch.arange(4) % 2, "factor": 2, "classes": ["a", "b"]}
    return CondensedSet(**(given | changes))


def real() -> Splits:
    part = TensorSamples(torch.rand(6, 1, 8, 8), torch.arange(6) % 2)
    return Splits(part, part.subset(range(4)), part.subset(range(2)), classes=["a", "b"], name="real")


def test_it_is_a_dataset_of_the_decoded_images():
    condensed = made()
    assert len(condensed) == 16
    images, labels = next(iter(torch.utils.data.DataLoader(condensed, batch_size=16)))
    assert images.shape == (16, 1, 8, 8)
    assert labels.tolist() == [0, 1, 0, 1] * 4
    batch = condensed.samples.batch([0, 5])
    assert torch.equal(batch.inputs[1], images[5])
    assert len(condensed.splits(real()).test) == 4


def test_it_is_the_same_after_saving(tmp_path):
    condensed = made(notes={"method": "by hand"})
    loaded = CondensedSet.load(condensed.save(tmp_path / "set"))
    assert torch.equal(loaded.images, condensed.images)
    assert torch.equal(loaded.labels, condensed.labels)
    assert (loaded.factor, loaded.classes, loaded.notes) == (2, ["a", "b"], {"method": "by hand"})
    with pytest.raises(FileExistsError, match="holds a condensed set already"):
        condensed.save(tmp_path / "set")


def test_the_folder_is_data_with_real_images_to_report_on(tmp_path):
    condensed, whole = made(), real()
    splits = load_data(condensed.save(tmp_path / "set", whole))
    assert len(splits.train) == 16
    assert torch.equal(splits.train.batch([3]).inputs, condensed.samples.batch([3]).inputs)
    assert torch.equal(splits.test.batch(range(4)).inputs, whole.test.batch(range(4)).inputs)
    assert len(splits.validation) == 2
    assert splits.classes == ["a", "b"]
    assert any("4 condensed images decode to 16" in note for note in splits.notes)


def test_soft_labels_are_read_by_their_favourite(tmp_path):
    soft = made(labels=torch.tensor([[0.9, 0.1], [0.2, 0.8]] * 2))
    assert torch.equal(soft.samples.batch([1]).labels, torch.tensor([[0.2, 0.8]]))
    splits = load_data(soft.save(tmp_path / "set", real()))
    assert splits.train.labels.tolist() == [0, 1] * 8


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"\(4,\) torch.float32"):
        made(labels=torch.rand(4))
    with pytest.raises(FileNotFoundError, match=r"expected condensed.json"):
        CondensedSet.load(tmp_path)
    folder = made().save(tmp_path / "set")
    text = (folder / "condensed.json").read_text().replace('"format": 1', '"format": 99')
    (folder / "condensed.json").write_text(text)
    with pytest.raises(ValueError, match="has format 99, this version reads 1"):
        CondensedSet.load(folder)
