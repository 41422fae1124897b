import sys

import pytest
import torch
from torch import nn

from stillroom.hub import Model, export, exporting, load, save


class Unsteady(nn.Module):
    """Answers otherwise each time."""

    def forward(self, inputs):
        return inputs.flatten(1) + torch.rand(1)


class OnlyTwo(nn.Module):
    """Works for batches of two samples and no others."""

    def forward(self, inputs):
        return inputs.reshape(2, -1)


@pytest.mark.parametrize("spec", ["timm/test_resnet", "timm/test_vit@48", "vit-16-1"])
def test_onnx_says_what_the_model_says_for_any_batch(tmp_path, spec, capfd):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = load(spec, classes=6, channels=1, image_size=32)
    save(model, tmp_path)
    exported = export(tmp_path)
    model.eval()
    assert exported.path == tmp_path / "student.onnx"
    assert exported.max_error < 1e-5
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    images = torch.rand(5, 1, 32, 32)
    (logits,) = session.run(["logits"], {"inputs": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(images), atol=1e-5, rtol=1e-4)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.glob("*.part*"))


def test_a_torch_export_says_what_the_model_says_for_any_batch(tmp_path):
    model = load("timm/test_resnet", classes=6, image_size=32)
    model.net.layer1.eval()
    exported = export(model, tmp_path / "new" / "model.pt2", format="torch")
    program = torch.export.load(exported.path).module()
    images = torch.rand(5, 3, 32, 32)
    assert model.training
    assert not model.net.layer1.training
    assert model.net.layer2.training
    torch.testing.assert_close(program(images), model.eval()(images))


def test_models_of_vectors_are_exported_by_example(tmp_path):
    pytest.importorskip("onnxruntime")
    model = Model(nn.Linear(6, 3), channels=6)
    with pytest.raises(ValueError, match=r"the size of Linear's inputs is not known: pass a batch of them as example="):
        export(model, tmp_path / "model.onnx")
    assert export(model, tmp_path / "model.onnx", example=torch.rand(1, 6)).max_error < 1e-5


@pytest.mark.parametrize(("network", "message"), [(Unsteady(), "differs from the model by"), (OnlyTwo(), "cannot be")])
def test_a_file_that_says_something_else_is_not_left_behind(tmp_path, network, message):
    model = Model(network, image_size=4)
    with pytest.raises(RuntimeError, match=message):
        export(model, tmp_path / "model.pt2", format="torch")
    assert not list(tmp_path.iterdir())
    if message == "cannot be":
        assert export(model, tmp_path / "model.pt2", format="torch", batch_dynamic=False).max_error == 0
    else:
        assert export(model, tmp_path / "model.pt2", format="torch", check=False).max_error is None


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_file_that_runs_for_one_batch_size_only_is_refused(tmp_path, monkeypatch, format):
    pytest.importorskip("onnxruntime")
    trace = exporting._program
    monkeypatch.setattr(exporting, "_program", lambda model, inputs, *_: trace(model, inputs, False, False))
    model = Model(nn.Linear(6, 3), channels=6)
    with pytest.raises(RuntimeError, match=rf"m \({format}\) does not run on a batch of 1: "):
        export(model, tmp_path / "m", format=format, example=torch.rand(1, 6))
    assert not list(tmp_path.iterdir())


def test_exports_that_cannot_be_are_refused(tmp_path, monkeypatch):
    model = load("timm/test_resnet", classes=6, image_size=32)
    with pytest.raises(ValueError, match='format must be "onnx" or "torch", given \'tflite\''):
        export(model, tmp_path / "m", format="tflite")
    with pytest.raises(ValueError, match="given none: pass path="):
        export(model)
    (tmp_path / "there.onnx").write_text("")
    with pytest.raises(FileExistsError, match=r"there\.onnx is there already"):
        export(model, tmp_path / "there.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'onnxruntime is not installed: pip install "stillroom\[onnx\]"'):
        export(model, tmp_path / "m.onnx")
