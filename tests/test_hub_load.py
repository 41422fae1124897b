import json
import pickle
import subprocess
import sys
import time

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from stillroom import hub
from stillroom.blocks.frozen import Frozen
from stillroom.hub import Model, code, describe, load, load_teacher

BUILDER = """
from torch import nn


def net(num_classes, in_chans=3, width=4):
    body = nn.Sequential(nn.Conv2d(in_chans, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(width, num_classes))


def rgb_only(classes):
    return net(classes)


def fixed():
    return net(7)


def deep(depth, classes):
    return net(classes)


def number():
    return 3


def lazy(classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes + 0 * image_size))
"""


@pytest.fixture
def builder(tmp_path):
    (tmp_path / "mine.py").write_text(BUILDER)
    return f"{tmp_path / 'mine.py'}"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine that reaches nothing and has empty caches."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models") / "vit"
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8,
        num_labels=5,
    )  # fmt: skip
    transformers.utils.logging.disable_progress_bar()
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("spec", "channels", "image_size", "size"),
    [
        ("timm/resnet18", 3, 32, None),
        ("timm/resnet18@64", 3, 32, 64),
        ("timm/mobilenetv3_small_050", 1, 28, None),
        ("timm/vit_tiny_patch16_224", 1, 32, 32),
        ("timm/test_vit", 3, 8, 160),  # patches of 16 do not fit into 8 pixels: it stays at its own size
        ("torchvision/resnet18", 1, 28, None),
        ("torchvision/squeezenet1_1", 3, 8, 224),  # nothing is left of 8 pixels after its pooling
    ],
)
def test_zoo_networks_take_the_datas_channels_classes_and_size(spec, channels, image_size, size):
    model = load(spec, classes=7, channels=channels, image_size=image_size)
    assert model.size == size
    assert model.training
    model.eval()
    assert model(torch.rand(2, channels, image_size, image_size)).shape == (2, 7)
    assert model.config["weights"] == "untrained"
    assert next(m for m in model.net.modules() if isinstance(m, nn.Conv2d)).in_channels == channels
    assert any("pixels" in note for note in model.notes)


def test_timm_networks_are_timms_own_with_timms_normalisation():
    model = load("timm/test_resnet", classes=4, image_size=32).eval()
    net = timm.create_model("test_resnet", num_classes=4).eval()
    net.load_state_dict(model.net.state_dict())
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(net.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(model(images), net((images - mean) / std))


@pytest.mark.parametrize("name", ["mlp-16", "conv-8-16", "resnet20", "vit-16-1"])
def test_embedded_networks_see_images_from_minus_one_to_one(name):
    model = load(name, classes=10, channels=1, image_size=8).eval()
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model(images), model.net(2 * images - 1))
    assert describe(model).startswith(f"{name}, ")
    smaller = load(f"{name}@4", classes=10, channels=1, image_size=8).eval()
    small = nn.functional.interpolate(images, size=(4, 4), mode="bilinear", antialias=True)
    torch.testing.assert_close(smaller(images), smaller.net(2 * small - 1))


def test_a_folder_that_is_called_as_a_network_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "mlp-16").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load("mlp-16", classes=3, channels=1, image_size=8).config["kind"] == "embedded"


def test_an_embedded_perceptron_takes_rows_as_they_are():
    model = load("mlp-16", classes=3, channels=13)
    rows = torch.randn(2, 13)
    assert torch.equal(model(rows), model.net(rows))


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "fcn_resnet50"])
def test_segmentation_networks_give_a_map_of_the_images_size(name):
    model = load(f"torchvision/segmentation/{name}", classes=5, image_size=40).eval()
    assert model(torch.rand(2, 3, 40, 40)).shape == (2, 5, 40, 40)
    assert describe(model).startswith(f"torchvision/segmentation/{name}, ")


