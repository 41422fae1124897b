"""Arrays, data sets and loaders as people hand them over."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from stillroom.data import Splits, Stream, TensorSamples, digits, load_data, scenes

X = np.arange(80, dtype=np.float32).reshape(40, 2) / 100
Y = np.arange(40) % 2


def note(splits, *words):
    return any(all(word in text for word in words) for text in splits.notes)


def rows_of(samples):
    """The row of X that each sample is."""
    return (samples.batch(torch.arange(len(samples))).inputs[:, 0] * 50).round().long()


@pytest.mark.parametrize("spec", [(X, Y), (torch.tensor(X), torch.tensor(Y)), (X.tolist(), Y.tolist()), [X, Y]])
def test_arrays_are_cut_in_three(spec):
    splits = load_data(spec)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (29, 3, 8)
    assert splits.classes == ["0", "1"]
    parts = (splits.train, splits.validation, splits.test)
    assert sorted(torch.cat([part.index for part in parts]).tolist()) == list(range(40))
    for part in parts:
        assert torch.equal(rows_of(part), part.index)
        assert torch.equal(part.labels, part.index % 2)


def test_arrays_that_are_cut_already():
    splits = load_data(((X[:30], Y[:30]), (X[30:], Y[30:])), validation_share=0)
    assert rows_of(splits.test).tolist() == list(range(30, 40))
    assert splits.test.index.tolist() == list(range(30, 40))
    named = {"train": (X[:20], Y[:20]), "val": (X[20:30], Y[20:30]), "test": (X[30:], Y[30:]), "unlabeled": X[:5]}
    splits = load_data(named)
    assert [len(part) for part in (splits.train, splits.validation, splits.test, splits.unlabelled)] == [20, 10, 10, 5]
    assert splits.unlabelled.index.tolist() == list(range(40, 45))


def test_arrays_without_labels():
    for spec in ((X, None), X):
        splits = load_data(spec)
        assert splits.kind == "unlabelled"
        assert splits.train.batch([0]).labels is None
        assert splits.classes is None


def test_rows_without_a_label_become_the_pool():
    labels = np.where(np.arange(40) < 10, Y, -100)
    splits = load_data((X, labels), validation_share=0)
    assert sorted(splits.unlabelled.index.tolist()) == list(range(10, 40))
    assert len(splits.train) + len(splits.test) == 10
    half = np.where(np.arange(40) < 20, 0.37 * Y, np.nan)
    splits = load_data((X, half), validation_share=0)
    assert splits.kind == "regression"
    assert len(splits.unlabelled) == 20


def test_a_dict_of_arrays_carries_further_fields():
    spec = {"inputs": X, "labels": Y, "weight": np.arange(40.0)}
    splits = load_data(spec, validation_share=0)
    batch = splits.train.batch(torch.arange(32))
    assert torch.equal(batch.weight.long(), batch.index)
    assert torch.equal(splits.test.subset([3]).batch([0]).weight.long(), splits.test.index[3:4])
    chosen = load_data({"a": X, "b": Y, "c": 1 - Y}, image_column="a", label_column="c", validation_share=0)
    assert torch.equal(chosen.train.labels, 1 - chosen.train.index % 2)
    with pytest.raises(ValueError, match=r"'d' is not among the keys a, b"):
        load_data({"a": X, "b": Y}, image_column="a", label_column="d")


def test_images_in_arrays():
    pixels = np.arange(10 * 4 * 5 * 3, dtype=np.uint8).reshape(10, 4, 5, 3)
    splits = load_data((pixels, [0, 1] * 5), validation_share=0)
    assert splits.train.shape == (3, 4, 5)
    assert note(splits, "channels last")
    batch = splits.train.batch([0])
    expected = pixels[int(batch.index[0])].transpose(2, 0, 1)
    assert np.array_equal((batch.inputs[0] * 255).round().numpy().astype(np.uint8), expected)
    assert load_data((pixels[..., 0], [0, 1] * 5)).train.shape == (1, 4, 5)
    assert load_data((pixels, [0, 1] * 5), image_size=6, channels=1).train.shape == (1, 6, 6)
    floats = np.random.default_rng(0).normal(size=(10, 3, 4, 4))
    assert note(load_data((floats, [0, 1] * 5)), "[0, 1]", "normalise")
    assert load_data((np.ones((10, 4), dtype=bool), [0, 1] * 5)).train.batch([0]).inputs.dtype == torch.float32


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ((np.ones((4, 3, 4, 4)) * 255, [0, 1] * 2), ValueError, r"\[0, 1\].*255"),
        ((np.ones((4, 3, 4, 4), dtype=np.int64), [0, 1] * 2), ValueError, "int64"),
        ((X, Y[:-1]), ValueError, r"X has 40 rows.* 39"),
        ((X[:0], Y[:0]), ValueError, r"\(0, 2\)"),
        ((np.array(["a", "b"]), [0, 1]), TypeError, "dtype <U1"),
        (((X[:30], Y[:30]), (X[30:, :1], Y[30:])), ValueError, r"\(2,\).*\(1,\)"),
        (3.5, TypeError, "float"),
        ({"train": (X, Y), "training": (X, Y)}, ValueError, "both|two keys"),
        ({"test": (X, Y), "val": (X, Y)}, ValueError, "none called 'train'"),
        ({"train": X, "test": (X, Y)}, ValueError, "training part.* no labels"),
        (TensorDataset(torch.zeros(4, 2), torch.zeros(4), torch.zeros(4)), ValueError, "3 values"),
    ],
)
def test_objects_that_cannot_be_used_are_refused(spec, error, message):
    with pytest.raises(error, match=message):
        load_data(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed.*-1"),
        ({"validation_share": 1.0}, r"validation_share.*1\.0"),
        ({"train_size": 0}, "train_size.*0"),
        ({"train_size": 33}, "train_size is 33, but there are 29"),
        ({"test_size": 9}, "test_size is 9, but there are 8"),
        ({"labels": 30}, r"\[1, 29\].*given 30"),
        ({"image_size": 0}, "image_size.*0"),
        ({"image_size": 8}, r"\(2,\) are no images"),
        ({"channels": 2}, "channels.*2"),
        ({"task": "segmentation"}, "segmentation"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_data((X, Y), **options)


class Pictures(Dataset):
    """A map-style data set as people write them."""

    def __init__(self, count=20, form="pair"):
        self.count, self.form, self.asked = count, form, []

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        if row >= self.count:
            raise IndexError(row)
        self.asked.append(row)
        image = Image.new("RGB", (5, 4), (row, 0, 0))
        label = row % 2
        return {
            "pair": (image, label),
            "alone": image,
            "none": (image, None),
            "dict": {"image": image, "label": label, "age": float(row)},
            "tensor": (torch.full((3, 4, 5), row / 255), label),
            "words": (image, "ab"[label]),
            "mask": (image, torch.full((4, 5), label)),
            "three": (image, label, row),
        }[self.form]


def check_pictures(splits, total=20):
    parts = [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    assert sum(len(part) for part in parts) == total
    for part in parts:
        batch = part.batch(torch.arange(len(part)))
        assert batch.inputs.shape[1:] == (3, 4, 5)
        assert torch.equal((batch.inputs[:, 0, 0, 0] * 255).round().long(), batch.index)
        if batch.labels is not None and batch.labels.ndim == 1:
            assert torch.equal(batch.labels, batch.index % 2)


@pytest.mark.parametrize("form", ["pair", "dict", "tensor"])
def test_a_data_set_is_asked_for_its_items(form):
    dataset = Pictures(form=form)
    splits = load_data(dataset)
    check_pictures(splits)
    assert splits.kind == "classification"
    assert splits.train.lazy
    assert note(splits, "20 items", "read once")
    before = len(dataset.asked)
    splits.train.batch([0])
    splits.train.batch([0])
    assert len(dataset.asked) == before + 2, "random transforms of the data set must stay random"
    if form == "dict":
        batch = splits.train.batch([0, 1])
        assert batch.age.tolist() == batch.index.tolist()


def test_words_masks_and_nothing_as_labels():
    words = load_data(Pictures(form="words"))
    assert words.classes == ["a", "b"]
    check_pictures(words)
    masks = load_data(Pictures(form="mask"))
    assert masks.kind == "segmentation"
    assert masks.classes == ["0", "1"]
    batch = masks.train.batch([0, 1])
    assert torch.equal(batch.labels[:, 0, 0], batch.index % 2)
    for form in ("alone", "none"):
        nothing = load_data(Pictures(form=form))
        assert nothing.kind == "unlabelled"
        check_pictures(nothing)
    dropped = load_data(Pictures(), task="unlabelled")
    assert dropped.train.batch([0]).labels is None
    with pytest.raises(ValueError, match="3 values"):
        load_data(Pictures(form="three"))


class WithTargets(Pictures):
    """Keeps its labels as torchvision's data sets do."""

    def __init__(self, shift=0):
        super().__init__()
        self.targets = [(row + shift) % 2 for row in range(20)]


