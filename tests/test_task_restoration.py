"""Super-resolution as a task: what is measured and how, losses, checks, how it reads."""

import math
import os

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from stillroom.baselines import KD, Alone
from stillroom.data import Batch, bicubic_resize, sequential
from stillroom.experiment.wording import Scale
from stillroom.task import TASKS, Classification, SuperResolution, luminance, psnr_y, ssim_y, task_for
from stillroom.tripwires import TrainingError, require_teacher
from tests.golden_cases import golden_cases

REAL = pytest.mark.skipif("STILLROOM_DATA" not in os.environ, reason="STILLROOM_DATA names no folder")


class Bicubic(nn.Module):
    def __init__(self, scale=2, offset=0.0):
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, images):
        height, width = images.shape[-2:]
        return bicubic_resize(images, self.scale * height, self.scale * width) + self.offset


@pytest.mark.parametrize("case", golden_cases("imdn", "psnr_y"), ids=str)
def test_psnr_is_the_authors(case):
    pred, target = (case.inputs[name].permute(2, 0, 1)[None] / 255 for name in ("pred", "target"))
    case.check(psnr=psnr_y(pred.double(), target.double(), border=case.params["border"])[0])


def test_luminance_of_known_colours():
    """White, black, the three primaries: 16 + 219, 16, and 16 + 65.481, 128.553, 24.966, rounded."""
    colours = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]]).T.view(1, 3, 1, 5)
    assert luminance(colours).flatten().tolist() == [235, 16, 81, 145, 41]
    assert luminance(torch.full((1, 3, 1, 1), 1.7)).item() == 235  # clipped as an image file is


def test_psnr_by_hand():
    """A grey level of 100 against 110 is (110 - 100) 219 / 255 = 8.6 of luminance, rounded: 102 and 110."""
    one, other = (torch.full((1, 3, 8, 8), level / 255) for level in (100, 110))
    assert luminance(one)[0, 0, 0, 0].item() == 102
    assert luminance(other)[0, 0, 0, 0].item() == 110
    assert psnr_y(one, other, border=1).item() == pytest.approx(10 * math.log10(255**2 / 64))
    assert psnr_y(one, one, border=0).item() == math.inf


def test_borders_are_not_measured():
    one = torch.rand(1, 3, 20, 20)
    other = one.clone()
    other[:, :, :2] = 0
    other[:, :, :, -2:] = 0
    assert psnr_y(one, other, border=2).item() == math.inf
    assert psnr_y(one, other, border=1).item() < 40
    with pytest.raises(ValueError, match=r"leave 1 pixels or more, given 10 for images of 20x20"):
        psnr_y(one, other, border=10)


def test_similarity_agrees_with_torchmetrics_away_from_the_border():
    """torchmetrics also averages over windows beyond the border, so its whole map is taken and cut."""
    one = torch.rand(2, 3, 30, 26, dtype=torch.float64)
    other = (one + 0.1 * torch.randn_like(one)).clamp(0, 1)
    _, maps = structural_similarity_index_measure(
        luminance(one), luminance(other), sigma=1.5, data_range=255.0, return_full_image=True, reduction="none"
    )
    expected = maps.view(2, 30, 26)[:, 5:-5, 5:-5].flatten(1).mean(1)
    torch.testing.assert_close(ssim_y(one, other, border=0), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ssim_y(one, one, border=3), torch.ones(2, dtype=torch.float64))


def test_similarity_by_hand_for_flat_images():
    """Without any structure only the means count: (2 a b + C1) / (a^2 + b^2 + C1)."""
    one, other = (torch.full((1, 3, 12, 12), level / 255) for level in (0, 255))
    expected = (2 * 16 * 235 + 2.55**2) / (16**2 + 235**2 + 2.55**2)
    assert ssim_y(one, other, border=0).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="leave 11 pixels or more, given 1 for images of 12x12"):
        ssim_y(one, other, border=1)


def test_the_mean_is_over_images_not_over_pixels():
    task = SuperResolution(scale=2)
    batches = []
    for side, offset in ((12, 0.1), (40, 0.01)):
        low = torch.rand(1, 3, side, side) * 0.5 + 0.2
        batches.append(Batch(low, (Bicubic(2, offset)(low)).clamp(0, 1)))
    each = [task.evaluate(Bicubic(), [batch]) for batch in batches]
    both = task.evaluate(Bicubic(), batches)
    assert both["psnr"] == pytest.approx((each[0]["psnr"] + each[1]["psnr"]) / 2)
    assert both["ssim"] == pytest.approx((each[0]["ssim"] + each[1]["ssim"]) / 2)
    assert both["gain_over_bicubic"] == pytest.approx(0)


def test_the_gain_over_bicubic_and_the_closeness_to_a_teacher_are_measured():
    task = SuperResolution(scale=2)
    low = torch.rand(1, 3, 16, 16) * 0.5 + 0.2
    batch = Batch(low, Bicubic(2, 0.05)(low))
    found = task.evaluate(Bicubic(2, 0.04), [batch], teacher=Bicubic(2, 0.04))
    assert found["gain_over_bicubic"] == pytest.approx(found["psnr"] - task.evaluate(Bicubic(), [batch])["psnr"])
    assert found["gain_over_bicubic"] > 10
    assert found["psnr_to_teacher"] == 100.0  # equal images count as 100 dB
    assert task.evaluate(Bicubic(), [batch], teacher=Bicubic(2, 0.04))["psnr_to_teacher"] < 35


