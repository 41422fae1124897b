"""Two processes that share every batch train what one process trains."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import os, signal, sys
import torch
from tests.toys import mlp, splits, trained_teacher
from stillroom.baselines import KD
from stillroom.fit import fit
from stillroom.training import Optim, Training

class Measuring(KD):
    held = (0, 0)

    def after_step(self, player):
        pieces = [p.to_local() if hasattr(p, "to_local") else p for p in self.student.parameters()]
        self.held = (sum(piece.numel() for piece in pieces), sum(p.numel() for p in self.student.parameters()))
        if "stop" in sys.argv and self.clock.step == 9:
            raise KeyboardInterrupt
        if "asked" in sys.argv and self.clock.step == 5 and sys.argv[2] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

training = Training(steps=12, batch_size=16, optimizer=Optim(lr=0.02, clip=1.0), evaluate_every=4,
                    shard="shard" in sys.argv)
method = Measuring(mlp(seed=int(sys.argv[2]) if "apart" in sys.argv else 0), trained_teacher())
try:
    fitted = fit(method, splits(), training, device="cpu", progress=False, folder=sys.argv[1], trackers=(),
                 resume="resume" in sys.argv)
    assert type(fitted.product) is torch.nn.Sequential
    assert method.held[0] < 0.7 * method.held[1] if "shard" in sys.argv else method.held[0] == method.held[1] > 0
    torch.save(fitted.product.state_dict(), f"{sys.argv[1]}/product-{fitted.steps}-{sys.argv[2]}.pt")
except KeyboardInterrupt:
    assert "stop" in sys.argv or "asked" in sys.argv
finally:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(folder: Path, rank: int, world: int, port: int, *more: str) -> subprocess.Popen:
    environment = os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(rank), *more], env=environment)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("one")
    assert start(folder, 0, 1, free_port()).wait(120) == 0
    return dict(torch.load(folder / "product-12-0.pt", weights_only=True))


def both(folder: Path, *more: str) -> None:
    port = free_port()
    processes = [start(folder, rank, 2, port, *more) for rank in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]


def assert_like(one: dict[str, torch.Tensor], folder: Path, ranks: int = 2) -> None:
    for rank in range(ranks):
        two = torch.load(folder / f"product-12-{rank}.pt", weights_only=True)
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)


def test_two_processes_train_what_one_trains(one: dict[str, torch.Tensor], tmp_path: Path) -> None:
    both(tmp_path)
    assert_like(one, tmp_path)
    assert len(list(tmp_path.glob("metrics*.jsonl"))) == 1


def test_processes_that_begin_with_other_weights_take_the_first_ones(
    one: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    both(tmp_path, "apart")
    assert_like(one, tmp_path)


def test_a_request_to_end_that_one_process_gets_ends_both_and_the_run_goes_on(
    one: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    both(tmp_path, "asked")
    assert not list(tmp_path.glob("product-*"))
    both(tmp_path, "resume")
    assert_like(one, tmp_path)


def test_a_cut_student_trains_what_one_process_trains(one: dict[str, torch.Tensor], tmp_path: Path) -> None:
    both(tmp_path, "shard")
    assert_like(one, tmp_path)


def test_a_cut_student_goes_on_when_stopped_in_any_number_of_processes(
    one: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    both(tmp_path, "shard", "stop")
    shutil.copytree(tmp_path, tmp_path / "copy")
    both(tmp_path, "shard", "resume")
    assert_like(one, tmp_path)
    assert start(tmp_path / "copy", 0, 1, free_port(), "resume").wait(120) == 0
    assert_like(one, tmp_path / "copy", ranks=1)
