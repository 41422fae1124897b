"""Temperature scaling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.blocks import Tempered, fit_temperature


def noisy(samples=4000, classes=4):
    """Logits whose labels are drawn from their own softmax: honest at temperature 1."""
    logits = 2 * torch.randn(samples, classes, generator=torch.Generator().manual_seed(0))
    return logits, torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(1))[:, 0]


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_the_temperature_undoes_a_wrong_scale(factor):
    logits, labels = noisy()
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_it_is_the_best_temperature():
    logits, labels = noisy(100)
    best = fit_temperature(3 * logits, labels)
    reached = F.cross_entropy(3 * logits / best, labels)
    assert all(reached <= F.cross_entropy(3 * logits / (best * other), labels) for other in (0.5, 0.9, 1.1, 2.0))


def test_a_network_that_is_always_right_ends_at_the_rim():
    assert fit_temperature(torch.eye(3), torch.arange(3)) == pytest.approx(0.01, rel=1e-3)
    assert fit_temperature(-torch.eye(3), torch.arange(3)) == pytest.approx(100, rel=1e-3)


def test_favourites_stay():
    network, inputs = nn.Linear(3, 4), torch.randn(5, 3)
    torch.testing.assert_close(Tempered(network, 2.0)(inputs), network(inputs) / 2)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\).* given \(2,\)"):
        fit_temperature(torch.eye(3), torch.arange(2))
    with pytest.raises(ValueError, match="labels from 0 to 4"):
        fit_temperature(torch.eye(3), torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match="at least 1 samples in a batch, given 0"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="temperature must be a number above 0, given 0"):
        Tempered(nn.Linear(2, 2), 0)