def test_classes_default_to_the_familys():
    assert load("timm/test_resnet").eval()(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("timm/resnett18", ValueError, "no network 'resnett18': the nearest are resnet18"),
        ("timm/resnet18.a2_in1x", ValueError, r"no pretrained weights 'resnet18\.a2_in1x': the nearest are .*a2_in1k"),
        (
            "torchvision/resnet19",
            ValueError,
            "no classifier or segmentation network 'resnet19': the nearest are .*resnet18",
        ),
        ("torchvision/segmentation/fcn_resnet5", ValueError, "the nearest are segmentation/fcn_resnet50"),
        ("timm/resnet18@pretraned", ValueError, "stands 'pretraned', expected pretrained or untrained, a size"),
        ("timm/resnet18@pretrained,untrained", ValueError, "expected pretrained or untrained"),
        ("torch.nn:Linaer", ValueError, "has no function 'Linaer', .* it has Linear"),
        ("torch.nn:Linear", ValueError, "requires the argument 'in_features'.*give in_features a default"),
        ("nowhere.module:net", ImportError, "there is no module 'nowhere.module': install it"),
        ("nowhere.py:net", FileNotFoundError, "there is no file nowhere.py"),
        ("nowhere.py", ValueError, "expected file.py:function"),
        ("teacher.pt", ValueError, "a file of weights, expected a network.* weights='teacher.pt'"),
        ("some/folder", FileNotFoundError, "there is no folder some/folder: a model is timm/NAME"),
        ("resnt20", ValueError, "no network of ours is called 'resnt20', expected a name such as 'resnet20'"),
        (
            "resnet18",
            ValueError,
            "networks for large images, such as resnet18, are called torchvision/NAME and timm/NAME",
        ),
        ("resnet20@pretrained", ValueError, "'resnet20' has no pretrained weights|are for timm/, torchvision/ and hf/"),
        ("hf/./nowhere", FileNotFoundError, r"there is no folder \./nowhere"),
        (5, TypeError, "a model is named by timm/NAME.*given int"),
    ],
)
def test_names_that_lead_nowhere_are_refused_with_the_way_out(spec, error, message):
    with pytest.raises(error, match=message):
        load(spec, classes=10)


@pytest.mark.parametrize("spec", ["timm/resnet18@pretrained", "torchvision/resnet18@pretrained", "hf/google/vit-tiny"])
def test_weights_that_cannot_be_fetched_are_refused_at_once(offline, spec):
    start = time.monotonic()
    name = spec.partition("@")[0]
    with pytest.raises(
        ConnectionError, match=f"^{name}.* is not on this machine and http.* is out of reach .*: connect"
    ):
        load(spec, classes=10)
    assert time.monotonic() - start < 8


def test_pretrained_timm_weights_come_from_the_cache_with_a_new_head_and_first_layer(offline):
    trained = timm.create_model("test_resnet")
    snapshot = offline / "hub" / "models--timm--test_resnet.r160_in1k" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    save_file(trained.state_dict(), snapshot / "model.safetensors")
    model = load("timm/test_resnet@pretrained", classes=4, channels=1, image_size=32)
    assert torch.equal(model.net.layer1[0].conv1.weight, trained.layer1[0].conv1.weight)
    first = next(m for m in trained.modules() if isinstance(m, nn.Conv2d)).weight
    torch.testing.assert_close(
        next(m for m in model.net.modules() if isinstance(m, nn.Conv2d)).weight, first.sum(1, True)
    )
    assert model.config["weights"] == "pretrained, new head"
    assert any("its last layer is new" in note for note in model.notes)
    whole = load("timm/test_resnet@pretrained")
    assert all(torch.equal(value, whole.net.state_dict()[name]) for name, value in trained.state_dict().items())
    assert whole.config["weights"] == "pretrained"


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_pretrained_torchvision_weights_come_from_the_cache(offline):
    trained = torchvision.models.squeezenet1_1()
    cache = offline / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    file = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    torch.save(trained.state_dict(), cache / file)
    model = load("torchvision/squeezenet1_1@pretrained,64", classes=4, channels=1, image_size=32).eval()
    assert torch.equal(model.net.features[3].squeeze.weight, trained.features[3].squeeze.weight)
    grey = torch.rand(1, 1, 40, 40)
    torch.testing.assert_close(model.net.features[0](grey), trained.features[0](grey.expand(-1, 3, -1, -1)))
    assert model.net.classifier[1].out_channels == 4
    assert model.config["weights"] == "pretrained, new head"
    same = load("torchvision/squeezenet1_1@pretrained")
    assert all(torch.equal(value, same.net.state_dict()[name]) for name, value in trained.state_dict().items())


