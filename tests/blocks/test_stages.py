import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from stillroom.blocks import Frozen, Taps, default_taps, matched_taps
from stillroom.blocks.stages import evenly
from stillroom.data.batch import Batch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class PlainCNN(nn.Module):
    """Pools and activates by functions, so that only the convolutions are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3)
        self.fc = nn.Linear(6 * 5 * 5, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(F.relu(self.conv3(x)).flatten(1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(x)


class Transformer(nn.Module):
    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.layers = nn.ModuleList(Block(8) for _ in range(depth))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def mlp(in_place: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 32 * 32, 6), nn.ReLU(in_place), nn.Linear(6, 5), nn.ReLU(in_place), nn.Linear(5, 3)
    )


def vgg(in_place: bool) -> nn.Sequential:
    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(in_place)]

    return nn.Sequential(
        nn.Sequential(*layer(3, 4), *layer(4, 4), nn.MaxPool2d(2), *layer(4, 8), nn.MaxPool2d(2)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def timm_model(name: str, **options) -> nn.Module:
    return timm.create_model(name, pretrained=False, **options)


SMALL = torch.zeros(2, 3, 32, 32)
LARGE = torch.zeros(1, 3, 224, 224)
FOUR_LAYERS = ["layer1", "layer2", "layer3", "layer4"]
MOBILENET = [
    "blocks.0",
    "blocks.1",
    "blocks.3",
    "blocks.4",
]  # 56, 28, 14 and 7 pixels of 224; blocks.5 is one 1x1 layer


@pytest.mark.parametrize(
    ("make", "inputs", "expected"),
    [
        (PlainCNN, SMALL, ["conv1", "conv2", "conv3"]),
        (mlp, SMALL, ["2", "4"]),
        (lambda: mlp(in_place=True), SMALL, ["2", "4"]),
        (lambda: vgg(in_place=False), SMALL, ["0.3", "0.6"]),
        (lambda: vgg(in_place=True), SMALL, ["0.3", "0.6"]),
        (Transformer, SMALL, [f"layers.{row}" for row in range(6)]),
        (lambda: timm_model("resnet18"), SMALL, FOUR_LAYERS),
        (lambda: torchvision.models.resnet18(weights=None), LARGE, FOUR_LAYERS),
        (lambda: timm_model("mobilenetv3_small_050"), LARGE, MOBILENET),
        (lambda: timm_model("mobilenetv3_small_050"), SMALL, MOBILENET),
        (lambda: timm_model("vit_tiny_patch16_224"), LARGE, [f"blocks.{row}" for row in range(12)]),
        (lambda: nn.Sequential(mlp()[:5], nn.Linear(5, 3)), SMALL, ["0.2", "0.4"]),
    ],
)
def test_the_stages_of_a_network_end_where_its_authors_would_say(make, inputs, expected):
    assert default_taps(make(), inputs) == expected


def test_few_of_many_stages_are_evenly_spread_and_hold_the_last():
    network = Transformer()
    assert default_taps(network, SMALL, most=3) == ["layers.1", "layers.3", "layers.5"]
    assert default_taps(network, SMALL, most=1) == ["layers.5"]
    assert len(default_taps(network, SMALL, most=99)) == 6
    with pytest.raises(ValueError, match=r"in \[1, 6\], given 0"):
        default_taps(network, SMALL, most=0)


def test_parts_are_as_equal_as_can_be():
    assert evenly(12, 4) == [2, 5, 8, 11]
    assert evenly(5, 4) == [1, 2, 3, 4]
    assert evenly(7, 7) == list(range(7))
    for available in range(1, 20):
        for wanted in range(1, available + 1):
            rows = evenly(available, wanted)
            sizes = [after - before for before, after in zip([-1, *rows], rows, strict=False)]
            assert rows[-1] == available - 1
            assert max(sizes) - min(sizes) <= 1


def test_what_is_chosen_can_be_tapped_and_trained_through():
    for network in (vgg(in_place=True), mlp(in_place=True), timm_model("resnet18", num_classes=3)):
        taps = Taps(network, default_taps(network, SMALL))
        network(torch.randn(2, 3, 32, 32))
        sum(feature.sum() for feature in taps.features.values()).backward()
        assert network.get_parameter(next(name for name, _ in network.named_parameters())).grad is not None


def test_the_probe_leaves_the_network_as_it_was():
    network = timm_model("resnet18")
    network.layer1.eval()
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    default_taps(network, torch.randn(2, 3, 32, 32))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_frozen_wrapped_and_compiled_networks_have_the_same_stages():
    class Doubled(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.tap_root = network

        def forward(self, x):
            return self.tap_root(2 * x)

    network = timm_model("resnet18")
    assert default_taps(Frozen(Doubled(network)), Batch(SMALL)) == FOUR_LAYERS
    assert default_taps(torch.compile(network, backend="eager"), SMALL) == FOUR_LAYERS
    assert default_taps(nn.Sequential(network, nn.Linear(1000, 2)), SMALL) == [f"0.{name}" for name in FOUR_LAYERS]


def test_a_network_without_stages_is_refused():
    with pytest.raises(ValueError, match="nothing inside Linear looks like the end of a stage"):
        default_taps(nn.Linear(4, 2), torch.zeros(1, 4))
    with pytest.raises(TypeError, match="given function"):
        default_taps(Frozen(lambda batch: batch.inputs), SMALL)


def test_maps_of_one_size_are_paired():
    student, teacher = timm_model("mobilenetv3_small_050"), Frozen(torchvision.models.resnet18(weights=None))
    matched = matched_taps(student, teacher, LARGE)
    assert matched == (MOBILENET, FOUR_LAYERS)
    student_taps, teacher_taps = Taps(student, matched.student_names), Taps(teacher, matched.teacher_names)
    student(LARGE)
    teacher(LARGE)
    sizes = [[feature.shape[2:] for feature in taps.features.values()] for taps in (student_taps, teacher_taps)]
    assert sizes[0] == sizes[1] == [(56, 56), (28, 28), (14, 14), (7, 7)]


def test_a_stage_of_a_size_that_the_other_lacks_is_left_out():
    student, teacher = vgg(in_place=True), timm_model("resnet18", in_chans=3)
    student_names, teacher_names = matched_taps(student, teacher, torch.zeros(1, 3, 64, 64))
    # student: 64 and 32 pixels; teacher: 16, 8, 4, 2: nothing in common, so by depth
    assert (student_names, teacher_names) == (["0.3", "0.6"], ["layer2", "layer4"])
    deep = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 3, stride=2, padding=1), nn.ReLU()) for _ in range(4)])
    deep.extend([nn.Flatten(), nn.Linear(3 * 4 * 4, 2)])
    student_names, teacher_names = matched_taps(deep, teacher, torch.zeros(1, 3, 64, 64))
    # student: 32, 16, 8, 4 pixels; teacher: 16, 8, 4, 2
    assert (student_names, teacher_names) == (["1", "2", "3"], ["layer1", "layer2", "layer3"])


@pytest.mark.parametrize(
    ("student", "teacher", "stages", "expected"),
    [
        (PlainCNN, Transformer, 4, (["conv1", "conv2", "conv3"], ["layers.1", "layers.3", "layers.5"])),
        (mlp, lambda: timm_model("resnet18"), 4, (["2", "4"], ["layer2", "layer4"])),
        (
            Transformer,
            lambda: Transformer(9),
            3,
            (["layers.1", "layers.3", "layers.5"], ["layers.2", "layers.5", "layers.8"]),
        ),
        (mlp, mlp, 1, (["4"], ["4"])),
    ],
)
def test_other_pairs_are_made_by_relative_depth(student, teacher, stages, expected):
    assert matched_taps(student(), teacher(), SMALL, stages=stages) == expected


def test_the_vit_is_paired_with_a_conv_net():
    matched = matched_taps(torchvision.models.resnet18(weights=None), timm_model("vit_tiny_patch16_224"), LARGE)
    assert matched == (FOUR_LAYERS, ["blocks.2", "blocks.5", "blocks.8", "blocks.11"])


def test_no_stages_at_all_is_refused():
    with pytest.raises(ValueError, match="stages must be 1 or more, given 0"):
        matched_taps(mlp(), mlp(), SMALL, stages=0)
