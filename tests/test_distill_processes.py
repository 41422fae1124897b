"""The main job in two processes that train together: the same numbers, and one set of files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONS = [
    *("distill", "--teacher", "conv-8-16", "--student", "conv-4-8", "--teacher-epochs", "2", "--labels", "64"),
    *("--test-size", "200", "--steps", "12", "--batch-size", "16", "--lr", "0.01", "--augment", "shift"),
    *("--seeds", "2", "--device", "cpu"),
]


def run(out: Path, *more: str, processes: int = 1) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "stillroom", *OPTIONS, "--out", str(out), *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    done = run(out, "--jobs", "1")
    assert done.returncode == 0, done.stderr
    return out


def test_two_processes_give_the_numbers_of_one_and_one_set_of_files(one, tmp_path):
    done = run(tmp_path / "run", processes=2)
    assert done.returncode == 0, done.stderr
    files = [{str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()} for out in (one, tmp_path / "run")]
    assert files[0] == files[1]
    alone, together = (json.loads((out / "results.json").read_text()) for out in (one, tmp_path / "run"))
    assert set(alone["arms"]) == set(together["arms"]) == {"teacher", "alone", "kd"}
    for name, arm in alone["arms"].items():
        assert together["arms"][name]["values"] == pytest.approx(arm["values"], abs=0.011)  # two of 200 samples
    logs = [
        [json.loads(line) for line in (out / "arms/kd/seed-0/metrics.jsonl").read_text().splitlines()]
        for out in (one, tmp_path / "run")
    ]
    terms = [[line["terms"] for line in log if "terms" in line] for log in logs]
    assert len(terms[0]) == len(terms[1]) > 0
    assert done.stdout.count("everything is in") == 1
    assert done.stderr.count("teacher: accuracy") == 1


def test_two_processes_go_on_with_what_was_begun(one, tmp_path):
    out = tmp_path / "run"
    assert run(out, processes=2).returncode == 0
    (out / "arms/kd/seed-1/result.json").unlink()
    (out / "results.json").unlink()
    done = run(out, "--resume", processes=2)
    assert done.returncode == 0, done.stderr
    assert "3 finished runs are kept, 1 are to do" in done.stderr
    assert (out / "results.json").exists()


def test_a_refusal_ends_all_processes_with_its_sentence(tmp_path):
    done = run(tmp_path / "run", "--method", "dkdd", processes=2)
    assert done.returncode != 0
    assert "unknown method 'dkdd'" in done.stderr
