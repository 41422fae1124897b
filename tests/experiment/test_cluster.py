"""Arms and seeds on a local Ray cluster of two workers."""

import os
import signal
import threading
import time

import pytest
import torch

from stillroom import checkpoint
from stillroom.baselines import KD, Alone
from stillroom.experiment.budget import check_machine
from stillroom.experiment.cluster import size_of_task
from stillroom.experiment.run import Experiment
from stillroom.storage import StorageError
from stillroom.task import Classification
from stillroom.training import Optim, Training
from tests.toys import mlp, splits, trained_teacher

ray = pytest.importorskip("ray")
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


def wait_for(log):
    """Until the training has made a step."""
    while not log.exists() or not log.stat().st_size:
        time.sleep(0.05)


def full(seed, context):
    wait_for(context.folder.parents[1] / "long/seed-0/metrics.jsonl")
    raise StorageError("the disk is full")


@pytest.mark.parametrize("ended_by", ["a full disk", "Ctrl-C"])
def test_on_a_cluster_that_stays_no_task_is_left_behind(tmp_path, ended_by):
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, configure_logging=False)
    arms = {"long": Alone, **({"full": full} if ended_by == "a full disk" else {}), "next": Alone, "waiting": Alone}
    training = QUICK.change(steps=200_000, evaluate_every=100_000)
    given = Experiment(Classification(splits()), arms, student, training=training, baseline="long")
    log = tmp_path / "run/arms/long/seed-0/metrics.jsonl"

    def interrupt():
        wait_for(log)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    if ended_by == "Ctrl-C":
        threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(StorageError if ended_by == "a full disk" else KeyboardInterrupt):
            given.run((0,), tmp_path / "run", executor="ray", progress=False)
        assert ray.is_initialized()
        assert checkpoint.load(tmp_path / "run/arms/long/seed-0/checkpoints/last.pt")["step"] > 0
        written = log.read_bytes()
        time.sleep(1.0)
        assert log.read_bytes() == written
    finally:
        signal.signal(signal.SIGINT, before)
        ray.shutdown()


FOUR, TWO, GPUS = {"CPU": 4.0}, {"CPU": 2.0}, {"CPU": 16.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "device", "tasks", "expected"),
    [
        ([FOUR, TWO], None, 10, (1, 0)),  # all at once, as far as that goes
        ([FOUR, TWO], None, 2, (2, 0)),  # every node can run one
        ([FOUR, TWO], "cpu", 1, (2, 0)),
        ([{"CPU": 64.0}], "cpu", 1, (8, 0)),  # no more than were asked for
        ([TWO, GPUS], None, 8, (2, 1)),
        ([TWO, GPUS], "cuda", 8, (2, 1)),
        ([TWO, GPUS], "cpu", 6, (2, 0)),
        ([{"memory": 1.0}, TWO], "cpu", 1, (2, 0)),  # a head that runs nothing
    ],
)
def test_a_task_asks_for_what_nodes_have(nodes, device, tasks, expected):
    assert size_of_task(nodes, device, tasks=tasks, threads=8) == expected


def test_what_no_node_can_run_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"no node of the cluster has a GPU \(nodes: 4 CPUs; 2 CPUs\): take.*cpu"):
        size_of_task([FOUR, TWO], "cuda", tasks=1, threads=1)
    with pytest.raises(ValueError, match=r"no node of the cluster has a CPU \(nodes: none\)"):
        size_of_task([], None, tasks=1, threads=1)
    with pytest.raises(ValueError, match="no node of the cluster has a GPU"):
        experiment().run((0,), tmp_path / "run", executor="ray", device="cuda", progress=False)


def test_a_device_is_asked_of_the_cluster():
    check_machine(device="cuda", executor="ray")
    check_machine(device="cuda:0", executor="ray")
    for strange in ("cudaa", "meta"):
        with pytest.raises(ValueError, match=f"device '{strange}'"):
            check_machine(device=strange, executor="ray")


def test_another_executor_is_refused(tmp_path):
    with pytest.raises(ValueError, match="executor must be processes or ray, given 'slurm'"):
        experiment().run((0,), tmp_path / "run", executor="slurm", progress=False)
