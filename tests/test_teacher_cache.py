import errno
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

import stillroom
from stillroom.baselines import KD
from stillroom.blocks import Average, Frozen, FunctionTeacher, fingerprint
from stillroom.data.augment import ResizedCropFlip, Shift
from stillroom.data.samples import TensorSamples
from stillroom.data.stream import Stream
from stillroom.fit import fit
from stillroom.losses import kd_loss
from stillroom.method import Stage
from stillroom.storage import StorageError
from stillroom.systems.catalog import method as method_named
from stillroom.teacher_cache import CachedOnDisk, check_cacheable, told
from stillroom.training import Optim, Training
from tests.toys import batch, conv, mlp, splits, trained_teacher

QUICK = Training(steps=12, batch_size=16, optimizer=Optim(lr=0.02), evaluate_every=6, views=2)


def run(method, data=None, training=QUICK):
    return fit(method, data or splits(), training, progress=False, trackers=())


class Counting(torch.nn.Module):
    """A teacher that counts what it is asked, and fails after so many samples."""

    def __init__(self, network, most=10**9):
        super().__init__()
        self.network, self.asked, self.most = network, 0, most

    def forward(self, inputs):
        self.asked += len(inputs)
        if self.asked > self.most:
            raise KeyboardInterrupt
        return self.network(inputs)

    def fingerprint(self):
        return fingerprint(self.network)


def images(count=40):
    generator = torch.Generator().manual_seed(3)
    return TensorSamples(torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 3)


def test_a_cached_teacher_trains_what_the_live_one_trains(tmp_path):
    live = run(KD(mlp(), trained_teacher()))
    cached = run(KD(mlp(), CachedOnDisk(trained_teacher(), tmp_path)))
    assert cached.teacher == live.teacher
    assert cached.cached == {"keep": "float32", "logit": 0.0, "tv_1": 0.0, "tv_4": 0.0}
    for name, weight in live.product.state_dict().items():
        torch.testing.assert_close(cached.product.state_dict()[name], weight, rtol=1e-5, atol=1e-6)


