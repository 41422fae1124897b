"""IMDN's recipe: its arms, its controls, what it claims, and the paper's settings."""

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.data import Batch
from stillroom.systems.restoration.imdn import AsItComes, Bicubic, compare_tiled, paper, recipe
from stillroom.task import SuperResolution

ARMS = ("bicubic", "plain", "imdn", "untrained_skip", "untrained")


@pytest.fixture(scope="module", name="found")
def make_found(tmp_path_factory):
    """A short training of the recipe with a smaller network, every arm with one seed."""
    experiment = recipe(network="imdn-8-2", plain="plain-sr-8-2", steps=100, patch_size=14, lr=4e-3)
    return experiment.run((100,), tmp_path_factory.mktemp("imdn") / "run", progress=False)


def of(found, arm, metric="psnr"):
    return found["arms"][arm]["metrics"][metric][0]


def test_the_arms_are_there_and_measured(found):
    assert tuple(found["arms"]) == ARMS
    assert found["metric"] == "psnr"
    assert {arm: found["arms"][arm]["role"] for arm in ARMS} == {
        "bicubic": "baseline",
        "plain": "alone",
        "imdn": "method",
        "untrained_skip": "control",
        "untrained": "control",
    }
    assert len(found["claims"]) == 6


def test_training_beats_bicubic_enlargement_on_pixels_it_has_not_seen(found):
    assert of(found, "imdn") > of(found, "bicubic") + 0.03
    assert of(found, "imdn", "gain_over_bicubic") == pytest.approx(of(found, "imdn") - of(found, "bicubic"))


def test_nothing_is_learned_before_training(found):
    assert of(found, "untrained_skip") == pytest.approx(of(found, "bicubic"), abs=1e-4)
    assert of(found, "untrained_skip", "largest_gap_to_bicubic") < 1e-6
    assert of(found, "untrained") < of(found, "bicubic") - 10


def test_tiled_inference_is_close_to_whole(found):
    assert of(found, "imdn", "tiling_psnr_difference") < 0.1
    assert 0 < of(found, "imdn", "seam_ratio") < 100  # it is compared with next to nothing, and the claim is not shown


def test_a_seam_is_seen_where_there_is_one():
    """A network that adds each crop's own row numbers jumps at the horizontal seam and nowhere else."""

    class Rows(torch.nn.Module):
        def forward(self, images):
            rows = torch.arange(images.shape[2], dtype=images.dtype).view(1, 1, -1, 1)
            return Bicubic(2)(images + 0 * rows) + 1e-6 * torch.rand(1) + self.bump(images)

        def bump(self, images):
            edge = torch.zeros(1, 1, 2 * images.shape[2], 2 * images.shape[3])
            edge[:, :, 8:12] = 0.1
            return edge

    low = torch.rand(1, 3, 24, 24)
    found = compare_tiled(Rows(), Batch(low, Bicubic(2)(low).clamp(0, 1)), scale=2, overlap=4)
    assert found["seam_ratio"] > 0
    assert found["tiling_psnr_difference"] > 0
    same = compare_tiled(Bicubic(2), Batch(low, Bicubic(2)(low).clamp(0, 1)), scale=2, overlap=8)
    assert same["tiling_psnr_difference"] == pytest.approx(0, abs=1e-9)


def test_seeds_give_other_untrained_networks(tmp_path):
    from stillroom.experiment.arm import Context

    task = SuperResolution("photographs", scale=2, validation_share=0.0)
    arm = AsItComes(task, "imdn-8-1-x2")
    first, second, again = (arm(seed, Context(tmp_path))["psnr"] for seed in (1, 2, 1))
    assert first == again != second


def test_the_recipe_runs_in_its_tiny_form():
    found = recipe().tiny().run((100,), progress=False)
    assert found["arms"]["imdn"]["steps"] == [2]


def test_building_a_recipe_reads_nothing():
    assert recipe("nowhere").task.data == "nowhere"
    assert recipe("set5", scale=3).claims[0].by == 0.3


def test_the_papers_settings_run_on_a_folder(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 256, (56, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{number}.png")
    experiment = paper(str(tmp_path), network="imdn-8-1", patch_size=32)
    found = experiment.tiny().run((0,), progress=False)
    assert found["arms"]["imdn"]["steps"] == [2]
    training = paper().training
    assert (training.steps, training.batch_size, training.optimizer.lr) == (1_000_000, 16, 2e-4)
    assert (paper().task.image_size, paper(scale=3).task.image_size) == (48, 64)
    rates = [training.optimizer.rate(1000 * (epoch - 1), 1_000_000) / 2e-4 for epoch in (1, 199, 200, 400, 999, 1000)]
    assert rates == pytest.approx([0.5 ** (epoch // 200) for epoch in (1, 199, 200, 400, 999, 1000)])


def test_the_papers_data_are_asked_for_in_a_sentence(monkeypatch):
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    monkeypatch.chdir("/")
    with pytest.raises(FileNotFoundError, match=r"no folder 'div2k'.*folders train and test"):
        paper().task.load()
