"""Every golden vector against its adapter, in float64. `pytest tests/golden --golden DIR` checks other vectors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden_cases import GoldenCase, find_adapter, read_cases, run_case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        folder: Path = metafunc.config.getoption("--golden")
        cases = [case for file in sorted(folder.glob("*.json")) for case in read_cases(file)]
        metafunc.parametrize("case", cases, ids=str)


def test_value_and_gradient(case: GoldenCase) -> None:
    run_case(case, find_adapter(case))


def test_there_are_golden_vectors(pytestconfig: pytest.Config) -> None:
    files = sorted(Path(pytestconfig.getoption("--golden")).glob("*.json"))
    assert files, f"no *.json in {pytestconfig.getoption('--golden')}"
    empty = [file.name for file in files if not read_cases(file)]
    assert not empty, f"files without a case: {empty}"


def test_every_adapter_file_has_vectors() -> None:
    folder = Path(__file__).parent
    adapters = {file.stem for file in (folder / "adapters").glob("*.py") if file.stem != "__init__"}
    vectors = {file.stem.replace("-", "_") for file in folder.glob("*.json")}
    assert adapters, "no adapter found"
    assert adapters == vectors