def test_the_teacher_is_asked_once_per_sample_and_view_whoever_learns(tmp_path):
    data = splits(labels=40)
    teacher = Counting(trained_teacher())
    samples = len(data.train) + len(data.unlabelled)
    stream = Stream(images(), batch_size=8, seed=0, augment=Shift(), views=3)
    run(KD(mlp(), CachedOnDisk(teacher, tmp_path)), data)
    checked = teacher.asked - samples  # before training: whether it beats chance
    assert checked == len(data.train)
    run(KD(mlp(seed=1), CachedOnDisk(teacher, tmp_path)), data)
    assert teacher.asked == samples + 2 * checked

    network = Counting(conv())
    for _ in range(2):
        CachedOnDisk(network, tmp_path).open(stream)
    assert network.asked == 3 * 40
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("augment", [Shift(), ResizedCropFlip()])
def test_views_return_and_are_answered_from_the_files(tmp_path, augment):
    samples = images()
    stream = Stream(samples, batch_size=10, seed=5, augment=augment, views=3)
    other = Stream(samples, batch_size=8, seed=6, augment=augment, views=3)
    network = conv().eval()
    cache = CachedOnDisk(Counting(network), tmp_path)
    cache.open(stream)
    asked = cache.provider.network.asked
    seen = {}
    for source, steps in ((stream, 24), (other, 30)):
        for step in range(steps):
            drawn = source.batch(step)
            assert drawn.view.unique().tolist() == [step // len(source) % 3]
            torch.testing.assert_close(cache(drawn), network(drawn.inputs), rtol=1e-5, atol=1e-6)
            for row, (number, view) in enumerate(zip(drawn.index.tolist(), drawn.view.tolist(), strict=True)):
                assert torch.equal(seen.setdefault((number, view), drawn.inputs[row]), drawn.inputs[row])
    assert cache.provider.network.asked == asked
    assert len(seen) == 3 * 40
    assert not torch.equal(seen[0, 0], seen[0, 1])


def test_every_process_sees_its_share_of_the_same_views(tmp_path):
    whole = Stream(images(), batch_size=8, seed=1, augment=Shift(), views=2)
    halves = [Stream(images(), batch_size=8, seed=1, augment=Shift(), views=2, rank=r, world=2) for r in range(2)]
    for step in (0, 7):
        for rank, half in enumerate(halves):
            assert torch.equal(half.batch(step).inputs, whole.batch(step).inputs[rank::2])


def test_without_chance_all_views_are_one(tmp_path):
    stream = Stream(images(), batch_size=8, seed=0, views=5)
    assert stream.views == 1
    network = Counting(conv())
    CachedOnDisk(network, tmp_path).open(stream)
    assert network.asked == 40


def test_what_was_not_prepared_is_answered_live(tmp_path):
    network = conv().eval()
    cache = CachedOnDisk(network, tmp_path)
    alone = images().batch([0, 3])
    assert torch.equal(cache(alone), network(alone.inputs))
    cache.open(Stream(images().subset(range(20)), batch_size=8, seed=0, views=1))
    foreign = images().batch([30]).replace(view=torch.tensor([0]))
    assert torch.equal(cache(foreign), network(foreign.inputs))


def test_filling_goes_on_where_it_was_interrupted(tmp_path):
    samples = TensorSamples(torch.rand(40 * 256, 2, generator=torch.Generator().manual_seed(0)))
    stream = Stream(samples, batch_size=8, seed=0, views=1)
    network = Counting(torch.nn.Linear(2, 3), most=35 * 256)
    cut = CachedOnDisk(network, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        cut.open(stream)
    network.asked, network.most = 0, 10**9
    cut.open(stream)
    assert network.asked == 8 * 256  # 32 of 40 batches were on the disk
    whole = CachedOnDisk(network, tmp_path / "whole")
    whole.open(stream)
    for first, second in zip(stream.batches(0, 50), stream.batches(0, 50), strict=True):
        assert torch.equal(cut(first), whole(second))


@pytest.mark.parametrize("keep", ["float16", "top-2"])
def test_the_reported_error_bounds_what_learning_sees(tmp_path, keep):
    torch.manual_seed(0)
    teacher = torch.nn.Linear(6, 7)
    teacher.weight.data *= 4
    data = splits()
    stream = Stream(data.train, batch_size=15, seed=0, views=1)
    cache = CachedOnDisk(teacher, tmp_path, keep=keep)
    cache.open(stream)
    student = torch.nn.Linear(6, 7)
    worst = {1.0: 0.0, 4.0: 0.0}
    for drawn in stream.batches(0, len(stream)):
        said, kept = teacher(drawn.inputs), cache(drawn)
        assert kept.dtype == torch.float32
        logits = student(drawn.inputs).detach()
        for temperature in worst:
            p, q = ((z / temperature).softmax(1) for z in (said, kept))
            gap = (p - q).abs().sum(1) / 2
            worst[temperature] = max(worst[temperature], float(gap.max()))
            # a loss that is linear in the teacher's probabilities, for its largest slope
            log = (logits / temperature).log_softmax(1)
            slope = float(log.max() - log.min())
            ours, theirs = (-(each * log).sum(1).mean() for each in (q, p))
            assert abs(float(ours - theirs)) <= cache.error[f"tv_{temperature:g}"] * slope + 1e-6
        if keep == "float16":
            assert float((said - kept).abs().max()) <= cache.error["logit"] < 0.02
            ours, theirs = (float(kd_loss(logits, each, temperature=4.0)) for each in (kept, said))
            assert ours == pytest.approx(theirs, rel=1e-3)
        else:
            top = said.topk(2, dim=1)
            torch.testing.assert_close(kept.gather(1, top.indices), top.values, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(kept.logsumexp(1), said.logsumexp(1), rtol=1e-3, atol=2e-3)  # no mass is lost
            assert (said.softmax(1) - kept.softmax(1)).abs().sum(1).max() / 2 <= cache.error["tail"] + 1e-3
    for temperature, found in worst.items():
        assert found == pytest.approx(cache.error[f"tv_{temperature:g}"], abs=1e-6)
        assert found > 0
    again = CachedOnDisk(teacher, tmp_path, keep=keep)
    again.open(stream)
    assert again.error == cache.error


def test_a_resumed_training_knows_the_errors_of_the_stages_before(tmp_path):
    class PoolLast(KD):
        stop = 10**9

        def stages(self):
            return Stage("labels", data="train-alone"), Stage("pool", data="unlabelled")

        def after_step(self, player):
            if self.clock.step == self.stop:
                raise KeyboardInterrupt

    def go(folder, stop=10**9, resume=False):
        method = PoolLast(mlp(), CachedOnDisk(trained_teacher(), tmp_path / "answers", keep="float16"))
        method.stop = stop
        options = {"folder": tmp_path / folder, "resume": resume, "trackers": (), "progress": False}
        return fit(method, splits(labels=32), QUICK.change(evaluate_every=2), **options).cached

    whole = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("broken", stop=9)
    later = go("later", resume=True)  # nothing is there: the same
    cache = CachedOnDisk(trained_teacher(), tmp_path / "answers", keep="float16")
    cache.open(Stream(splits(labels=32).unlabelled, batch_size=16, seed=0, views=2))
    assert cache.error["logit"] < whole["logit"] == later["logit"]  # that of the first stage
    assert go("broken", resume=True) == whole


def test_the_error_is_told_in_a_sentence():
    assert (
        told("float32", {"logit": 0.0, "tv_1": 0.0, "tv_4": 0.0})
        == "The teacher's answers were kept exactly (float32)."
    )
    sentence = told("top-2", {"tv_1": 0.0123, "tv_4": 0.25, "tail": 0.02})
    assert "as top-2: off by at most 0.012 of probability at temperature 1, 0.25 of probability at" in sentence
    assert "0.02 of a sample's probability was spread over the rest" in sentence


def test_other_inputs_than_those_answered_are_refused(tmp_path):
    stream = Stream(images(), batch_size=8, seed=0, views=1)
    cache = CachedOnDisk(conv(), tmp_path)
    cache.open(stream)
    drawn = stream.batch(0)
    changed = drawn.inputs.clone()
    changed[2] += 0.1
    place = next(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"sample {int(drawn.index[2])} came with other inputs.* delete {place}; else"):
        cache(drawn.replace(inputs=changed))


def test_other_weights_samples_or_views_have_files_of_their_own(tmp_path):
    stream = partial(Stream, images(), batch_size=8, seed=0, augment=Shift())
    for network, source in (
        (conv(), stream(views=1)),
        (conv(seed=1), stream(views=1)),
        (conv(), stream(views=2)),
        (conv(), Stream(images(39), batch_size=8, seed=0, augment=Shift(), views=1)),
        (conv(), stream(views=1)),
    ):
        CachedOnDisk(network, tmp_path).open(source)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path, monkeypatch):
    stream = Stream(images(), batch_size=8, seed=0, views=1)
    CachedOnDisk(conv(), tmp_path).open(stream)
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(
            StorageError, match=r"answers need 0\.\d MB in .* the disk is too full: nothing was changed"
        ):
            CachedOnDisk(conv(seed=1), tmp_path).open(stream)
        assert set(tmp_path.rglob("*.npy")) <= set(kept)
    assert all(file.read_bytes() == content for file, content in kept.items())
    CachedOnDisk(conv(seed=1), tmp_path).open(stream)


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("fitnets", "float32", "reads activations inside the teacher"),
        ("mix-kd", "float32", "asks its teacher about inputs that it makes itself"),
        ("dkd", "top-2", 'needs the logit of every class, and the cache keeps "top-2"'),
    ],
)
def test_methods_that_need_more_than_the_cache_has_refuse_it(tmp_path, name, keep, message):
    needs = method_named(name).needs
    with pytest.raises(ValueError, match=message):
        check_cacheable(name, needs, keep)
    with pytest.raises(ValueError, match=f"method '{name}' .*{message}"):
        stillroom.distill(
            trained_teacher(), mlp, splits(), method=name, cache_teacher=keep, cache_folder=tmp_path, progress=False
        )
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_kept_is_refused(tmp_path):
    stream = Stream(splits().train, batch_size=8, seed=0, views=1)
    with pytest.raises(ValueError, match="given 'float8'"):
        CachedOnDisk(mlp(), tmp_path, keep="float8")
    with pytest.raises(ValueError, match="top 3 classes, but the teacher has 3"):
        CachedOnDisk(mlp(), tmp_path, keep="top-3").open(stream)
    large = FunctionTeacher(lambda inputs: 1e5 * inputs, arrays=False, version="large")
    with pytest.raises(ValueError, match=r"does not fit float16"):
        CachedOnDisk(large, tmp_path, keep="float16").open(stream)
    with pytest.raises(ValueError, match="set Training\\(views="):
        CachedOnDisk(mlp(), tmp_path).open(Stream(splits().train, batch_size=8, seed=0))
    with pytest.raises(ValueError, match="batch_norm='batch'"):
        CachedOnDisk(Frozen(conv(), batch_norm="batch"), tmp_path)
    with pytest.raises(ValueError, match="batch_norm='batch'"):
        CachedOnDisk(Average([Frozen(conv(), batch_norm="batch")]), tmp_path)
    with pytest.raises(ValueError, match=r"the function <lambda> does not say who it is, expected a fingerprint\(\)"):
        CachedOnDisk(lambda batch: batch.inputs, tmp_path)
    with pytest.raises(ValueError, match="which the multi-label task does not have"):
        check_cacheable("kd", KD.needs, "top-2", "multi-label")


