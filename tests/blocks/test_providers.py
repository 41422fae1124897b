import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.blocks import Average, Cached, Frozen, FunctionTeacher
from stillroom.blocks.providers import checksum
from stillroom.data.batch import Batch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def batch_of(rows: list[int], inputs: torch.Tensor) -> Batch:
    index = torch.tensor(rows)
    return Batch(inputs[index], index=index)


class Counting(nn.Module):
    """A network that notes how many samples it was asked about."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3, dtype=dtype)
        self.asked: list[int] = []

    def forward(self, x):
        self.asked.append(len(x))
        return self.layer(x.to(self.layer.weight.dtype))


# Average


def constant(*logits: float):
    return lambda batch: torch.tensor(logits).expand(len(batch), -1)


def test_logits_are_averaged_by_relative_weights():
    teacher = Frozen(Average([constant(0.0, 4.0), constant(2.0, -4.0)], weights=[1, 3]))
    assert teacher(torch.zeros(2, 1)).tolist() == [[1.5, -2], [1.5, -2]]
    assert Average([constant(0.0, 4.0), constant(2.0, 0.0)])(Batch(torch.zeros(1, 1))).tolist() == [[1, 2]]


def test_probabilities_are_averaged_and_come_back_as_logarithms():
    first = [math.log(0.9), math.log(0.1)]
    second = [5 + math.log(0.3), 5 + math.log(0.7)]  # logits may be shifted
    teacher = Average([constant(*first), constant(*second)], weights=[1, 3], of="probabilities")
    said = teacher(Batch(torch.zeros(1, 1)))
    expected = [[math.log(0.25 * 0.9 + 0.75 * 0.3), math.log(0.25 * 0.1 + 0.75 * 0.7)]]
    torch.testing.assert_close(said, torch.tensor(expected))


def test_dense_logits_are_averaged_over_the_class_axis():
    maps = [torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)]
    teacher = Average([lambda batch, m=m: m for m in maps], of="probabilities")
    expected = torch.stack([m.double().softmax(1) for m in maps]).mean(0).log()
    torch.testing.assert_close(teacher(Batch(torch.zeros(2, 1))).double(), expected, atol=1e-6, rtol=0)


def test_networks_and_providers_mix_and_move_with_the_teacher():
    network = nn.Linear(4, 2)
    teacher = Frozen(Average([network, Average([network]), Frozen(network), lambda batch: network(batch.inputs)]))
    teacher.to(torch.float64)
    inputs = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(teacher(Batch(inputs)), network(inputs).detach())
    assert network.weight.dtype == torch.float64
    assert not network.weight.requires_grad
    assert list(teacher.parameters()) == []


def test_an_average_has_a_fingerprint_of_its_members():
    teacher = Frozen(Average([nn.Linear(4, 2), nn.Linear(4, 2)]))
    before = teacher.fingerprint()
    with torch.no_grad():
        teacher.network.teachers[1].bias.add_(1)
    assert teacher.fingerprint() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "at least one teacher, given none"),
        (([len, len], [1]), "given 1 for 2 teachers"),
        (([len, len], [1, 0]), r"weights\[1\] must be a number above 0, given 0"),
        (([len], None, "votes"), '"logits" or "probabilities", given \'votes\''),
    ],
)
def test_wrong_averages_are_refused(arguments, message):
    options = dict(zip(("weights", "of"), arguments[1:], strict=False))
    with pytest.raises(ValueError, match=message):
        Average(arguments[0], **options)


def test_teachers_of_other_classes_or_outputs_are_refused():
    with pytest.raises(ValueError, match=r"teacher 1 returned shape \(2, 3\), but teacher 0 returned \(2, 2\)"):
        Average([constant(0.0, 1.0), constant(0.0, 1.0, 2.0)])(Batch(torch.zeros(2, 1)))
    with pytest.raises(TypeError, match="teacher 0 returned tuple"):
        Average([lambda batch: (batch.inputs,)])(Batch(torch.zeros(2, 1)))
    with pytest.raises(TypeError, match="given str"):
        Average(["resnet18"])


# Cached


def test_hits_are_bit_equal_to_live_answers_and_ask_nobody():
    network, inputs = Counting(), torch.randn(10, 4)
    teacher = Frozen(Cached(network, 10))
    batch = batch_of([3, 1, 9, 0], inputs)
    live = network(batch.inputs).detach()
    asked = len(network.asked)
    assert torch.equal(teacher(batch), live)
    assert torch.equal(teacher(batch), live)
    assert torch.equal(teacher(batch[torch.tensor([2, 0])]), live[[2, 0]])
    assert len(network.asked) == asked + 1
    assert len(teacher.network) == 4


def test_only_misses_are_asked_about():
    network, inputs = Counting(), torch.randn(10, 4)
    cached = Cached(network, 10)
    cached(batch_of([0, 1, 2], inputs))
    said = cached(batch_of([2, 5, 0, 7], inputs))
    assert network.asked == [3, 2]
    torch.testing.assert_close(said, network(inputs[[2, 5, 0, 7]]))


def test_a_smaller_dtype_rounds_and_gives_the_same_answer_every_time():
    inputs = torch.randn(10, 4)
    cached = Cached(network := Counting(), 10, dtype=torch.float16)
    batch = batch_of([4, 2], inputs)
    first = cached(batch)
    assert first.dtype == torch.float32
    assert torch.equal(first, network(batch.inputs).half().float())
    assert torch.equal(cached(batch), first)


def test_narrow_answers_are_kept_exactly_in_float32():
    cached = Cached(network := Counting(torch.bfloat16), 10)
    batch = batch_of([4, 2], torch.randn(10, 4))
    assert torch.equal(cached(batch), network(batch.inputs))
    assert cached(batch).dtype == torch.bfloat16


def test_an_answer_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"an answer of 100000 does not fit torch\.float16"):
        Cached(lambda batch: torch.full((len(batch), 2), 1e5), 3, dtype=torch.float16)(batch_of([0], torch.zeros(1, 1)))


def test_changed_inputs_are_refused_by_their_sample():
    inputs = torch.randn(10, 4)
    cached = Cached(Counting(), 10)
    cached(batch_of([6, 7], inputs))
    changed = inputs.clone()
    changed[7, 2] += 1e-6
    with pytest.raises(ValueError, match=r"sample 7 came with other inputs .*switch random augmentation off"):
        cached(batch_of([1, 6, 7], changed))
    unwatched = Cached(Counting(), 10, watch_inputs=False)
    assert torch.equal(unwatched(batch_of([7], inputs)), unwatched(batch_of([7], changed)))


def test_batches_without_usable_numbers_are_refused():
    cached = Cached(Counting(), 10)
    with pytest.raises(ValueError, match="this batch has no index"):
        cached(Batch(torch.zeros(2, 4)))
    with pytest.raises(ValueError, match=r"must lie in \[0, 10\), given 3 to 10"):
        cached(Batch(torch.zeros(2, 4), index=torch.tensor([3, 10])))
    with pytest.raises(ValueError, match=r"given torch\.int32 of \(2,\)"):
        cached(Batch(torch.zeros(2, 4), index=torch.tensor([3, 4], dtype=torch.int32)))


def test_wrong_caches_and_answers_are_refused():
    with pytest.raises(ValueError, match="1 or more, given 0"):
        Cached(Counting(), 0)
    with pytest.raises(ValueError, match=r"a float dtype .* given torch\.int8"):
        Cached(Counting(), 3, dtype=torch.int8)
    with pytest.raises(TypeError, match="given tuple"):
        Cached(lambda batch: (batch.inputs,), 3)(batch_of([0], torch.zeros(3, 1)))
    growing = Cached(lambda batch: torch.zeros(len(batch), len(batch)), 3)
    growing(batch_of([0], torch.zeros(3, 1)))
    with pytest.raises(ValueError, match=r"shape \(2, 2\), expected \(2, 1\)"):
        growing(batch_of([1, 2], torch.zeros(3, 1)))


def test_a_cache_is_saved_without_its_teacher_and_goes_on(tmp_path):
    inputs = torch.randn(10, 4)
    cached = Cached(Counting(torch.bfloat16), 10)
    said = cached(batch_of([3, 1], inputs))
    torch.save(cached.state_dict(), tmp_path / "cache.pt")
    assert list(cached.state_dict()) == ["_extra_state"]

    other = Cached(network := Counting(torch.bfloat16), 10)
    other.load_state_dict(torch.load(tmp_path / "cache.pt"))
    assert torch.equal(other(batch_of([3, 1], inputs)), said)
    assert network.asked == []
    with pytest.raises(ValueError, match="sample 1 came with other inputs"):
        other(batch_of([1], inputs + 1))
    with pytest.raises(ValueError, match=r"for 11 samples in torch\.float32, but the state holds 10"):
        Cached(Counting(), 11).load_state_dict(cached.state_dict())
    with pytest.raises(ValueError, match=r"in torch\.float16, but the state holds 10 in torch\.float32"):
        Cached(Counting(), 10, dtype=torch.float16).load_state_dict(cached.state_dict())


def test_casting_a_method_does_not_cast_its_cache():
    inputs = torch.randn(10, 4)
    teacher = Frozen(Cached(Counting(), 10))
    said = teacher(batch_of([2], inputs))
    teacher.half()
    assert torch.equal(teacher(batch_of([2], inputs)), said)
    assert teacher.network.provider.network.layer.weight.dtype == torch.float16


def test_copies_of_a_cache_fill_on_their_own():
    inputs = torch.randn(10, 4)
    cached = Cached(Counting(), 10)
    cached(batch_of([2], inputs))
    twin = copy.deepcopy(cached)
    cached(batch_of([3, 4], inputs))
    assert (len(cached), len(twin)) == (3, 1)


def test_the_fingerprint_of_a_cache_is_its_teachers():
    network = Counting()
    teacher = Frozen(Cached(network, 10))
    before = teacher.fingerprint()
    assert before == Frozen(network).fingerprint()
    teacher(batch_of([2], torch.randn(10, 4)))
    assert teacher.fingerprint() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("width", [5, 8])
def test_the_checksum_sees_every_value_and_no_other_sample(dtype, width):
    inputs = torch.randint(0, 2, (6, 1, width)).to(dtype)
    sums = checksum(inputs)
    assert torch.equal(checksum(inputs[2:4]), sums[2:4])
    assert torch.equal(checksum(inputs.transpose(1, 2).contiguous().transpose(1, 2)), sums)
    for column in range(width):
        changed = inputs.clone()
        changed[:, 0, column] = ~changed[:, 0, column] if dtype == torch.bool else 1 - changed[:, 0, column]
        assert (checksum(changed) != sums).all()


def test_the_checksum_sees_order_and_place():
    inputs = torch.rand(4, 6)
    assert (checksum(inputs.flip(1)) != checksum(inputs)).all()
    assert (checksum([inputs, inputs + 1]) != checksum([inputs + 1, inputs])).all()
    assert (checksum({"a": inputs}) == checksum(inputs)).all()


# FunctionTeacher


def test_a_function_gets_arrays_and_gives_a_tensor():
    seen = []

    def predict(array):
        seen.append(array)
        return array.reshape(len(array), -1)[:, :2].astype(np.float16)

    inputs = torch.rand(3, 1, 2, 2, requires_grad=True)
    said = Frozen(FunctionTeacher(predict))(Batch(inputs))
    assert isinstance(seen[0], np.ndarray)
    assert seen[0].shape == (3, 1, 2, 2)
    assert said.dtype == torch.float32
    torch.testing.assert_close(said, inputs.detach().flatten(1)[:, :2], atol=1e-3, rtol=0)
    FunctionTeacher(lambda array: seen.append(array) or array[:, :2], flat=True)(Batch(inputs))
    assert seen[1].shape == (3, 4)


def test_a_function_may_take_tensors_and_return_lists():
    said = FunctionTeacher(lambda tensor: (2.0 * tensor).tolist(), arrays=False)(Batch(torch.ones(2, 3)))
    assert said.tolist() == [[2, 2, 2], [2, 2, 2]]
    assert said.dtype == torch.float64


def test_probabilities_become_logits_whose_softmax_they_are():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    said = FunctionTeacher(lambda inputs: probabilities, probabilities=True, smallest=0.01)(Batch(torch.zeros(2, 1)))
    expected = torch.tensor([[0.2, 0.5, 0.3], [0.01 / 1.02, 1 / 1.02, 0.01 / 1.02]], dtype=torch.float64)
    torch.testing.assert_close(said.softmax(1), expected)
    torch.testing.assert_close(said.exp().sum(1), torch.ones(2, dtype=torch.float64))


def test_a_forest_teaches():
    from sklearn.ensemble import RandomForestClassifier

    inputs, labels = torch.rand(60, 2, 2), torch.arange(60) % 3
    inputs[:, 0, 0] += labels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forest = RandomForestClassifier(20, random_state=0).fit(inputs.flatten(1).numpy(), labels.numpy())
    teacher = FunctionTeacher(forest.predict_proba, classes=3, probabilities=True, flat=True)
    said = Frozen(Cached(teacher, 60))(Batch(inputs, index=torch.arange(60)))
    assert said.isfinite().all()
    assert (said.argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize(
    ("predict", "options", "message"),
    [
        (lambda inputs: np.zeros(2), {}, r"shape \(2,\), expected \(2, classes\)"),
        (lambda inputs: np.zeros((3, 4)), {}, r"shape \(3, 4\), expected \(2, classes\)"),
        (lambda inputs: np.zeros((2, 4)), {"classes": 5}, r"shape \(2, 4\), expected \(2, 5\)"),
        (lambda inputs: np.zeros((2, 4), int), {}, r"torch\.int64, expected float scores"),
        (lambda inputs: np.full((2, 4), np.nan), {}, "NaN or infinity"),
        (lambda inputs: np.full((2, 4), 0.5), {"probabilities": True}, "sum to 2 to 2, expected probabilities"),
        (lambda inputs: np.array([[1.5, -0.5]] * 2), {"probabilities": True}, r"values from -0\.5"),
    ],
)
def test_what_a_function_should_not_say_is_refused(predict, options, message):
    with pytest.raises(ValueError, match=message):
        FunctionTeacher(predict, **options)(Batch(torch.zeros(2, 1)))


def test_wrong_function_teachers_are_refused():
    with pytest.raises(TypeError, match="given str"):
        FunctionTeacher("predict_proba")
    with pytest.raises(ValueError, match=r"in \(0, 1\), given 0"):
        FunctionTeacher(len, smallest=0)
