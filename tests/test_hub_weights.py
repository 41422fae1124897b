import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stillroom.hub import Model, load, load_weights, read_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
        lambda state: {"model_state_dict": prefixed(state, "module.")},
        lambda state: prefixed(state, "module."),
        lambda state: prefixed(state, "_orig_mod."),
        lambda state: prefixed(state, "net."),
        lambda state: {"state_dict": prefixed(state, "model.module.")},
    ],
    ids=["plain", "nested", "trainer", "nested-ddp", "ddp", "compiled", "ours", "lightning-ddp"],
)
def test_weights_are_found_in_what_training_scripts_write(tmp_path, nest):
    source, target = network(), network()
    torch.save(nest(source.state_dict()), tmp_path / "checkpoint.pt")
    load_weights(target, tmp_path / "checkpoint.pt")
    assert all(torch.equal(source.state_dict()[name], value) for name, value in target.state_dict().items())


def test_safetensors_load_into_a_model_and_into_a_module(tmp_path):
    source = network()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    for target in (Model(network(), channels=4), network()):
        load_weights(target, tmp_path / "weights.safetensors")
        assert torch.equal(next(iter(target.parameters())), source[0].weight)


def test_a_network_whose_own_names_begin_with_model_keeps_them(tmp_path):
    source = nn.ModuleDict({"model": nn.Linear(2, 2)})
    target = nn.ModuleDict({"model": nn.Linear(2, 2)})
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert torch.equal(source["model"].weight, target["model"].weight)


def test_weights_that_do_not_fit_are_refused_with_the_names(tmp_path):
    torch.save(nn.Sequential(nn.Linear(4, 5)).state_dict(), tmp_path / "w.pt")
    target = network()
    before = target[0].weight.clone()
    message = (
        r"w\.pt do not fit Sequential: 5 missing \(1\.weight, 1\.bias, 1\.running_mean, \.\.\.\); 2 of another shape "
        r"\(0\.weight is \(5, 4\) for \(3, 4\), 0\.bias is \(5,\) for \(3,\)\)"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(target, tmp_path / "w.pt")
    assert torch.equal(target[0].weight, before)
    with pytest.raises(ValueError, match=r"2 missing \(weight, bias\); 2 unknown \(0\.weight, 0\.bias\)"):
        load_weights(nn.Linear(4, 5), tmp_path / "w.pt")


class Runs:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["STILLROOM_TEST_TRACE"],)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_TEST_TRACE", str(tmp_path / "ran"))
    torch.save({"state_dict": network().state_dict(), "args": Runs()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt holds more than tensors.*not read because reading could run its code"):
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_weights_are_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors cannot be read as safetensors"):
        read_weights(tmp_path / "w.safetensors")
    (tmp_path / "w.pth").write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match=r"w\.pth"):
        read_weights(tmp_path / "w.pth")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt holds no weights, expected a dict of tensors"):
        read_weights(tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*nowhere"):
        read_weights(tmp_path / "nowhere.pt")


def test_weights_are_loaded_with_the_model(tmp_path):
    source = load("timm/test_resnet", classes=3, image_size=32)
    torch.save({"state_dict": prefixed(source.net.state_dict(), "module.")}, tmp_path / "w.pt")
    model = load("timm/test_resnet", classes=3, image_size=32, weights=tmp_path / "w.pt")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), source.eval()(images))
    assert model.config["weights"] == "file"
    with pytest.raises(ValueError, match=r"do not fit timm/test_resnet: 2 of another shape \(fc\.weight is"):
        load("timm/test_resnet", classes=4, image_size=32, weights=tmp_path / "w.pt")
    with pytest.raises(ValueError, match="asks for pretrained weights and weights="):
        load("timm/test_resnet@pretrained", classes=3, weights=tmp_path / "w.pt")
