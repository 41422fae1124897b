import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.blocks import Taps, build, default_taps
from stillroom.blocks.models import NAMES


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # parameters in millions for CIFAR-100, as tables of distillation papers give them
        ("resnet20", 0.28),
        ("resnet32", 0.47),
        ("resnet56", 0.86),
        ("resnet110", 1.74),
        ("resnet8x4", 1.23),
        ("resnet32x4", 7.43),
        ("wrn-16-2", 0.70),
        ("wrn-40-1", 0.57),
        ("wrn-40-2", 2.26),
        ("vgg8", 3.97),
        ("vgg13", 9.46),
    ],
)
def test_parameters_are_as_published(name, millions):
    assert round(size(build(name, classes=100, in_channels=3, image_size=32)) / 1e6, 2) == millions


def test_parameters_are_as_counted_by_hand():
    digits = {"classes": 10, "in_channels": 1, "image_size": 8}
    assert size(build("mlp-16", **digits)) == 64 * 16 + 16 + 16 * 10 + 10
    assert size(build("mlp-256-256", **digits)) == 64 * 256 + 256 + 256 * 256 + 256 + 2570
    assert size(build("conv-8-16", **digits)) == 9 * 8 + 2 * 8 + 9 * 8 * 16 + 2 * 16 + 170
    attention, perceptron = 4 * (64 * 64 + 64), 64 * 256 + 256 + 256 * 64 + 64
    blocks = 4 * (attention + perceptron + 4 * 64)
    embedding = 2 * 2 * 64 + 64 + 64 + (1 + 16) * 64
    assert size(build("vit-64-4", **digits)) == embedding + blocks + 2 * 64 + 650
    assert size(build("resnet20", classes=10, in_channels=3, image_size=32)) == pytest.approx(0.27e6, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("in_channels", "image_size"), [(1, 8), (3, 32)])
def test_every_network_runs_and_every_weight_is_trained(name, in_channels, image_size):
    if image_size == 32 and name in ("resnet110", "resnet32x4", "wrn-40-2"):
        image_size = 8  # the same code in more time
    network = build(name, classes=7, in_channels=in_channels, image_size=image_size)
    images = torch.rand(4, in_channels, image_size, image_size)
    logits = network(images)
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    assert isinstance(network.head, nn.Linear)
    network.eval()
    assert torch.allclose(network(images[:2]), network(images)[:2], atol=1e-4)


@pytest.mark.parametrize("name", ["mlp-16", "conv-8-16", "resnet8", "wrn-16-1", "vgg8", "vit-32-2"])
def test_every_kind_learns_to_tell_two_patterns(name):
    labels = torch.arange(32) % 2
    images = 0.3 * torch.rand(32, 1, 8, 8)
    images[labels == 1, :, ::2] += 0.5  # horizontal stripes
    images[labels == 0, :, :, ::2] += 0.5  # vertical stripes
    network = build(name, classes=2, in_channels=1, image_size=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert (network(images).argmax(1) == labels).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv-8-16-32", ["stages.0", "stages.1", "stages.2"]),
        ("resnet8x4", ["stages.0", "stages.1", "stages.2"]),
        ("wrn-16-2", ["stages.0", "stages.1", "stages.2"]),
        ("vgg8", ["stages.0", "stages.1", "stages.2", "stages.4"]),  # stages 3 and 4 have maps of one size
        ("mlp-256-256", ["stages.0", "stages.1"]),
        ("vit-64-4", ["stages.0", "stages.1", "stages.2", "stages.3"]),
    ],
)
def test_their_stages_are_found(name, expected):
    network = build(name, classes=10, in_channels=3, image_size=32)
    assert default_taps(network, torch.zeros(2, 3, 32, 32)) == expected


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet8x4", [(64, 32, 32), (128, 16, 16), (256, 8, 8)]),
        ("wrn-16-2", [(32, 32, 32), (64, 16, 16), (128, 8, 8)]),
        ("vgg8", [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)]),
        ("vit-64-4", [(65, 64)] * 4),
    ],
)
def test_their_features_have_the_shapes_of_the_literature(name, shapes):
    network = build(name, classes=10, in_channels=3, image_size=32)
    with Taps(network, "stages.*") as taps:
        network(torch.rand(2, 3, 32, 32))
        assert [tuple(feature.shape[1:]) for feature in taps.features.values()] == shapes


def test_vgg_pools_once_more_for_larger_images():
    network = build("vgg8", classes=10, in_channels=3, image_size=64)
    with Taps(network, "stages.4") as taps:
        network(torch.rand(1, 3, 64, 64))
        assert taps.features["stages.4"].shape == (1, 512, 4, 4)


def test_the_sum_before_the_last_relu_can_be_tapped():
    network = build("resnet8", classes=10, in_channels=3, image_size=8)
    with Taps(network, ["stages.2.0.summed", "stages.2"]) as taps:
        network(torch.rand(4, 3, 8, 8))
        summed, after = taps.features.values()
    assert summed.min() < 0
    assert torch.equal(summed.relu(), after)


def test_the_class_token_is_told_apart_by_places():
    network = build("vit-32-1", classes=10, in_channels=1, image_size=8).eval()
    images = torch.rand(2, 1, 8, 8)
    assert not torch.allclose(network(images), network(images.flip(3)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet21", r"depth of 'resnet21' must be 6n \+ 2"),
        ("resnet18", r"depth of 'resnet18' .*torchvision/NAME"),
        ("wrn-18-2", r"depth of 'wrn-18-2' must be 6n \+ 4"),
        ("resnet2", r"depth of 'resnet2' must be"),
        ("wrn-16-0", "must be 1 or more, given 'wrn-16-0'"),
        ("vit-60-4", "multiple of 16, the width of a head, given 60"),
        ("vgg16", "no network of ours is called 'vgg16', expected a name such as .*'vgg13'"),
        ("wrn_40_2", "'wrn_40_2', expected a name such as 'wrn-40-2'"),
        ("mlp", "no network of ours is called 'mlp', expected .*'mlp-16'"),
        ("", "no network of ours is called ''"),
    ],
)
def test_wrong_names_are_refused_with_near_ones(name, message):
    with pytest.raises(ValueError, match=message):
        build(name, classes=10, in_channels=3, image_size=32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg8", {"image_size": 7}, "8 pixels or more, given 7"),
        ("vit-64-4", {"image_size": 18}, "patches of 4 pixels, given images of 18"),
        ("vit-64-4", {"image_size": 9}, "patches of 2 pixels, given images of 9"),
        ("mlp-16", {"classes": 0}, "classes must be 1 or more, given 0"),
        ("mlp-16", {"in_channels": 0}, "in_channels must be 1 or more, given 0"),
    ],
)
def test_images_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **{"classes": 10, "in_channels": 3, "image_size": 32} | options)


def test_the_error_names_only_networks_that_exist():
    with pytest.raises(ValueError) as caught:
        build("resnet9x", classes=10, in_channels=3, image_size=32)
    named = re.findall(r"'([^']+)'", str(caught.value))[1:]
    assert len(named) == 4
    assert set(named) <= set(NAMES)


def test_one_seed_gives_one_network():
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build("resnet8", classes=10, in_channels=3, image_size=32).state_dict())
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())


def test_the_preactivation_resnet_for_small_images():
    network = build("preact-resnet18", classes=10, in_channels=3, image_size=32)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 11_171_146 + 2 * 512  # the noisy-label papers' network, with the batch norm that follows the blocks
    assert network(torch.rand(2, 3, 16, 16)).shape == (2, 10)
