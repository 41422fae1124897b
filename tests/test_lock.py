"""One run to a folder."""

import os
import signal
import subprocess
import sys

import pytest

from stillroom.lock import NAME, locked, refuse_held

pytest.importorskip("fcntl")
HOLDS = """
import sys, time
from pathlib import Path
from stillroom.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder `run`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_that_is_worked_in_is_refused_with_whose_it_is(holder, tmp_path):
    for attempt in (lambda: refuse_held(tmp_path / "run"), lambda: locked(tmp_path / "run").__enter__()):
        with pytest.raises(
            BlockingIOError, match=rf"another run \(process {holder.pid} on .+, since .+\) is working in"
        ):
            attempt()


def test_a_killed_run_locks_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / NAME).exists()
    refuse_held(tmp_path / "run")
    with locked(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / NAME).read_text()
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()} "), locked(tmp_path / "run"):
            pass
    assert not (tmp_path / "run" / NAME).exists()


def test_a_folder_is_left_as_it_was_found(tmp_path):
    with locked(tmp_path / "new/inner"):
        refuse_held(tmp_path / "other")
    assert not (tmp_path / "new").exists()  # nothing was written there
    with locked(tmp_path / "new/inner"):
        (tmp_path / "new/inner/results.json").write_text("{}")
    assert [path.name for path in (tmp_path / "new/inner").iterdir()] == ["results.json"]
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "new/inner"):
        raise ZeroDivisionError
    with locked(tmp_path / "new/inner"), locked(None):
        pass
