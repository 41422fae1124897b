"""Models from anywhere: load, wrap, describe, save and export them.

`load` takes `timm/NAME`, `torchvision/NAME`, `hf/NAME_OR_FOLDER`, `package.module:function`, `file.py:function`, a
folder written by `save`, the name of a small embedded network, or a module, and returns a `Model`, which takes inputs
in [0, 1] and carries its own size, mean and standard deviation. timm, torchvision's models, transformers and onnx are
imported when a model asks for them, and nowhere else in the package.
"""

from stillroom.hub.exporting import Exported, export
from stillroom.hub.folder import load_folder, save
from stillroom.hub.language import LanguageModel, language_model, load_tokenizer
from stillroom.hub.loading import load, load_teacher
from stillroom.hub.model import Model, describe
from stillroom.hub.weights import load_weights, read_weights

__all__ = [
    "Exported",
    "LanguageModel",
    "Model",
    "describe",
    "export",
    "language_model",
    "load",
    "load_folder",
    "load_teacher",
    "load_tokenizer",
    "load_weights",
    "read_weights",
    "save",
]
