"""Every example runs, and what it trains has learned something."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.documentation import load_file

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
Result = dict[str, float]


def learned(result: Result) -> bool:
    """Ten classes: guessing scores 0.1."""
    return result["student"] > 0.5


def loss_fell(result: Result) -> bool:
    return result["last loss"] < result["first loss"]


CASES: dict[str, tuple[dict[str, Any], Callable[[Result], bool]]] = {
    "accelerate_loop": ({"epochs": 8}, learned),
    "hf_trainer": ({}, learned),
    "large_vocabulary": ({"steps": 30}, loss_fell),
    "plain_loop": ({"steps": 200}, learned),
    "timm_model": ({"teacher_steps": 20, "steps": 15}, loss_fell),
}
"""Example -> arguments that keep it short, and what its result must show."""


def test_every_example_has_a_case() -> None:
    assert EXAMPLES
    assert {file.stem for file in EXAMPLES} == set(CASES)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = load_file(file, f"example_{file.stem}")
    arguments, shows = CASES[file.stem]
    result = example.main(**arguments)
    assert result
    assert all(math.isfinite(value) for value in result.values())
    assert shows(result), result
    assert list(tmp_path.iterdir()) == [], "an example leaves nothing behind"
