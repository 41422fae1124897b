import json
import os
import re

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from stillroom.blocks import unwrapped
from stillroom.hub import Model, export, load, load_folder, save
from stillroom.hub.folder import Trusted, how_to_load

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))

BUILDER = """
import os

from torch import nn

if "STILLROOM_TEST_TRACE" in os.environ:
    os.mkdir(os.environ["STILLROOM_TEST_TRACE"])


def net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))
"""


class Tied(nn.Module):
    """Two names for one matrix, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.second(self.first(inputs))


def configuration(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    "spec",
    [
        "wrn-16-1",
        "timm/resnet18",
        "timm/vit_tiny_patch16_224",
        "timm/test_resnet@48",
        "torchvision/mobilenet_v3_small",
        "torchvision/segmentation/lraspp_mobilenet_v3_large",
    ],
)
def test_a_saved_model_says_the_same_after_loading(tmp_path, spec):
    model = load(spec, classes=6, channels=1, image_size=32).eval()
    assert save(model, tmp_path / "out") == tmp_path / "out"
    again = load_folder(tmp_path / "out")
    grey = IMAGES[:, :1]
    assert torch.equal(again(grey), model(grey))
    assert not again.training
    assert {**again.config, "weights": None} == {**model.config, "weights": None}
    assert load(tmp_path / "out", classes=6, channels=1).training
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "student.safetensors",
    ]  # fmt: skip


def test_a_timm_student_opens_without_us(tmp_path):
    model = load("timm/mobilenetv3_small_050", classes=6, image_size=32).eval()
    save(model, tmp_path)
    net = timm.create_model("mobilenetv3_small_050", num_classes=6).eval()
    net.load_state_dict(load_file(tmp_path / "student.safetensors"))
    mean, std = (
        torch.tensor(configuration(tmp_path)["pretrained_cfg"][name]).view(3, 1, 1) for name in ("mean", "std")
    )
    torch.testing.assert_close(net((IMAGES - mean) / std), model(IMAGES))
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(other(model.prepare(IMAGES)), model.net(model.prepare(IMAGES)))
    data = timm.data.resolve_model_data_config(other)
    assert (tuple(data["mean"]), data["input_size"][-1]) == (tuple(model.config["mean"]), 32)


def test_a_timm_transformer_of_another_size_opens_without_us(tmp_path):
    model = load("timm/test_vit", classes=6, channels=1, image_size=32).eval()
    save(model, tmp_path)
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(net(IMAGES[:, :1]), model.net(IMAGES[:, :1]))


def test_a_torchvision_student_opens_without_us(tmp_path):
    model = load("torchvision/mobilenet_v3_small", classes=6, image_size=32).eval()
    save(model, tmp_path)
    net = torchvision.models.mobilenet_v3_small(num_classes=6).eval()
    net.load_state_dict(load_file(tmp_path / "student.safetensors"))
    assert torch.equal(net(IMAGES), model.net(IMAGES))


def test_a_transformers_student_opens_without_us(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=6)
    config.save_pretrained(tmp_path / "theirs")
    model = load(f"hf/{tmp_path / 'theirs'}@untrained", classes=4, image_size=32).eval()
    save(model, tmp_path / "ours")
    net = transformers.AutoModelForImageClassification.from_config(
        transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    )
    net.load_state_dict(load_file(tmp_path / "ours" / "student.safetensors"))
    torch.testing.assert_close(net.eval()(model.prepare(IMAGES)).logits, model(IMAGES))
    torch.testing.assert_close(load_folder(tmp_path / "ours")(IMAGES), model(IMAGES))
    assert str(tmp_path) not in (tmp_path / "ours" / "README.md").read_text()


def test_kernels_that_a_stranger_names_are_not_fetched(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, image_size=32, patch_size=16
    )
    config.save_pretrained(tmp_path / "theirs")
    save(load(f"hf/{tmp_path / 'theirs'}@untrained", classes=4), tmp_path / "ours")
    kernel = {"attn_implementation": "kernels-community/flash-attn3", "_attn_implementation": "kernels-community/other"}
    (tmp_path / "ours" / "config.json").write_text(json.dumps({**configuration(tmp_path / "ours"), **kernel}))
    assert load_folder(tmp_path / "ours").net.config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize("spec", ["timm/test_resnet", "torchvision/squeezenet1_1", "timm/test_vit"])
def test_the_cards_code_loads_the_student(tmp_path, spec, monkeypatch):
    model = load(spec, classes=6, image_size=32).eval()
    save(model, tmp_path, metrics={"accuracy": 0.91234, "n": 50})
    card = (tmp_path / "README.md").read_text()
    assert "| accuracy | 0.9123 |" in card
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"accuracy": 0.91234, "n": 50}
    ours, theirs = (part.split("```")[0] for part in card.split("```python\n")[1:])
    names: dict = {}
    monkeypatch.chdir(tmp_path)
    exec(theirs, names)
    assert torch.equal(names["net"].eval()(model.prepare(IMAGES)), model.net(model.prepare(IMAGES)))
    assert "stillroom.load(" in ours


def test_a_given_card_is_written_as_it_is(tmp_path):
    save(load("timm/test_resnet", classes=6), tmp_path, card="# mine\n")
    assert (tmp_path / "README.md").read_text() == "# mine\n"


def test_a_student_is_not_overwritten_unasked(tmp_path):
    first, second = (load("timm/test_resnet", classes=6) for _ in range(2))
    save(first, tmp_path)
    with pytest.raises(FileExistsError, match=r"holds a student already: .* overwrite=True"):
        save(second, tmp_path)
    assert torch.equal(load_folder(tmp_path).net.fc.weight, first.net.fc.weight)
    save(second, tmp_path, overwrite=True)
    assert torch.equal(load_folder(tmp_path).net.fc.weight, second.net.fc.weight)


def test_the_configuration_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(FileExistsError, match="the configuration of something else"):
        save(load("timm/test_resnet", classes=6), tmp_path)
    assert configuration(tmp_path) == {"model_type": "vit"}


def test_a_crash_leaves_the_student_that_was_there(tmp_path, monkeypatch):
    first = load("timm/test_resnet", classes=6)
    save(first, tmp_path)
    before = (tmp_path / "student.safetensors").read_bytes()

    def crash(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        save(load("timm/test_resnet", classes=6), tmp_path, overwrite=True)
    assert (tmp_path / "student.safetensors").read_bytes() == before


def test_saving_draws_no_random_numbers_and_changes_nothing(tmp_path):
    model = load("timm/test_resnet", classes=6)
    torch.manual_seed(3)
    save(model, tmp_path)
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(3))
    assert model.training


def test_shared_weights_are_written_under_each_name_and_stay_shared(tmp_path):
    tied = Tied()
    save(tied, tmp_path)
    stored = load_file(tmp_path / "student.safetensors")
    assert torch.equal(stored["first.weight"], stored["second.weight"])
    again = load_folder(tmp_path, model=Tied())
    assert again.net.first.weight is again.net.second.weight
    assert torch.equal(again(torch.eye(4)), tied(torch.eye(4)))


def test_what_training_put_around_the_network_is_left_out(tmp_path):
    model = load("timm/test_resnet", classes=6)
    save(torch.compile(model), tmp_path)
    assert set(load_file(tmp_path / "student.safetensors")) == set(model.net.state_dict())
    assert unwrapped(load_folder(tmp_path)).net.fc.out_features == 6


def test_a_plain_module_is_loaded_into_a_network_that_is_given(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    save(net, tmp_path)
    for trusting, sentence in ((False, "given as a module"), (True, "with other layers")):
        with pytest.raises(ValueError, match=rf"Sequential .*{sentence}.* as model= of stillroom.load") as e:
            load_folder(tmp_path, trust_code=trusting)
        assert "trust_code" not in str(e.value)
    again = load_folder(tmp_path, model=nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)))
    assert torch.equal(again(IMAGES), net(IMAGES))


def test_a_class_without_arguments_is_built_when_its_code_is_trusted(tmp_path):
    tied = Tied()
    save(tied, tmp_path)
    with pytest.raises(ValueError, match=r"holds a tests\.test_hub_folder\.Tied that was given as a module"):
        load_folder(tmp_path)
    assert torch.equal(load_folder(tmp_path, trust_code=True)(torch.eye(4)), tied(torch.eye(4)))
    save(nn.Linear(2, 2), tmp_path / "linear")
    with pytest.raises(
        ValueError, match=r"Linear, which cannot be built without arguments: build the network.* as model="
    ):
        load_folder(tmp_path / "linear", trust_code=True)


def test_code_that_a_folder_names_is_not_run_unasked(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(BUILDER)
    model = load(f"{tmp_path / 'mine.py'}:net", classes=6, image_size=32)
    save(model, tmp_path / "out")
    monkeypatch.setenv("STILLROOM_TEST_TRACE", str(tmp_path / "ran"))
    for loading in (load_folder, load):
        with pytest.raises(
            ValueError, match=r"mine\.py:net' builds, and code that a folder names is not run: pass trust"
        ):
            loading(tmp_path / "out")
    assert torch.equal(load_folder(tmp_path / "out", model=model)(IMAGES), model(IMAGES))
    assert not (tmp_path / "ran").exists()
    assert torch.equal(load_folder(tmp_path / "out", trust_code=True)(IMAGES), model(IMAGES))
    assert (tmp_path / "ran").exists()


def test_the_card_says_what_a_network_of_ones_own_needs_to_be_loaded(tmp_path):
    (tmp_path / "mine.py").write_text(BUILDER)
    built = load(f"{tmp_path / 'mine.py'}:net", classes=6, image_size=32)
    given = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    for name, model in (("file", built), ("module", given)):
        save(model, tmp_path / name)
        card = (tmp_path / name / "README.md").read_text()
        program = card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(tmp_path / name))
        names = {"network": nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))}
        exec(program, names)
        assert torch.equal(names["model"](IMAGES), model(IMAGES))
        assert re.search(r"`stillroom\.load\(.*\)`\. (This runs|The network was given)", how_to_load(tmp_path / name))
    assert "This runs `" in (tmp_path / "file/README.md").read_text()


def test_a_name_may_carry_the_trust_in_its_code(tmp_path):
    (tmp_path / "mine.py").write_text(BUILDER)
    model = load(f"{tmp_path / 'mine.py'}:net", classes=6, image_size=32)
    save(model, tmp_path / "out")
    assert torch.equal(load(Trusted(str(tmp_path / "out")), classes=6)(IMAGES), model(IMAGES))
    assert export(tmp_path / "out", format="torch", trust_code=True).max_error < 1e-4


def test_a_network_whose_layers_were_changed_says_that_it_needs_them(tmp_path):
    model = load("timm/test_resnet", classes=6)
    model.net.fc = nn.Sequential(nn.Linear(model.net.fc.in_features, 3), nn.Linear(3, 6))
    save(model, tmp_path)
    with pytest.raises(ValueError, match=r"a timm/test_resnet whose layers were changed.* model="):
        load_folder(tmp_path, trust_code=True)
    again = load_folder(tmp_path, model=model.net)
    assert (again.config["mean"], again.classes) == (model.config["mean"], 6)


def test_another_number_of_classes_or_channels_is_refused_or_adapted(tmp_path):
    save(load("timm/test_resnet", classes=6, channels=1, image_size=32), tmp_path)
    with pytest.raises(ValueError, match=r"timm/test_resnet has 6 classes, expected 10"):
        load(tmp_path, classes=10)
    rgb = load(tmp_path, classes=6, channels=3, image_size=32)
    assert any("turned into luminance" in note for note in rgb.notes)
    grey = load_folder(tmp_path)
    with pytest.raises(ValueError, match=r"expected \(N, 1, H, W\) by timm/test_resnet: load it with channels=3$"):
        grey(IMAGES)
    again = load_folder(tmp_path, channels=3)
    assert torch.equal(again(IMAGES), rgb.eval()(IMAGES))
    assert again.notes == rgb.notes
    with pytest.raises(ValueError, match=r"expected \(N, 1, H, W\) by timm/test_resnet: give it such inputs$"):
        grey(IMAGES[:, :2])
    with pytest.raises(ValueError, match="has its own weights, mean and std"):
        load(tmp_path, weights=tmp_path / "student.safetensors")
    with pytest.raises(ValueError, match="@pretrained and @untrained are for"):
        load(f"{tmp_path}@untrained")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2, "version": "9.0"}, "was written by stillroom 9.0 in layout 2, expected layout 1"),
        ({"kind": "shell"}, "of kind 'shell', expected one of"),
        ({"name": "hf-hub:somebody/model"}, "timm has no network"),
        ({"options": {"pretrained_cfg": {"url": "http://nowhere"}}}, "given pretrained_cfg"),
        ({"options": [1]}, "options of type list, expected a dict"),
        ({"size": "32"}, "says size is '32', expected a whole number"),
        ({"mean": 0.5}, "says mean is 0.5, expected a list"),
    ],
)
def test_configurations_of_strangers_are_checked(tmp_path, change, message):
    save(load("timm/test_resnet", classes=6), tmp_path)
    config = configuration(tmp_path)
    config["stillroom"].update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path)


def test_folders_that_are_none_of_ours_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no config\.json in"):
        load_folder(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"was not written by stillroom\.hub\.save"):
        load_folder(tmp_path)


def test_a_folder_without_its_student_is_refused(tmp_path):
    save(load("timm/test_resnet", classes=6), tmp_path)
    (tmp_path / "student.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights at .*student\.safetensors"):
        load_folder(tmp_path)


def test_metrics_that_json_has_not_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="metrics must be plain values that JSON has"):
        save(load("timm/test_resnet", classes=6), tmp_path, metrics={"accuracy": torch.tensor(0.5)})
    assert not list(tmp_path.iterdir())


def test_a_configuration_can_be_given_for_a_plain_module(tmp_path):
    net = timm.create_model("test_resnet", num_classes=6)
    config = {"kind": "timm", "name": "test_resnet", "options": {"num_classes": 6}, "classes": 6, "channels": 3}
    save(net, tmp_path, config={**config, "net_channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3})
    torch.testing.assert_close(load_folder(tmp_path)(IMAGES), net.eval()((IMAGES - 0.5) / 0.5))


def test_a_wrapped_model_of_vectors_round_trips(tmp_path):
    model = Model(nn.Linear(6, 3), channels=6, classes=3)
    save(model, tmp_path)
    vectors = torch.rand(2, 6)
    assert torch.equal(load_folder(tmp_path, model=nn.Linear(6, 3))(vectors), model(vectors))
    assert safetensors.torch.load_file(tmp_path / "student.safetensors").keys() == {"weight", "bias"}
