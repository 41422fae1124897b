"""What is on the disk after a crash, a flipped bit, a full disk: always something whole, and a sentence."""

import errno
import os
import resource
import warnings

import numpy as np
import pytest
import torch

from stillroom import checkpoint
from stillroom.baselines import Alone
from stillroom.checkpoint import load, save, write_bytes, write_json
from stillroom.fit import fit
from stillroom.log import JSONLines, Notice
from stillroom.storage import StorageError, sweep
from stillroom.training import Optim, Training
from tests.toys import mlp, splits

QUICK = Training(steps=12, batch_size=16, optimizer=Optim(lr=0.02), evaluate_every=4)


def run(folder, *, resume=False, **options):
    fitted = fit(Alone(mlp()), splits(), QUICK, folder=folder, resume=resume, progress=False, trackers=(), **options)
    return {name: tensor.clone() for name, tensor in fitted.product.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def cut_short(path):
    path.write_bytes(path.read_bytes()[:300])


def empty(path):
    path.write_bytes(b"")


def zeros_at_the_end(path):  # what some file systems leave after the power went
    content = path.read_bytes()
    path.write_bytes(content[:-500] + bytes(500))


DAMAGES = (flip, cut, cut_short, empty, zeros_at_the_end)


def test_two_checkpoints_are_kept(tmp_path):
    path = tmp_path / "inner/last.pt"
    assert load(path) is None
    for step in range(4):
        save(path, {"step": step, "weights": torch.full((5,), float(step))})
    assert load(path)["step"] == 3
    assert load(path.with_name("last.pt.before"))["step"] == 2
    assert sorted(inner.name for inner in path.parent.iterdir()) == ["last.pt", "last.pt.before"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(tmp_path, damage):
    path = tmp_path / "last.pt"
    for step in range(3):
        save(path, {"step": step, "weights": torch.randn(500)})
    damage(path)
    with pytest.warns(Notice, match=r"^the checkpoint .*last\.pt is damaged \(.+\): the one before it is used$"):
        assert load(path)["step"] == 1
    assert load(path)["step"] == 1  # and is not stumbled over again
    save(path, {"step": 5})
    assert path.with_name("last.pt.damaged").exists()
    cut(path)
    with pytest.warns(Notice):
        assert load(path)["step"] == 1


def test_every_single_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "last.pt"
    save(path, {"weights": torch.arange(10.0)})
    content = path.read_bytes()
    other = tmp_path / "other.pt"
    places = range(0, len(content), 7)
    assert len(places) > 50
    for place in places:
        other.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        with pytest.warns(Notice, match="starts anew"):
            assert load(other) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_training_goes_on_from_the_one_before_to_the_same_bits(tmp_path, damage):
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut")
    damage(tmp_path / "cut/checkpoints/last.pt")
    with pytest.warns(Notice, match="the one before it is used"):
        resumed = run(tmp_path / "cut", resume=True)
    assert same(whole, resumed)
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "cut/metrics.jsonl").read_text()


def test_a_training_whose_checkpoints_are_all_damaged_starts_anew_and_says_so(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut")
    flip(tmp_path / "cut/checkpoints/last.pt")
    cut(tmp_path / "cut/checkpoints/last.pt.before")
    with pytest.warns(Notice, match=r"last\.pt is damaged .* and .*last\.pt\.before is damaged .*starts anew"):
        resumed = run(tmp_path / "cut", resume=True)
    assert same(whole, resumed)


def test_a_whole_checkpoint_that_cannot_be_read_safely_stays_and_is_said(tmp_path):
    path = tmp_path / "last.pt"
    save(path, {"step": 1, "value": np.float64(0.5)})
    with pytest.raises(ValueError, match=r"last\.pt is whole, but holds other values than tensors, numbers and text"):
        load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_only_files_named_as_half_written_ones_are_swept(tmp_path):
    for name in (".last.pt.4711.part", ".mine.part", ".a.b.part"):
        (tmp_path / name).write_text("x")
    sweep(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {".mine.part", ".a.b.part"}


def test_states_of_more_gpus_than_there_are_left_out():
    state = checkpoint.random_state()
    expected = torch.rand(3)
    checkpoint.set_random_state(state | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 8})
    torch.testing.assert_close(torch.rand(3), expected)


def test_a_checkpoint_is_chosen_by_what_it_holds(tmp_path):
    path = tmp_path / "random-1.pt"
    for step in (4, 8):
        save(path, {"step": step})
    assert load(path, wanted=lambda state: state["step"] == 4)["step"] == 4
    assert load(path, wanted=lambda state: state["step"] == 12) is None


# ---- a full disk


@pytest.fixture
def full(monkeypatch):
    """The disk is full from now on: files can be made, but nothing can be written into them."""

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])  # as much as there was room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    from pathlib import Path

    opened = Path.open

    def fill():
        def open_full(path, mode="r", *more, **options):
            file = opened(path, mode, *more, **options)
            return Full(file) if "w" in mode or "a" in mode else file

        monkeypatch.setattr(Path, "open", open_full)

    return fill


def test_a_full_disk_leaves_what_was_there(tmp_path, full):
    path, text = tmp_path / "last.pt", tmp_path / "results.json"
    save(path, {"step": 1})
    save(path, {"step": 2})
    write_json(text, {"old": True})
    before = {inner.name: inner.read_bytes() for inner in tmp_path.iterdir()}
    full()
    for write in (lambda: save(path, {"step": 3}), lambda: write_json(text, {"new": True})):
        with pytest.raises(StorageError, match=r"could not be written \(No space left on device\): .*kept; make room"):
            write()
    with pytest.raises(StorageError, match=r"metrics\.jsonl could not be written"):
        JSONLines(tmp_path / "metrics.jsonl")
    assert {inner.name: inner.read_bytes() for inner in tmp_path.iterdir()} == before


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="files cannot be limited here")
def test_a_training_that_finds_no_room_keeps_its_checkpoint(tmp_path):
    whole = run(tmp_path / "whole")
    small = len((tmp_path / "whole/checkpoints/last.pt.before").read_bytes())
    sizes = []

    def run_small(resume):
        def spy(path, state):
            saved(path, state)
            sizes.append(state["step"])

        saved = checkpoint.save
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "save", spy)
            return run(tmp_path / "cut", resume=resume)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (small - 1, hard))  # the operating system itself says no: EFBIG
    try:
        with pytest.raises(StorageError, match=r"last\.pt could not be written \(File too large\).*--resume"):
            run_small(False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = sorted(inner.name for inner in (tmp_path / "cut/checkpoints").iterdir())
    assert left == (["last.pt"] if sizes else [])  # whole, where one was small enough, and no half of another
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(run_small(True), whole)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(StorageError, match=r"file/last\.pt could not be written \(.+\): .*see that you may write"):
        save(tmp_path / "file/last.pt", {"step": 1})
    with pytest.raises(StorageError, match=r"file/x could not be written"):
        write_bytes(tmp_path / "file/x", b"")
    assert (tmp_path / "file").read_text() == "here"


def test_what_killed_processes_left_half_written_is_cleared(tmp_path):
    (tmp_path / "arms").mkdir()
    for name in ("arms/.last.pt.123.part", ".run.json.99.part", "arms/part", "arms/.keep"):
        (tmp_path / name).write_text("x")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".keep", "arms", "part"]


def test_a_log_of_a_killed_training_loses_what_will_be_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = JSONLines(path, from_step=3)
    log.write({"step": 3, "again": True})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "again": true}\n'
