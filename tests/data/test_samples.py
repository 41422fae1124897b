import pytest
import torch
from torch.utils.data import DataLoader

from stillroom.data import LazySamples, Splits, TensorSamples, load_data


def images(count=6):
    return torch.arange(count * 12, dtype=torch.uint8).view(count, 3, 2, 2)


def both_kinds():
    """The same six samples, held and fetched."""
    pixels, labels = images(), torch.tensor([0, 1, 2, 0, 1, 2])
    held = TensorSamples(pixels, labels)
    fetched = LazySamples(lambda row: (pixels[row], int(labels[row])), 6, labels, (3, 2, 2))
    label_from_fetch = LazySamples(lambda row: (pixels[row], int(labels[row])), 6, None, (3, 2, 2))
    return [held, fetched, label_from_fetch]


@pytest.mark.parametrize("samples", both_kinds(), ids=["held", "fetched", "label from fetch"])
def test_a_batch_has_inputs_in_0_1_int64_labels_and_row_numbers(samples):
    batch = samples.batch(torch.tensor([4, 0, 4]))
    assert batch.inputs.dtype == torch.float32
    assert torch.equal(batch.inputs[0] * 255, torch.arange(48.0, 60).view(3, 2, 2))
    assert torch.equal(batch.inputs[0], batch.inputs[2])
    assert batch.labels.tolist() == [1, 0, 1]
    assert batch.labels.dtype == torch.int64
    assert batch.index.tolist() == [4, 0, 4]
    assert samples.shape == (3, 2, 2)
    assert len(samples) == 6


@pytest.mark.parametrize("samples", both_kinds(), ids=["held", "fetched", "label from fetch"])
def test_a_subset_of_a_subset_keeps_the_original_numbers(samples):
    part = samples.subset([5, 3, 1]).subset(torch.tensor([2, 0]))
    assert len(part) == 2
    assert part.index.tolist() == [1, 5]
    batch = part.batch(torch.tensor([1]))
    assert batch.index.tolist() == [5]
    assert batch.labels.tolist() == [2]
    assert torch.equal(batch.inputs, samples.batch(torch.tensor([5])).inputs)
    assert part.population == 6
    assert len(samples) == 6, "the whole must not change"


@pytest.mark.parametrize("samples", both_kinds(), ids=["held", "fetched", "label from fetch"])
def test_labels_can_be_dropped_and_exchanged_in_a_subset(samples):
    part = samples.subset([5, 3])
    dropped = part.relabel(None)
    assert dropped.labels is None
    assert dropped.batch([0, 1]).labels is None
    exchanged = part.relabel(torch.tensor([7, 8]))
    assert exchanged.labels.tolist() == [7, 8]
    assert exchanged.batch([1]).labels.tolist() == [8]
    assert samples.batch([5, 3]).labels.tolist() == [2, 0], "the original must not change"


def test_renumbered_samples_hold_the_same_data():
    part = TensorSamples(images()).subset([5, 3]).renumber(torch.tensor([100, 101]))
    assert part.index.tolist() == [100, 101]
    assert torch.equal(part.batch([1]).inputs, TensorSamples(images()).batch([3]).inputs)


def test_fields_are_cut_with_the_rest():
    samples = TensorSamples(images(), fields={"depth": torch.arange(6.0)}).subset([4, 2])
    assert samples.batch([1, 0]).depth.tolist() == [2, 4]
    assert samples.fields["depth"].tolist() == [4, 2]


def test_an_item_is_what_a_torch_data_set_gives():
    samples = TensorSamples(images(), torch.tensor([0, 1, 2, 0, 1, 2])).subset([3, 4])
    inputs, label = samples[-1]
    assert torch.equal(inputs * 255, torch.arange(48.0, 60).view(3, 2, 2))
    assert int(label) == 1
    loader = DataLoader(samples, batch_size=2)
    ((inputs, labels),) = list(loader)
    assert inputs.shape == (2, 3, 2, 2)
    assert labels.tolist() == [0, 1]
    assert TensorSamples(images())[0].shape == (3, 2, 2)
    with pytest.raises(IndexError, match="2"):
        samples[2]


