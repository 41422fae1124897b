"""Runs that are killed, interrupted, without room, or not alone in their folder: nothing is lost, and it is said."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stillroom
from stillroom import checkpoint, hub
from stillroom.cli import main
from stillroom.experiment import workers
from stillroom.lock import locked
from tests.cli_toys import make_here, make_models, run  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
LINE = "distill --teacher knows --student conv-4-8 --steps 40 --lr 0.01 --seeds 2 --labels 60 --test-size 100 --jobs 1"
ONE = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module", name="whole")
def make_whole(tmp_path_factory):
    """A teacher that knows a little, and the run that nothing happens to."""
    place = tmp_path_factory.mktemp("whole")
    first = (
        "distill --teacher conv-8-16 --student conv-4-8 --teacher-epochs 4 --steps 1 --lr 0.01 --seeds 1 --labels 60 "
        f"--test-size 100 --jobs 1 --out {place / 'first'}"
    )
    main(first.split())
    (place / "first/teacher").rename(place / "knows")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main([*LINE.split(), "--out", "whole"])
    return place


@pytest.fixture(name="place")
def make_place(whole, tmp_path, monkeypatch):
    (tmp_path / "knows").symlink_to(whole / "knows")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcome(folder):
    students = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("student.safetensors")}
    return students, json.loads((folder / "summary.json").read_text())["arms"]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resumes_to_the_same(place, whole, capsys, line=LINE):
    code, _, error = run(f"{line} --out run --resume", capsys)
    assert code == 0, error
    students, arms = outcome(place / "run")
    assert len(students) == 5
    assert (students, arms) == outcome(whole / "whole")
    assert [path.name for path in (place / "run").rglob(".*")] == []
    return error


# ---- killed


@pytest.mark.slow
def test_runs_that_are_killed_at_random_moments_end_with_the_same_bits(tmp_path):
    program = [sys.executable, str(ROOT / "benchmarks/kills.py"), "--kills", "10", "--seed", "0"]
    done = subprocess.run(
        [*program, "--json", str(tmp_path / "kills.json")],
        capture_output=True,
        text=True,
        env=os.environ | ONE,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "kills.json").read_text())
    assert found["kills"] == len(found["moments"]) == 10
    assert set(found["by_kind"]) == {"in training", "writing", "naming", "between arms", "anywhere"}
    assert min(found["by_kind"].values()) == 2
    assert sum(one["parts"] for one in found["moments"]) >= 2  # files that were not whole were really left behind
    assert found["students_compared"] == 6
    assert found["runs"]
    assert all(one["equal"] and one["left_behind"] == [] for one in found["runs"])


# ---- Ctrl-C


@pytest.fixture(autouse=True)
def heeds_ctrl_c():
    """Shells start what they put into the background deaf to Ctrl-C, and its processes too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_says_how_to_go_on(place, whole, capsys, monkeypatch):
    save, saved = hub.save, []

    def interrupted(*arguments, **options):
        saved.append(save(*arguments, **options))
        if len(saved) == 2:  # the second arm has been trained: a moment between trainings
            signal.raise_signal(signal.SIGINT)
        return saved[-1]

    with monkeypatch.context() as patch:
        patch.setattr("stillroom.experiment.arm.hub.save", interrupted)
        code, _, error = run(f"{LINE} --out run", capsys)
    assert code == 130
    last = error.strip().splitlines()[-1]
    assert last == (
        "stillroom: stopped with 1 of 4 runs finished; go on with the same command and --resume --out run "
        "(in Python: resume=True)"
    )
    assert "Traceback" not in error
    assert "1 finished runs are kept, 3 are to do" in resumes_to_the_same(place, whole, capsys)