def test_the_main_job_keeps_the_teachers_answers(tmp_path):
    options = {"epochs": 1, "seeds": 2, "device": "cpu", "progress": False, "lr": 0.01}
    given = (trained_teacher(), mlp, splits())
    live = stillroom.distill(*given, **options)
    cached = stillroom.distill(*given, **options, cache_teacher="float16", cache_folder=tmp_path)
    assert any("kept as float16: off by at most" in note for note in cached.results["notes"])
    assert cached.results["config"]["cache_teacher"] == "float16"
    live_values, values = (r.results["arms"]["kd"]["values"] for r in (live, cached))
    assert values == pytest.approx(live_values, abs=0.03)
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="cache_folder says where"):
        stillroom.distill(*given, **options, cache_folder=tmp_path)


def test_a_batch_of_nothing_known_is_no_error(tmp_path):
    cache = CachedOnDisk(mlp(), tmp_path)
    assert cache(batch(3)).shape == (3, 3)


@pytest.mark.parametrize("how", ["absent", "refused"])
def test_where_no_room_is_taken_in_advance_zeros_are_written(tmp_path, monkeypatch, how):
    def refuse(*given):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if how == "absent":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    monkeypatch.setattr("stillroom.teacher_cache.files._PIECE", 100)
    samples = TensorSamples(torch.rand(500, 2))
    stream = Stream(samples, batch_size=8, seed=0, views=1)
    cache = CachedOnDisk(torch.nn.Linear(2, 3), tmp_path)
    cache.open(stream)
    for drawn in stream.batches(0, len(stream)):
        torch.testing.assert_close(cache(drawn), cache.provider.network(drawn.inputs))
    files = list(tmp_path.rglob("*.npy"))
    assert len(files) == 3
    assert all(file.stat().st_blocks * 512 >= file.stat().st_size for file in files)