def test_losses_are_mean_absolute_differences():
    task, one, other = SuperResolution(), torch.rand(2, 3, 4, 4, requires_grad=True), torch.rand(2, 3, 4, 4)
    for loss in (task.supervised_loss(one, other), task.distillation_loss(one, other)):
        torch.testing.assert_close(loss, (one - other).abs().mean())
        (gradient,) = torch.autograd.grad(3 * loss, one)
        torch.testing.assert_close(gradient, 3 * (one - other).sign() / one.numel())
    teacher = other.clone().requires_grad_()
    assert not torch.autograd.grad(task.distillation_loss(one, teacher), [teacher], allow_unused=True)[0]
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\), but teacher_outputs has shape \(2, 3, 8, 8\)"):
        task.distillation_loss(one, torch.rand(2, 3, 8, 8))


def test_distillation_weighs_labels_and_teacher_alike():
    batch = Batch(torch.rand(2, 3, 6, 6), torch.rand(2, 3, 12, 12))
    student = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
    losses = KD(student, Bicubic(), task=SuperResolution(scale=2))(batch)
    outputs = student(batch.inputs)
    expected = 0.5 * (outputs - batch.labels).abs().mean() + 0.5 * (outputs - Bicubic()(batch.inputs)).abs().mean()
    torch.testing.assert_close(losses.total, expected)
    assert (KD(nn.Linear(2, 3), nn.Linear(2, 3)).label_weight, KD(nn.Linear(2, 3), nn.Linear(2, 3)).distill_weight) == (
        0.1,
        0.9,
    )
    assert KD(student, Bicubic(), task=SuperResolution(), label_weight=1.0).label_weight == 1.0
    assert list(Alone(student, task=SuperResolution())(batch)) == ["label"]


def test_the_first_batch_is_checked():
    task = SuperResolution(scale=2)
    good = Batch(torch.rand(2, 3, 6, 5), torch.rand(2, 3, 12, 10))
    task.check(good, torch.rand(2, 3, 12, 10))
    with pytest.raises(ValueError, match=r"inputs must lie in \[0, 1\], given values from 0 to 255: divide by 255"):
        task.check(Batch(torch.tensor([0.0, 255.0]).repeat(2, 3, 6, 3), torch.rand(2, 3, 12, 12)))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 1\], given values from -1 to 0"):
        task.check(Batch(torch.rand(2, 3, 6, 1), torch.tensor([-1.0, 0.0]).repeat(2, 3, 12, 1)))
    with pytest.raises(
        ValueError, match=r"the labels are \(18, 15\) for inputs of \(6, 5\), expected \(12, 10\) for scale 2"
    ):
        task.check(Batch(good.inputs, torch.rand(2, 3, 18, 15)))
    with pytest.raises(ValueError, match=r"the network makes \(6, 5\) for inputs of \(6, 5\), expected \(12, 10\)"):
        task.check(good, torch.rand(2, 3, 6, 5))


def test_a_teacher_that_is_no_better_than_bicubic_is_none():
    task = SuperResolution("photographs", scale=2)
    splits = task.load()
    with pytest.raises(TrainingError, match=r"the teacher's images are \d+\.\d+ dB below bicubic enlargement"):
        require_teacher(Bicubic(2, 0.3), task, splits.test, torch.device("cpu"))
    assert task.no_teacher({"psnr": 30.0, "gain_over_bicubic": 0.1}) == ""
    assert Classification().no_teacher({"accuracy": 0.0}) == ""


def test_it_is_found_by_its_name_and_refuses_what_it_has_not():
    assert TASKS["super-resolution"] is SuperResolution
    task = task_for("super-resolution", "photographs", scale=3, image_size=None)
    assert (task.scale, task.image_size, task.width(None)) == (3, 24, 3)
    with pytest.raises(ValueError, match="has no labels, given 100: leave it out"):
        SuperResolution(labels=100)
    with pytest.raises(ValueError, match="RGB images, given channels=1"):
        SuperResolution(channels=1)
    with pytest.raises(ValueError, match="scale must be a whole number of 1 or more, given 0"):
        SuperResolution(scale=0)


def test_numbers_are_written_in_decibels():
    scale = Scale.of("psnr", [31.2, 33.0])
    assert scale.value(31.234) == "31.23 dB"
    assert scale.gap(0.7) == "0.70 dB"
    assert Scale.of("accuracy", [0.5, 0.9]).gap(0.1) == "10.0 points"


@REAL
def test_bicubic_enlargement_scores_what_the_tables_say():
    """Published for Set5: 33.66 dB and 0.9299 twice as large, 28.42 and 0.8104 four times (MATLAB's resizing)."""
    for scale, psnr, ssim in ((2, 33.66, 0.9299), (4, 28.42, 0.8104)):
        task = SuperResolution("set5", scale=scale)
        found = task.evaluate(Bicubic(scale), sequential(task.load().test, 256))
        assert found["psnr"] == pytest.approx(psnr, abs=0.02)
        assert found["ssim"] == pytest.approx(ssim, abs=0.001)
