"""What two processes can tell apart by text: the arguments of arms, models, arrays and data."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.baselines import KD
from stillroom.data.samples import LazySamples, Splits, TensorSamples
from stillroom.experiment.arm import arguments_of
from stillroom.experiment.described import data_checksum, text_of
from stillroom.systems import catalog
from tests.toys import cloud, mlp, splits

RECIPES = """
import json
from stillroom.experiment.arm import arguments_of
from stillroom.experiment.described import text_of
from stillroom.systems import catalog
found = {}
for entry in catalog.SYSTEMS:
    experiment = catalog.recipe(entry.slug)()
    found[entry.slug] = {name: arguments_of(arm) for name, arm in experiment.arms.items()}
    found[entry.slug]["training"] = text_of([experiment.training, experiment.teacher_training, experiment.student])
print(json.dumps(found))
"""


def given(batch):
    return batch


@dataclass
class Options:
    size: int
    function: object


def test_every_recipe_gives_its_arms_the_same_arguments_in_every_process():
    found = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", RECIPES], env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0] == found[1]
    assert list(found[0]) == [entry.slug for entry in catalog.SYSTEMS]
    assert " at 0x" not in json.dumps(found[0])


def test_values_are_told_apart_by_what_they_are_and_not_by_where_they_lie():
    assert text_of({"a": [1, 2.5], "b": ("x", None)}) == "{'a': [1, 2.5], 'b': ('x', None)}"  # as Python writes it
    assert text_of((1,)) == "(1,)"
    assert text_of({3, 1, 2}) == "{1, 2, 3}"
    assert text_of(given) == f"{__name__}.given"
    assert text_of(nn.Linear) == "torch.nn.modules.linear.Linear"
    assert text_of(Options(3, {"by": given})) == f"{__name__}.Options(size=3, function={{'by': {__name__}.given}})"
    assert text_of(partial(given, 1, b=[given])) == f"functools.partial({__name__}.given, 1, b=[{__name__}.given])"
    assert text_of(torch.zeros(2)) == text_of(torch.zeros(2)) != text_of(torch.ones(2))
    assert text_of(torch.zeros(2)) != text_of(torch.zeros(2, 1))
    assert (
        text_of(torch.eye(2).to_sparse()) == text_of(torch.eye(2).to_sparse()) != text_of(torch.ones(2, 2).to_sparse())
    )
    assert text_of(torch.eye(2).bool()) != text_of(torch.ones(2, 2).bool())
    assert text_of(np.arange(3)) == text_of(np.arange(3)) != text_of(np.arange(1, 4))
    assert text_of(mlp(seed=0)) == text_of(mlp(seed=0)) != text_of(mlp(seed=1))
    assert text_of(object()) == "<object>"


def test_the_arguments_of_an_arm_hold_what_it_was_given_by_place_too():
    assert arguments_of(partial(KD, temperature=2.0)) == {"temperature": "2.0"}
    assert arguments_of(partial(given, {"by": given})) == {"argument 1": f"{{'by': {__name__}.given}}"}


def test_other_data_have_another_checksum():
    before = data_checksum(splits())
    assert data_checksum(splits()) == before
    inputs, labels = cloud(120)
    for row, column in ((0, 0), (119, 5)):
        changed = splits()
        changed.train._inputs[row, column] += 1e-3
        assert data_checksum(changed) != before
    other = splits()
    other.test._labels[3] = 2 - other.test._labels[3]
    assert data_checksum(other) != before
    assert data_checksum(splits(labels=20)) != before
    fewer = Splits(TensorSamples(inputs[:50], labels[:50]), splits().test)
    assert data_checksum(fewer) not in (before, data_checksum(Splits(TensorSamples(inputs, labels), splits().test)))


@pytest.mark.parametrize("draws", [False, True], ids=["the same at every reading", "drawn at every reading"])
def test_samples_that_are_fetched_are_told_apart_by_some_of_them(draws):
    read = []

    def lazy(moved):
        inputs, labels = cloud(500)

        def fetch(row):
            read.append(row)
            return inputs[row] + moved + draws * torch.rand(6), labels[row]

        return Splits(LazySamples(fetch, 500, None, (6,)), splits().test)

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = data_checksum(lazy(0.0))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(read) < 100
    torch.manual_seed(1)
    assert data_checksum(lazy(0.0)) == first
    assert (data_checksum(lazy(1.0)) == first) == draws
