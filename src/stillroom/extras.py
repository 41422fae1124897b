"""Libraries that only some kinds of work need: imported when asked for, with an error that says how to get them."""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRAS = {
    "diffusers": "generation",
    "peft": "generation",
    "gymnasium": "exploration",
    "stable_baselines3": "exploration",
    "liger_kernel": "benchmarks",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "pycocotools": "detection",
    "ray": "ray",
    "skactiveml": "labels",
    "torch_geometric": "graphs",
    "transformers": "language",
}
"""Name of the module -> the extra of this package that brings it."""


def require(module: str) -> ModuleType:
    """Import a library of an extra.

    Args:
        module: what to import; a key of `EXTRAS`, or a module below one.

    Raises:
        ImportError: it is not installed; the message names the extra that brings it.
    """
    top = module.split(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != top:
            raise
        raise ImportError(
            f'this needs {top}, which is not installed: pip install "stillroom[{EXTRAS[top]}]"', name=top
        ) from error