def test_floats_stay_and_doubles_become_floats():
    values = torch.tensor([[-3.0, 7.0]], dtype=torch.float64)
    batch = TensorSamples(values, torch.tensor([[0.5]], dtype=torch.float64)).batch([0])
    assert batch.inputs.dtype == torch.float32
    assert batch.inputs.tolist() == [[-3.0, 7.0]]
    assert batch.labels.dtype == torch.float32


def test_inputs_may_be_several_named_tensors():
    samples = TensorSamples({"tokens": torch.arange(6).view(3, 2), "mask": torch.ones(3, 2)}).subset([2, 0])
    batch = samples.batch([0])
    assert batch.inputs["tokens"].tolist() == [[4, 5]]
    assert batch.inputs["tokens"].dtype == torch.int64


def test_small_mask_numbers_become_int64_in_a_batch_only():
    samples = TensorSamples(images(), torch.full((6, 2, 2), -100, dtype=torch.int16))
    assert samples.labels.dtype == torch.int16
    assert samples.batch([0]).labels.dtype == torch.int64


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"labels has 5 rows.* 6 samples"):
        TensorSamples(images(), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"of 6 and of 2 rows"):
        TensorSamples([images(), torch.zeros(2)])
    with pytest.raises(ValueError, match=r"\[0, 6\).* from 2 to 6"):
        TensorSamples(images()).subset([2, 6])
    with pytest.raises(ValueError, match=r"int64.*float32"):
        TensorSamples(images(), index=torch.zeros(6))
    with pytest.raises(ValueError, match=r"labels has 1 rows.* 2 samples"):
        TensorSamples(images()).subset([2, 3]).relabel(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"\(6,\) int64, given \(2,\)"):
        TensorSamples(images()).renumber(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="list"):
        TensorSamples([])
    with pytest.raises(ValueError, match="'guessing'"):
        Splits(TensorSamples(images()), TensorSamples(images()), kind="guessing")


def test_classes_that_are_tested_only_are_said():
    inputs, labels = torch.zeros(8, 2), torch.tensor([0, 1, 0, 1, 0, 1, 2, 3])
    splits = load_data(((inputs[:6], labels[:6]), (inputs, labels)), validation_share=0)
    assert "2 classes occur in the test split, but not in the training samples: 2, 3" in splits.notes
    words = ["ape", "cow", "ape", "cow", "ape", "cow", "cow", "dog"]
    splits = load_data(((inputs[:6], words[:6]), (inputs, words)), validation_share=0)
    assert "1 class occurs in the test split, but not in the training samples: dog" in splits.notes
    assert not any("occur" in note for note in load_data((inputs[:6], labels[:6])).notes)


def spoiled(*rows):
    inputs = torch.arange(80.0).view(40, 2) / 100
    inputs[list(rows)] = torch.tensor([0.5, float("nan")])
    return inputs


def test_values_that_are_not_finite_are_refused_wherever_they_are():
    labels = torch.arange(40) % 2
    splits = load_data((spoiled(), labels), seed=1)
    for split in ("train", "validation", "test"):
        row = int(getattr(splits, split).index[1])
        with pytest.raises(ValueError, match=rf"1 sample of the {split} split holds NaN .*\(row {row} of the data\)"):
            load_data((spoiled(row), labels), seed=1)
    first, second = (spoiled(), labels), (spoiled(3, 39).mul(float("inf")), labels)
    with pytest.raises(ValueError, match=r"40 samples of the test split hold NaN.*\(rows 0, 1, .*9 and 30 more of the"):
        load_data((first, second))
    with pytest.raises(ValueError, match=r"of the unlabelled split.*\(row 7 of the unlabelled part\)"):
        load_data(first, unlabelled=spoiled(7))
    with pytest.raises(ValueError, match=r"40 samples|NaN or infinite"):
        load_data((torch.full((40, 3, 2, 2), torch.inf), labels))
    whole = TensorSamples({"a": torch.zeros(5, 2), "b": torch.tensor([0, 0, torch.inf, 0, torch.nan])})
    assert whole.not_finite().tolist() == [2, 4]
    assert whole.subset([4, 1]).not_finite().tolist() == [0]
    assert not len(TensorSamples(torch.zeros(5, 1, 2, 2, dtype=torch.uint8)).not_finite())