def test_labels_that_a_data_set_keeps_are_found_without_reading_it():
    dataset = WithTargets()
    splits = load_data(dataset)
    check_pictures(splits)
    assert len(set(dataset.asked)) >= 8
    dataset.asked.clear()
    load_data(dataset, train_size=2, test_size=2)
    assert len(dataset.asked) <= 11  # seven samples that are checked, and a few looks at the first: are there boxes?
    check_pictures(load_data(ConcatDataset([Subset(WithTargets(), range(10)), Subset(WithTargets(), range(10, 20))])))
    wrong = load_data(WithTargets(shift=1))
    check_pictures(wrong)
    assert note(wrong, "read once")


def test_images_of_a_data_set_can_be_resized():
    splits = load_data(Pictures(), image_size=2, channels=1)
    batch = splits.train.batch(torch.arange(4))
    assert batch.inputs.shape == (4, 1, 2, 2)
    torch.testing.assert_close(batch.inputs.mean((1, 2, 3)), 0.299 * batch.index / 255)
    assert torch.equal(batch.labels, batch.index % 2)


def test_pairs_and_splits_of_data_sets():
    first, second = random_split(Pictures(), [15, 5], generator=torch.Generator().manual_seed(0))
    splits = load_data((first, second), validation_share=0)
    assert (len(splits.train), len(splits.test)) == (15, 5)
    assert splits.test.index.tolist() == list(range(15, 20))
    held = load_data(TensorDataset(torch.tensor(X), torch.tensor(Y)))
    assert not held.train.lazy
    assert len(load_data({"train": Pictures(), "test": Pictures(6)}).test) == 6


