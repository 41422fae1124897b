import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from stillroom.blocks.frozen import Frozen
from stillroom.blocks.taps import Taps
from stillroom.hub import Model, describe


class Says(nn.Module):
    """Returns what it is made with, whatever it is asked."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, inputs):
        return self.output


def test_images_are_normalised_per_channel():
    model = Model(nn.Identity(), channels=2, mean=[0.5, 0.25], std=[0.5, 0.125])
    images = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    assert model(images).flatten().tolist() == [-1.0, 6.0]  # (0 - 0.5) / 0.5 and (1 - 0.25) / 0.125


def test_grey_is_repeated_before_it_is_normalised():
    model = Model(nn.Identity(), channels=1, net_channels=3, mean=[0.0, 0.5, 1.0], std=[1.0, 1.0, 0.5])
    assert model(torch.full((1, 1, 1, 1), 0.5)).flatten().tolist() == [0.5, 0.0, -1.0]


def test_rgb_becomes_luminance():
    model = Model(nn.Identity(), channels=3, net_channels=1)
    primaries = torch.eye(3).view(3, 3, 1, 1)
    assert model(primaries).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])


@pytest.mark.parametrize("size", [5, 24])
def test_images_are_resized_as_pillow_does(size):
    images = torch.rand(1, 1, 11, 13)
    picture = Image.fromarray(images[0, 0].numpy())
    expected = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    resized = Model(nn.Identity(), channels=1, size=size).prepare(images)[0, 0]
    torch.testing.assert_close(resized, torch.from_numpy(expected.copy()), atol=1e-5, rtol=0)


def test_maps_come_back_at_the_size_that_was_given():
    model = Model(nn.Conv2d(3, 5, 1), size=8, classes=5)
    assert model(torch.rand(2, 3, 16, 24)).shape == (2, 5, 16, 24)


def test_one_batch_serves_teacher_and_student_of_different_statistics_and_size():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    images = torch.rand(2, 3, 16, 16)
    teacher = Model(net, size=8, mean=[0.5] * 3, std=[0.25] * 3)
    student = Model(net, size=8, mean=[0.1] * 3, std=[0.2] * 3)
    small = nn.functional.interpolate(images, size=(8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(Frozen(teacher)(images), net((small - 0.5) / 0.25))
    torch.testing.assert_close(student(images), net((small - 0.1) / 0.2))


def test_vectors_and_sequences_go_through_untouched():
    model = Model(nn.Identity(), channels=6, mean=[0.5] * 6, std=[0.5] * 6, size=4)
    for inputs in (torch.rand(3, 6), torch.rand(3, 7, 6)):
        assert torch.equal(model(inputs), inputs)


@pytest.mark.parametrize("form", ["tensor", "tuple", "list", "logits", "out", "object"])
def test_logits_are_found(form):
    logits, other = torch.randn(2, 3), torch.randn(2, 9)
    said = {
        "tensor": logits,
        "tuple": (logits, other),
        "list": [logits, other],
        "logits": {"hidden": other, "logits": logits},
        "out": {"aux": other, "out": logits},
        "object": type("Output", (), {"logits": logits, "hidden": other})(),
    }[form]
    assert torch.equal(Model(Says(said), classes=3)(torch.rand(2, 3, 4, 4)), logits)


@pytest.mark.parametrize(
    ("said", "message"), [({"a": torch.ones(1)}, "a dict of 'a'"), ("text", "returned str"), ((), "returned tuple")]
)
def test_outputs_without_logits_are_refused(said, message):
    with pytest.raises(TypeError, match=message):
        Model(Says(said))(torch.rand(2, 3, 4, 4))


def test_inputs_that_do_not_fit_are_refused():
    model = Model(nn.Flatten(), channels=3, classes=10)
    with pytest.raises(TypeError, match=r"floats in \[0, 1\], given torch\.uint8: divide bytes by 255"):
        model(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"shape \(2, 1, 4, 4\), expected \(N, 3, H, W\) by Flatten"):
        model(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"outputs of shape \(2, 48\), expected 10 classes"):
        model(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4, "net_channels": 3}, "inputs with 4 channels cannot be given to a network that takes 3"),
        ({"mean": [0.5] * 3}, "given only one"),
        ({"mean": [0.5], "std": [0.5]}, "mean has 1 values, expected one for each of the 3 channels"),
        (
            {"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]},
            r"std must be above 0 in every channel, given \(0\.5, 0\.0, 0\.5\)",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Model(nn.Identity(), **options)


def test_only_modules_are_wrapped():
    with pytest.raises(TypeError, match=r"wraps a torch\.nn\.Module, given str"):
        Model("resnet18")


def test_copies_and_pickles_say_the_same_and_statistics_are_no_weights():
    model = Model(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), mean=[0.5] * 3, std=[0.25] * 3, classes=3)
    images = torch.rand(2, 3, 4, 4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images), model(images))
        assert other.config == model.config
    assert set(model.state_dict()) == {"net.1.weight", "net.1.bias"}
    assert {name for name, _ in model.named_parameters()} == {"net.1.weight", "net.1.bias"}


def test_statistics_move_with_the_model():
    model = Model(nn.Identity(), mean=[0.5] * 3, std=[0.25] * 3).double()
    assert model(torch.full((1, 3, 1, 1), 0.75, dtype=torch.float64)).dtype == torch.float64
    assert model.to("meta")(torch.zeros(1, 3, 2, 2, device="meta")).device.type == "meta"


def test_layers_are_tapped_by_the_networks_own_names():
    model = Model(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)))
    with Taps(model, "1") as taps:
        logits = model(torch.rand(2, 3, 4, 4))
        assert torch.equal(taps.features["1"], logits)


def test_a_configuration_builds_the_same_wrapper():
    model = Model(
        nn.Identity(), channels=1, net_channels=3, size=8, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0], classes=3,
        image_size=16, source={"kind": "timm", "name": "x", "options": {"a": 1}},
    )  # fmt: skip
    again = Model.from_config(nn.Identity(), model.config)
    assert again.config == model.config
    images = torch.rand(1, 1, 16, 16)
    assert torch.equal(again.prepare(images), model.prepare(images))


def test_descriptions():
    net = timm.create_model("resnet18", num_classes=10)  # 11,181,642 parameters
    source = {"kind": "timm", "name": "resnet18"}
    assert describe(Model(net, image_size=32, source=source)) == (
        "timm/resnet18, 11.2 M parameters, takes 3x32x32 in [0, 1]"
    )
    resized = Model(net, image_size=32, size=64, channels=1, net_channels=3, source=source)
    assert describe(resized).endswith("takes 1x32x32 in [0, 1], resized to 64x64")
    assert describe(nn.Linear(99, 10)) == "Linear, 1.0 k parameters"
    assert describe(Model(nn.Linear(4, 3))) == "Linear, 15 parameters"


class Words(nn.Module):
    """Takes what a tokenizer gives by name, as networks of transformers do."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {"logits": torch.stack([input_ids.sum(1), attention_mask.sum(1)], 1).float()}


class Whole(nn.Module):
    """Takes the dict as one."""

    def forward(self, batch):
        return batch["input_ids"].float()


def test_a_dict_is_given_by_name_to_a_network_that_takes_its_keys():
    batch = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[1, 0]])}
    assert Model(Words(), channels=None)(batch).tolist() == [[3.0, 1.0]]
    assert Model(Whole(), channels=None)(batch).tolist() == [[1.0, 2.0]]
