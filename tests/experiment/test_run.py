"""Experiments of any arms: seeds, claims, failures, processes, resuming, and what the results say."""

import json
import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom.experiment import Claim, forks
from stillroom.experiment.budget import check_machine
from stillroom.experiment.run import Experiment
from stillroom.experiment.workers import work
from stillroom.task import Classification, Measured
from stillroom.training import Training

QUIET = {"progress": False, "device": "cpu"}


def score(seed, context, *, gain=0.0):
    """An arm of somebody's own: no network, a number that varies with the seed."""
    context.extra["steps"] = 7
    return {"reward": 0.5 + gain + 0.01 * (seed % 3), "cost": 2.0}


def noisy(seed, context):
    return {"reward": 0.5 + (0.2 if seed % 2 else -0.2), "cost": 2.0}


def failing(seed, context):
    if seed == 1:
        raise ValueError("this arm cannot do seed 1")
    return {"reward": 0.1, "cost": 1.0}


class AwkwardError(Exception):
    """An exception that takes more than a text."""

    def __init__(self, code, text):
        super().__init__(code, text)


def awkward(seed, context):
    raise AwkwardError(3, "no")


def counted(seed, context, *, file):
    with open(file, "a") as lines:
        lines.write(f"{seed}\n")
    return {"reward": float(seed), "cost": 0.0}


def experiment(**changes):
    arms = {"alone": score, "better": partial(score, gain=0.1), "noisy": noisy}
    return Experiment(task=Classification("digits"), **({"arms": arms} | changes))


def test_arms_of_any_kind_are_run_over_seeds_and_weighed():
    claims = [
        Claim("better", ">", "alone", on="reward"),
        Claim("better", "<", "alone", on="reward"),
        Claim("noisy", ">", "alone", on="reward"),
        Claim("alone", "==", 2.0, on="cost", within=0.1),
    ]
    results = experiment(claims=claims).run([0, 1, 2, 3], **QUIET)
    assert results["metric"] == "reward"  # the arms' own first metric, where they have not the task's
    assert results["arms"]["better"]["values"] == pytest.approx([0.6, 0.61, 0.62, 0.6])
    assert results["arms"]["better"]["mean"] == pytest.approx(0.6075)
    assert results["differences"]["better"]["mean"] == pytest.approx(0.1)
    assert [claim["verdict"] for claim in results["claims"]] == ["shown", "refuted", "not shown", "shown"]
    assert "alone" not in results["differences"]


def test_results_hold_what_repeats_and_judges_a_run(tmp_path):
    given = experiment(config={"colour": "blue"}, title="A title", question="Why?", system="slug")
    results = given.run([4, 9], tmp_path / "run", command="stillroom run slug", **QUIET)
    written = json.loads((tmp_path / "run/results.json").read_text())
    assert written == json.loads(json.dumps(results))
    assert written["seeds"] == [4, 9]
    assert written["kind"] == "system"
    assert written["config"] == {"colour": "blue"}
    assert written["command"] == "stillroom run slug"
    assert {"python", "torch", "stillroom"} <= set(written["versions"])
    assert {"processor", "cores", "jobs", "device"} <= set(written["machine"])
    assert written["arms"]["alone"]["steps"] == [7, 7]
    assert written["arms"]["alone"]["metrics"]["cost"] == [2.0, 2.0]
    assert [arm["role"] for arm in written["arms"].values()] == ["alone", "method", "method"]
    assert written["seconds"] >= 0
    assert all(len(arm["seconds"]) == 2 for arm in written["arms"].values())


def test_one_failing_arm_does_not_lose_the_others(tmp_path):
    given = experiment(arms={"failing": failing, "alone": score})
    with pytest.raises(ValueError, match=r"arm 'failing', seed 1: this arm cannot do seed 1$"):
        given.run([0, 1, 2], tmp_path / "run", **QUIET)
    kept = {path.parent.relative_to(tmp_path / "run/arms").as_posix() for path in tmp_path.rglob("result.json")}
    assert kept == {"failing/seed-0", "failing/seed-2", "alone/seed-0", "alone/seed-1", "alone/seed-2"}
    assert not (tmp_path / "run/results.json").exists()


