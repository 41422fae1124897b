"""Calibration error and what is measured beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.data.samples import TensorSamples
from stillroom.task import confidence_metrics, expected_calibration_error, logits_on


def test_bins_are_closed_on_the_right():
    probabilities = torch.tensor([[0.5, 0.5], [0.6, 0.4], [1.0, 0.0], [0.3, 0.7]], dtype=torch.float64)
    labels = torch.tensor([1, 0, 0, 0])  # wrong at 0.5 in (0, 0.5]; right, right and wrong above
    expected = 0.25 * abs(0 - 0.5) + 0.75 * abs(2 / 3 - (0.6 + 1.0 + 0.7) / 3)
    assert float(expected_calibration_error(probabilities, labels, bins=2)) == pytest.approx(expected)


def test_against_a_naive_loop():
    probabilities, labels = torch.randn(200, 6).double().softmax(1), torch.randint(6, (200,))
    confidence, favourite = probabilities.max(1)
    expected = 0.0
    for number in range(15):
        inside = [i for i in range(200) if number / 15 < float(confidence[i]) <= (number + 1) / 15]
        if inside:
            right = sum(float(favourite[i] == labels[i]) for i in inside) / len(inside)
            expected += len(inside) / 200 * abs(right - sum(float(confidence[i]) for i in inside) / len(inside))
    assert float(expected_calibration_error(probabilities, labels)) == pytest.approx(expected, abs=1e-12)


def test_the_ends():
    labels = torch.arange(4)
    assert float(expected_calibration_error(torch.eye(4), labels)) == 0
    assert float(expected_calibration_error(torch.eye(4).roll(1, 0), labels)) == 1


def test_logits_are_no_probabilities():
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"sums to 1\.3 .*softmax|softmax.*sums to 1\.3|given a row that sums to 1\.3"):
        expected_calibration_error(torch.tensor([[0.5, 0.5], [0.8, 0.5]]), labels)
    with pytest.raises(ValueError, match=r"least value of -0\.5"):
        expected_calibration_error(torch.tensor([[0.5, 0.5], [1.5, -0.5]]), labels)
    with pytest.raises(ValueError, match="bins must be 1 or more, given 0"):
        expected_calibration_error(torch.eye(2), labels, bins=0)
    with pytest.raises(ValueError, match=r"1 sample or more, given \(0, 2\)"):
        expected_calibration_error(torch.zeros(0, 2), labels[:0])
    with pytest.raises(ValueError, match=r"\(2,\) int64 .*given \(3,\)"):
        expected_calibration_error(torch.eye(2), torch.zeros(3, dtype=torch.int64))


def test_what_is_measured_beside_it():
    found = confidence_metrics(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    assert found == pytest.approx({"calibration_error": 0.25, "nll": 0.6931472, "entropy": 0.6931472, "accuracy": 0.75})


def test_networks_are_asked_in_eval_mode_and_set_back():
    network = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train()
    inputs, labels = torch.randn(300, 3), torch.randint(2, (300,))
    logits, found = logits_on(network, TensorSamples(inputs, labels))
    torch.testing.assert_close(logits, network[0](inputs))
    assert torch.equal(found, labels)
    assert network.training
