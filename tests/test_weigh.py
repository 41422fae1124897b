"""What is said of a run beside its numbers."""

from __future__ import annotations

import pytest
from torch import nn

import stillroom
from tests.toys import splits, trained_teacher


def student(classes: int = 3, channels: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, classes))


@pytest.mark.parametrize(("lr", "said"), [(1e-9, True), (0.05, False)])
def test_students_that_only_guess_are_noted(lr: float, said: bool) -> None:
    options = {"epochs": 20, "batch_size": 16, "lr": lr, "seeds": 3, "progress": False, "device": "cpu"}
    results = stillroom.distill(trained_teacher(), student, splits(), **options).results
    assert any("No arm is clearly better than guessing" in note for note in results["notes"]) == said
