"""Fresh heads on kept backbones."""

import pytest
import torch
from torch import nn

from stillroom.blocks import SecondHead, SummedLogits, with_fresh_head
from stillroom.blocks.models import build


def test_only_the_head_is_new_and_the_original_stays():
    network = build("conv-8-16", classes=5, in_channels=1, image_size=8)
    network.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fresh = with_fresh_head(network)
    changed = {name for name, value in fresh.state_dict().items() if not value.equal(before[name])}
    assert len(changed) == 2  # weight and bias of one layer
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in fresh.parameters())
    assert fresh(torch.rand(2, 1, 8, 8)).shape == (2, 5)


def test_a_head_can_be_named():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    fresh = with_fresh_head(network, head="0")
    assert not fresh[0].weight.equal(network[0].weight)
    assert fresh[2].weight.equal(network[2].weight)


def test_what_is_no_head_is_refused():
    with pytest.raises(ValueError, match="has no module 'nothing'; it has 0, 1"):
        with_fresh_head(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), head="nothing")
    with pytest.raises(ValueError, match="cannot be initialised anew"):
        with_fresh_head(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), head="1")
    with pytest.raises(ValueError, match="has no linear layer: name its head"):
        with_fresh_head(nn.Sequential(nn.ReLU()))


def test_a_second_head_reads_what_the_first_one_reads():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    head = SecondHead(network, hidden=16, dropout=0.0)
    inputs = torch.randn(5, 4)
    first, second = head.both(network, inputs)
    assert torch.equal(first, network(inputs))
    assert torch.equal(second, head(network[1](network[0](inputs))))
    assert head.layers[0].in_features == 8
    assert not network[2]._forward_pre_hooks


def test_the_heads_share_the_features_and_nothing_else():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    head = SecondHead(network, hidden=16)
    first, second = head.both(network, torch.randn(5, 4))
    second.sum().backward(retain_graph=True)
    assert network[2].weight.grad is None
    assert float(network[0].weight.grad.abs().sum()) > 0
    network.zero_grad()
    head.zero_grad()
    first.sum().backward()
    assert all(parameter.grad is None for parameter in head.parameters())


def test_summed_logits_are_a_sum():
    networks = [nn.Linear(4, 3), nn.Linear(4, 3)]
    inputs = torch.randn(5, 4)
    torch.testing.assert_close(SummedLogits(networks)(inputs), networks[0](inputs) + networks[1](inputs))
    with pytest.raises(ValueError, match=r"\(5, 3\), \(5, 2\): all need the same classes"):
        SummedLogits([nn.Linear(4, 3), nn.Linear(4, 2)])(inputs)
    with pytest.raises(ValueError, match="at least one network, given none"):
        SummedLogits([])


def test_a_second_head_needs_a_linear_layer():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert SecondHead(network, head="0").name == "0"
    with pytest.raises(ValueError, match=r"no linear layer 'nothing'.* it has 0, 2"):
        SecondHead(network, head="nothing")
    with pytest.raises(ValueError, match=r"no linear layer .*none"):
        SecondHead(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="hidden=0"):
        SecondHead(network, hidden=0)
    head = SecondHead(network)
    with pytest.raises(RuntimeError, match="'2' ran 2 times"):
        head.both(_Twice(network), torch.randn(2, 4))


class _Twice(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def get_submodule(self, name):
        return self.network.get_submodule(name)

    def forward(self, inputs):
        return self.network(inputs) + self.network(inputs)