@pytest.mark.parametrize("job", ["distill", "compare"])
def test_ctrl_c_without_a_folder_names_none_to_go_on_with(place, monkeypatch, job):
    monkeypatch.setattr("stillroom.experiment.arm.hub.save", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    given = {"teacher": "knows", "student": "conv-4-8", "steps": 2, "labels": 60, "test_size": 100}
    with pytest.raises(KeyboardInterrupt) as stop:
        getattr(stillroom, job)(**given, seeds=1, progress=False, device="cpu")
    assert re.fullmatch(
        r"stopped with 0 of \d runs finished; nothing is kept, for no folder was named", str(stop.value)
    )


def test_ctrl_c_while_the_results_are_written_can_be_gone_on_from(place, whole, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("stillroom.weigh.write_all", lambda *_: signal.raise_signal(signal.SIGINT))
        code, _, error = run(f"{LINE} --out run", capsys)
    assert code == 130
    assert "go on with the same command and --resume --out run" in error
    resumes_to_the_same(place, whole, capsys)


def alive(group):
    """Processes of a group that have not ended."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its) == group and state != "Z":
            found.append(status.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")
@pytest.mark.parametrize("to", ["the terminal's processes", "the parent alone"])
def test_ctrl_c_ends_the_workers_too(place, whole, capsys, to):
    line = LINE.replace("--jobs 1", "--jobs 2").replace("--steps 40", "--steps 4000")
    program = [sys.executable, "-c", "from stillroom.cli import main; main()", *line.split(), "--out", "run"]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(program, stdout=log, stderr=log, env=os.environ | ONE, start_new_session=True)
        try:
            until = time.monotonic() + 200
            while sum(one.stat().st_size > 0 for one in (place / "run").glob("arms/*/seed-0/metrics.jsonl")) < 2:
                assert process.poll() is None, (place / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.02)
            assert len(alive(process.pid)) >= 3
            (os.killpg if to == "the terminal's processes" else os.kill)(process.pid, signal.SIGINT)
            code = process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    said = (place / "log").read_text()
    assert code == 130, said
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("stillroom: stopped with 0 of 4 runs finished; go on with the same")
    until = time.monotonic() + 5
    while alive(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert alive(process.pid) == []
    kept = [checkpoint.load(path) for path in (place / "run").glob("arms/*/seed-*/checkpoints/last.pt")]
    assert len(kept) == 2
    assert all(0 < state["step"] < 4000 for state in kept)


def test_a_worker_that_was_asked_to_end_begins_nothing_more(monkeypatch):
    begun = []

    class Plan:
        threads = 1

        def execute(self, name, seed, factor=1.0):
            begun.append((name, seed))
            raise KeyboardInterrupt("stopped after step 5 of 12")

    monkeypatch.setattr(workers, "_plan", Plan())
    monkeypatch.setattr(workers, "_over", False)
    for seed in range(3):  # the second waits in line already when the first is stopped
        with pytest.raises(KeyboardInterrupt):
            workers._execute("kd", seed, 1.0)
    assert begun == [("kd", 0)]


# ---- two runs, one folder


def test_a_second_run_in_the_same_folder_is_refused(place, whole, capsys):
    with locked(place / "run"):
        (place / "run/teacher").mkdir()
        before = files(place / "run")
        for more in ("", " --resume"):
            code, _, error = run(f"{LINE} --out run{more}", capsys)
            assert code == 2
            assert error.strip().splitlines()[-1].startswith(f"stillroom: another run (process {os.getpid()} on ")
            assert "is working in run: wait for it or stop it, or name another folder" in error
        assert files(place / "run") == before
    assert list((place / "run").iterdir()) == [place / "run/teacher"]
    resumes_to_the_same(place, whole, capsys)


# ---- no room, no right


@pytest.fixture(name="limit")
def make_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit(None)


@pytest.mark.parametrize("size", [10, 4000, 14000])
def test_without_room_a_run_ends_with_a_sentence_and_can_be_gone_on_with(place, whole, capsys, limit, size):
    limit(size)
    code, _, error = run(f"{LINE} --out run", capsys)
    limit(None)
    assert code == 2
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert "could not be written (File too large): what was there is kept; make room on that disk, then go on" in last
    resumes_to_the_same(place, whole, capsys)


@pytest.fixture(name="mounted")
def make_mounted(tmp_path):
    """A disk of our own, where one may be had."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        try:
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("a disk cannot be mounted here")
        return disk

    yield mount
    subprocess.run(["umount", str(disk)], check=False, capture_output=True)


def test_a_full_disk_ends_a_run_with_a_sentence(place, whole, capsys, mounted):
    disk = mounted("size=96k")
    (place / "run").symlink_to(disk)
    code, _, error = run(f"{LINE} --out run", capsys)
    assert code == 2
    last = error.strip().splitlines()[-1]
    assert "could not be written (No space left on device): what was there is kept; make room on that disk" in last
    assert "Traceback" not in error
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    resumes_to_the_same(place, whole, capsys)


def test_a_folder_that_only_can_be_read_is_refused_in_a_sentence(place, whole, capsys, mounted):
    disk = mounted("size=1m")
    (disk / "note").write_text("mine")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before = files(disk)
    for out in ("disk/new", "disk/new/inner"):
        code, _, error = run(f"{LINE} --out {out}", capsys)
        assert code == 2
        assert "could not be written (Read-only file system): what was there is kept; see that you may write" in error
        assert "Traceback" not in error
    assert files(disk) == before