def test_where_processes_share_a_training_a_failure_ends_all_at_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = []

    class Plan:
        threads = 1

        def execute(self, name, seed, factor=1.0):
            done.append(name)
            raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        list(work(Plan(), [("first", 0), ("second", 0)], {}, 1))
    assert done == ["first"]  # the other processes are still in it


def test_a_failure_of_any_kind_names_the_arm_and_counts_the_others():
    with pytest.raises(RuntimeError, match=r"arm 'odd', seed 0: .*1 further runs failed.*AwkwardError"):
        experiment(arms={"odd": awkward, "alone": score}).run([0, 1], **QUIET)


def test_processes_give_the_numbers_of_one_and_fail_alike(tmp_path):
    one = experiment().run([0, 1, 2], **QUIET)
    two = experiment().run([0, 1, 2], jobs=2, **QUIET)
    assert {name: arm["values"] for name, arm in one["arms"].items()} == {
        name: arm["values"] for name, arm in two["arms"].items()
    }
    assert two["machine"]["jobs"] == 2


def told(seed, context):
    return {"reward": float(os.environ["STILLROOM_TOLD"]), "cost": float(os.getppid())}


@pytest.mark.parametrize("safe", [True, False], ids=["forked", "spawned"])
def test_workers_begin_with_the_environment_of_their_parent(monkeypatch, safe):
    if safe and not forks.are_safe():
        pytest.skip("workers are no forks here")
    monkeypatch.setattr(forks, "are_safe", lambda: safe)
    parents = set()
    for number in ("3", "4"):  # also of a server that was there before
        monkeypatch.setenv("STILLROOM_TOLD", number)
        found = experiment(arms={"alone": told}).run([0, 1], jobs=2, **QUIET)["arms"]["alone"]["metrics"]
        assert found["reward"] == [float(number)] * 2
        parents |= set(found["cost"])
    assert (os.getpid() in parents) != safe
    assert len(parents) == 1


@pytest.mark.skipif(not forks.are_safe(), reason="workers are no forks here")
def test_the_server_ends_with_its_parent_even_while_it_imports():
    program = (
        "from stillroom.experiment import forks; from multiprocessing import forkserver as f; forks.begin(2); "
        "print(f._forkserver._forkserver_pid)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True, timeout=60)
    assert time.monotonic() - began < 30  # it would hold the pipe open
    for _ in range(100):
        if not Path(f"/proc/{int(done.stdout)}").exists():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the server is still there")


def test_a_run_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(3)
    np.random.seed(4)  # noqa: NPY002
    random.seed(5)
    first = torch.rand(2), np.random.rand(2), random.random()  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(4)  # noqa: NPY002
    random.seed(5)
    experiment(arms={"alone": drawing}).run([0, 1], **QUIET)
    second = torch.rand(2), np.random.rand(2), random.random()  # noqa: NPY002
    assert torch.equal(first[0], second[0])
    assert (first[1] == second[1]).all()
    assert first[2] == second[2]


def drawing(seed, context):
    return {"reward": random.random() + float(torch.rand(1)), "cost": 0.0}


def test_going_on_with_nothing_is_said(tmp_path):
    lines = []
    options = {"device": "cpu", "resume": True, "say": lines.append}
    experiment().run([0, 1], tmp_path / "typo", **options)
    assert any("there is no run in" in line and "starts anew" in line for line in lines)
    lines.clear()
    experiment().run([0, 1], tmp_path / "typo", **options)
    assert not any("starts anew" in line for line in lines)


def test_an_arm_that_cannot_be_sent_to_processes_is_refused():
    def local(seed, context):
        return {"reward": 1.0}

    with pytest.raises(TypeError, match="top of a module, or run with jobs=1"):
        experiment(arms={"alone": local}).run([0, 1], jobs=2, **QUIET)


def test_finished_runs_are_not_run_again(tmp_path):
    file, place = tmp_path / "lines", tmp_path / "run"
    given = experiment(arms={"alone": partial(counted, file=str(file)), "failing": failing})
    with pytest.raises(ValueError, match="seed 1"):
        given.run([0, 1], place, **QUIET)
    mended = experiment(arms={"alone": partial(counted, file=str(file)), "failing": score})
    said = []
    results = mended.run([0, 1], place, resume=True, device="cpu", say=said.append)
    assert file.read_text() == "0\n1\n"
    assert said[0] == "3 finished runs are kept, 1 are to do"
    assert results["arms"]["failing"]["values"] == pytest.approx([0.1, 0.51])


def test_a_folder_is_only_resumed_as_what_it_is(tmp_path):
    experiment(config={"lr": 1}).run([0], tmp_path / "run", **QUIET)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        experiment(config={"lr": 1}).run([0], tmp_path / "run", **QUIET)
    with pytest.raises(ValueError, match=r"other options \(lr\)"):
        experiment(config={"lr": 2}).run([0], tmp_path / "run", resume=True, **QUIET)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no run that could be resumed"):
        experiment().run([0], tmp_path / "other", resume=True, **QUIET)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        experiment().run([0], tmp_path / "file", **QUIET)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["note.txt"]


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([], "given 0 seeds"),
        ([0, -1], "given -1"),
        ([2, 2], r"once, given \[2, 2\]"),
        ([0.5], "given 0.5"),
        ([True], "given True"),
    ],
)
def test_seeds_are_checked_before_anything_is_written(seeds, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        experiment().run(seeds, tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "jobs must be 1 or more processes, given 0"),
        ({"workers": -1}, "workers must be 0 or more threads, given -1"),
        ({"level": 1.0}, "between 0 and 1, given 1.0"),
        ({"device": "cudaa"}, "device 'cudaa' is not available here: take one of cpu"),
        ({"device": "meta"}, "device 'meta' holds no numbers"),
    ],
)
def test_the_machine_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        check_machine(**options)
    check_machine(jobs=2, device="cpu", workers=1, level=0.9)


