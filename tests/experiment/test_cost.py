"""Costs by hand, by published figures and by real files; agreement by naive loops."""

from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from torch import nn

from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch
from stillroom.experiment.cost import agreement, cost, costs, count_macs, file_bytes


def mlp():
    return nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 3))


class Tied(nn.Module):
    """One embedding that is also the output layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, words):
        return self.out(self.embedding(words))


class Counter(nn.Module):
    """Changes a buffer in every forward pass, also in eval mode, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(2))

    def forward(self, inputs):
        self.calls += 1
        self.replaced = self.replaced + 1
        return self.linear(inputs) + torch.randn(4)


def test_parameters_and_macs_by_hand():
    network = mlp()
    network[4].weight.requires_grad_(False)
    found = cost(network, torch.randn(4, 10), latency=False)
    assert found.parameters == 10 * 20 + 20 + 2 * 20 + 20 * 3 + 3
    assert found.trainable_parameters == found.parameters - 60
    assert found.macs == 10 * 20 + 20 * 3  # one sample, whatever the probe's size
    assert found.latency_ms is None
    assert found.batch_latency_ms is None


@pytest.mark.parametrize(
    ("network", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 9, 7), 9 * 7 * 8 * 27),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 9, 9), 81 * 8 * 9),
        (nn.ConvTranspose2d(3, 8, 2, stride=2), (3, 4, 4), 16 * 3 * 8 * 4),
        (nn.LSTM(6, 8, batch_first=True), (5, 6), 5 * 4 * 8 * (6 + 8)),
        (nn.GRU(6, 8, batch_first=True), (5, 6), 5 * 3 * 8 * (6 + 8)),
        # a layer of a transformer over 5 tokens of width 16: query, key, value, two products of attention, output, MLP
        (
            nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
            (5, 16),
            5 * 16 * 48 + 2 * 5 * 5 * 16 + 5 * 16 * 16 + 2 * 5 * 16 * 32,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_macs_of_layers_by_hand(network, shape, macs):
    assert count_macs(network, torch.randn(1, *shape)) == macs


def test_macs_of_a_known_network():
    import torchvision

    network = torchvision.models.resnet18(weights=None)
    assert count_macs(network, torch.rand(1, 3, 224, 224)) / 1e9 == pytest.approx(
        1.814, abs=0.001
    )  # torchvision's page
    assert cost(network, torch.rand(1, 3, 32, 32), latency=False).parameters == 11_689_512


def test_counting_leaves_the_fused_kernels_on():
    before = (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.mha.get_fastpath_enabled())
    count_macs(nn.Linear(3, 3), torch.randn(1, 3))
    with pytest.raises(RuntimeError):
        count_macs(nn.Linear(3, 3), torch.randn(1, 4))
    after = (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.mha.get_fastpath_enabled())
    assert after == before


@pytest.mark.parametrize(
    "network", [mlp(), nn.Linear(2, 2), nn.LSTM(3, 5, num_layers=2)], ids=["mlp", "linear", "lstm"]
)
def test_file_size_is_that_of_the_real_file(network, tmp_path):
    safetensors.torch.save_file(network.state_dict(), tmp_path / "network.safetensors")
    assert file_bytes(network) == (tmp_path / "network.safetensors").stat().st_size


def test_file_size_counts_float32_and_shared_tensors_once(tmp_path):
    narrow = nn.Linear(30, 40).bfloat16()
    safetensors.torch.save_file(narrow.float().state_dict(), tmp_path / "wide.safetensors")
    assert file_bytes(narrow.bfloat16()) == (tmp_path / "wide.safetensors").stat().st_size
    tied = Tied()
    safetensors.torch.save_file({"embedding.weight": tied.embedding.weight}, tmp_path / "tied.safetensors")
    assert file_bytes(tied) == (tmp_path / "tied.safetensors").stat().st_size
    assert cost(tied, torch.zeros(1, 2, dtype=torch.int64), latency=False).parameters == 28


def test_nothing_is_left_behind():
    network = nn.Sequential(mlp(), nn.Linear(3, 4), Counter())
    network.train()
    network[0][1].eval()  # a mixture of modes must come back as a mixture
    network(torch.randn(5, 10)).sum().backward()
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    grads = [parameter.grad.clone() for parameter in network.parameters()]
    buffer = network[2].replaced
    probe = torch.randn(5, 10)
    random_state = torch.get_rng_state()
    cost(network, probe)
    assert [module.training for module in network.modules()] == modes
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(torch.equal(p.grad, grad) for p, grad in zip(network.parameters(), grads, strict=True))
    assert network[2].replaced is buffer
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_failing_network_is_restored_too():
    network = mlp().train()
    with pytest.raises(RuntimeError):
        cost(network, torch.randn(2, 11))
    assert all(module.training for module in network.modules())


class Sleeper(nn.Module):
    def __init__(self, seconds, calls):
        super().__init__()
        self.linear, self.seconds, self.calls = nn.Linear(2, 2), seconds, calls

    def forward(self, inputs):
        import time

        time.sleep(self.seconds)
        self.calls.append((self.seconds, len(inputs)))
        return self.linear(inputs)


def test_latencies_are_medians_of_interleaved_rounds():
    calls: list[tuple[float, int]] = []
    networks = {"teacher": Sleeper(0.02, calls), "student": Sleeper(0.005, calls)}
    found = costs(networks, torch.randn(3, 2), rounds=4, batch_size=8)
    assert found["teacher"].latency_ms == pytest.approx(20, rel=0.5)
    assert found["student"].latency_ms == pytest.approx(5, rel=0.8)
    assert found["student"].batch_size == 8
    assert found["student"].threads == torch.get_num_threads()
    assert found["student"].device == "cpu"
    timed = [call for call in calls if call[1] == 8]
    assert [seconds for seconds, _ in timed[2:]] == [0.02, 0.005, 0.005, 0.02] * 2  # after one warm-up each
    assert {size for _, size in calls} == {1, 8}


def test_slow_networks_are_timed_three_times_only():
    calls: list[tuple[float, int]] = []
    costs({"slow": Sleeper(0.01, calls)}, torch.randn(1, 2), rounds=50, seconds=0.0)
    assert len(calls) == 1 + 2 * (1 + 3)  # counting, then warm-up and three rounds for both batch sizes


def test_a_frozen_teacher_stands_for_its_network_and_batches_are_understood():
    network = mlp()
    batch = Batch(torch.randn(6, 10), torch.zeros(6, dtype=torch.int64))
    assert cost(Frozen(network), batch, latency=False).parameters == 343 - 20


def test_inputs_may_be_a_dictionary():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Linear(3, 5)

        def forward(self, inputs):
            assert len(inputs["a"]) == len(inputs["b"])
            return self.left(inputs["a"]) + inputs["b"]

    found = cost(Two(), {"a": torch.randn(2, 3), "b": torch.randn(2, 5)})
    assert found.macs == 15
    assert found.latency_ms > 0


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(TypeError, match=r"'teacher' must be a torch.nn.Module to be measured, given function"):
        costs({"teacher": Frozen(lambda batch: batch.inputs)}, torch.randn(2, 3))
    with pytest.raises(ValueError, match="at least one sample, given none"):
        cost(mlp(), torch.randn(0, 10))
    with pytest.raises(ValueError, match="given 0 and 32"):
        costs({"mlp": mlp()}, torch.randn(2, 10), rounds=0)


def naive_kl(student, teacher):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(x) / sum(map(math.exp, t)) for x in t]
        q = [math.exp(x) / sum(map(math.exp, s)) for x in s]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(student)


