"""Augmentation with one draw for all, start images, real batches, checkpoints and the test of a set."""

import pytest
import torch
from torch import nn

from stillroom.condense import (
    DSA,
    BeforeHead,
    CheckpointPairs,
    CutMix,
    RealImages,
    Statistics,
    blend,
    fresh_network,
    from_mixed,
    from_noise,
    from_real,
    soft_labels,
    train_and_test,
    train_network,
)
from stillroom.data import Batch, Splits, Stream, TensorSamples
from stillroom.training import Optim, Training

ALL = ("color", "crop", "cutout", "flip", "scale", "rotate")
SHORT = Training(steps=3, batch_size=8)


def stripes(count: int = 60, seed: int = 0) -> TensorSamples:
    """Upright or level stripes with noise: two classes that a small network tells apart."""
    numbers = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    wave = (torch.arange(8) % 4 < 2).float()
    pictures = torch.stack([wave.expand(8, 8), wave[:, None].expand(8, 8)])
    images = 0.7 * pictures[labels][:, None] + 0.3 * torch.rand(count, 1, 8, 8, generator=numbers)
    return TensorSamples(images, labels)


# ---- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_shared_draw_does_the_same_to_every_image(name):
    augment = DSA(first=(name,), choose=())
    image = torch.rand(1, 3, 8, 8)
    images = torch.cat([image, torch.rand(2, 3, 8, 8), image])
    seen = augment.shared(images, torch.Generator().manual_seed(1))
    torch.testing.assert_close(seen[0], seen[3])
    alone = augment.shared(image, torch.Generator().manual_seed(1))
    torch.testing.assert_close(seen[0], alone[0])
    uniform = torch.full((4, augment.draws), 0.1)
    uniform[3] = 0.8
    other = augment.apply(images, uniform)
    assert not torch.allclose(other[0], other[3])


@pytest.mark.parametrize("name", ALL)
def test_gradients_flow_through(name):
    uniform = torch.rand(2, 12, dtype=torch.float64)
    augment = DSA(first=(name,), choose=())
    images = torch.rand(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: 3 * augment.apply(x, uniform), (images,), fast_mode=True)


def test_the_strength_of_each_transform():
    images = torch.rand(1, 3, 8, 8)
    half = torch.full((1, 12), 0.5)
    bright = half.clone()
    bright[0, 1] = 1.0
    seen = DSA(first=("color",), choose=()).apply(images, bright)
    torch.testing.assert_close(seen, images + 0.5)  # 0.5 of saturation and contrast change nothing
    grey = half.clone()
    grey[0, 2] = 0.0
    seen = DSA(first=("color",), choose=()).apply(images, grey)
    torch.testing.assert_close(seen[:, 0], seen[:, 1])
    flat = half.clone()
    flat[0, 3] = 0.0
    seen = DSA(first=("color",), choose=()).apply(images, flat)
    torch.testing.assert_close(seen, 0.5 * (images - images.mean()) + images.mean())
    mirrored = DSA(first=("flip",), choose=()).apply(images, torch.zeros(1, 12))
    assert torch.equal(mirrored, images.flip(3))
    moved = torch.zeros(1, 12)
    moved[0, 4:6] = torch.tensor([0.999, 0.5])
    seen = DSA(first=("crop",), choose=()).apply(images, moved)
    assert torch.equal(seen[:, :, :-1], images[:, :, 1:])  # an eighth of 8 is a pixel
    assert float(seen[:, :, -1].abs().max()) == 0
    seen = DSA(first=("cutout",), choose=()).apply(torch.ones(1, 1, 8, 8), half)
    assert float(seen.sum()) == 64 - 16
    for name in ("scale", "rotate"):
        still = DSA(first=(name,), choose=(), scale=1.0).apply(images, half)
        torch.testing.assert_close(still, images, atol=1e-5, rtol=0)


def test_one_of_the_choice_is_taken_for_all_images():
    augment = DSA(choose=("flip", "cutout"))
    images = torch.rand(2, 1, 8, 8)
    uniform = torch.zeros(2, 12)
    assert torch.equal(augment.apply(images, uniform), images.flip(3))
    uniform[0, 0] = 0.5
    assert torch.equal(augment.apply(images, uniform) == 0, DSA((), ("cutout",)).apply(images, uniform) == 0)


