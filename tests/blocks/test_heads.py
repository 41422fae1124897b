"""Fresh heads on kept backbones."""

import pytest
import torch
from torch import nn

from stillroom.blocks import with_fresh_head
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
