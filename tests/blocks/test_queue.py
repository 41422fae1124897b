import copy
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from stillroom.blocks import FeatureQueue


def rows(*values: float) -> torch.Tensor:
    return torch.tensor([[value, -value] for value in values])


def test_it_holds_the_latest_in_order_and_wraps_around():
    queue = FeatureQueue(5, 2)
    assert queue.features.shape == (0, 2)
    queue.enqueue(rows(0.0, 1.0), torch.tensor([7, 8]))
    assert torch.equal(queue.features, rows(0.0, 1.0))
    assert len(queue) == 2
    expected: list[float] = [0, 1]
    for step in range(2, 20, 3):
        batch = [float(step), step + 1.0, step + 2.0]
        queue.enqueue(rows(*batch), torch.tensor([int(value) + 7 for value in batch]))
        expected = (expected + batch)[-5:]
        assert torch.equal(queue.features, rows(*expected))
        assert queue.labels.tolist() == [value + 7 for value in expected]
    queue.enqueue(rows(1.0, 2.0, 3.0, 4.0, 5.0))
    assert torch.equal(queue.features, rows(1.0, 2.0, 3.0, 4.0, 5.0))
    assert queue.labels.tolist() == [-100] * 5


def test_it_keeps_float32_without_gradients_and_gives_copies():
    queue, features = FeatureQueue(4, 2), torch.randn(2, 2, requires_grad=True)
    queue.enqueue(features)
    assert not queue.features.requires_grad
    loss = (features @ queue.features.T).sum()
    queue.enqueue(features.bfloat16())
    loss.backward()  # what the loss used is not changed by what comes later
    assert queue.features.dtype == torch.float32


def test_its_state_goes_on(tmp_path):
    queue = FeatureQueue(3, 2)
    queue.enqueue(rows(1.0, 2.0), torch.tensor([1, 2]))
    queue.enqueue(rows(3.0, 4.0), torch.tensor([3, 4]))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    other = FeatureQueue(3, 2)
    other.load_state_dict(torch.load(tmp_path / "queue.pt"))
    for each in (queue, other, copy.deepcopy(queue)):
        each.enqueue(rows(5.0), torch.tensor([5]))
        assert torch.equal(each.features, rows(3.0, 4.0, 5.0))
        assert each.labels.tolist() == [3, 4, 5]
    assert all(isinstance(value, torch.Tensor) for value in queue.state_dict().values())
    assert list(queue.parameters()) == []


def test_wrong_batches_and_queues_are_refused():
    queue = FeatureQueue(3, 2)
    with pytest.raises(ValueError, match="4 features were given to a queue of 3"):
        queue.enqueue(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"shape \(N, 2\), given \(2, 3\)"):
        queue.enqueue(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"int64 of shape \(2,\), given torch\.int64 of \(3,\)"):
        queue.enqueue(torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"given torch\.float32 of \(2,\)"):
        queue.enqueue(torch.zeros(2, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="1 or more, given 0 and 2"):
        FeatureQueue(0, 2)
    assert len(queue) == 0


def _process(rank: int, store: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    queue = FeatureQueue(4, 2)
    queue.enqueue(rows(1.0, 2.0) if rank == 0 else rows(3.0), torch.tensor([1, 2] if rank == 0 else [3]))
    queue.enqueue(rows(4.0) if rank == 0 else rows(5.0))
    torch.save((queue.features, queue.labels), f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 warns of forks beside threads
def test_two_processes_hold_the_same_queue(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path))
    torch.multiprocessing.start_processes(_process, arguments, nprocs=2, start_method="fork")  # spawn loads torch anew
    for rank in range(2):
        features, labels = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(features, rows(2.0, 3.0, 4.0, 5.0))
        assert labels.tolist() == [2, 3, -100, -100]
