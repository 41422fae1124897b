import pytest
import torch

from stillroom.data.noise import corrupt_labels

LABELS = torch.arange(1000) % 5


def test_rate_says_how_many_are_chosen():
    other = corrupt_labels(LABELS, 5, 0.4, seed=0, redraw="other")
    assert int((other != LABELS).sum()) == 400
    share = float((corrupt_labels(LABELS, 5, 0.4, seed=0) != LABELS).float().mean())
    assert 0.27 < share < 0.37  # a fifth of the redrawn labels are the old ones
    assert torch.equal(corrupt_labels(LABELS, 5, 0.0, seed=0), LABELS)


def test_seed_decides_and_the_input_stays():
    before = LABELS.clone()
    first, again, another = (corrupt_labels(LABELS, 5, 0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, another)
    assert torch.equal(LABELS, before)


def test_a_mapping_changes_only_the_classes_it_names():
    noisy = corrupt_labels(LABELS, 5, 0.5, seed=0, mapping={0: 1, 3: 4})
    changed = noisy != LABELS
    assert int(changed.sum()) == 200
    assert set(zip(LABELS[changed].tolist(), noisy[changed].tolist(), strict=True)) == {(0, 1), (3, 4)}


def test_bad_noise_is_refused():
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], given 1.5"):
        corrupt_labels(LABELS, 5, 1.5, seed=0)
    with pytest.raises(ValueError, match="0 to 3, given 0 to 4"):
        corrupt_labels(LABELS, 4, 0.5, seed=0)
    with pytest.raises(ValueError, match="class 7"):
        corrupt_labels(LABELS, 5, 0.5, seed=0, mapping={0: 7})
    with pytest.raises(ValueError, match="'all'"):
        corrupt_labels(LABELS, 5, 0.5, seed=0, redraw="all")
