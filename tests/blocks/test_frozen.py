import copy

import pytest
import torch
from torch import nn

from stillroom.blocks import Average, Cached, Frozen, fingerprint
from stillroom.data.batch import Batch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Owner(nn.Module):
    def __init__(self, network, **options) -> None:
        super().__init__()
        self.student = nn.Linear(4, 2)
        self.teacher = Frozen(network, **options)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))


def test_training_cannot_touch_the_network():
    owner = Owner(inner := network()).train()
    assert not any(module.training for module in inner.modules())
    assert not any(parameter.requires_grad for parameter in inner.parameters())
    assert {name.split(".")[0] for name in owner.state_dict()} == {"student"}
    assert len(list(owner.parameters())) == 2
    assert inner not in list(owner.modules())
    before, inputs = fingerprint(inner), torch.randn(8, 4, requires_grad=True)
    assert not owner.teacher(inputs).requires_grad
    assert torch.equal(owner.teacher(inputs), owner.teacher(inputs))  # no dropout
    assert fingerprint(inner) == before


def test_a_network_set_to_train_by_its_other_holder_is_evaluated_again():
    teacher, inputs = Frozen(inner := network()), torch.randn(8, 4)
    before = teacher(inputs)
    inner.train()
    assert torch.equal(teacher(inputs), before)


def test_it_moves_and_is_copied_with_its_owner():
    owner = Owner(network()).to(torch.float64)
    assert owner.teacher.network[0].weight.dtype == torch.float64
    twin = copy.deepcopy(owner)
    with torch.no_grad():
        twin.teacher.network[0].weight.zero_()
    assert owner.teacher.network[0].weight.abs().sum() > 0


def test_statistics_of_the_batch_are_used_and_forgotten():
    inner = network()
    inner(torch.randn(32, 4))
    teacher, inputs = Frozen(inner, batch_norm="batch"), torch.randn(8, 4) + 3
    before = fingerprint(inner)
    hidden = inner[0](inputs)
    normed = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(teacher(inputs), inner[3](normed))
    assert fingerprint(inner) == before
    assert not inner[1].training


def test_networks_get_inputs_and_providers_get_the_batch():
    class Provider(nn.Module):
        takes_batch = True

        def forward(self, batch):
            return batch.inputs * batch.labels[:, None]

    batch = Batch(torch.ones(2, 4), torch.tensor([2, 3]))
    assert Frozen(nn.Identity())(batch) is batch.inputs
    assert Frozen(Provider())(batch).sum() == 20
    assert Frozen(lambda asked: asked.labels)(batch).tolist() == [2, 3]
    assert Frozen(lambda asked: asked.inputs)(batch.inputs).shape == (2, 4)


def test_the_fingerprint_changes_with_any_value_name_or_type():
    first = nn.Linear(2, 2)
    same = copy.deepcopy(first)
    assert fingerprint(first) == fingerprint(same)
    assert len(fingerprint(first)) == 12
    with torch.no_grad():
        same.bias[1] += 1e-6
    assert fingerprint(first) != fingerprint(same)
    assert fingerprint(first) != fingerprint(nn.Sequential(first))
    assert fingerprint(first) != fingerprint(copy.deepcopy(first).double())
    assert Frozen(len).fingerprint() == "function"


def test_wrong_teachers_are_refused():
    with pytest.raises(TypeError, match="given str"):
        Frozen("resnet18")
    with pytest.raises(ValueError, match='"running", "batch" or "train", given \'eval\''):
        Frozen(nn.Identity(), batch_norm="eval")


def test_in_training_mode_statistics_move_and_parameters_stay():
    inner = network()
    inner(torch.randn(32, 4))
    teacher, inputs = Frozen(inner, batch_norm="train"), torch.randn(64, 4) + 3
    before = copy.deepcopy(inner.state_dict())
    first, second = teacher(inputs), teacher(inputs)
    assert not torch.equal(first, second)  # dropout
    assert not first.requires_grad
    moved = {name for name, value in inner.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert not any(module.training for module in inner.modules())


def test_the_mode_comes_back_after_an_error():
    for mode in ("batch", "train"):
        inner = network()
        with pytest.raises(RuntimeError):
            Frozen(inner, batch_norm=mode)(torch.randn(8, 5))
        assert not any(module.training for module in inner.modules())
        assert inner[1].track_running_stats


def test_networks_inside_a_provider_are_in_the_mode_that_was_asked_for():
    inner, inputs = network(), torch.randn(8, 4) + 3
    single = Frozen(inner, batch_norm="batch")(inputs)
    assert torch.equal(Frozen(Average([inner, inner]), batch_norm="batch")(inputs), single)
    assert not torch.equal(Frozen(Average([inner, inner]))(inputs), single)


@pytest.mark.parametrize("mode", ["batch", "train"])
def test_a_cache_beside_statistics_of_the_batch_is_refused(mode):
    with pytest.raises(ValueError, match=f"batch_norm='{mode}' makes answers depend on the batch.* Cached teacher"):
        Frozen(Cached(network(), 10), batch_norm=mode)
    with pytest.raises(ValueError, match="Average teacher"):
        Frozen(Average([Cached(network(), 10)]), batch_norm=mode)
    with pytest.raises(ValueError, match=f"must not depend on the batch, given .*batch_norm='{mode}'"):
        Cached(Frozen(network(), batch_norm=mode), 10)
    assert Frozen(Cached(network(), 10)).batch_norm == "running"


def test_it_is_measured_by_its_stored_statistics():
    inner, inputs = network(), torch.randn(1, 4)
    teacher = Frozen(inner, batch_norm="train")
    before = fingerprint(inner)
    assert torch.equal(teacher.settled(inputs), inner(inputs))  # one sample has no statistics
    assert fingerprint(inner) == before
    assert Frozen(inner).settled.batch_norm == "running"
