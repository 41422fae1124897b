"""The main job on images that are made larger: from the command line and from Python, and what it leaves behind."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import stillroom
from stillroom import hub
from stillroom.data import bicubic_resize
from stillroom.options import with_defaults
from tests.cli_toys import run

NETWORKS = "--teacher imdn-8-1-x2-skip --student imdn-4-1-x2-skip"
SHORT = "--teacher-epochs 30 --steps 3 --batch-size 8 --seeds 1 --lr 0.003 --image-size 12 --train-size 64"
ROOM = "photos"


class Enlarger(nn.Module):
    """Somebody's own network, which knows nothing of this package."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 12, 3, padding=1))
        nn.init.zeros_(self.inner[2].weight)
        nn.init.zeros_(self.inner[2].bias)

    def forward(self, images):
        larger = nn.functional.interpolate(images, scale_factor=2, mode="bicubic", align_corners=False)
        return larger + nn.functional.pixel_shuffle(self.inner(images), 2)


@pytest.fixture(scope="module", name="photos")
def make_photos(tmp_path_factory):
    """Photographs of 40 by 48 pixels, cut from those of scikit-learn."""
    from sklearn.datasets import load_sample_image

    place = tmp_path_factory.mktemp("images") / ROOM
    place.mkdir()
    picture = load_sample_image("china.jpg")
    for number in range(10):
        part = np.ascontiguousarray(picture[250 + 10 * number : 290 + 10 * number, 55 * number : 55 * number + 48])
        Image.fromarray(part).save(place / f"{number}.png")
    return place


@pytest.fixture(scope="module", name="finished")
def make_finished(tmp_path_factory, photos):
    place = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(photos.parent)
        stillroom.distill(
            "imdn-8-1-x2-skip",
            "imdn-4-1-x2-skip",
            ROOM,
            task="super-resolution",
            scale=2,
            teacher_epochs=30,
            steps=3,
            batch_size=8,
            seeds=2,
            lr=3e-3,
            image_size=12,
            train_size=64,
            out=place,
            progress=False,
        )
    return place


def test_the_results_say_decibels(finished):
    results = json.loads((finished / "results.json").read_text())
    assert (results["metric"], results["higher_is_better"]) == ("psnr", True)
    assert set(results["arms"]) == {"teacher", "alone", "kd"}
    assert {"psnr", "ssim", "gain_over_bicubic", "psnr_to_teacher"} <= set(results["arms"]["kd"]["metrics"])
    assert "enlarge photos" in results["question"]
    page = (finished / "report.html").read_text()
    assert " dB" in page
    assert "accuracy" not in page


def test_the_student_is_a_plain_network_for_images_of_any_size(finished):
    model = stillroom.load(finished / "student")
    images = torch.rand(1, 3, 17, 30)
    assert model.eval()(images).shape == (1, 3, 34, 60)
    state = hub.read_weights(finished / "student" / "student.safetensors")
    plain = stillroom.blocks.build_enlarger("imdn-4-1-x2-skip")
    plain.load_state_dict(state)
    assert torch.equal(plain.eval()(images), model(images))
    assert "psnr" in (finished / "student" / "README.md").read_text()


def test_the_student_is_exported_for_images_of_any_size(finished, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "student.onnx"
    assert run(f"export {finished / 'student'} --to {path}", capsys)[0] == 0
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.rand(2, 3, 21, 13)
    (found,) = session.run(None, {"inputs": images.numpy()})
    with torch.no_grad():
        expected = stillroom.load(finished / "student").eval()(images)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_the_command_line_does_it_too(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(photos.parent)
    line = (
        f"distill --task super-resolution --scale 2 {NETWORKS} --data {ROOM} {SHORT} --jobs 1 --out {tmp_path / 'run'}"
    )
    code, out, err = run(f"{line} --json", capsys)
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["metric"], summary["method"]) == ("psnr", "kd")
    assert summary["config"]["scale"] == 2
    assert "psnr" in err


def test_the_dry_run_says_what_would_happen(photos, monkeypatch, capsys):
    monkeypatch.chdir(photos.parent)
    code, out, err = run(
        f"check --task super-resolution --scale 2 {NETWORKS} --data {ROOM} {SHORT} --jobs 1 --json", capsys
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["task"] == "super-resolution"
    assert found["data"]["shape"] == [3, 12, 12]
    assert set(found["terms"]) == {"label", "distill"}
    assert found["steps"] == 3


def test_networks_of_strangers_are_taught(photos):
    torch.manual_seed(0)
    result = stillroom.distill(
        Enlarger(8),
        Enlarger,
        str(photos),
        task="super-resolution",
        teacher_epochs=60,
        steps=4,
        batch_size=16,
        seeds=1,
        lr=3e-3,
        image_size=12,
        progress=False,
    )
    assert isinstance(result.student.net, Enlarger)
    assert result.student(torch.rand(1, 3, 10, 14)).shape == (1, 3, 20, 28)
    assert bicubic_resize(torch.rand(1, 3, 10, 14), 20, 28).shape == (1, 3, 20, 28)
    assert result.results["arms"]["teacher"]["metrics"]["gain_over_bicubic"][0] > 0


def test_networks_of_another_scale_are_refused(photos, monkeypatch, capsys):
    monkeypatch.chdir(photos.parent)
    line = "distill --task super-resolution --teacher imdn-8-1-x2-skip --student imdn-4-1-x3-skip"
    code, _, err = run(f"{line} --data {ROOM} {SHORT} --out never", capsys)
    assert code == 2
    assert "makes (36, 36) for inputs of (12, 12), expected (24, 24) for scale 2" in err
    code, _, err = run(f"distill --scale 3 {NETWORKS} --data digits --out never", capsys)
    assert code == 2
    assert "scale=3 belongs to the super-resolution task" in err
    code, _, err = run(f"distill --task super-resolution {NETWORKS} --data {ROOM} --labels 5 --out never", capsys)
    assert code == 2
    assert "has no labels, given 5" in err


def test_without_networks_there_is_an_embedded_task():
    import inspect

    given = {name: p.default for name, p in inspect.signature(stillroom.distill).parameters.items()}
    options = with_defaults(given | {"task": "super-resolution", "scale": 3})
    assert (options["data"], options["teacher"], options["student"]) == (
        "photographs",
        "imdn-24-3-x3-skip",
        "imdn-8-2-x3-skip",
    )
    assert with_defaults(given)["data"] == "digits"
