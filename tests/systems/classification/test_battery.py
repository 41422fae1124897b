"""Every method of these systems through the checks that any method must pass."""

from __future__ import annotations

import warnings

import pytest

from stillroom.check import check_method
from stillroom.method import Method
from stillroom.systems.classification import logit_kd
from stillroom.systems.classification.pld import PLD
from tests.systems.classification.toys import ConvNet, problem

METHODS = [PLD, *(getattr(logit_kd, name) for name in logit_kd.__all__ if isinstance(getattr(logit_kd, name), type))]


def test_there_are_methods():
    assert len(METHODS) == 12
    assert all(issubclass(kind, Method) for kind in METHODS)


@pytest.mark.parametrize("kind", METHODS)
def test_the_battery(kind):
    batch = problem(10)
    options = {"probe": batch[:2]} if kind.needs.features else {}
    if kind is logit_kd.CRD:
        options |= {"train_size": 10, "train_labels": batch.labels, "negatives": 16}
    method = kind(ConvNet(4), ConvNet(4), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what works badly is the report's to say; what is broken fails
        report = check_method(method, batch, processes=False, raises=False)
    assert report.ok, str(report)
    assert len(report.passed) > 15
