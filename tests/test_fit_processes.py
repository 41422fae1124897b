"""Two processes that share every batch train what one process trains."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import sys
import torch
from tests.toys import mlp, splits, trained_teacher
from stillroom.baselines import KD
from stillroom.fit import fit
from stillroom.training import Optim, Training

training = Training(steps=12, batch_size=16, optimizer=Optim(lr=0.02), evaluate_every=4)
resume = "resume" in sys.argv
try:
    fitted = fit(KD(mlp(), trained_teacher()), splits(), training, device="cpu", progress=False, folder=sys.argv[1],
                 trackers=(), resume=resume)
    torch.save(fitted.product.state_dict(), f"{sys.argv[1]}/product-{fitted.steps}-{sys.argv[2]}.pt")
finally:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(folder: Path, rank: int, world: int, port: int) -> subprocess.Popen:
    environment = os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(rank)], env=environment)


def test_two_processes_train_what_one_trains(tmp_path):
    port = free_port()
    both = [start(tmp_path / "two", rank, 2, port) for rank in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert start(tmp_path / "one", 0, 1, free_port()).wait(120) == 0
    one = torch.load(tmp_path / "one/product-12-0.pt", weights_only=True)
    for rank in range(2):
        two = torch.load(tmp_path / f"two/product-12-{rank}.pt", weights_only=True)
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    assert len(list((tmp_path / "two").glob("metrics*.jsonl"))) == 1
