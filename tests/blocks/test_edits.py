"""Edits of what named layers return: values, gradients, and that nothing stays behind."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.blocks import Edits, Frozen, Sees, last_hidden_layers


class Functional(nn.Module):
    """A convolution and a linear map, each followed by a ReLU that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.hidden, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, images):
        maps = F.relu(self.norm(self.conv(images)), inplace=True)
        return self.out(F.relu(self.hidden(maps.mean(dim=(2, 3))), inplace=True))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, tokens):
        return self.out(self.gru(tokens)[0][:, -1])


def hooks_of(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def test_an_output_is_edited_before_the_activation_that_follows():
    network, images = Functional().eval(), torch.randn(5, 1, 6, 6)
    with Edits(network, {"hidden": lambda output: output - 1}):
        edited = network(images)
    maps = F.relu(network.norm(network.conv(images))).mean(dim=(2, 3))
    torch.testing.assert_close(edited, network.out(F.relu(network.hidden(maps) - 1)))


def test_nothing_is_left_behind():
    network, images = Functional().eval(), torch.randn(5, 1, 6, 6)
    before = network(images)
    with Edits(network, {"conv": torch.zeros_like, "hidden": lambda output: 2 * output}):
        assert hooks_of(network) == 2
        assert not torch.equal(network(images), before)
    assert hooks_of(network) == 0
    assert torch.equal(network(images), before)


@pytest.mark.parametrize("where", ["in the edit", "in the network", "in the block"])
def test_nothing_is_left_behind_after_an_exception(where):
    network, images = Functional().eval(), torch.randn(5, 1, 6, 6)
    before = network(images)

    def fail(output):
        raise ArithmeticError

    def run():
        with Edits(network, {"conv": fail if where == "in the edit" else torch.abs}):
            network(images if where != "in the network" else torch.randn(5, 2, 6, 6))
            assert hooks_of(network) == 1
            raise ArithmeticError

    with pytest.raises((ArithmeticError, RuntimeError)):
        run()
    assert hooks_of(network) == 0
    assert torch.equal(network(images), before)


def test_gradients_flow_through_an_edit_of_a_frozen_network():
    network, images = Functional().eval().requires_grad_(False), torch.randn(5, 1, 6, 6)
    gates = torch.full((4,), 0.5, requires_grad=True)
    with Edits(network, {"conv": lambda maps: maps * gates.view(1, 4, 1, 1)}):
        out = 3 * network(images).square().sum()
    out.backward()
    assert float(gates.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_wrapped_networks_are_edited_by_their_own_names():
    network, images = Functional().eval(), torch.randn(5, 1, 6, 6)
    with Edits(network, {"hidden": torch.zeros_like}):
        expected = network(images)
    for wrapped in (Frozen(network), Sees(network, "image")):
        with Edits(wrapped, {"hidden": torch.zeros_like}):
            assert torch.equal(wrapped(images), expected)
    with Edits(network, {"h*": torch.zeros_like}) as edits:
        assert torch.equal(network(images), expected)
    assert edits.edited == ("hidden",)


def test_two_blocks_in_each_other_edit_together_and_leave_in_turn():
    network, images = nn.Sequential(nn.Linear(3, 3)), torch.randn(4, 3)
    plain = network(images)
    with Edits(network, {"0": lambda output: output + 1}):
        with Edits(network, {"0": lambda output: 2 * output}):
            torch.testing.assert_close(network(images), 2 * (plain + 1))
        torch.testing.assert_close(network(images), plain + 1)
    assert torch.equal(network(images), plain)


def test_what_cannot_be_edited_is_refused():
    network = Functional()
    with pytest.raises(ValueError, match="no module of Functional is called 'fc1', expected one of its 4 names"):
        Edits(network, {"fc1": torch.zeros_like})
    with pytest.raises(ValueError, match="at least one module name, given none"):
        Edits(network, {})
    with pytest.raises(TypeError, match="given function"):
        Edits(Frozen(lambda batch: batch.inputs), {"conv": torch.zeros_like})
    recurrent = Recurrent()
    with (
        pytest.raises(ValueError, match="module 'gru' returned a tuple, expected one tensor"),
        Edits(recurrent, {"gru": torch.zeros_like}),
    ):
        recurrent(torch.randn(2, 7, 4))
    assert hooks_of(recurrent) == 0
    with (
        pytest.raises(ValueError, match=r"turned shape \(2, 6\) into \(2, 1\)"),
        Edits(network, {"hidden": lambda output: output[:, :1]}),
    ):
        network(torch.randn(2, 1, 6, 6))
    compiled = copy.deepcopy(network)
    compiled._compiled_call_impl = compiled.forward  # what .compile() sets; compiling itself takes seconds
    with pytest.raises(ValueError, match="Functional is compiled"):
        Edits(compiled, {"hidden": torch.zeros_like})


def test_the_last_hidden_layers_are_the_weight_layers_themselves():
    images = torch.randn(2, 1, 6, 6)
    network = Functional()
    network.train()
    assert last_hidden_layers(network, images) == ["conv", "hidden"]
    assert last_hidden_layers(network, images, most=1) == ["hidden"]
    assert network.training
    mlp = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    assert last_hidden_layers(mlp, torch.randn(2, 4)) == ["2", "4"]
    with pytest.raises(ValueError, match="Linear has no hidden layer"):
        last_hidden_layers(nn.Linear(4, 3), torch.randn(2, 4))
    with pytest.raises(ValueError, match="most must be 1 or more, given 0"):
        last_hidden_layers(mlp, torch.randn(2, 4), most=0)
