"""The harness must fail where it should: no adapter, a wrong value, a wrong gradient, a missing output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.golden import test_golden
from tests.golden_cases import GoldenCase, as_tensors, find_adapter, golden_cases, read_cases, run_case

SQUARE = {
    "function": "square",
    "what": "the sum of squares",
    "source": "by hand",
    "params": {"factor": 2.0},
    "inputs": {"x": [1.0, 2.0, 3.0], "stages": [[[1.0]], [[2.0, 3.0]]], "count": 3},
    "expected": {"loss": 28.0, "grad_of_x": [4.0, 8.0, 12.0], "grad_of_stages": [[[0.0]], [[0.0, 0.0]]]},
    "rtol": 1e-9,
    "atol": 0.0,
}


def written(folder: Path, slug: str, *cases: dict) -> list[GoldenCase]:
    file = folder / f"{slug}.json"
    file.write_text(json.dumps({"system": slug, "cases": list(cases)}))
    return read_cases(file)


def square(inputs, params):
    assert inputs["count"].dtype == torch.int64
    assert [tuple(stage.shape) for stage in inputs["stages"]] == [(1, 1), (1, 2)]
    return {"loss": params["factor"] * inputs["x"].square().sum(), "extra": 1}


def test_right_values_pass(tmp_path):
    (case,) = written(tmp_path, "toy", SQUARE)
    run_case(case, square)


def test_a_wrong_value_fails_by_name(tmp_path):
    (case,) = written(tmp_path, "toy", {**SQUARE, "params": {"factor": 2.1}})
    with pytest.raises(AssertionError, match="toy-0-square: loss"):
        run_case(case, square)


def test_a_detached_gradient_fails_by_name(tmp_path):
    (case,) = written(tmp_path, "toy", SQUARE)

    def half_detached(inputs, params):
        return {"loss": 2 * (inputs["x"] * inputs["x"].detach()).sum()}

    with pytest.raises(AssertionError, match="toy-0-square: grad_of_x"):
        run_case(case, half_detached)


def test_a_missing_output_fails_by_name(tmp_path):
    (case,) = written(tmp_path, "toy", {**SQUARE, "expected": {"loss": 28.0, "order": [1, 2]}})
    with pytest.raises(AssertionError, match="order"):
        run_case(case, square)


def test_another_shape_fails(tmp_path):
    (case,) = written(tmp_path, "toy", {**SQUARE, "expected": {"loss": [28.0]}})
    with pytest.raises(AssertionError, match="shape"):
        run_case(case, square)


def test_a_system_without_adapter_is_named(tmp_path):
    (case,) = written(tmp_path, "no-such-system", SQUARE)
    with pytest.raises(AssertionError, match="'no-such-system' has no adapter file"):
        find_adapter(case)


@pytest.mark.parametrize("function", ["square", "losses"])
def test_a_function_without_adapter_is_named(tmp_path, function):
    (case,) = written(tmp_path, "pld", {**SQUARE, "function": function})
    with pytest.raises(AssertionError, match=f"'{function}' of 'pld' has no adapter"):
        find_adapter(case)


def test_a_misspelt_function_finds_no_case():
    assert len(golden_cases("pld", "pld_loss")) == 4
    with pytest.raises(AssertionError, match="pld_los "):
        golden_cases("pld", "pld_los")


def test_numbers_become_tensors_of_their_kind():
    tensors = as_tensors({"mixed": [1, 2.5], "whole": [[1, 2], [3, 4]], "ragged": [[1], [2, 3]], "word": "a", "one": 2})
    assert tensors["mixed"].dtype == torch.float64
    assert tensors["whole"].dtype == torch.int64
    assert [tuple(part.shape) for part in tensors["ragged"]] == [(1,), (2,)]
    assert tensors["word"] == "a"
    assert tensors["one"].shape == ()


def test_the_option_names_the_folder(tmp_path):
    written(tmp_path, "toy", SQUARE)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "tests/golden/test_golden.py", "--golden", str(tmp_path), "-q"]
    ran = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "'toy' has no adapter file" in ran.stdout


def test_a_folder_without_vectors_fails(tmp_path):
    config = SimpleNamespace(getoption=lambda name: tmp_path)
    with pytest.raises(AssertionError, match=r"no \*\.json in"):
        test_golden.test_there_are_golden_vectors(config)
    written(tmp_path, "toy")
    with pytest.raises(AssertionError, match=r"files without a case: \['toy\.json'\]"):
        test_golden.test_there_are_golden_vectors(config)
