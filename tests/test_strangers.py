"""What strangers bring: their own networks in their own file, untouched, and folders of images as they lie about."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stillroom
from tests.cli_toys import run

THEIRS = '''
"""A convolutional teacher and a small transformer, written by somebody who has never heard of this package."""
import torch
from torch import nn


class Convolutions(nn.Module):
    def __init__(self, num_classes=10, in_chans=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.layer1 = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, images):
        return self.fc(self.pool(self.layer2(self.layer1(self.stem(images)))).flatten(1))


class Tokens(nn.Module):
    def __init__(self, num_classes=10, in_chans=1, width=24, side=8, patch=2):
        super().__init__()
        self.embed = nn.Conv2d(in_chans, width, patch, stride=patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2 + 1, width))
        make = lambda: nn.TransformerEncoderLayer(width, 2, 48, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList([make() for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1) + self.places
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)[:, 0])


def teacher(num_classes, in_chans):
    return Convolutions(num_classes, in_chans)


def student(num_classes, in_chans=1):
    return Tokens(num_classes, in_chans)
'''
TRAINING = "--teacher-epochs 12 --steps 6 --seeds 1 --test-size 100 --labels 100 --lr 0.01 --jobs 1"


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Their file, imported as their own module; the tests work in its folder."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("theirs", tmp_path / "theirs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", ["at", "fitnets", "rkd"])
def test_their_networks_are_matched_inside_without_adapting_them(method, theirs, capsys):
    line = f"distill --teacher theirs.py:teacher --student theirs.py:student --method {method} {TRAINING} --out run"
    code, _, error = run(line, capsys)
    assert code == 0, error
    results = json.loads(Path("run/results.json").read_text())
    assert set(results["arms"]) == {"teacher", "alone", method}
    assert results["student"]["parameters"] == sum(p.numel() for p in theirs.student(10).parameters())
    matched = [line for line in error.splitlines() if line.startswith(f"{method}: student ")]
    assert matched, error
    assert set(matched) <= set(results["notes"])
    assert re.search(r"student (blocks\.\d|norm|embed) learns from teacher (stem|layer1|layer2)", matched[0]), matched


def test_check_says_which_features_it_would_match(theirs, capsys):
    line = f"check --teacher theirs.py:teacher --student theirs.py:student --method at {TRAINING}"
    code, out, error = run(line, capsys)
    assert code == 0, error
    assert re.search(r"^at: student blocks\.1 learns from teacher layer2", out, re.MULTILINE)


def test_their_modules_work_from_python_and_stay_theirs(theirs):
    teacher, student = theirs.Convolutions(10, 1), theirs.Tokens(10, 1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    mode = teacher.training
    result = stillroom.distill(
        teacher, student, "digits", method="at", teacher_epochs=12, steps=6, seeds=1, test_size=100, labels=100,
        lr=0.01, progress=False, device="cpu",
    )  # fmt: skip
    assert set(result.results["arms"]) == {"teacher", "alone", "at"}
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.training == mode
    assert not any(module._forward_hooks for net in (teacher, student) for module in net.modules())
    assert result.student(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_function_of_theirs_that_fails_on_the_data_is_one_sentence(theirs, capsys):
    # their transformer has places for 8x8 images only
    line = f"distill --teacher theirs.py:teacher --student theirs.py:student --image-size 12 {TRAINING}"
    code, _, error = run(line, capsys)
    assert code == 2
    assert len(error.splitlines()) == 1, error
    assert re.search(r"cannot take inputs of shape \(\d+, 1, 12, 12\)", error)


# ---- a folder with every defect --------------------------------------------------------------------------------------


def picture(kind: str, number: int) -> Image.Image:
    """A bright picture for one class, a dark one for the other, of some mode and odd size."""
    generator = np.random.default_rng(number)
    size = (9 + number % 5, 11 + number % 3, 3)
    pixels = generator.integers(*((130, 255) if kind == "bright" else (0, 120)), size, dtype=np.uint8)
    image = Image.fromarray(pixels)
    mode = ("RGB", "L", "RGBA", "P", "LA", "1")[number % 6 if number % 6 < 5 else 0]
    return image.convert(mode)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Photographs as they lie about."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "photos"
    for kind in ("bright", "dark"):
        (place / kind).mkdir(parents=True)
        for number in range(60):
            suffix = (".png", ".PNG", ".webp")[number % 3]
            picture(kind, number).save(place / kind / f"{number:02}{suffix}")
    (place / "bright/broken.JPG").write_bytes(b"this is no picture")
    whole = (place / "dark/00.png").read_bytes()
    (place / "dark/half.png").write_bytes(whole[: len(whole) // 2])
    (place / "dark/empty.png").write_bytes(b"")
    (place / "bright/.hidden.png").write_bytes(b"x")
    (place / ".cache").mkdir()
    (place / ".cache/00.png").write_bytes(whole)
    (place / "bright/notes.txt").write_text("my notes")
    (place / "Thumbs.db").write_bytes(b"x")
    return place


def test_a_folder_with_every_defect_is_distilled_and_what_was_skipped_is_named(folder, capsys):
    line = (
        "distill --teacher conv-8-16 --student conv-4-8 --data photos --image-size 8 --teacher-epochs 25 --steps 6 "
        "--seeds 1 --lr 0.02 --batch-size 16 --jobs 1 --out run"
    )
    code, _, error = run(line, capsys)
    assert code == 0, error
    results = json.loads(Path("run/results.json").read_text())
    report = Path("run/report.html").read_text()
    for name in ("broken.JPG", "half.png", "empty.png", "notes.txt"):
        assert name in error, name
        assert name in " ".join(results["notes"]), name
        assert name in report, name
    assert ".hidden" not in error
    assert "there is no test split" in error
    assert results["arms"]["teacher"]["values"][0] > 0.8
    assert results["question"].startswith("The task: sort photos into 2 classes")
    assert "UserWarning" not in error


def test_a_folder_of_theirs_is_checked_without_writing(folder, capsys):
    before = sorted(folder.parent.rglob("*"))
    line = "check --teacher conv-8-16 --student conv-4-8 --data photos --teacher-epochs 2 --steps 2 --seeds 1 --jobs 1"
    code, out, error = run(f"{line} --image-size 8", capsys)
    assert code == 0, error
    assert "broken.JPG" in out
    assert sorted(folder.parent.rglob("*")) == before
