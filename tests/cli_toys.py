"""Broken things to name on a command line, a folder to work in, and a way to run the program in this process."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from stillroom import hub
from stillroom.cli import main

MODELS = "--teacher conv-8-16 --student conv-4-8"
SMALL = "--steps 2 --seeds 1 --test-size 100 --labels 60 --jobs 1"
TINY = f"{MODELS} --teacher-epochs 12 {SMALL}"
BROKEN = """
from torch import nn

def raises():
    raise RuntimeError("boom inside")

def number():
    return 3

def deep(depth):
    return nn.Identity()

def vectors(classes=10):
    return nn.Linear(7, classes)
"""


@pytest.fixture(scope="session", name="models")
def make_models(tmp_path_factory) -> Path:
    """Checkpoint folders: one that knows the digits, untrained ones, damaged ones; and a Python file with mistakes."""
    place = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, classes in (("untrained", 10), ("seven", 7), ("corrupt", 10), ("unreadable", 10)):
        hub.save(hub.load("conv-8-16", classes=classes, channels=1, image_size=8), place / name)
    (place / "corrupt/student.safetensors").write_bytes(b"abc")
    (place / "unreadable/config.json").write_text('{"stillroom": ')
    (place / "broken.py").write_text(BROKEN)
    (place / "syntax.py").write_text("def x(:\n")
    (place / "plain").mkdir()
    (place / "plain/note.txt").write_text("keep me")
    (place / "empty").mkdir()
    for number in range(12):
        (place / "one/cats").mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(place / f"one/cats/{number}.png")
    return place


@pytest.fixture(name="here")
def make_here(models, tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, with the models beside it."""
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, capsys) -> tuple[int, str, str]:
    code = 0
    try:
        main(line.split())
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def tree(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