def test_a_transformers_folder_says_what_transformers_says(vit_folder):
    from transformers import ViTForImageClassification

    net = ViTForImageClassification.from_pretrained(vit_folder).eval()
    model = load(f"hf/{vit_folder}", classes=5, image_size=32).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(images), net((images - 0.5) / 0.5).logits)
    assert model.config["weights"] == "pretrained"
    assert describe(model).startswith("hf/vit, ")
    assert str(vit_folder) not in json.dumps(model.config)


def test_a_transformers_folder_is_adapted_to_other_data(vit_folder):
    model = load(f"hf/{vit_folder}", classes=7, channels=1, image_size=28).eval()
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 7)
    assert model.config["weights"] == "pretrained, new head"
    assert "hf/vit takes 3 channels: inputs of 1 are repeated to RGB" in model.notes
    fresh = load(f"hf/{vit_folder}@untrained", classes=7, channels=1, image_size=48)
    assert (fresh.size, fresh.net_channels, fresh.config["weights"]) == (48, 1, "untrained")
    with pytest.raises(ValueError, match="was trained at 32 pixels, given @64"):
        load(f"hf/{vit_folder}@64")


def test_the_image_processor_gives_the_statistics(vit_folder):
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(
        image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], size={"height": 32, "width": 32}
    )
    processor.save_pretrained(vit_folder)
    try:
        model = load(f"hf/{vit_folder}")
        images = torch.rand(2, 3, 32, 32)
        bytes_ = (images * 255).round()
        expected = processor(list(bytes_.byte()), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(model.prepare(bytes_ / 255), expected)
    finally:
        for name in ("preprocessor_config.json", "processor_config.json"):
            (vit_folder / name).unlink(missing_ok=True)


def test_code_and_kernels_that_a_transformers_folder_names_are_not_run(vit_folder, tmp_path):
    config = json.loads((vit_folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((vit_folder / "model.safetensors").read_bytes())
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    kernels = {"attn_implementation": "kernels-community/flash-attn", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **kernels}))
    model = load(f"hf/{tmp_path}")
    assert model.net.config._attn_implementation in ("sdpa", "eager")
    (tmp_path / "config.json").write_text(json.dumps({**config, **kernels, "model_type": "theirs"}))
    with pytest.raises(ValueError, match="without running its code"):
        load(f"hf/{tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_transformers_folders_that_are_no_classifiers_are_refused(vit_folder, tmp_path):
    from transformers import BertConfig

    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text((vit_folder / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"no complete transformers model .*@untrained"):
        load(f"hf/{tmp_path / 'half'}")
    assert load(f"hf/{tmp_path / 'half'}@untrained").config["weights"] == "untrained"
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is no image classifier or causal language model that"):
        load(f"hf/{tmp_path / 'bert'}@untrained")
    with pytest.raises(ValueError, match="a transformers folder is written as hf/"):
        load(vit_folder)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "stillroom\[language\]"'):
        load("hf/google/vit-base-patch16-224")


def test_a_file_gives_its_function_what_it_has_parameters_for(builder):
    model = load(f"{builder}:net", classes=5, channels=1, image_size=12)
    assert model(torch.rand(2, 1, 12, 12)).shape == (2, 5)
    assert model.net[0].in_channels == 1
    assert model.mean is None
    assert load(f"{builder}:lazy", classes=5, channels=1, image_size=12).net[1].in_features == 144
    assert load(f"{builder}:lazy@6", classes=5, channels=1, image_size=12).net[1].in_features == 36


def test_a_network_for_rgb_gets_grey_repeated(builder):
    model = load(f"{builder}:rgb_only", classes=5, channels=1, image_size=12)
    grey = torch.rand(2, 1, 12, 12)
    torch.testing.assert_close(model(grey), model.net(grey.expand(-1, 3, -1, -1)))
    assert any("inputs of 1 are repeated to RGB" in note for note in model.notes)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("fixed", ValueError, r"mine\.py:fixed gives outputs of shape \(2, 7\), expected 5 classes"),
        ("deep", ValueError, r"mine\.py:deep requires the argument 'depth'"),
        ("number", TypeError, r"mine\.py:number returned int, expected a torch\.nn\.Module"),
        ("nett", ValueError, r"mine\.py has no function 'nett', .* it has net"),
        ("net@pretrained", ValueError, "@pretrained and @untrained are for timm/, torchvision/ and hf/"),
    ],
)
def test_functions_that_do_not_fit_are_refused(builder, function, error, message):
    with pytest.raises(error, match=message):
        load(f"{builder}:{function}", classes=5, image_size=12)


def test_inputs_that_a_network_cannot_take_are_refused(builder):
    with pytest.raises(ValueError, match=r"mine\.py:net cannot take inputs of shape \(2, 3, 2, 2\): "):
        load(f"{builder}:net", classes=5, image_size=2)


def test_an_importable_function_in_the_working_folder(builder, tmp_path, monkeypatch):
    (tmp_path / "package_of_mine.py").write_text(BUILDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert load("package_of_mine:net", classes=5, image_size=12).net[-1].out_features == 5
    assert str(tmp_path) not in sys.path


def test_a_module_is_wrapped_and_a_model_stays():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 4)).eval()
    model = load(net, classes=4, channels=1, image_size=8)
    assert model.net is net
    assert not model.training
    assert load(model) is model
    assert load(model, classes=4, channels=1, image_size=8) is model
    assert load(net).channels == 1  # as its first convolution says
    rgb = load(model, channels=3)
    images = torch.rand(2, 3, 8, 8)
    grey = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(rgb(images), net(grey))
    with pytest.raises(ValueError, match="Sequential has 4 classes, expected 10"):
        load(model, classes=10)


