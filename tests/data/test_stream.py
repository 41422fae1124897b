import threading
import time

import pytest
import torch

from stillroom.data import Batch, LazySamples, Stream, TensorSamples, augmentation, sequential


def numbered(count, labels=True):
    pixels = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous() / 1000
    return TensorSamples(pixels, torch.arange(count) % 3 if labels else None)


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.inputs, second.inputs)
        and torch.equal(first.labels, second.labels)
        and torch.equal(first.index, second.index)
    )


def test_an_epoch_sees_every_sample_once_and_another_order_next_time():
    stream = Stream(numbered(12), batch_size=4, seed=0)
    assert len(stream) == 3
    epochs = [torch.cat([stream.batch(step).index for step in range(3 * e, 3 * e + 3)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_inputs_labels_and_index_belong_together():
    batch = Stream(numbered(12), batch_size=5, seed=1).batch(4)
    assert torch.allclose(batch.inputs[:, 0, 0, 0] * 1000, batch.index.float())
    assert torch.equal(batch.labels, batch.index % 3)


def test_rows_that_do_not_fill_a_batch_wait_for_the_next_epoch():
    stream = Stream(numbered(14), batch_size=4, seed=0)
    assert len(stream) == 3
    seen = torch.cat([stream.batch(step).index for step in range(3)])
    assert len(set(seen.tolist())) == 12


def test_a_small_data_set_is_one_batch_per_epoch():
    stream = Stream(numbered(3), batch_size=8, seed=0)
    assert len(stream) == 1
    assert [sorted(stream.batch(step).index.tolist()) for step in range(2)] == [[0, 1, 2], [0, 1, 2]]


def test_a_step_is_the_same_whatever_was_asked_before():
    asked = {"batch_size": 4, "seed": 5, "augment": augmentation("crop_flip")}
    first = Stream(numbered(12), **asked)
    run = list(first.batches(0, 9))
    assert same(Stream(numbered(12), **asked).batch(7), run[7]), "a resumed run must see what the first one saw"
    assert same(first.batch(2), run[2])
    assert not same(Stream(numbered(12), **{**asked, "seed": 6}).batch(7), run[7])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_one_augmented_global_batch(world):
    pool = numbered(30, labels=False)
    asked = {
        "batch_size": 6,
        "seed": 2,
        "augment": augmentation("crop_flip"),
        "unlabelled": pool,
        "unlabelled_batch": 12,
    }
    whole = Stream(numbered(20), **asked)
    for step in (0, 4, 11):
        expected = whole.batch(step)
        for rank in range(world):
            part = Stream(numbered(20), **asked, rank=rank, world=world).batch(step)
            assert same(part, expected[torch.arange(rank, 18, world)])


def test_the_pool_follows_without_labels_and_with_its_own_numbers():
    stream = Stream(
        numbered(8), batch_size=4, seed=0, unlabelled=numbered(10), unlabelled_batch=5
    )  # labels of the pool must not be looked at
    batches = [stream.batch(step) for step in range(4)]
    for batch in batches:
        assert len(batch) == 9
        assert batch.labelled.tolist() == [True] * 4 + [False] * 5
        assert batch.labels[4:].tolist() == [-100] * 5
        assert batch.index[:4].max() < 8 <= batch.index[4:].min()
        assert torch.allclose(batch.inputs[4:, 0, 0, 0] * 1000, batch.index[4:] - 8.0)
    assert sorted(torch.cat([b.index[4:] for b in batches[:2]]).tolist()) == list(range(8, 18)), "its own epochs"


def test_a_pool_of_the_same_original_keeps_its_numbers():
    whole = numbered(20)
    stream = Stream(
        whole.subset(range(15, 20)), batch_size=5, seed=0, unlabelled=whole.subset(range(15)), unlabelled_batch=15
    )
    assert sorted(stream.batch(0).index.tolist()) == list(range(20))


def test_unlabelled_rows_of_float_labels_are_nan():
    samples = TensorSamples(torch.rand(4, 3), torch.rand(4, 2))
    stream = Stream(samples, batch_size=4, seed=0, unlabelled=TensorSamples(torch.rand(3, 3)), unlabelled_batch=3)
    batch = stream.batch(0)
    assert batch.labels[4:].isnan().all()
    assert batch.labelled.tolist() == [True] * 4 + [False] * 3


def test_samples_without_labels_stream_too():
    stream = Stream(numbered(6, labels=False), batch_size=3, seed=0)
    assert stream.batch(1).labels is None


def fetched(count, log=None):
    held = numbered(count)

    def fetch(row):
        if log is not None:
            log.add(threading.current_thread().name)
        time.sleep(0.001 * (row % 3))  # rows become ready out of order
        batch = held.batch([row])
        return batch.inputs[0], batch.labels[0]

    return LazySamples(fetch, count, held.labels, held.shape)


def test_reading_ahead_changes_nothing():
    threads: set[str] = set()
    asked = {"batch_size": 4, "seed": 3, "augment": augmentation("shift")}
    expected = list(Stream(numbered(17), **asked).batches(2, 13))
    got = list(Stream(fetched(17, threads), **asked, workers=3).batches(2, 13))
    assert len(got) == len(expected) == 11
    assert all(same(one, other) for one, other in zip(got, expected, strict=True))
    assert any("stillroom" in name for name in threads)


def test_reading_ahead_stops_with_the_loop_and_raises_where_the_error_is():
    stream = Stream(fetched(17), batch_size=4, seed=3, workers=2)
    endless = stream.batches(0)
    next(endless)
    endless.close()
    assert not [thread for thread in threading.enumerate() if "stillroom" in thread.name]

    def broken(row):
        raise OSError(f"row {row} cannot be read")

    with pytest.raises(OSError, match="cannot be read"):
        next(Stream(LazySamples(broken, 4, None, (1,)), batch_size=2, seed=0, workers=2).batches(0, 2))


@pytest.mark.parametrize(("samples", "workers"), [(numbered(7), 0), (fetched(7), 2)])
def test_evaluation_sees_everything_once_in_order(samples, workers):
    batches = list(sequential(samples, 3, workers=workers))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(7))


def test_evaluation_of_nothing_is_nothing():
    assert list(sequential(numbered(7).subset([]), 3)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size.*given 0"),
        ({"seed": -1}, "seed.*given -1"),
        ({"rank": 2, "world": 2}, "rank 2 of world 2"),
        ({"batch_size": 5, "world": 2}, "5 rows.* 2 processes.*batch_size"),
        ({"batch_size": 20, "world": 2}, "9 rows.* 2 processes.*batch_size"),
        ({"unlabelled_batch": 4}, "unlabelled_batch is 4"),
        ({"workers": -1}, "workers.*-1"),
        ({"unlabelled": TensorSamples(torch.rand(5, 3, 4, 4)), "unlabelled_batch": 2}, r"\(3, 4, 4\).*\(1, 4, 4\)"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Stream(numbered(9), **{"batch_size": 4, "seed": 0, **changes})


def test_no_samples_and_steps_before_the_first_are_refused():
    with pytest.raises(ValueError, match="0 samples"):
        Stream(numbered(4).subset([]), batch_size=4, seed=0)
    with pytest.raises(ValueError, match="-3"):
        Stream(numbered(4), batch_size=4, seed=0).batch(-3)
    with pytest.raises(ValueError, match=r"batch_size.*0"):
        sequential(numbered(4), 0)


def test_a_pool_with_other_fields_is_refused():
    with_field = TensorSamples(torch.rand(4, 2), fields={"weight": torch.ones(4)})
    stream = Stream(with_field, batch_size=2, seed=0, unlabelled=TensorSamples(torch.rand(4, 2)), unlabelled_batch=2)
    with pytest.raises(ValueError, match=r"\['weight'\].*\[\]"):
        stream.batch(0)
