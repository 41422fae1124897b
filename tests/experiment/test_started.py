"""What a run may be gone on with: its own teacher, data, student, training and budget, and nothing else."""

import json
import shutil
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import stillroom
from stillroom.baselines import KD, Alone
from stillroom.experiment.run import Experiment
from stillroom.lock import Stopped
from stillroom.task import Classification
from stillroom.training import Optim, Training
from tests.toys import mlp, splits, trained_teacher

QUIET = {"progress": False, "device": "cpu"}
QUICK = Training(steps=6, batch_size=16, optimizer=Optim(lr=0.02), evaluate_every=3)


def small():
    return mlp(hidden=4)


def other():
    return mlp(hidden=5)


def learned(seed):
    teacher = trained_teacher()
    with torch.no_grad():
        teacher[0].weight += 1e-3 * seed
    return teacher


def ask(batch, *, teacher):
    return teacher(batch.inputs)


def ask_too(batch, *, teacher):
    return teacher(batch.inputs)


def others():
    changed = splits()
    changed.train._inputs[:5] += 0.01
    return changed


def experiment(data=None, **changes):
    given = {"arms": {"alone": Alone, "kd": KD}, "student": small, "teacher": trained_teacher(), "training": QUICK}
    return Experiment(Classification(splits() if data is None else data), **(given | changes))


@pytest.fixture(scope="module", name="begun")
def make_begun(tmp_path_factory):
    """A run of which one arm has not finished."""
    place = tmp_path_factory.mktemp("begun") / "run"
    experiment().run([0], place, **QUIET)
    (place / "arms/kd/seed-0/result.json").unlink()
    (place / "results.json").unlink()
    return place


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": learned(1)}, r"another teacher \(weights \w+, now \w+\): resume it with the same"),
        ({"teacher": None, "arms": {"alone": Alone}}, r"another teacher \(weights \w+, now none\)"),
        ({"data": others()}, r"other data \(checksum \w+, now \w+\)"),
        ({"student": other}, "another student: resume"),
        ({"training": QUICK.change(batch_size=32)}, "another way of training: resume"),
        (
            {"student": other, "data": others()},
            r"other data \(.*\) and another student: resume it with the same",
        ),
    ],
    ids=["teacher", "no teacher", "data", "student", "training", "student and data"],
)
def test_a_run_is_not_gone_on_with_as_another_one(begun, tmp_path, changes, message):
    shutil.copytree(begun, tmp_path / "run")
    before = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        experiment(**changes).run([0], tmp_path / "run", resume=True, **QUIET)
    assert (tmp_path / "run/run.json").read_bytes() == before
    assert not (tmp_path / "run/arms/kd/seed-0/result.json").exists()
    experiment().run([0, 1], tmp_path / "run", resume=True, **QUIET)


def test_a_module_as_student_and_a_function_as_teacher_are_known_again(tmp_path):
    given = {"student": small(), "teacher": partial(ask, teacher=trained_teacher())}
    experiment(**given).run([0], tmp_path / "run", **QUIET)
    experiment(**given).run([0], tmp_path / "run", resume=True, **QUIET)
    with pytest.raises(ValueError, match="another student"):
        experiment(**given | {"student": mlp(hidden=4, seed=1)}).run([0], tmp_path / "run", resume=True, **QUIET)
    for strange in (partial(ask, teacher=learned(1)), partial(ask_too, teacher=trained_teacher())):
        with pytest.raises(ValueError, match="another teacher"):
            experiment(**given | {"teacher": strange}).run([0], tmp_path / "run", resume=True, **QUIET)


def test_a_run_of_an_older_version_is_gone_on_with(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "run")
    kept = json.loads((tmp_path / "run/run.json").read_text())
    old = {name: kept[name] for name in ("config", "versions", "arms")}
    (tmp_path / "run/run.json").write_text(json.dumps(old))
    experiment().run([0], tmp_path / "run", resume=True, **QUIET)
    again = json.loads((tmp_path / "run/run.json").read_text())
    assert {name: again[name] for name in kept if name != "seconds"} == {
        name: kept[name] for name in kept if name != "seconds"
    }


def test_a_measured_teacher_that_nobody_knows_is_measured_again(tmp_path):
    (tmp_path / "run/teacher").mkdir(parents=True)
    (tmp_path / "run/teacher/metrics.json").write_text('{"accuracy": 0.123}')  # of a run killed before its run.json
    results = experiment().run([0], tmp_path / "run", resume=True, **QUIET)
    assert results["arms"]["teacher"]["values"][0] > 0.9


def test_distilling_goes_on_with_its_own_models_and_data_only(tmp_path):
    given = {"teacher": trained_teacher(), "student": small(), "data": splits(), "steps": 4, "seeds": 1, **QUIET}
    stillroom.distill(**given, out=tmp_path / "run")
    for changes, message in (
        ({"teacher": learned(1)}, "another teacher"),
        ({"data": others()}, "other data"),
        ({"student": mlp(hidden=4, seed=1)}, "another student"),
        ({"student": other}, r"other options \(student\)"),
    ):
        with pytest.raises(ValueError, match=message):
            stillroom.distill(**given | changes, out=tmp_path / "run", resume=True)
    stillroom.distill(**given, out=tmp_path / "run", resume=True)


def test_a_method_does_not_join_a_budget_that_it_was_not_measured_for(tmp_path):
    given = (trained_teacher(), small, splits())
    options = {"steps": 6, "seeds": 1, "budget": "time", "out": tmp_path / "run", **QUIET}
    stillroom.compare("kd", *given, **options)
    with pytest.raises(ValueError, match=r"wall-clock of the slowest of alone and kd, and dkd was not measured.*new"):
        stillroom.compare("kd,dkd", *given, resume=True, **options)
    assert "dkd" not in json.loads((tmp_path / "run/run.json").read_text())["arms"]
    stillroom.compare("kd", *given, resume=True, **options)


def test_the_seconds_of_a_run_are_those_of_all_its_processes(tmp_path, monkeypatch):
    first = experiment(arms={"alone": Alone, "kd": partial(stopped, mark=tmp_path / "mark")})
    with pytest.raises(Stopped):
        first.run([0], tmp_path / "run", **QUIET)
    took = json.loads((tmp_path / "run/run.json").read_text())["seconds"]
    assert took > 0.5
    results = first.run([0], tmp_path / "run", resume=True, **QUIET)
    assert results["seconds"] > took
    assert json.loads((tmp_path / "run/run.json").read_text())["seconds"] == results["seconds"]


def stopped(seed, context, *, mark):
    """Ctrl-C the first time."""
    if not mark.exists():
        mark.touch()
        time.sleep(0.5)
        raise KeyboardInterrupt
    return {"accuracy": 0.5}


def test_what_only_a_resume_needs_is_gone_when_it_has_finished(tmp_path):
    given = experiment(lrs=(0.02, 0.01), teacher=nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    training = Training(steps=60, batch_size=16, optimizer=Optim(lr=0.02))
    replace(given, teacher_training=training).run([0], tmp_path / "run", **QUIET)
    assert len(list(tmp_path.rglob("lr-*"))) == 4
    assert list(tmp_path.rglob("checkpoints")) == []