def test_vectors_need_no_image():
    model = load(nn.Linear(6, 3), classes=3, channels=6)
    assert model(torch.rand(2, 6)).shape == (2, 3)


def test_a_function_or_class_object_builds_a_student():
    assert load(lambda classes: nn.Linear(6, classes), classes=3, channels=6).net.out_features == 3

    class Net(nn.Linear):
        def __init__(self, channels: int, classes: int) -> None:
            super().__init__(channels, classes)

    assert load(Net, classes=3, channels=6).net.weight.shape == (3, 6)


def test_the_trial_changes_nothing():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(48, 4))
    net[0].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    load(net, classes=4, image_size=4)
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(3))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net] == [False, True, True, True]


def test_given_statistics_replace_the_familys():
    model = load("timm/test_resnet", classes=3, mean=[0.4, 0.5, 0.6], std=[0.1, 0.2, 0.3])
    prepared = model.prepare(torch.full((1, 3, 1, 1), 0.5))
    torch.testing.assert_close(prepared.flatten(), torch.tensor([1.0, 0.0, -1 / 3]))
    with pytest.raises(ValueError, match="mean and std go together"):
        load("timm/test_resnet", mean=[0.5] * 3)


def test_a_teacher_may_be_a_function_and_then_is_not_called():
    def predict(batch):
        raise AssertionError("called")

    frozen = Frozen(nn.Linear(2, 2))
    taking = nn.Identity()
    taking.takes_batch = True
    assert load_teacher(predict) is predict
    assert load_teacher(frozen) is frozen
    assert load_teacher(taking) is taking
    assert isinstance(load_teacher(nn.Linear(6, 3), classes=3), Model)
    assert load_teacher("timm/test_resnet", classes=3, image_size=32).classes == 3


def test_everything_public_is_there():
    assert sorted(hub.__all__) == sorted(set(hub.__all__))
    assert all(getattr(hub, name).__module__.startswith("stillroom.hub.") for name in hub.__all__)
    assert len(hub.__all__) == 13


def test_importing_the_hub_imports_no_zoo():
    import subprocess

    zoos = {"timm", "torchvision.models", "transformers", "onnx", "onnxruntime"}
    code = f"import sys, stillroom.hub; print(sorted({zoos} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_a_method_of_a_file_is_one_class_that_other_processes_find(tmp_path):
    file = tmp_path / "my.methods-2.py"
    (tmp_path / "beside_it.py").write_text("BASE = dict\n")
    file.write_text("from beside_it import BASE\n\nclass Mine(BASE):\n    answer = 1\n")
    found = code.find_method(f"{file}:Mine")
    assert code.find_method(f"{file}:Mine") is found
    sent = pickle.dumps(found)
    program = f"import pickle, stillroom.hub; print(pickle.loads({sent!r}).answer)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr
    assert not (tmp_path / "__pycache__").exists()
    file.write_text("class Mine:\n    answer = 22\n")
    assert code.find_method(f"{file}:Mine").answer == 22
    with pytest.raises(ValueError, match=r"has no method class 'Yours', .* it has Mine$"):
        code.find_method(f"{file}:Yours")
