"""NCFM: the game on its images, what it must not touch, resuming, and its recipe."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.condense import CheckpointPairs, from_noise, train_and_test
from stillroom.data import load_data
from stillroom.losses import characteristic_function_discrepancy
from stillroom.systems.condensation.ncfm import NCFM, matching_loss, paper, recipe, two_sample
from stillroom.systems.condensation.ncfm.loop import Condensation
from stillroom.training import Optim, Training
from tests.condense.test_condense import stripes

SMALL = {
    "images_per_class": 1,
    "factor": 2,
    "iterations": 4,
    "real_batch": 8,
    "frequencies": 32,
    "pretrained": 2,
    "pretraining": Training(epochs=4, batch_size=16, optimizer=Optim("sgd", lr=0.05)),
    "image_optimizer": partial(torch.optim.AdamW, lr=0.02),
}


@pytest.fixture(scope="module")
def pairs() -> CheckpointPairs:
    options = NCFM("convnet-2-8", **SMALL)
    return Condensation(options, stripes(), None, None, False).pairs


def begun(pairs: CheckpointPairs, folder=None, resume=False, **changes) -> Condensation:
    return Condensation(NCFM("convnet-2-8", **(SMALL | changes)), stripes(), pairs, folder, resume)


def test_the_matching_loss_is_300_times_the_discrepancy_of_rows_of_length_1():
    synthetic, real, frequencies = torch.randn(3, 5), torch.randn(8, 5), torch.randn(6, 5)
    bare = characteristic_function_discrepancy(F.normalize(synthetic), F.normalize(real), frequencies)
    torch.testing.assert_close(matching_loss(synthetic, real, frequencies), 300 * bare)
    torch.testing.assert_close(matching_loss(7 * synthetic, 0.1 * real, frequencies), 300 * bare)


def test_the_defaults_are_the_papers():
    ncfm = NCFM()
    assert (ncfm.network, ncfm.factor, ncfm.iterations, ncfm.real_batch) == ("convnet-3-128", 2, 20000, 1024)
    assert (ncfm.frequencies, ncfm.pretrained, ncfm.plateau_patience) == (1024, 20, 500)
    parameter = [nn.Parameter(torch.zeros(1))]
    images, sampler = ncfm.image_optimizer(parameter), ncfm.sampler_optimizer(parameter)
    assert isinstance(images, torch.optim.AdamW)
    assert (images.defaults["lr"], images.defaults["weight_decay"]) == (1e-3, 5e-4)
    assert (sampler.defaults["lr"], sampler.defaults["momentum"]) == (1e-3, 0.5)
    assert (ncfm.augment.first, ncfm.augment.choose, ncfm.augment.last) == (("color",), ("crop",), ("cutout",))


def test_the_sampler_learns_and_the_networks_do_not(pairs):
    run = begun(pairs)
    before = [parameter.detach().clone() for parameter in run.sampler.parameters()]
    kept = [{name: value.clone() for name, value in state.items()} for pair in pairs.pairs for state in pair]
    run._choose_networks()
    blended = {name: value.clone() for name, value in run.blended.state_dict().items()}
    run._match(0)
    run._calibrate(0)
    assert all(
        not torch.equal(new, old) for new, old in zip(run.sampler.parameters(), before, strict=True) if old.ndim == 2
    )
    for name, value in run.blended.state_dict().items():
        assert torch.equal(value, blended[name])
    for state, was in zip([state for pair in pairs.pairs for state in pair], kept, strict=True):
        assert all(torch.equal(state[name], was[name]) for name in was)
    assert all(parameter.grad is None for parameter in (*run.blended.parameters(), *run.final.parameters()))


def value_on(run: Condensation, real: torch.Tensor, noise: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
    """The matching loss of class 0 without augmentation, at noise that stays."""
    (ours,) = run.features(run.statistics.normalise(run._decoded(0)))
    with torch.no_grad():
        (theirs,) = run.features(run.statistics.normalise(real))
    return matching_loss(ours, theirs, run.sampler(noise, normals))


def test_a_max_step_raises_and_a_min_step_lowers_what_both_play_for(pairs):
    from stillroom.blocks import minmax_gradients

    run = begun(pairs)
    run._choose_networks()
    real, noise = run.real.batch(0, 0, 16), torch.randn(2, run.sampler.dim)
    normals = torch.randn(32, run.sampler.dim)
    before = value_on(run, real, noise, normals)
    minmax_gradients(before, [run.images], run.sampler.parameters())
    torch.optim.SGD(run.sampler.parameters(), lr=1e-5).step()
    raised = value_on(run, real, noise, normals).item()
    assert raised > before.item()
    torch.optim.SGD([run.images], lr=1e-4).step()
    assert value_on(run, real, noise, normals).item() < raised


def test_images_stay_in_range_and_one_optimizer_moves_all_of_them(pairs):
    run = begun(pairs, image_optimizer=partial(torch.optim.AdamW, lr=0.5))
    run._one_iteration()
    assert float(run.images.detach().abs().max()) > 1
    before = run.images.detach().clone()
    run._choose_networks()
    run._match(0)
    assert not torch.equal(run.images[1], before[1])  # class 1 moves by its old moments
    made = run.run(100, False)
    assert float(made.images.min()) >= 0
    assert float(made.images.max()) <= 1
    assert made.labels.tolist() == [0, 1]


def test_an_interrupted_condensation_goes_on_bit_for_bit(pairs, tmp_path):
    whole = begun(pairs).run(100, False)
    first = begun(pairs, folder=tmp_path)
    for _ in range(2):
        first._one_iteration()
        first.iteration += 1
        first.history.append([0.0, 0.0])
    first._save()
    first._one_iteration()  # what was not saved is lost
    second = begun(pairs, folder=tmp_path, resume=True)
    assert second.iteration == 2
    assert torch.equal(second.run(100, False).images, whole.images)
    with pytest.raises(ValueError, match=r"other options \(factor.*was 2, now 1"):
        begun(pairs, folder=tmp_path, resume=True, factor=1)
    with pytest.raises(FileExistsError, match="pass resume=True"):
        begun(pairs, folder=tmp_path)


def test_matching_from_noise_trains_a_network_better_than_noise(pairs):
    accuracies = {}
    for iterations in (0, 40):
        ncfm = NCFM(
            "convnet-2-8", **(SMALL | {"iterations": iterations, "initialise": from_noise, "calibration_weight": 0.0})
        )
        made = ncfm.condense(stripes(), pairs=pairs, progress=False)
        results = [
            train_and_test(
                "convnet-2-8",
                made.samples,
                stripes(60, seed=7),
                classes=2,
                training=Training(steps=60, batch_size=8, optimizer=Optim("adamw", lr=0.005)),
                augment=None,
                cutmix=None,
                seed=seed,
            )["accuracy"]
            for seed in (0, 1)
        ]
        accuracies[iterations] = sum(results) / 2
    assert accuracies[40] > max(accuracies[0] + 0.1, 0.85), accuracies


@pytest.mark.parametrize(
    "changes",
    [
        {"learned_frequencies": False, "layers": ("stages.0", "stages.1")},
        {"learned_frequencies": False, "frequencies": 7},
        {"sampler_form": "released"},
        {"matching_weight": 0.0},
        {"images_per_class": 3, "factor": 1},
    ],
    ids=str,
)
def test_every_way_changes_its_images(pairs, changes):
    run = begun(pairs, **changes)
    before = run.images.detach().clone()
    made = run.run(100, False)
    assert not torch.equal(made.images, before)
    assert len(made) == len(made.images) * run.options.factor**2


class Strange(nn.Module):
    """Somebody's own network, with batch norm, whose head is not its last attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.out = nn.Linear(4 * 36, 2)

    def forward(self, images):
        return self.out(self.body(images))


