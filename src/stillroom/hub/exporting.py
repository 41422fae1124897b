"""A model for other runtimes, with a check that it still says the same."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.blocks.taps import unwrapped
from stillroom.hub.fetch import first_line, quiet
from stillroom.hub.folder import load_folder
from stillroom.hub.language import LanguageModel
from stillroom.hub.model import Model, name_of

TOLERANCE = 1e-4
"""Largest difference of an exported model's outputs that passes, relative to the largest output (at least 1)."""


@dataclass(frozen=True)
class Exported:
    """What an export gave.

    Attributes:
        path: the file.
        max_error: the largest absolute difference between the file's outputs and the model's; None if not checked.
    """

    path: Path
    max_error: float | None


def export(
    model: nn.Module | str | Path,
    path: str | Path | None = None,
    *,
    format: Literal["onnx", "torch"] = "onnx",
    batch_dynamic: bool = True,
    check: bool = True,
    example: Any = None,
    any_size: bool = False,
    trust_code: bool = False,
) -> Exported:
    """Export a model: inputs in [0, 1] in, logits out, with resizing and normalisation inside.

    The file is checked on batches of 1 and 3 (of 2, where the batch is not dynamic) before it takes its place: ONNX in
    onnxruntime, torch by `torch.export.load`. Its input is called "inputs" and its output "logits".

    Args:
        model: a model, or a folder written by `stillroom.hub.save`.
        path: where the file goes, its folders made where they are missing; None: "student.onnx" or "student.pt2" in
            the folder.
        format: "onnx", or "torch" for a file of `torch.export`.
        batch_dynamic: batches of any size, else of 2 samples.
        check: compare with the model.
        example: inputs `(N, ...)` of the model's kind, N of any size; None: random images of the model's size.
        any_size: images of any height and width from 8 pixels on, as convolutional networks take them; our networks
            that enlarge images are always exported so.
        trust_code: run the code that a saved folder names.

    Returns:
        The path and the largest difference found.

    Raises:
        FileExistsError: there is a file already.
        ImportError: onnx, onnxscript or onnxruntime is missing.
        RuntimeError: the network cannot be exported, or what was exported says something else.
        ValueError: there is no path, the size of the inputs is not known, or `format` is another word.
    """
    if format not in ("onnx", "torch"):
        raise ValueError(f'format must be "onnx" or "torch", given {format!r}')
    if isinstance(model, (str, Path)):
        path = Path(model) / ("student.onnx" if format == "onnx" else "student.pt2") if path is None else path
        model = load_folder(model, trust_code=trust_code)
    if path is None:
        raise ValueError("a model that is not in a folder is exported to a path, given none: pass path=")
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already: export to another path, or remove it")
    if format == "onnx":
        _need_onnx()
    network: nn.Module = unwrapped(model)
    any_size = any_size or bool(getattr(network.net if isinstance(network, Model) else network, "any_size", False))
    parameter = next(network.parameters(), torch.empty(0))
    inputs = _example(network, example).to(parameter.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        write, read = (_write_onnx, _read_onnx) if format == "onnx" else (_write_torch, _read_torch)
        try:
            with quiet(), contextlib.redirect_stdout(io.StringIO()):
                write(_program(network, inputs, batch_dynamic, any_size), beside)
        except Exception as error:  # whatever tracing somebody's network raises
            raise RuntimeError(f"{name_of(network)} cannot be exported to {format}: {first_line(error)}") from error
        worst = None
        if check:
            whose, sizes = f"{path} ({format})", (1, 3) if batch_dynamic else (2,)
            worst = _difference(network, read(beside), inputs, sizes, whose)
            if any_size:
                worst = max(worst, _difference(network, read(beside), inputs[:, :, :-1, :-2], sizes, whose))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
        for module, mode in modes:
            module.training = mode
    return Exported(path, worst)


def _example(model: nn.Module, example: Any) -> Tensor:
    """Three samples to trace and to check with."""
    if example is None and isinstance(model, LanguageModel) and model.classes is not None:
        example = torch.randint(model.classes, (3, 16), generator=torch.Generator().manual_seed(0))
    if example is None:
        side = (model.image_size or model.size) if isinstance(model, Model) else None
        if not isinstance(model, Model) or side is None or model.channels is None:
            raise ValueError(f"the size of {name_of(model)}'s inputs is not known: pass a batch of them as example=")
        example = torch.rand(3, model.channels, side, side, generator=torch.Generator().manual_seed(0))
    example = torch.as_tensor(example)
    return example.repeat(3, *(1 for _ in example.shape[1:]))[:3]


def _program(model: nn.Module, inputs: Tensor, batch_dynamic: bool, any_size: bool) -> torch.export.ExportedProgram:
    """Trace a model; the strict way follows some that the usual one fixes to one batch size (`len(inputs)`)."""
    dims: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if isinstance(model, LanguageModel):
        dims[1] = torch.export.Dim("length", min=2, max=128)
    if any_size:
        dims |= {2: torch.export.Dim("height", min=8), 3: torch.export.Dim("width", min=8)}
    if not batch_dynamic:
        del dims[0]
    shapes = (dims,) if dims else None
    try:
        return torch.export.export(model, (inputs[:2],), dynamic_shapes=shapes)
    except Exception:
        return torch.export.export(model, (inputs[:2],), dynamic_shapes=shapes, strict=True)


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    torch.onnx.export(
        program, (), path, input_names=["inputs"], output_names=["logits"], external_data=False, verbose=False
    )


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    with quiet():
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs.cpu().numpy()})[0])


def _write_torch(program: torch.export.ExportedProgram, path: Path) -> None:
    torch.export.save(program, path)


def _read_torch(path: Path) -> Callable[[Tensor], Tensor]:
    with quiet():
        return torch.export.load(path).module()


@torch.no_grad()
def _difference(
    model: nn.Module, exported: Callable[[Tensor], Tensor], inputs: Tensor, sizes: tuple[int, ...], whose: str
) -> float:
    """The largest difference on batches of these sizes; refused above the tolerance."""
    worst = 0.0
    for size in sizes:
        expected = model(inputs[:size]).cpu()
        try:
            found = exported(inputs[:size]).cpu()
        except Exception as error:  # each runtime has its own
            raise RuntimeError(f"{whose} does not run on a batch of {size}: {first_line(error)}") from error
        if found.shape != expected.shape:
            raise RuntimeError(f"{whose} gives shape {tuple(found.shape)}, the model gives {tuple(expected.shape)}")
        difference = float((found - expected).abs().max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:
            raise RuntimeError(
                f"{whose} differs from the model by {difference:.3g} on a batch of {size}, expected at most "
                f'{allowed:.3g}: report it, and use format="torch" or the folder meanwhile'
            )
        worst = max(worst, difference)
    return worst


def _need_onnx() -> None:
    try:
        with quiet():
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export to ONNX needs onnx, onnxscript and onnxruntime, and {error.name} is not installed: "
            'pip install "stillroom[onnx]"'
        ) from error
