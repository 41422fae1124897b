"""TAS: two players that never touch each other's parameters, a target that is met, and refusals."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from stillroom.blocks.search import SearchableResNet, ShapedResNet, multiply_accumulates, shape_cost
from stillroom.check import check_method
from stillroom.data.batch import Batch
from stillroom.data.samples import TensorSamples
from stillroom.fit import fit
from stillroom.systems.architecture.tas import TAS, paper, recipe, search
from stillroom.training import Optim, Training


def samples(rows=40, first=0):
    return TensorSamples(torch.rand(rows, 1, 8, 8), torch.arange(rows) % 5, torch.arange(first, first + rows))


def network():
    return SearchableResNet((8, 16), 2, in_channels=1, classes=5, side=8)


def tas(**options):
    return TAS(network(), **({"architecture_data": samples(20, 1000)} | options))


def test_the_battery():
    batch = Batch(torch.rand(10, 1, 8, 8), torch.arange(10) % 5, torch.arange(10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what evaluation sees carries the architecture's logits, of course
        report = check_method(tas(), batch, processes=False, raises=False, skip=["gradients"])
    assert report.ok, str(report)  # only candidates that were drawn get a gradient: see the test of players below


def test_each_player_moves_its_own_parameters_only():
    method = tas()
    copies = {name: [p.detach().clone() for p in group] for name, group in method.players().items()}
    batch = samples(8).batch(range(8))
    for player, losses in method.turns(batch):
        own = method.players()[player]
        losses.total.backward(inputs=own)
        with torch.no_grad():
            for parameter in own:
                parameter -= 0.1 * (0 if parameter.grad is None else parameter.grad)
        moved = {
            name: any(not a.equal(b) for a, b in zip(copies[name], group, strict=True))
            for name, group in method.players().items()
        }
        assert moved == (
            {"weights": True, "architecture": False} if player == "weights" else dict.fromkeys(moved, True)
        )
    weights = [p.detach().clone() for p in method.players()["weights"]]
    method.architecture_losses(samples(8).batch(range(8))).total.backward(inputs=method.network.architecture())
    assert all(a.equal(b) for a, b in zip(weights, method.players()["weights"], strict=True))


def test_the_architectures_batch_is_the_same_again_at_the_same_step():
    one, other = tas(seed=3), tas(seed=3)
    for method in (one, other):
        method.tell_time(7, 0.5, 0.5)
    assert torch.equal(one.draw(6).index, other.draw(6).index)
    other.tell_time(8, 0.5, 0.5)
    assert not torch.equal(one.draw(6).index, other.draw(6).index)


def test_the_draws_cool_down():
    method = tas()
    for progress, expected in ((0.0, 5.0), (1.0, 0.1)):
        method.tell_time(0, 0.0, progress)
        next(method.turns(samples(4).batch(range(4))))
        assert method.network.temperature == pytest.approx(expected)


@pytest.mark.parametrize("target", [0.35, 0.7])
def test_the_target_is_met_by_the_network_itself(target):
    torch.manual_seed(1)
    net = network()
    fast = Optim("adam", lr=0.02, betas=(0.5, 0.999), schedule="constant")
    training = Training(steps=60, batch_size=8, optimizer=Optim("sgd", lr=0.05))
    shape = search(net, samples(40), target=target, training=training, architecture=fast)
    full = TAS(net, architecture_data=samples(4, 99)).full_cost
    share = multiply_accumulates(ShapedResNet(shape), torch.zeros(1, 1, 8, 8)) / full
    assert target - 0.05 <= share <= target


def test_a_resumed_search_finds_the_same(tmp_path):
    training = Training(steps=8, batch_size=8, optimizer=Optim("sgd", lr=0.05), evaluate_every=4)

    class KilledError(Exception):
        pass

    def run(folder, killed, resume=False):
        torch.manual_seed(5)
        method = tas(seed=1)
        if killed:
            plain, taken = method.after_step, []

            def after_step(player):
                plain(player)
                taken.append(player)
                if len(taken) == 11:
                    raise KilledError

            method.after_step = after_step
        options = {"seed": 1, "folder": folder, "progress": False, "device": "cpu", "trackers": ()}
        fit(method, samples(16), training, resume=resume, **options)
        return method

    whole = run(tmp_path / "whole", killed=False)
    with pytest.raises(KilledError):
        run(tmp_path / "part", killed=True)
    again = run(tmp_path / "part", killed=False, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_latest_architecture_within_tolerance_is_derived():
    method = tas(target=1.0, tolerance=0.6)
    assert method.within is None
    method.after_step("architecture")
    if method.within is None:  # the first one cost less than 0.4 of the full network
        with torch.no_grad():
            method.network.width_logits[:, -1] = 9
        method.after_step("architecture")
    kept = method.derive()
    with torch.no_grad():
        method.network.width_logits.zero_()[:, 0] = 9
        method.network.depth_logits.zero_()[:, 0] = 9
    assert method.derive() == kept
    assert shape_cost(method.network.derived_shape(), 8) < shape_cost(kept, 8)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"target is a share .* in \(0, 1\], given 0"):
        tas(target=0)
    with pytest.raises(ValueError, match=r"in \(0, 1\], given 1.5"):
        tas(target=1.5)
    with pytest.raises(TypeError, match="network must be a SearchableResNet, given Linear"):
        TAS(nn.Linear(2, 2), architecture_data=samples(4))
    with pytest.raises(ValueError, match="are in the weights' data and in the architecture's"):
        list(tas(architecture_data=samples(8)).turns(samples(8).batch(range(8))))
    with pytest.raises(ValueError, match=r"above 0 and fall, given 0\.1 to 5"):
        tas(highest_temperature=0.1, lowest_temperature=5)
    with pytest.raises(ValueError, match="needs two samples or more, one for each player, given 1"):
        search(network(), samples(1))
    with pytest.raises(ValueError, match="this batch has no samples or no labels"):
        tas()(Batch(torch.rand(2, 1, 8, 8)))


def test_the_recipe_and_the_papers_settings_run_in_small():
    results = recipe().tiny().run([0], progress=False, device="cpu")
    assert {name for name, arm in results["arms"].items() if arm["role"] == "control"} == {
        "no cost at 0.35",
        "no cost at 0.7",
    }
    assert 0 < results["arms"]["uniform"]["metrics"]["cost_ratio"][0] < 1
    given = paper("digits", blocks=2)
    setting = given.arms["tas"].keywords["setting"]
    assert (setting.search_training.epochs, setting.training.batch_size, setting.architecture.lr) == (600, 256, 1e-3)
    tiny = given.tiny()
    only = {"tas with kd": tiny.arms["tas with kd"]}
    short = replace(tiny, arms=only, baseline="tas with kd", method=None, claims=(), rivals=(), controls=())
    small = short.run([0], progress=False, device="cpu")
    assert 0 <= small["arms"]["tas with kd"]["mean"] <= 1