def test_a_teacher_that_guesses_is_refused_before_anything_is_written(tmp_path):
    from stillroom.baselines import KD, Alone
    from stillroom.tripwires import TrainingError

    given = Experiment(
        task=Classification("digits", train_size=60),
        arms={"alone": Alone, "kd": KD},
        student="mlp-4",
        teacher="mlp-4",
        training=Training(steps=2),
    )
    with pytest.raises(TrainingError, match="no better than guessing"):
        given.run([0], tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_tiny_shrinks_data_and_steps_and_keeps_the_rest(tmp_path):
    from stillroom.baselines import KD, Alone

    given = Experiment(
        task=Classification("digits", train_size=500),
        arms={"alone": Alone, "kd": partial(KD, temperature=2.0)},
        student="mlp-4",
        teacher="mlp-16",
        training=Training(epochs=50, batch_size=128),
        teacher_training=Training(epochs=40),
        claims=[Claim("kd", ">", "alone", on="accuracy")],
    )
    tiny = given.tiny()
    assert (tiny.training.steps, tiny.training.epochs, tiny.training.batch_size) == (2, None, 16)
    assert tiny.arms == given.arms
    assert tiny.claims == given.claims
    assert given.training.epochs == 50
    results = tiny.run([0, 1], tmp_path / "run", **QUIET)
    assert results["arms"]["kd"]["steps"] == [2, 2]
    assert all((32 * value) % 1 == pytest.approx(0) for value in results["arms"]["kd"]["values"])  # 32 test samples


def test_an_experiment_needs_arms_and_claims_about_them():
    with pytest.raises(ValueError, match="at least one arm"):
        experiment(arms={})
    with pytest.raises(ValueError, match="did you mean 'better'"):
        experiment(claims=[Claim("bettter", ">", "alone", on="reward")])


def test_controls_and_rivals_are_named_and_shown_as_such():
    arms = {name: partial(score, gain=gain) for name, gain in zip("abcd", (0.0, 0.1, 0.2, 0.3), strict=True)}
    given = Experiment(Measured("reward"), arms, baseline="a", rivals=("b",), controls=("c",), method="d")
    results = given.run([0, 1], **QUIET)
    roles = {name: arm["role"] for name, arm in results["arms"].items()}
    assert roles == {"a": "alone", "b": "baseline", "c": "control", "d": "method"}
    assert results["metric"] == "reward"
    with pytest.raises(ValueError, match=r"controls names \['z'\], but the arms are a, b, c, d"):
        Experiment(Measured("reward"), arms, baseline="a", controls=("z",))