def flipped(items):
    images = torch.stack([torch.full((3, 4, 5), image.getpixel((0, 0))[0] / 255) for image, _ in items])
    return {"pixel_values": images, "labels": torch.tensor([1 - label for _, label in items])}


def test_a_loader_gives_its_data_set_and_its_way_of_joining():
    check_pictures(load_data(DataLoader(Pictures(form="tensor"), batch_size=3, shuffle=True)))
    splits = load_data(DataLoader(Pictures(), batch_size=3, collate_fn=flipped))
    batch = splits.train.batch(torch.arange(len(splits.train)))
    assert torch.equal((batch.inputs[:, 0, 0, 0] * 255).round().long(), batch.index)
    assert torch.equal(batch.labels, 1 - batch.index % 2)
    assert torch.equal(splits.train.labels, batch.labels)
    pair = load_data((DataLoader(Pictures(form="tensor")), DataLoader(Pictures(6, form="tensor"))))
    assert len(pair.test) == 6


class Endless(IterableDataset):
    def __iter__(self):
        yield from range(10)


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (Endless(), TypeError, "Endless is an iterable"),
        (DataLoader(Endless()), TypeError, "Endless is an iterable"),
        (DataLoader(Pictures(), sampler=SubsetRandomSampler(range(5))), ValueError, "SubsetRandomSampler.*Subset"),
        (DataLoader(Pictures(), sampler=WeightedRandomSampler([1.0] * 20, 20)), ValueError, "WeightedRandomSampler"),
        (DataLoader(Pictures(), batch_size=None), ValueError, "own way"),
        (Pictures(0), ValueError, "empty"),
    ],
)
def test_loaders_that_would_lose_something_are_refused(loader, error, message):
    with pytest.raises(error, match=message):
        load_data(loader)