def test_it_is_a_policy_of_a_stream():
    stream = Stream(stripes(8), batch_size=4, seed=0, augment=DSA())
    assert stream.batch(3).inputs.shape == (4, 1, 8, 8)
    assert DSA()(Batch(torch.rand(2, 1, 4, 4), torch.arange(2)), torch.rand(2, 12)).labels.tolist() == [0, 1]


def test_augmentations_that_are_none_are_refused():
    with pytest.raises(ValueError, match="given blur"):
        DSA(first=("blur",))
    with pytest.raises(ValueError, match=r"scale must be a ratio of 1 or more, given 0.5"):
        DSA(scale=0.5)
    with pytest.raises(ValueError, match=r"one row per image, \(2, 12\), given \(2, 3\)"):
        DSA().apply(torch.rand(2, 1, 4, 4), torch.rand(2, 3))


# ---- start images and real ones --------------------------------------------------------------------------------------


def test_images_begin_as_tiles_real_ones_or_noise():
    shades = torch.linspace(0.1, 1, 10).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    numbers = torch.Generator().manual_seed(0)
    mixed = from_mixed(shades, 2, 2, numbers)
    assert mixed.shape == (2, 1, 4, 4)
    assert sorted(mixed.unique().tolist()) == shades[:8, 0, 0, 0].tolist()
    chosen = from_real(shades, 3, 2, numbers)
    assert len(chosen[:, 0, 0, 0].unique()) == 3
    assert torch.isin(chosen, shades).all()
    noise = from_noise(shades, 5, 2, numbers)
    assert noise.shape == (5, 1, 4, 4)
    assert not torch.isin(noise, shades).any()
    with pytest.raises(ValueError, match="12 real images of a class are needed to begin with, given 10"):
        from_mixed(shades, 3, 2, numbers)


def test_an_epoch_of_a_class_repeats_no_image():
    samples = stripes(20)
    real = RealImages(samples, seed=3)
    epoch = torch.cat([real.batch(1, step, 5) for step in (4, 5)])
    assert len(epoch.flatten(1).unique(dim=0)) == 10
    assert torch.equal(real.batch(1, 5, 5), RealImages(samples, seed=3).batch(1, 5, 5))
    assert len(real.batch(0, 7, 1024)) == 10
    assert torch.equal(real.of(1, 2), samples.batch([1, 3]).inputs)


def test_data_that_cannot_be_condensed_are_refused():
    images = torch.rand(4, 1, 4, 4)
    with pytest.raises(ValueError, match="no image of class 1"):
        RealImages((images, torch.tensor([0, 2, 0, 2])))
    splits = Splits(TensorSamples(images, torch.tensor([0, 1, 0, 1])), stripes(), classes=["a", "b", "cat"])
    with pytest.raises(ValueError, match="no image of class cat"):
        RealImages(splits)
    with pytest.raises(ValueError, match="a class number for every image"):
        RealImages((images, torch.rand(4)))
    with pytest.raises(ValueError, match=r"inputs of shape \(16,\)"):
        RealImages((images.flatten(1), torch.arange(4)))


# ---- networks --------------------------------------------------------------------------------------------------------


def test_features_are_what_goes_into_the_last_linear_layer():
    samples = stripes(4)
    network = fresh_network("convnet-2-4", samples, 2, 0).eval()
    images = samples.batch(range(4)).inputs
    (features,) = BeforeHead(network)(images)
    assert features.shape == (4, 4 * 2 * 2)
    torch.testing.assert_close(network.head(features), network(images))
    first, second = BeforeHead(network, ("stages.0", "stages.1"))(images)
    assert first.shape == (4, 4 * 4 * 4)
    torch.testing.assert_close(second, features)
    with pytest.raises(ValueError, match=r"Conv2d has no torch.nn.Linear"):
        BeforeHead(nn.Conv2d(1, 1, 1))


def test_blending_mixes_tensor_by_tensor():
    initial = {"weight": torch.zeros(2), "count": torch.tensor(1)}
    final = {"weight": torch.ones(2), "count": torch.tensor(9)}
    assert blend(initial, final, 0.25)["weight"].tolist() == [0.75, 0.75]
    assert blend(initial, final, 1.0)["weight"].tolist() == [0.0, 0.0]  # 1 is the untrained network
    assert blend(initial, final, 0.25)["count"] == 9
    with pytest.raises(ValueError, match=r"given 1.5"):
        blend(initial, final, 1.5)
    with pytest.raises(ValueError, match=r"differ in .*'count'"):
        blend({"weight": torch.zeros(2)}, final, 0.5)


