"""Which labels look right: margins, the mixture and where it is not fitted, targets."""

import math

import pytest
import torch

from stillroom.blocks import clean_probability, guess_labels, label_margins, normalised, refine_labels, sharpen
from stillroom.blocks.clean import ramp


def two_groups(low=40, high=60):
    draw = torch.Generator().manual_seed(0)
    wrong = -4 + torch.randn(low, generator=draw)
    return torch.cat([wrong, 4 + torch.randn(high, generator=draw)])


def test_margins_by_hand():
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [0.0, 0.0, 0.0]])
    assert label_margins(logits, torch.tensor([1, 0, 2])).tolist() == [2.0, -3.0, 0.0]


def test_the_mixture_tells_two_groups_apart():
    scores = two_groups()
    clean = clean_probability(scores)
    assert clean.shape == scores.shape
    assert clean.dtype == scores.dtype
    assert bool((clean[:40] < 0.5).all())
    assert bool((clean[40:] > 0.5).all())
    torch.testing.assert_close(clean, clean_probability(scores))
    torch.testing.assert_close(clean, clean_probability(3 * scores + 7), atol=1e-4, rtol=0)


def test_the_larger_mean_is_the_clean_one_whichever_group_is_larger():
    for low, high in ((90, 10), (10, 90)):
        clean = clean_probability(two_groups(low, high), largest_kurtosis=math.inf)
        assert float(clean[:low].max()) < 0.5 < float(clean[low:].min())


def test_one_peak_is_not_cut_in_two():
    peak = torch.cat([torch.linspace(-1, 1, 50), torch.tensor([-40.0])])  # a far point makes the kurtosis large
    torch.testing.assert_close(clean_probability(peak), normalised(peak))
    fitted = clean_probability(peak, largest_kurtosis=math.inf)
    assert float((fitted - normalised(peak)).abs().max()) > 1e-3
    torch.testing.assert_close(clean_probability(two_groups(), largest_kurtosis=-math.inf), normalised(two_groups()))


def test_a_degenerate_fit_falls_back():
    assert clean_probability(torch.full((9,), 2.0)).tolist() == [1.0] * 9
    assert clean_probability(torch.tensor([3.0])).tolist() == [1.0]
    assert clean_probability(torch.tensor([0.0, 4.0, 4.0])).tolist() == [0.0, 1.0, 1.0]
    spike = torch.tensor([0.5] * 500 + [0.5001] * 500 + [0.0, 1.0])
    assert bool(clean_probability(spike, largest_kurtosis=math.inf).isfinite().all())


def test_targets_by_hand():
    p = torch.tensor([[0.8, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(sharpen(p, 0.5), torch.tensor([[0.64, 0.04]], dtype=torch.float64) / 0.68)
    torch.testing.assert_close(sharpen(p, 1.0), p)
    q = torch.tensor([[0.4, 0.6]], dtype=torch.float64)
    torch.testing.assert_close(guess_labels([p, q]), sharpen((p + q) / 2))
    mixed = 0.25 * torch.tensor([[0.0, 1.0]], dtype=torch.float64) + 0.75 * p
    refined = refine_labels(torch.tensor([1]), torch.tensor([0.25], dtype=torch.float64), [p], temperature=1.0)
    torch.testing.assert_close(refined, mixed)
    sure = refine_labels(torch.tensor([1]), torch.tensor([1.0]), [p])
    torch.testing.assert_close(sure, torch.tensor([[0.0, 1.0]], dtype=torch.float64))


def test_sharpening_in_half_precision_keeps_what_is_small():
    p = torch.tensor([[0.999, 0.001]]).half()
    assert sharpen(p).dtype == torch.float32
    assert float(sharpen(p)[0, 1]) > 0


def test_targets_carry_no_gradient():
    p = torch.rand(2, 3, requires_grad=True).softmax(1)
    assert not guess_labels([p]).requires_grad
    assert not refine_labels(torch.tensor([0, 1]), torch.rand(2), [p]).requires_grad


def test_the_ramp():
    assert [ramp(epochs, 16) for epochs in (-3, 0, 4.5, 16, 99)] == [0, 0, 4.5 / 16, 1, 1]
    assert ramp(0, 0) == ramp(math.inf, 16) == 1


def test_bad_input_is_refused():
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"\[0, 3\), given labels from 0 to 3"):
        label_margins(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="at least 2 classes, given logits of 1"):
        label_margins(torch.zeros(2, 1), labels)
    with pytest.raises(ValueError, match="at least 1 samples in a batch, given 0"):
        label_margins(torch.zeros(0, 3), labels[:0])
    with pytest.raises(ValueError, match="logits must be finite"):
        label_margins(torch.full((2, 3), torch.nan), labels)
    with pytest.raises(ValueError, match=r"1 or more samples, given \(0,\)"):
        clean_probability(torch.zeros(0))
    with pytest.raises(ValueError, match="values must be finite"):
        clean_probability(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="tol must be a number above 0, given 0"):
        clean_probability(torch.rand(5), tol=0)
    with pytest.raises(ValueError, match="temperature must be a number above 0, given -1"):
        sharpen(torch.rand(2, 3), -1)
    with pytest.raises(ValueError, match="at least one view, given none"):
        guess_labels([])
    with pytest.raises(ValueError, match=r"must be \(2,\) as the predictions' rows, given \(2,\) and \(3,\)"):
        refine_labels(labels, torch.rand(3), [torch.rand(2, 3)])
