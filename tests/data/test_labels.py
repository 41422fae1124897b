import numpy as np
import pytest
import torch

from stillroom.data.labels import read_labels

NAN = float("nan")


def one(values, **options):
    labels = read_labels({"train": values}, **options)
    return labels.parts["train"], labels


def test_integers_are_classes():
    values, labels = one([2, 0, 1, -100])
    assert labels.kind == "classification"
    assert values.tolist() == [2, 0, 1, -100]
    assert values.dtype == torch.int64
    assert labels.classes == ["0", "1", "2"]
    assert one(np.array([[0], [1]], dtype=np.uint8))[0].tolist() == [0, 1]
    assert one([True, False])[0].tolist() == [1, 0]
    assert one([1, None, 0])[0].tolist() == [1, -100, 0]


def test_words_are_numbered_in_alphabetical_order_over_all_parts():
    labels = read_labels({"train": ["dog", "cat", None], "test": np.array(["ape", "dog"])})
    assert labels.classes == ["ape", "cat", "dog"]
    assert labels.parts["train"].tolist() == [2, 1, -100]
    assert labels.parts["test"].tolist() == [0, 2]
    assert any("'ape' = 0, 'cat' = 1" in note for note in labels.notes)


def test_words_follow_names_that_are_given():
    values, labels = one(["dog", "cat"], classes=["dog", "cat", "ape"])
    assert values.tolist() == [0, 1]
    assert labels.classes == ["dog", "cat", "ape"]
    with pytest.raises(ValueError, match="'cow'"):
        one(["dog", "cow"], classes=["dog", "cat"])


def test_columns_of_0_and_1_are_several_labels():
    values, labels = one([[0, 1, 1], [1, 0, 0]])
    assert labels.kind == "multi-label"
    assert values.dtype == torch.float32
    assert labels.classes == ["0", "1", "2"]
    assert one(torch.tensor([[0, NAN], [1, 1]]))[1].kind == "multi-label"


def test_one_hot_rows_are_pointed_out_and_converted_on_request():
    hot = np.eye(3)[[2, 0, 1]]
    _, labels = one(hot)
    assert labels.kind == "multi-label"
    assert any('task="classification"' in note for note in labels.notes)
    assert one(hot, task="classification")[0].tolist() == [2, 0, 1]


def test_other_floats_are_numbers_to_predict():
    values, labels = one([0.5, 2.0, NAN])
    assert labels.kind == "regression"
    assert values.shape == (3, 1)
    assert labels.classes is None
    assert not labels.notes
    assert one([[0.5, 1.0], [3.0, 1.0]])[0].shape == (2, 2)
    assert any("integers" in note for note in one([1.0, 0.0, 2.0])[1].notes)


def test_a_task_decides_where_labels_could_mean_two_things():
    values, labels = one([0, 3, 7], task="regression")
    assert labels.kind == "regression"
    assert values.tolist() == [[0], [3], [7]]
    values, _ = one([0.0, 1.0, NAN], task="classification")
    assert values.tolist() == [0, 1, -100]
    values, _ = one([-100, 3, 7], task="regression")
    assert values[0].isnan().all()
    assert one([[0, 5], [7, 2]], task="regression")[0].tolist() == [[0, 5], [7, 2]]
    assert one([0, 1, 2], task="embeddings")[1].kind == "classification"


def test_floats_that_are_class_numbers_are_not_guessed_about():
    numbers = torch.arange(30) % 3
    for labels in (numbers.float(), numbers.double().unsqueeze(1).numpy(), [*numbers.float().tolist(), NAN]):
        with pytest.raises(
            ValueError, match=r'floats, but.*0, 1, .*task="classification" for classes.*task="regression" for numbers'
        ):
            one(labels)
        assert one(labels, task="classification")[1].classes == ["0", "1", "2"]
        assert one(labels, task="regression")[0].shape == (len(labels), 1)
        assert one(labels, task="embeddings")[1].kind == "regression"
    for counts in (torch.arange(30.0), 2.0 * numbers, numbers + 0.5):
        assert one(counts)[1].kind == "regression"


def test_masks_of_any_integers_and_with_a_channel():
    for dtype in (torch.uint8, torch.int32, torch.int64):
        values, labels = one(torch.tensor([[[[0, 1], [255, 2]]]]).to(dtype))
        assert labels.kind == "segmentation"
        assert values.tolist() == [[[0, 1], [-100, 2]]]
        assert labels.classes == ["0", "1", "2"]
        assert any("255" in note and "no label" in note for note in labels.notes)
    assert len(one(torch.arange(256).view(1, 16, 16))[1].classes) == 256
    with pytest.raises(ValueError, match=r"same class \(0\).*0 and 1, because 255"):
        one(torch.tensor([[[0, 255], [255, 0]]]))
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 2\) and dtype int64"):
        one(torch.zeros(1, 2, 2, 2, dtype=torch.int64))


def test_masks():
    masks = np.array([[[0, 1], [255, 2]]], dtype=np.uint8)
    values, labels = one(masks)
    assert labels.kind == "segmentation"
    assert values.tolist() == [[[0, 1], [-100, 2]]]
    assert labels.classes == ["0", "1", "2"]
    assert read_labels({"train": None}, masks=True, classes=["a", "b"]).classes == ["a", "b"]


def test_no_labels():
    assert one(None)[1].kind == "unlabelled"
    assert one([0, 1], task="unlabelled")[1].kind == "unlabelled"
    assert one([0, 1], task="unlabelled")[0] is None
    assert any("no labels" in note for note in one(None, task="classification")[1].notes)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1, 2, 3], {}, r"3 different numbers between 1 and 3"),
        ([0, 1, 5], {}, r"between 0 and 5.* 0 to 2"),
        ([0, -1], {}, r"from -1 to 0.*-100"),
        ([0, 3], {"classes": ["a", "b"]}, r"up to 3.* 2 classes"),
        ([4, 4], {"classes": list("abcde")}, r"same class \(4\)"),
        ([-100, -100], {}, "every label is -100"),
        ([[0, 5], [7, 2]], {}, r"\(2, 2\).*task="),
        ([0.5, 1.5], {"task": "classification"}, r"float32.*regression.*classification"),
        ([0, 1], {"task": "segmentation"}, r"\(2,\).*segmentation"),
        ([0, 1], {"task": "sorting"}, "'sorting'"),
        ([[1, 2], [3]], {}, "different lengths"),
        (torch.tensor([1j, 2]), {}, "complex"),
        ([[0, 1], [1, 1]], {"classes": ["a"]}, r"2 columns.* 1 classes"),
    ],
)
def test_labels_that_cannot_be_are_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        one(values, **options)


def test_parts_must_agree():
    with pytest.raises(ValueError, match="words in 'train'"):
        read_labels({"train": ["a", "b"], "test": [0, 1]})
    with pytest.raises(ValueError, match=r"\(2,\)"):
        read_labels({"train": [0, 1], "test": [[0, 1]]})
    with pytest.raises(ValueError, match=r"masks.*'regression'"):
        read_labels({"train": None}, masks=True, task="regression")
