"""Whose answers a cache on disk gives: of which teacher, to which data; and what it says while it is filled."""

import shutil

import pytest
import torch

from stillroom.blocks import Average, Frozen, FunctionTeacher
from stillroom.data.samples import LazySamples, TensorSamples
from stillroom.data.stream import Stream
from stillroom.hub.model import Model
from stillroom.teacher_cache import CachedOnDisk
from stillroom.teacher_cache.pace import Pace
from tests.test_teacher_cache import images
from tests.toys import conv, splits


def changed_images(row):
    samples = images()
    samples._inputs = samples._inputs.clone()
    samples._inputs[row, 0, 0, 0] += 0.5
    return samples


@pytest.mark.parametrize("row", [0, 20, 39])
def test_data_that_changed_anywhere_are_asked_about_anew(tmp_path, row):
    def answers(samples, pool=None):
        cache = CachedOnDisk(conv().eval(), tmp_path)
        stream = Stream(samples, batch_size=8, seed=0, unlabelled=pool, unlabelled_batch=8 * bool(pool), views=1)
        cache.open(stream)
        for drawn in stream.batches(0, 2 * len(stream)):
            torch.testing.assert_close(cache(drawn), cache.provider.network(drawn.inputs), rtol=1e-5, atol=1e-6)

    answers(images())
    answers(changed_images(row))
    answers(images(8), images())
    answers(images(8), changed_images(row))
    assert len(list(tmp_path.iterdir())) == 4


def test_of_samples_that_are_fetched_only_the_first_are_looked_at(tmp_path):
    def fetched(samples):
        seen = []

        def fetch(row):
            seen.append(row)
            return samples[row]

        return Stream(LazySamples(fetch, 40, None, (1, 8, 8)), batch_size=8, seed=0, views=1), seen

    stream, _ = fetched(images())
    CachedOnDisk(conv(), tmp_path).open(stream)
    stream, seen = fetched(changed_images(20))
    cache = CachedOnDisk(conv(), tmp_path)
    cache.open(stream)
    assert set(seen) == set(range(16))
    place = next(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"if the data have changed, delete {place}; else leave the batches"):
        [cache(drawn) for drawn in stream.batches(0, len(stream))]
    shutil.rmtree(place)
    cache.open(stream)
    for drawn in stream.batches(0, len(stream)):
        torch.testing.assert_close(cache(drawn), cache.provider.network(drawn.inputs))


def test_a_teacher_that_may_answer_differently_is_asked_itself(tmp_path):
    def model(**options):
        return Model(conv(), **({"channels": 1, "mean": [0.5], "std": [0.2]} | options))

    stream = Stream(images(), batch_size=8, seed=0, views=1)
    for teacher in (
        model(),
        model(mean=[0.4]),
        model(size=6),
        Average([Frozen(conv()), Frozen(conv(seed=1))]),
        Average([Frozen(conv(seed=1)), Frozen(conv(seed=2))]),
        Average([Frozen(conv(seed=1)), Frozen(conv(seed=2))], weights=[1, 3]),
        Average([Frozen(conv(seed=1)), Frozen(conv(seed=2))], of="probabilities"),
        FunctionTeacher(lambda inputs: inputs.reshape(len(inputs), -1)[:, :3], version="1"),
        FunctionTeacher(lambda inputs: inputs.reshape(len(inputs), -1)[:, 3:6], version="2"),
    ):
        cache = CachedOnDisk(teacher, tmp_path)
        cache.open(stream)
        for drawn in stream.batches(0, len(stream)):
            torch.testing.assert_close(cache(drawn), Frozen(teacher)(drawn), rtol=1e-5, atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 9


def test_a_function_is_known_by_what_it_says_of_itself(tmp_path):
    def forest(batch):
        return batch.inputs.flatten(1)[:, :3]

    forest.fingerprint = lambda: "forest of May: /a"
    stream = Stream(images(), batch_size=8, seed=0, views=1)
    cache = CachedOnDisk(forest, tmp_path)
    assert cache.fingerprint() == "forest of May: /a"
    cache.open(stream)
    assert [place.name[:18] for place in tmp_path.iterdir()] == ["forest-of-May---a-"]


def test_the_error_is_the_worst_of_all_streams(tmp_path):
    torch.manual_seed(0)
    cache = CachedOnDisk(torch.nn.Linear(6, 3), tmp_path, keep="float16")
    samples = splits().train
    large = samples.change_inputs(lambda inputs: 30 * inputs)
    errors = []
    for source in (samples, large, samples):
        cache.open(Stream(source, batch_size=8, seed=0, views=1))
        errors.append(dict(cache.error))
    assert errors[1]["logit"] > errors[0]["logit"]
    assert errors[2] == {name: max(errors[0][name], errors[1][name]) for name in errors[0]}


def test_filling_that_takes_long_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    clock = iter(range(0, 10_000, 4))  # each batch takes four seconds
    monkeypatch.setattr("stillroom.teacher_cache.pace.time.monotonic", lambda: float(next(clock)))
    samples = TensorSamples(torch.rand(10 * 256, 2))
    stream = Stream(samples, batch_size=8, seed=0, views=1)

    def fill(name, **options):
        CachedOnDisk(torch.nn.Linear(2, 3), tmp_path / name, **options).open(stream)
        return capsys.readouterr().err.splitlines()

    lines = fill("told")
    assert [line.rpartition(": ")[2] for line in lines] == ["30%", "60%", "90%"]
    assert lines[0].startswith(f"the teacher's answers (float32, 0.1 MB) are kept in {tmp_path / 'told'}")
    assert fill("silent", progress=False) == []
    monkeypatch.undo()
    assert fill("quick") == []


def test_the_time_that_is_left_is_told(monkeypatch):
    clock = iter([0.0, 0.0, 60.0, 61.0, 600.0])
    monkeypatch.setattr("stillroom.teacher_cache.pace.time.monotonic", lambda: next(clock))
    said = []
    pace = Pace(said.append)
    for share in (0.5, 0.6, 0.61, 1.0):
        pace.step(share, "answers")
    assert said == ["answers: 60%, about 4 min left", "answers: 100%"]