def test_agreement_by_hand():
    teacher = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 4.0], [2.0, 1.0, 0.0]], dtype=torch.float64)
    student = torch.tensor([[2.0, 1.0, 0.5], [0.0, 1.0, 3.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    # the teacher says 0, 1, 2, 0 and the student 0, 2, 2, 0
    found = agreement(student, teacher, torch.tensor([0, 0, 1, 1]))  # the teacher errs on the last three
    assert found.top1 == 0.75
    assert found.kl == pytest.approx(naive_kl(student, teacher), rel=1e-12)
    assert found.repeated_errors == pytest.approx(2 / 3)
    assert agreement(student, teacher).repeated_errors is None
    assert agreement(student, teacher, torch.tensor([0, 1, 2, 0])).repeated_errors is None  # no error to repeat
    assert agreement(student, teacher, torch.tensor([0, 0, -100, -100])).repeated_errors == 0.0


def test_agreement_with_itself_with_certain_teachers_and_with_dense_outputs():
    logits = torch.randn(2, 4, 3, 3)
    assert agreement(logits, logits).as_dict() == {
        "top1": 1.0,
        "kl": pytest.approx(0.0, abs=1e-7),
        "repeated_errors": None,
    }
    certain = torch.tensor([[0.0, -math.inf]])
    assert agreement(torch.tensor([[0.0, 0.0]]), certain).kl == pytest.approx(math.log(2))


def test_outputs_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        agreement(torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(ValueError, match="student_outputs hold NaN in 1 rows"):
        agreement(torch.tensor([[0.0, math.nan], [0.0, 1.0]]), torch.randn(2, 2))
