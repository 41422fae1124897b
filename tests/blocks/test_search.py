"""Choices of width and depth, the network that holds them all, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from stillroom.blocks.search import (
    ResNetShape,
    SearchableResNet,
    SearchedConvolution,
    ShapedResNet,
    channel_interpolate,
    cost_loss,
    depth_choices,
    full_shape,
    multiply_accumulates,
    ragged_add,
    random_shape,
    sample_two_choices,
    shape_cost,
    uniform_shape,
    width_choices,
)


def supernet(**options):
    return SearchableResNet(**({"widths": (8, 16), "blocks": 3, "in_channels": 1, "classes": 5, "side": 8} | options))


def certain(network):
    """Make every choice certain, at random."""
    with torch.no_grad():
        for logits in network.architecture():
            logits.copy_(torch.randn_like(logits))
        chosen = network.width_logits.masked_fill(~network.exists, -torch.inf).argmax(1)
        network.width_logits.copy_(1000 * F.one_hot(chosen, network.width_logits.shape[1]))
        network.depth_logits.copy_(1000 * F.one_hot(network.depth_logits.argmax(1), network.depth_logits.shape[1]))


class TestChoices:
    def test_floors_that_collide_count_once(self):
        assert width_choices(4) == [1, 2, 3, 4]

    def test_too_few_are_refused(self):
        with pytest.raises(ValueError, match=r"but 1 channels give \[0, 1\]: take a wider layer"):
            width_choices(1)
        with pytest.raises(ValueError, match="two blocks or more, given 1"):
            depth_choices(1)


class TestInterpolation:
    @pytest.mark.parametrize("channels", [1, 3, 5, 8])
    def test_it_is_adaptive_pooling_over_channels(self, channels):
        maps = torch.randn(2, 5, 3, 4)
        found = channel_interpolate(maps, channels)
        for t in range(channels):
            low, high = math.floor(t * 5 / channels), math.ceil((t + 1) * 5 / channels)
            torch.testing.assert_close(found[:, t], maps[:, low:high].mean(1))

    def test_constants_stay_it_is_linear_and_equal_widths_are_left_alone(self):
        assert torch.allclose(channel_interpolate(torch.full((1, 5, 2, 2), 3.0), 7), torch.tensor(3.0))
        a, b = torch.randn(1, 5, 2, 2), torch.randn(1, 5, 2, 2)
        torch.testing.assert_close(
            channel_interpolate(2 * a + b, 3), 2 * channel_interpolate(a, 3) + channel_interpolate(b, 3)
        )
        assert channel_interpolate(a, 5) is a
        with pytest.raises(ValueError, match="channels must be 1 or more, given 0"):
            channel_interpolate(a, 0)

    def test_weights_of_an_output_sum_to_one(self):
        basis = torch.eye(5).view(5, 5, 1, 1)
        torch.testing.assert_close(channel_interpolate(basis, 8).sum(0).flatten(), torch.ones(8))


class TestSampling:
    def test_hot_draws_are_uniform_and_pairs_are_different(self):
        logits = torch.tensor([[2.0, -1.0, 0.5, 0.0]]).expand(20_000, -1)
        picked, _, _ = sample_two_choices(logits, temperature=1e6)
        assert not bool((picked[:, 0] == picked[:, 1]).any())
        counts = picked.flatten().bincount(minlength=4).numpy()
        assert stats.chisquare(counts).pvalue > 1e-3

    def test_cold_draws_favour_the_larger(self):
        logits, noise = torch.tensor([[1.0, 0.5, 0.0]]), torch.ones(1, 3)
        _, weights, _ = sample_two_choices(
            logits, temperature=1e-3, exponential_noise=noise, picked=torch.tensor([[1, 0]])
        )
        torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0]]))

    def test_what_does_not_exist_is_never_picked(self):
        allowed = torch.tensor([[True, True, False, False]]).expand(500, -1)
        picked, weights, chances = sample_two_choices(torch.zeros(500, 4), temperature=1.0, allowed=allowed)
        assert int(picked.max()) == 1
        assert bool((chances[:, 2:] == 0).all())
        torch.testing.assert_close(weights.sum(1), torch.ones(500))

    def test_the_gradient_flows_through_the_weights_alone(self):
        logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        noise, picked = torch.rand(3, 4).double() + 0.1, torch.tensor([[0, 1], [2, 3], [1, 3]])

        def pair(given):
            return sample_two_choices(given, temperature=2.0, exponential_noise=noise, picked=picked)[1]

        assert torch.autograd.gradcheck(pair, logits)

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match="temperature must be above 0, given 0"):
            sample_two_choices(torch.zeros(1, 3), temperature=0)
        with pytest.raises(ValueError, match="two choices are drawn per row"):
            sample_two_choices(torch.zeros(1, 1), temperature=1.0)


def test_a_searched_convolution_of_one_candidate_is_a_sliced_one():
    layer = SearchedConvolution(4, 10)
    inputs = torch.randn(3, 2, 5, 5)
    found = layer(inputs, [5, 2], torch.tensor([1.0, 0.0]))
    width = layer.choices[5]
    plain = F.conv2d(inputs, layer.convolution.weight[:width, :2], padding=1)
    plain = F.relu(F.batch_norm(plain, None, None, training=True))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_ragged_addition_is_symmetric():
    a, b = torch.randn(1, 3, 2, 2), torch.randn(1, 5, 2, 2)
    torch.testing.assert_close(ragged_add(a, b), ragged_add(b, a))


class TestCost:
    @pytest.mark.parametrize("seed", range(6))
    def test_certain_choices_cost_what_the_derived_network_costs_when_it_runs(self, seed):
        torch.manual_seed(seed)
        network = supernet(side=9 if seed == 5 else 8)
        certain(network)
        shape = network.derived_shape()
        side = network.side
        counted = multiply_accumulates(ShapedResNet(shape), torch.zeros(1, 1, side, side))
        assert shape_cost(shape, side) == pytest.approx(counted, abs=1e-9)
        assert network.expected_cost().item() == pytest.approx(counted, rel=1e-5)

    def test_its_gradient_is_that_of_finite_differences(self):
        network = supernet().double()
        parameters = network.architecture()

        def cost(widths, depths):
            network.width_logits.data, network.depth_logits.data = widths.data, depths.data
            return torch.func.functional_call(
                _Cost(network), {"net.width_logits": widths, "net.depth_logits": depths}, ()
            )

        assert torch.autograd.gradcheck(cost, tuple(p.detach().clone().requires_grad_() for p in parameters))

    def test_the_loss_pushes_up_and_down_and_rests_between(self):
        expected = torch.tensor(2.0, requires_grad=True)
        options = {"target": 10.0, "tolerance": 1.0}
        signs = []
        for derived in (11.0, 10.0, 9.0, 8.9):
            (gradient,) = torch.autograd.grad(3 * cost_loss(expected, derived, **options), expected)
            signs.append(gradient.item())
        assert signs == pytest.approx([1.5, 0.0, 0.0, -1.5])
        with pytest.raises(ValueError, match="target must be above 0 and tolerance 0 or more, given 0 and 1"):
            cost_loss(expected, 1.0, target=0, tolerance=1)

    def test_equal_costs_can_be_had_otherwise(self):
        full = full_shape((8, 16, 32), 3, in_channels=1, classes=10)
        whole = shape_cost(full, 8)
        even = uniform_shape(full, 0.5 * whole, 8)
        assert shape_cost(even, 8) == pytest.approx(0.5 * whole, rel=0.03)
        assert [len(stage) for stage in even.stages] == [3, 3, 3]
        other = random_shape(full, 0.5 * whole, 8, seed=1)
        assert shape_cost(other, 8) == pytest.approx(0.5 * whole, rel=0.03)
        assert other != random_shape(full, 0.5 * whole, 8, seed=2)
        with pytest.raises(ValueError, match=r"no random network costs 0\.0001"):
            random_shape(full, 1e-4, 8, seed=1)


class _Cost(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self):
        return self.net.expected_cost()


class TestSupernet:
    def test_training_draws_and_evaluation_does_not(self):
        network, inputs = supernet(), torch.rand(4, 1, 8, 8)
        assert not torch.equal(network(inputs), network(inputs))
        network.eval()
        assert torch.equal(network(inputs), network(inputs))
        assert network(inputs).shape == (4, 5)

    def test_weights_and_architecture_share_nothing_and_are_everything(self):
        network = supernet()
        weights, architecture = network.weights(), network.architecture()
        assert not {id(p) for p in weights} & {id(p) for p in architecture}
        assert len(weights) + len(architecture) == len(list(network.parameters()))

    def test_the_derived_network_runs(self):
        network = supernet()
        certain(network)
        shape = network.derived_shape()
        assert ShapedResNet(shape)(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
        assert all(stage[0][0] in width_choices(width) for stage, width in zip(shape.stages, (8, 16), strict=True))

    def test_shapes_without_width_or_block_are_refused(self):
        with pytest.raises(ValueError, match="every width must be 1 or more and every stage hold a block"):
            ResNetShape(4, (((0, 4),),), 1, 10)
        with pytest.raises(ValueError, match="every stage hold a block"):
            ResNetShape(4, ((),), 1, 10)
