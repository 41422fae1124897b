"""The main job in two processes that train together: the same numbers, and one set of files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONS = [
    *("--teacher", "conv-8-16", "--student", "conv-4-8", "--teacher-epochs", "1", "--labels", "64"),
    *("--test-size", "200", "--steps", "12", "--batch-size", "16", "--lr", "0.01", "--augment", "shift"),
    *("--seeds", "2", "--device", "cpu"),
]


def run(out: Path, *more: str, processes: int = 1, job: str = "distill") -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "stillroom", job, *OPTIONS, "--out", str(out), *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    done = run(out, "--jobs", "1")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("two") / "run"
    done = run(out, processes=2)
    assert done.returncode == 0, done.stderr
    return out, done


def files_of(out: Path) -> list[str]:
    """Every file but for what a resume needs; the names of event files hold a time and a process."""
    found = [file.relative_to(out) for file in out.rglob("*") if file.is_file() and file.parent.name != "checkpoints"]
    return sorted(str(file.parent / "events" if "tfevents" in file.name else file) for file in found)


def test_two_processes_give_the_numbers_of_one_and_one_set_of_files(
    one: Path, two: tuple[Path, subprocess.CompletedProcess]
) -> None:
    out, done = two
    assert files_of(out) == files_of(one)
    alone, together = (json.loads((place / "results.json").read_text()) for place in (one, out))
    assert set(alone["arms"]) == set(together["arms"]) == {"teacher", "alone", "kd"}
    for name, arm in alone["arms"].items():
        assert together["arms"][name]["values"] == pytest.approx(arm["values"], abs=0.05)  # batch norm of half batches
    assert done.stdout.count("everything is in") == 1
    assert done.stderr.count("teacher: accuracy") == 1


def test_two_processes_go_on_with_what_was_begun(two: tuple[Path, subprocess.CompletedProcess], tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(two[0], out)
    (out / "arms/kd/seed-1/result.json").unlink()
    (out / "results.json").unlink()
    done = run(out, "--resume", processes=2)
    assert done.returncode == 0, done.stderr
    assert "3 finished runs are kept, 1 are to do" in done.stderr
    assert (out / "results.json").read_text().count("values") == (two[0] / "results.json").read_text().count("values")


def test_two_processes_compare_methods_and_measure_their_steps(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "--methods", "kd,dkd", "--seeds", "1", processes=2, job="compare")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert set(results["step_costs"]) == {"alone", "kd", "dkd"}
    assert all(cost["seconds"] > 0 for cost in results["step_costs"].values())
    assert done.stdout.count("everything is in") == 1


@pytest.mark.parametrize("more", [("--jobs", "2"), ("--executor", "ray")], ids=["jobs", "ray"])
def test_arms_are_not_spread_where_processes_share_a_training(tmp_path: Path, more: tuple[str, str]) -> None:
    done = run(tmp_path / "run", *more, processes=2)
    assert done.returncode != 0
    assert "2 processes train every arm together (torchrun), given" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_refusal_ends_all_processes_with_its_sentence(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "--method", "dkdd", processes=2)
    assert done.returncode != 0
    assert "unknown method 'dkdd'" in done.stderr
