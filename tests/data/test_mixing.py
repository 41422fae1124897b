"""Mixtures of the samples of a batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stillroom.data import Mixture, draw_batch_mixture, draw_mixture
from stillroom.data.batch import Batch


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_mixture_is_what_its_numbers_say():
    mixture = Mixture(torch.tensor([1, 2, 0]), torch.tensor([2, 2, 1]), torch.tensor([0.25, 1.0, 0.5]).double())
    values = torch.tensor([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]])
    assert mixture.apply(values).tolist() == [[13.0, 26.0], [16.0, 32.0], [2.5, 5.0]]
    assert mixture.labels(torch.tensor([0, 1, 3]), 4).tolist() == [[0, 0.25, 0, 0.75], [0, 0, 0, 1], [0.5, 0.5, 0, 0]]
    assert mixture.mixed.tolist() == [True, False, True]
    assert mixture.apply(values.half()).dtype == torch.float16


def test_soft_labels_are_mixed_as_class_numbers_are():
    labels, mixture = torch.arange(8) % 5, draw_mixture(8)
    torch.testing.assert_close(mixture.labels(F.one_hot(labels, 5).float(), 5), mixture.labels(labels, 5))


def test_a_clean_row_is_kept_even_beside_an_infinite_one():
    mixture = Mixture(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.ones(2).double())
    values = torch.tensor([1.0, torch.inf])
    assert torch.equal(mixture.apply(values), values)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 1.0])
def test_exactly_so_many_samples_are_mixed(share):
    for seed in range(20):
        mixture = draw_mixture(64, mixed_share=share, generator=seeded(seed))
        assert int(mixture.mixed.sum()) == round(share * 64)
        assert mixture.first.sort().values.tolist() == mixture.second.sort().values.tolist() == list(range(64))
        soft = mixture.labels(torch.arange(64) % 7, 7)
        torch.testing.assert_close(soft.sum(1), torch.ones(64))


def test_nothing_mixed_is_a_permutation_with_hard_labels():
    inputs, labels = torch.randn(16, 3), torch.arange(16) % 4
    mixture = draw_mixture(16, mixed_share=0.0, generator=seeded())
    assert torch.equal(mixture.mix(Batch(inputs, labels)).inputs, inputs[mixture.first])
    assert torch.equal(mixture.labels(labels, 4), F.one_hot(labels, 4).float()[mixture.first])
    assert not torch.equal(mixture.first, torch.arange(16))


def test_the_two_permutations_are_independent():
    same = [
        float((mixture.first == mixture.second).double().mean())
        for mixture in (draw_mixture(64, generator=seeded(seed)) for seed in range(200))
    ]
    assert sum(same) / 200 == pytest.approx(1 / 64, abs=0.005)


@pytest.mark.parametrize("beta", [0.2, 1.0, 4.0])
def test_shares_have_the_moments_of_beta(beta):
    share = draw_mixture(40000, beta=beta, generator=seeded()).share
    assert float(share.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(share.var()) == pytest.approx(1 / (4 * (2 * beta + 1)), rel=0.03)


def test_tiny_parameters_give_numbers():
    share = draw_mixture(500, beta=1e-3, generator=seeded()).share
    assert bool(share.isfinite().all())
    assert float(((share < 1e-6) | (share > 1 - 1e-6)).double().mean()) > 0.9


def test_the_authors_sampling_mixes_more_than_asked():
    shares = [
        float(draw_mixture(64, mixed_share=0.1, official_sampling=True, generator=seeded(seed)).mixed.double().mean())
        for seed in range(300)
    ]
    assert sum(shares) / 300 == pytest.approx(0.41, abs=0.03)


def test_draws_follow_their_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = (draw_mixture(8, mixed_share=0.5, generator=seeded(3)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.share, second.share)
    assert torch.equal(first.first, second.first)
    assert not torch.equal(first.share, draw_mixture(8, mixed_share=0.5, generator=seeded(4)).share)


def test_the_order_of_the_batch_is_not_passed_on():
    batch = Batch(torch.randn(4, 3), torch.arange(4), torch.arange(4), weight=torch.ones(4))
    mixed = draw_mixture(4).mix(batch)
    assert mixed.labels is None
    assert mixed.index is None
    assert not mixed.fields


def test_what_cannot_be_is_refused():
    for options, words in (
        ({"beta": 0}, "beta must be a number above 0, given 0"),
        ({"beta": -1.0}, r"beta must be a number above 0, given -1\.0"),
        ({"mixed_share": -0.1}, r"mixed_share must lie in \[0, 1\], given -0\.1"),
        ({"mixed_share": 1.5}, r"mixed_share must lie in \[0, 1\], given 1\.5"),
    ):
        with pytest.raises(ValueError, match=words):
            draw_mixture(4, **options)
    with pytest.raises(ValueError, match="samples must be 1 or more, given 0: the batch is empty"):
        draw_mixture(0)
    mixture = draw_mixture(4)
    with pytest.raises(ValueError, match=r"only float values can be mixed, given torch\.uint8"):
        mixture.apply(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="mixture is of 4 samples, but there are 5 rows"):
        mixture.apply(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="labels from 0 to 9"):
        mixture.labels(torch.tensor([0, 1, 9, 2]), 4)
    with pytest.raises(ValueError, match="labels from -100 to 2"):
        mixture.labels(torch.tensor([0, 1, -100, 2]), 4)
    with pytest.raises(ValueError, match=r"or \(4, 3\) shares, given \(4, 2\)"):
        mixture.labels(torch.rand(4, 2), 3)


def test_one_share_for_a_batch_in_which_every_row_keeps_its_place():
    mixture = draw_batch_mixture(50, beta=4.0, generator=seeded())
    assert torch.equal(mixture.first, torch.arange(50))
    assert mixture.second.sort().values.tolist() == list(range(50))
    assert len(mixture.share.unique()) == 1
    assert torch.equal(mixture.share, draw_batch_mixture(50, beta=4.0, generator=seeded()).share)
    values = torch.randn(50, 2, dtype=torch.float64)
    share = float(mixture.share[0])
    torch.testing.assert_close(mixture.apply(values), share * values + (1 - share) * values[mixture.second])


def test_the_larger_share_is_the_rows_own():
    shares = torch.tensor([float(draw_batch_mixture(1, beta=4.0, generator=seeded(n)).share[0]) for n in range(400)])
    assert float(shares.min()) >= 0.5
    # E max(b, 1 - b) for Beta(4, 4): 1/2 + E|b - 1/2| = 1/2 + 35/256
    assert float(shares.mean()) == pytest.approx(0.5 + 35 / 256, abs=0.02)
    with pytest.raises(ValueError, match="samples must be 1 or more, given 0"):
        draw_batch_mixture(0)
    with pytest.raises(ValueError, match="beta must be a number above 0, given 0"):
        draw_batch_mixture(3, beta=0)
