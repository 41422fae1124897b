"""Second networks: shared weights with an adapter, full copies."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import LoraConfig
from torch import nn

from stillroom.blocks.diffusion import (
    AdaptedCopy,
    NoiseMLP,
    check_targets,
    full_copy,
    lora_copy,
    lora_copy_of_linears,
    shared_copy,
)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_v, self.to_out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.to_out(self.to_q(x) * self.to_v(x))


def moved(adapted):
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.normal_()
    return adapted


def test_a_shared_copy_has_modules_of_its_own_and_the_same_tensors():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    twin = shared_copy(network)
    assert twin is not network
    assert twin[0] is not network[0]
    assert all(a is b for a, b in zip(twin.parameters(), network.parameters(), strict=True))
    assert all(a is b for a, b in zip(twin.buffers(), network.buffers(), strict=True))


def test_the_adapter_starts_at_nothing_and_alone_is_trained_and_saved():
    network, x = Attention(), torch.randn(3, 4)
    before = network(x)
    adapted = lora_copy(network, rank=2, alpha=4)
    assert torch.equal(adapted(x), before)
    assert sum(weight.numel() for weight in adapted.parameters()) == 2 * 2 * (4 + 4)
    assert len(adapted.state_dict()) == 4
    assert all(weight.requires_grad for weight in adapted.parameters())
    moved(adapted)
    assert not torch.allclose(adapted(x), before)
    assert torch.equal(network(x), before)  # whoever shares the weights sees nothing of the adapter
    adapted(x).sum().backward()
    assert all(weight.grad is not None for weight in adapted.parameters())
    assert all(weight.grad is None for weight in network.parameters())


def test_the_change_is_scaled_by_alpha_over_rank():
    network, x = Attention(), torch.randn(3, 4)
    adapted = moved(lora_copy(network, rank=2, alpha=5, modules=["to_out"]))
    a, b = (weight for _, weight in sorted(adapted.named_parameters()))
    hidden = network.to_q(x) * network.to_v(x)
    torch.testing.assert_close(adapted(x), network(x) + 2.5 * hidden @ a.T @ b.T)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_copies_keep_adapter_and_weights_together(way):
    held = nn.ModuleList([lora_copy(Attention(), rank=2, alpha=4)])
    twin, x = way(held), torch.randn(3, 4)
    moved(twin[0])
    assert not torch.allclose(twin[0](x), held[0](x))
    registered = {id(weight) for weight in twin[0].parameters()}
    assert {id(w) for name, w in twin[0].network.named_parameters() if "lora_" in name} == registered


def test_it_moves_with_its_owner_and_stays_in_eval_mode():
    adapted = lora_copy(Attention(), rank=2, alpha=4).double()
    assert {weight.dtype for weight in adapted.network.parameters()} == {torch.float64}
    assert adapted(torch.randn(3, 4, dtype=torch.float64)).dtype == torch.float64
    config = LoraConfig(r=2, lora_dropout=0.5, target_modules=["to_q"])
    dropped = AdaptedCopy(nn.Sequential(Attention(), nn.Dropout(0.5)), config).train()
    modes = {name: module.training for name, module in dropped.network.named_modules()}
    assert modes["1"] is False
    assert modes["0.to_q.lora_dropout.default"] is True
    assert not any(module.training for module in dropped.eval().network.modules())


def test_all_linear_layers_of_a_network_without_attention():
    network = NoiseMLP((5,), 2, width=8, depth=2)
    adapted = lora_copy_of_linears(network, rank=2)
    linears = sum(isinstance(module, nn.Linear) for module in network.modules())
    assert linears == 6
    assert len(adapted.state_dict()) == 2 * linears


def test_a_full_copy_shares_nothing_and_trains_whole():
    network = Attention().requires_grad_(False)
    twin = full_copy(network)
    assert all(weight.requires_grad for weight in twin.parameters())
    assert not any(weight.requires_grad for weight in network.parameters())
    assert not {w.data_ptr() for w in twin.parameters()} & {w.data_ptr() for w in network.parameters()}


def test_names_that_match_no_layer_are_refused_with_candidates():
    with pytest.raises(
        ValueError, match="no layer of Attention is called 'to_k': adapters can go to to_out, to_q, to_v"
    ):
        lora_copy(Attention(), modules=["to_q", "to_k"])
    with pytest.raises(ValueError, match=r"no layer of Sequential is called 'to_q'.* 0"):
        check_targets(nn.Sequential(nn.Linear(2, 2)), ["to_q"])
    with pytest.raises(ValueError, match="it has no linear or convolutional layer"):
        lora_copy_of_linears(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="rank must be a number above 0, given 0"):
        lora_copy(Attention(), rank=0)