def test_it_works_on_ones_own_network_and_arrays_and_is_data_afterwards(tmp_path):
    samples = stripes()
    arrays = (samples.batch(range(60)).inputs.numpy(), samples.labels.numpy())
    made = NCFM(Strange, **SMALL).condense(arrays, folder=tmp_path / "work", progress=False)
    assert (tmp_path / "work" / "pretrained" / "pair-001.safetensors").exists()
    splits = load_data(made.save(tmp_path / "set"))
    assert splits.train.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 0}, "factor must be 1 or more, given 0"),
        ({"images_per_class": 0}, "images_per_class must be 1 or more, given 0"),
        ({"frequencies": 16}, "16 / 16 = 1: use 32"),
        ({"matching_weight": -1.0}, "matching_weight must be a number of 0 or more, given -1"),
        ({"matching_weight": 0.0, "calibration_weight": 0.0}, "both 0"),
        ({"layers": ("stages.0",)}, "learned_frequencies=False"),
        ({"iterations": -1}, "given -1 and 0"),
        ({"sampler_form": "none"}, "given 'none'"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        NCFM(**changes)


def test_a_class_without_images_and_weights_below_0_are_refused(pairs):
    with pytest.raises(ValueError, match="no image of class 1"):
        NCFM("convnet-2-8", **SMALL).condense((torch.rand(4, 1, 8, 8), torch.tensor([0, 2, 0, 2])))
    with pytest.raises(ValueError, match=r"given -0.5"):
        matching_loss(torch.randn(2, 3), torch.randn(2, 3), torch.randn(4, 3), amplitude_weight=-0.5)
    with pytest.raises(ValueError, match="resume=True needs the folder"):
        begun(pairs, resume=True)


def test_the_mean_cannot_tell_what_characteristic_functions_can():
    by_mean = two_sample.measure(two_sample.tell_by_mean, 7, pairs=30)["two_sample_auc"]
    by_function = two_sample.measure(two_sample.tell_by_normal, 7, pairs=30)["two_sample_auc"]
    assert abs(by_mean - 0.5) < 0.2
    assert by_function > 0.95


def test_the_recipe_and_the_papers_settings_run_in_their_small_form(tmp_path):
    small = recipe(network="convnet-2-4").tiny().run([0], tmp_path / "run", progress=False)
    assert set(small["arms"]) == set(recipe().arms)
    assert (tmp_path / "run" / "arms" / "ncfm" / "seed-0" / "condensed" / "condensed.json").exists()
    assert small["arms"]["calibration-only"]["role"] == "control"
    large = paper("digits", network="convnet-2-4").tiny().run([0], Path(tmp_path / "paper"), progress=False)
    assert 0 <= large["arms"]["ncfm"]["values"][0] <= 1
