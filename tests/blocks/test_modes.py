"""Modes of networks: changed for a while, each module back to its own."""

import pytest
from torch import nn

from stillroom.blocks import evaluating


def test_every_module_goes_back_to_its_own_mode():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    network[2].eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network] == [True, True, False]
    with pytest.raises(KeyError), evaluating(network):
        raise KeyError
    assert [module.training for module in network] == [True, True, False]
