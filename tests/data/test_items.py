"""Items of data sets: images of several sizes and modes, arrays, lists of samples and of batches."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from stillroom.data import load_data

X = torch.arange(20 * 3 * 4 * 4).view(20, 3, 4, 4) / 960
Y = torch.arange(20) % 2


def note(splits, *words):
    return any(all(word in text for word in words) for text in splits.notes)


class Uneven(Dataset):
    """Images that differ in size or mode; their grey value says which row they are."""

    def __init__(self, form, count=20):
        self.form, self.count = form, count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        if row >= self.count:
            raise IndexError(row)
        high, label, grey = 8 + row % 3, row % 2, 10 * row
        return {
            "sizes": (Image.new("L", (8, high), grey), label),
            "modes": (Image.new("RGB", (8, 8), (grey,) * 3) if row % 2 else Image.new("L", (8, 8), grey), label),
            "dict": {"image": Image.new("RGB", (8, high), (grey,) * 3), "label": label, "age": float(row)},
            "tensors": (torch.full((1, high, 8), grey / 255), label),
            "arrays": (np.full((high, 8, 3), grey, dtype=np.uint8), label),
            "words": (Image.new("L", (8, high), grey), "ab"[label]),
            "alone": Image.new("L", (8, high), grey),
            "channel": (Image.new("L", (8, 8), grey), torch.full((1, 8, 8), 2 * label)),
            "palette": (Image.new("L", (8, 8), grey), palette(label)),
            "void": (Image.new("L", (8, 8), grey), torch.tensor([[label, 255]] * 8).repeat(1, 4)),
            "masks": (Image.new("L", (8, high), grey), torch.full((high, 8), label)),
            "palette dict": {"image": Image.new("L", (8, 8), grey), "mask": palette(label)},
            "vectors": (torch.zeros(high), label),
        }[self.form]


@pytest.mark.parametrize("form", ["sizes", "modes", "dict", "tensors", "arrays", "words", "alone"])
def test_images_of_several_sizes_and_modes_are_brought_to_one(form):
    splits = load_data(Uneven(form), image_size=8, channels=3, validation_share=0)
    for part in (splits.train, splits.test):
        batch = part.batch(torch.arange(len(part)))
        assert batch.inputs.shape[1:] == (3, 8, 8)
        expected = (10 * batch.index / 255).view(-1, 1, 1, 1).expand_as(batch.inputs)
        torch.testing.assert_close(batch.inputs, expected, rtol=0, atol=1e-5)
        if form != "alone":
            assert torch.equal(batch.labels, batch.index % 2)
        if form == "dict":
            assert torch.equal(batch.age.long(), batch.index)
    assert note(splits, "3 different sizes to 8x8") == (form != "modes")


def test_a_form_is_chosen_as_for_folders_where_none_is_named():
    splits = load_data(Uneven("sizes"))
    assert splits.train.shape == (1, 224, 224)
    assert note(splits, "3 different sizes", "224x224", "image_size=")
    splits = load_data(Uneven("modes"))
    assert splits.train.shape == (3, 8, 8)
    assert note(splits, "some images are grey and some in colour")
    pool = load_data((X, Y), unlabelled=Uneven("sizes", 5))
    assert pool.unlabelled.batch([0, 1, 2]).inputs.shape == (3, 3, 4, 4)
    assert load_data({"train": Uneven("sizes"), "test": Uneven("modes")}, image_size=8).train.shape == (3, 8, 8)


def palette(label):
    """A mask as VOC has them: class numbers with colours behind them, 255 for no label."""
    mask = Image.fromarray(np.array([[label, 255, 1, 2]] * 8, dtype=np.uint8).repeat(2, axis=1)).convert("P")
    mask.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200] + [7] * 759)
    return mask


def test_planes_of_floats_are_grey_images_where_a_form_is_named():
    planes = X[:, 0]
    for spec in ((planes, Y), list(TensorDataset(planes, Y)), {"train": (planes, Y), "test": (planes, Y)}):
        assert load_data(spec).train.shape == (4, 4)
        for options in ({"channels": 1}, {"image_size": 4}):
            part = load_data(spec, **options).test
            assert part.shape == (1, 4, 4)
            batch = part.batch([0, 1, 2])
            assert torch.equal(batch.inputs, X[batch.index % 20, :1])
            assert torch.equal(batch.labels, batch.index % 2)
        assert load_data(spec, channels=3, image_size=2).train.batch([0]).inputs.shape == (1, 3, 2, 2)
    assert note(load_data((planes, Y), channels=1), "(4, 4)", "grey images")
    with pytest.raises(ValueError, match=r"\[0, 1\].*16.*divide"):
        load_data((planes * 16 / planes.max(), Y), channels=1)
    with pytest.raises(ValueError, match=r"\(3, 4, 4\) in one part and \(4, 4\)"):
        load_data({"train": (X, Y), "test": (planes, Y)}, channels=3)


def test_masks_of_items():
    splits = load_data(Uneven("channel"))
    assert (splits.kind, len(splits.classes)) == ("segmentation", 3)
    batch = splits.train.batch([0, 1, 2])
    assert batch.labels.shape == (3, 8, 8)
    assert torch.equal(batch.labels[:, 0, 0], 2 * (batch.index % 2))
    for spec in (Uneven("palette"), Uneven("palette dict")):
        splits = load_data(spec)
        batch = splits.train.batch([0, 1, 2])
        assert (splits.kind, len(splits.classes)) == ("segmentation", 3)
        assert batch.labels[:, 0, ::2].tolist() == [[row % 2, -100, 1, 2] for row in batch.index.tolist()]
    with pytest.raises(ValueError, match=r"255 beside the classes 0 to 1.*-100"):
        load_data(Uneven("void"))


class KnowsLabels(Uneven):
    """Says its labels, and differs in size only where nobody looks."""

    def __init__(self):
        super().__init__("sizes")
        self.targets = [row % 2 for row in range(20)]

    def __getitem__(self, row):
        image, label = super().__getitem__(row)
        return image if row == 1 else image.resize((8, 8)), label


def test_sizes_that_cannot_be_joined_are_refused_in_a_sentence():
    splits = load_data(KnowsLabels(), validation_share=0)
    with pytest.raises(ValueError, match=r"KnowsLabels .*\(1, 8, 8\) and \(1, 9, 8\): pass image_size="):
        [part.batch(torch.arange(len(part))) for part in (splits.train, splits.test)]
    assert load_data(KnowsLabels(), image_size=8).train.batch([0, 1]).inputs.shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="masks that a data set makes"):
        load_data(Uneven("masks"), image_size=8)
    with pytest.raises(ValueError, match=r"\(9,\).*no images|\(8,\).*no images|\(10,\).*no images"):
        load_data(Uneven("vectors"))


def test_a_list_of_samples_is_a_data_set():
    for spec in (list(TensorDataset(X, Y)), [[image.numpy(), int(label)] for image, label in zip(X, Y, strict=True)]):
        splits = load_data(spec, validation_share=0)
        batch = splits.train.batch(torch.arange(len(splits.train)))
        assert torch.equal(batch.inputs, X[batch.index])
        assert torch.equal(batch.labels, Y[batch.index])
    pair = list(TensorDataset(X, Y))
    assert len(load_data((pair[:15], pair[15:])).test) == 5
    dicts = [{"image": image, "label": int(label)} for image, label in zip(X, Y, strict=True)]
    assert load_data(dicts).classes == ["0", "1"]
    assert load_data([Image.new("L", (4, 4)) for _ in range(8)]).kind == "unlabelled"


def test_a_list_of_batches_is_refused():
    for size in (7, 5):
        with pytest.raises(ValueError, match=rf"batches, the first of {size} samples.*DataLoader"):
            load_data(list(DataLoader(TensorDataset(X, Y), batch_size=size)))
    whole = {"x": X, "label": Y}
    for batches in (
        [whole],
        [{key: value[:7] for key, value in whole.items()}, {key: value[7:] for key, value in whole.items()}],
        list(DataLoader(TensorDataset(X, Y + 0.5), batch_size=5)),
    ):
        with pytest.raises(ValueError, match=r"batches, the first of (20|7|5) samples"):
            load_data({"train": batches})
    for dtype in (torch.float32, torch.int64):
        tags = [(image, torch.tensor([0, 1, int(label)]).to(dtype)) for image, label in zip(X, Y, strict=True)]
        assert load_data(tags).kind == "multi-label"
    with pytest.raises(ValueError, match="a list of 2 values of different shapes"):
        load_data([[1, 2], [3]])


def test_the_batch_size_of_a_loader_is_said_not_to_be_used():
    assert note(load_data(DataLoader(TensorDataset(X, Y), batch_size=7)), "batch size of 7 is not used", "batch_size=")