def test_a_disk_without_locks_is_used_without_them(tmp_path, monkeypatch):
    class Without:
        LOCK_EX = LOCK_NB = LOCK_SH = 0

        @staticmethod
        def flock(*given):
            raise OSError(errno.ENOLCK, "No locks available")

    for system in (Without, None):
        monkeypatch.setattr("stillroom.lock.fcntl", system)
        network = Counting(conv())
        cache = CachedOnDisk(network, tmp_path / str(system))
        cache.open(Stream(images(), batch_size=8, seed=0, views=1))
        assert network.asked == 40


def test_two_that_fill_the_same_files_without_locks_do_not_spoil_them(tmp_path, monkeypatch):
    monkeypatch.setattr("stillroom.lock.fcntl", None)
    stream = Stream(images(600), batch_size=8, seed=0, views=1)
    other = CachedOnDisk(network := Counting(conv()), tmp_path)
    exact = {"rtol": 1e-5, "atol": 1e-6}

    class Slow(Counting):
        def forward(self, inputs):
            if other._files is None:  # another process begins later and is done sooner
                other.open(stream)
            for drawn in stream.batches(0, 5):
                torch.testing.assert_close(other(drawn), self.network(drawn.inputs), **exact)
            return super().forward(inputs)

    Slow.__module__, Slow.__qualname__ = Counting.__module__, Counting.__qualname__
    slow = CachedOnDisk(Slow(conv()), tmp_path)
    slow.open(stream)
    assert network.asked == 600
    assert len(list(tmp_path.iterdir())) == 1
    for drawn in stream.batches(0, len(stream)):
        torch.testing.assert_close(slow(drawn), other(drawn), **exact)


def test_what_a_killed_process_left_half_made_is_cleared(tmp_path):
    stream = Stream(images(), batch_size=8, seed=0, views=1)
    CachedOnDisk(conv(), tmp_path).open(stream)
    place = next(tmp_path.iterdir())
    kept = {file.name for file in place.iterdir()}
    (place / "made.json").unlink()
    (place / ".answers.npy.12345.part").write_bytes(bytes(100))
    CachedOnDisk(conv(), tmp_path).open(stream)
    assert {file.name for file in place.iterdir()} == kept


def test_a_system_without_fcntl_loads_all_of_it():
    program = (
        "import sys, os; sys.modules['fcntl'] = None; del os.posix_fallocate; "
        "import stillroom.fit, stillroom.teacher_cache; print('loaded')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "loaded\n", done.stderr
