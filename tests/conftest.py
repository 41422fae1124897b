"""What every test gets: the option that names the folder of golden vectors, seeded random numbers, one thread."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(__file__).parent / "golden",
        metavar="DIR",
        help="folder of golden vectors (*.json) that tests/golden checks; by default tests/golden itself",
    )


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries that draw from NumPy's global state
    torch.manual_seed(0)