def test_pairs_are_trained_kept_and_taken_up_again(tmp_path):
    samples = stripes(16)
    given = {"classes": 2, "training": SHORT, "folder": tmp_path / "pairs"}
    pairs = CheckpointPairs.pretrain("convnet-2-4", samples, count=2, **given)
    initial, final = pairs[0]
    assert not torch.equal(initial["head.weight"], final["head.weight"])
    assert not torch.equal(initial["head.weight"], pairs[1][0]["head.weight"])
    fresh = fresh_network("convnet-2-4", samples, 2, 0)
    assert torch.equal(initial["head.weight"], fresh.head.weight)
    (tmp_path / "pairs" / "pair-001.safetensors").unlink()  # killed before the second was done
    again = CheckpointPairs.pretrain("convnet-2-4", samples, count=2, **given)
    loaded = CheckpointPairs.load(tmp_path / "pairs")
    for one, two, three in zip(pairs.pairs, again.pairs, loaded.pairs, strict=True):
        for when in (0, 1):
            for name, value in one[when].items():
                assert torch.equal(value, two[when][name])
                assert torch.equal(value, three[when][name])
    with pytest.raises(FileNotFoundError, match=r"holds no pair-\*"):
        CheckpointPairs.load(tmp_path)
    with pytest.raises(ValueError, match="given 0"):
        CheckpointPairs.pretrain("convnet-2-4", samples, count=0, **given)


def test_statistics_are_those_of_the_channels():
    images = torch.rand(300, 3, 4, 4) * torch.tensor([1.0, 2.0, 3.0]).view(-1, 1, 1)
    statistics = Statistics.of(TensorSamples(images, torch.zeros(300).long()))
    normalised = statistics.normalise(images).movedim(1, 0).flatten(1)
    torch.testing.assert_close(normalised.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std(1), torch.ones(3), atol=1e-3, rtol=0)


# ---- the test of a set -----------------------------------------------------------------------------------------------


def test_a_fresh_network_learns_and_is_measured_by_its_last_step():
    training = Training(epochs=10, batch_size=16, optimizer=Optim("adamw", lr=0.01))
    given = {"classes": 2, "training": training, "augment": DSA(choose=("crop",)), "seed": 4}
    metrics = train_and_test("convnet-2-8", stripes(), stripes(40, seed=9), **given)
    assert metrics["accuracy"] > 0.9
    again = train_and_test("convnet-2-8", stripes(), stripes(40, seed=9), **given)
    assert again == metrics
    soft = soft_labels(
        stripes(), train_network(fresh_network("convnet-2-8", stripes(), 2, 0), stripes(), classes=2, training=training)
    )
    assert soft.labels.shape == (60, 2)
    torch.testing.assert_close(soft.labels.sum(1), torch.ones(60))
    assert train_and_test("convnet-2-8", soft, stripes(40, seed=9), **given)["accuracy"] > 0.9


def test_what_is_called_after_an_epoch_sees_the_weights_of_each():
    samples, seen = stripes(16), []

    def keep(epoch, network):
        seen.append((epoch, network.head.weight.detach().clone()))

    training = Training(epochs=2, batch_size=8)
    train_network(fresh_network("convnet-2-4", samples, 2, 0), samples, classes=2, training=training, after_epoch=keep)
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert not torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(seen[1][1], seen[2][1])


def test_mixing_leaves_the_global_random_state_alone():
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 2
    state = torch.get_rng_state()
    mixed, soft = CutMix(1.0).mix(images, labels, 2, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert soft.shape == (6, 2)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert not torch.equal(mixed, images)
    same, hard = CutMix(0.0).mix(images, labels, 2, torch.Generator().manual_seed(0))
    assert same is images
    assert hard is labels


def test_what_training_does_not_do_is_refused():
    samples = stripes(8)
    network = fresh_network("convnet-2-4", samples, 2, 0)
    with pytest.raises(ValueError, match=r"training.ema_decay is 0.9"):
        train_network(network, samples, classes=2, training=Training(steps=1, ema_decay=0.9))
    with pytest.raises(ValueError, match="class numbers"):
        train_network(network, samples.relabel(None), classes=2, training=SHORT)
    with pytest.raises(ValueError, match=r"\[0, 1\].* given 2 and 1"):
        CutMix(2)