def test_inputs_that_are_dicts():
    table = datasets.Dataset.from_dict(
        {"input_ids": [[1, 2], [3, 4]] * 5, "mask_ids": [[1, 1]] * 10, "label": [0, 1] * 5}
    )
    splits = load_data(Wrapped(table.with_format("torch")), validation_share=0)
    batch = splits.train.batch([0, 1])
    assert set(batch.inputs) == {"input_ids", "mask_ids"}
    assert batch.inputs["input_ids"].dtype == torch.int64
    assert batch.labels.shape == (2,)


class Wrapped(Dataset):
    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, row):
        return self.inner[row]


def test_splits_and_samples_go_through_with_their_numbers():
    given = digits()
    splits = load_data(given, validation_share=0)
    assert torch.equal(splits.train.index, given.train.index)
    assert torch.equal(splits.test.index, given.test.index)
    small = load_data(given, train_size=50, test_size=20, labels=20, validation_share=0)
    assert (len(small.train), len(small.unlabelled), len(small.test)) == (20, 30, 20)
    assert set(small.unlabelled.index.tolist()) <= set(given.train.index.tolist())
    part = load_data(given.train)
    assert set(part.test.index.tolist()) <= set(given.train.index.tolist())
    with pytest.raises(ValueError, match=r"'digits' is a classification data set, but task is 'regression'"):
        load_data(given, task="regression")
    unlabelled = load_data(given, task="unlabelled")
    assert unlabelled.kind == "unlabelled"
    assert unlabelled.train.labels is None


def test_masks_in_memory_do_not_follow_another_size():
    with pytest.raises(ValueError, match=r"24x24 .*image_size=12"):
        load_data(scenes(), image_size=12)
    assert load_data(scenes(), channels=1).train.shape == (1, 24, 24)


def test_a_pool_is_numbered_after_the_data_and_streams_with_them():
    splits = load_data((X, Y), unlabelled=(X + 1, None))
    assert splits.unlabelled.index.tolist() == list(range(40, 80))
    stream = Stream(splits.train, batch_size=8, seed=0, unlabelled=splits.unlabelled, unlabelled_batch=8)
    batch = stream.batch(0)
    assert batch.index[8:].min() >= 40
    assert torch.equal((batch.inputs[8:, 0] * 50).round().long(), batch.index[8:] + 10)
    assert batch.labels[8:].unique().tolist() == [-100]
    again = load_data(digits(), unlabelled=digits().train)
    assert not set(again.unlabelled.index.tolist()) & set(range(1797))


def test_few_labels_of_many():
    splits = load_data((X, Y), labels=10, seed=4)
    assert len(splits.train) == 10
    assert splits.train.labels.bincount().tolist() == [5, 5]
    assert len(splits.unlabelled) == 19
    assert torch.equal(splits.validation.index, load_data((X, Y), seed=4).validation.index)
    assert isinstance(splits, Splits)
    assert isinstance(splits.train, TensorSamples)
    with pytest.raises(ValueError, match="have none"):
        load_data((X, None), labels=10)
