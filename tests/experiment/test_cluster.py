"""Arms and seeds on a local Ray cluster of two workers."""

import os
import signal

import pytest
import torch

from stillroom.baselines import KD, Alone
from stillroom.experiment.run import Experiment
from stillroom.task import Classification
from stillroom.training import Optim, Training
from tests.toys import mlp, splits, trained_teacher

pytest.importorskip("ray")
QUICK = Training(steps=24, batch_size=16, optimizer=Optim(lr=0.02), evaluate_every=6)


def student():
    return mlp()


def killed_once(seed, context):
    """Ends its own process the first time it is run, without a word."""
    mark = context.folder.parents[2] / f"killed-{seed}"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"accuracy": 0.25 + seed}


class KDKilledOnce(KD):
    """KD whose process is killed after its fourteenth step, once."""

    mark = ""

    def after_step(self, player):
        if self.clock.step == 14 and not os.path.exists(self.mark):
            open(self.mark, "x").close()
            os.kill(os.getpid(), signal.SIGKILL)


def experiment(**arms):
    return Experiment(Classification(splits()), {"alone": Alone, **arms}, student, trained_teacher(), QUICK, save=True)


def test_a_cluster_gives_what_processes_give_and_loses_nothing_with_a_worker(tmp_path):
    here = experiment(kd=KD).run((0, 1), tmp_path / "here", progress=False)
    lines = []
    KDKilledOnce.mark = str(tmp_path / "mark")

    def kd(student, teacher):
        method = KDKilledOnce(student, teacher)
        method.mark = str(tmp_path / "mark")
        return method

    there = experiment(kd=kd, killed=killed_once).run(
        (0, 1), tmp_path / "there", jobs=2, executor="ray", say=lines.append
    )
    assert (tmp_path / "mark").exists()
    for arm in ("alone", "kd"):
        assert there["arms"][arm]["values"] == here["arms"][arm]["values"]
        for seed in (0, 1):
            name = f"arms/{arm}/seed-{seed}/student/student.safetensors"
            assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert there["arms"]["killed"]["values"] == [0.25, 1.25]
    assert sum("seed" in line for line in lines) == 6
    log = (tmp_path / "there/arms/kd/seed-0/metrics.jsonl").read_text()
    assert log == (tmp_path / "here/arms/kd/seed-0/metrics.jsonl").read_text()
    assert torch.get_num_threads() >= 1


def failing(seed, context):
    raise ValueError(f"seed {seed} does not fit")


def test_an_error_on_the_cluster_is_named_when_the_others_have_ended(tmp_path):
    with pytest.raises(ValueError, match="arm 'failing', seed 0: seed 0 does not fit"):
        experiment(failing=failing).run((0,), tmp_path / "run", jobs=1, executor="ray", progress=False)
    assert (tmp_path / "run/arms/alone/seed-0/result.json").exists()


def test_another_executor_is_refused(tmp_path):
    with pytest.raises(ValueError, match="executor must be processes or ray, given 'slurm'"):
        experiment().run((0,), tmp_path / "run", executor="slurm", progress=False)
