"""Golden vectors: values and gradients that the papers' own code gave, and how they are compared with ours.

A file `SLUG.json` holds `{system: SLUG, cases: [...]}`, each case `{function, what, source, params, inputs, expected,
rtol, atol}` (1e-5 and 1e-7 where a case does not say them). The adapter of a case is the function of the same name in
`tests/golden/adapters/SLUG.py` (dashes as underscores): `function(inputs, params) -> {name: output}`.

- inputs: floats come as float64 tensors and integers as int64 tensors, single numbers as tensors without axes; lists
  that are not rectangular stay lists, dicts stay dicts, strings stay strings. Whole numbers without a point are int64
  even where floats are meant, so adapters say `.double()`.
- outputs: every name under `expected` must be among them; tensors, numbers, strings, lists or dicts of them.
- `grad_of_X` under `expected` is the gradient with respect to the input X of the output "objective" where the adapter
  returns one, else of "loss", else of "total". It is taken with an upstream gradient of 3 and divided by it. An adapter
  may return a `grad_of_X` itself where it is defined otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
ADAPTERS = "tests.golden.adapters"
UPSTREAM = 3.0
GRADIENT = "grad_of_"


@dataclass(frozen=True)
class GoldenCase:
    """One call of one function, and what must come out."""

    slug: str
    number: int
    function: str
    params: Mapping[str, Any]
    raw_inputs: Mapping[str, Any]
    raw_expected: Mapping[str, Any]
    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"{self.slug}-{self.number}-{self.function}"

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs as fresh tensors."""
        return {name: as_tensors(value) for name, value in self.raw_inputs.items()}

    def check(self, **outputs: Any) -> None:
        """Compare outputs with everything that is expected."""
        missing = [name for name in self.raw_expected if name not in outputs]
        assert not missing, f"{self}: expected {missing}, but the outputs are {sorted(outputs)}"
        for name, expected in self.raw_expected.items():
            compare(outputs[name], expected, rtol=self.rtol, atol=self.atol, where=f"{self}: {name}")


def golden_cases(slug: str, function: str | None = None, *, folder: Path = GOLDEN) -> list[GoldenCase]:
    """Return the cases of a file, or those of one function in it; there must be some."""
    cases = [case for case in read_cases(folder / f"{slug}.json") if function in (None, case.function)]
    assert cases, f"no golden case of {function or 'any function'} in {slug}.json"
    return cases


def read_cases(file: Path) -> list[GoldenCase]:
    content = json.loads(file.read_text(encoding="utf-8"))
    return [
        GoldenCase(
            slug=content["system"],
            number=number,
            function=case["function"],
            params=case["params"],
            raw_inputs=case["inputs"],
            raw_expected=case["expected"],
            rtol=case.get("rtol", 1e-5),
            atol=case.get("atol", 1e-7),
        )
        for number, case in enumerate(content["cases"])
    ]


def find_adapter(case: GoldenCase, package: str = ADAPTERS) -> Callable[[dict[str, Any], Mapping[str, Any]], Any]:
    """Return the adapter of a case; a missing file or function is a failure that names it."""
    name = f"{package}.{case.slug.replace('-', '_')}"
    assert importlib.util.find_spec(name), f"golden system {case.slug!r} has no adapter file: write {name}"
    module = importlib.import_module(name)
    adapter = vars(module).get(case.function)
    own = callable(adapter) and getattr(adapter, "__module__", None) == name
    assert own, f"golden function {case.function!r} of {case.slug!r} has no adapter: write it in {name}"
    return adapter


def run_case(case: GoldenCase, adapter: Callable[[dict[str, Any], Mapping[str, Any]], Any]) -> None:
    """Call an adapter and compare values and gradients."""
    inputs = case.inputs
    wanted = [name.removeprefix(GRADIENT) for name in case.raw_expected if name.startswith(GRADIENT)]
    for name in wanted:
        if name in inputs:
            inputs[name] = map_leaves(inputs[name], lambda leaf: leaf.double().requires_grad_())
    asked = dict(inputs)
    outputs = dict(adapter(inputs, case.params))
    for name in wanted:
        if f"{GRADIENT}{name}" not in outputs:
            assert name in asked, f"{case}: {GRADIENT}{name} names no input; its adapter must return it"
            objective = next((outputs[key] for key in ("objective", "loss", "total") if key in outputs), None)
            assert isinstance(objective, Tensor), f"{case}: no objective, loss or total to take {GRADIENT}{name} of"
            outputs[f"{GRADIENT}{name}"] = gradient(objective, asked[name])
    case.check(**outputs)


def gradient(objective: Tensor, value: Any) -> Any:
    """Gradients with respect to every tensor of a nested value, in its form; 0 where nothing flows."""
    leaves = list(leaves_of(value))
    found = torch.autograd.grad(UPSTREAM * objective, leaves, retain_graph=True, allow_unused=True)
    by_leaf = {
        id(leaf): torch.zeros_like(leaf) if grad is None else grad / UPSTREAM
        for leaf, grad in zip(leaves, found, strict=True)
    }
    return map_leaves(value, lambda leaf: by_leaf[id(leaf)])


def as_tensors(value: Any) -> Any:
    """Turn the numbers of a JSON value into tensors: float64, or int64 where all are integers, or bool."""
    if isinstance(value, Mapping):
        return {key: as_tensors(inner) for key, inner in value.items()}
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    if not value:
        return torch.zeros(0, dtype=torch.float64)
    parts = [as_tensors(inner) for inner in value]
    if all(isinstance(part, Tensor) for part in parts) and len({part.shape for part in parts}) == 1:
        kinds = {part.dtype for part in parts}
        return torch.stack([part.double() for part in parts] if len(kinds) > 1 else parts)
    return parts


def leaves_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from leaves_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves_of(inner)


def map_leaves(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_leaves(inner, function) for key, inner in value.items()}
    return [map_leaves(inner, function) for inner in value] if isinstance(value, list) else value


def compare(actual: Any, expected: Any, *, rtol: float, atol: float, where: str) -> None:
    """Compare an output with a JSON value: same form, same shapes, numbers within the tolerances in float64."""
    if isinstance(expected, Mapping):
        assert isinstance(actual, Mapping), f"{where}: expected a dict, got {type(actual).__name__}"
        assert set(actual) == set(expected), f"{where}: expected keys {sorted(expected)}, got {sorted(actual)}"
        for key in expected:
            compare(actual[key], expected[key], rtol=rtol, atol=atol, where=f"{where}[{key!r}]")
        return
    if expected is None or isinstance(expected, str):
        assert actual == expected, f"{where}: expected {expected!r}, got {actual!r}"
        return
    numbers = as_tensors(expected)
    if not isinstance(numbers, Tensor):
        assert len(actual) == len(expected), f"{where}: expected {len(expected)} parts, got {len(actual)}"
        for number, (part, wanted) in enumerate(zip(actual, expected, strict=True)):
            compare(part, wanted, rtol=rtol, atol=atol, where=f"{where}[{number}]")
        return
    if isinstance(actual, (list, tuple)):
        actual = stacked(actual)
    actual = torch.as_tensor(actual).detach().double()
    torch.testing.assert_close(
        actual, numbers.double(), rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{where}: {text}"
    )


def stacked(value: Any) -> Tensor:
    """A list of equal parts as one tensor."""
    if isinstance(value, (list, tuple)):
        return torch.stack([stacked(part) for part in value]) if value else torch.zeros(0, dtype=torch.float64)
    return torch.as_tensor(value).detach().double()
