"""Which wrapper a network gets: by what it takes and gives."""

from __future__ import annotations

from torch import nn

from stillroom.blocks.detection import is_two_stage
from stillroom.hub.detectors import Detector
from stillroom.hub.language import LanguageModel, is_language_model
from stillroom.hub.model import Model


def wrapper_of(net: nn.Module) -> type[Model]:
    """The class that wraps a network: for detectors, for language models, else for images and whatever else."""
    if is_two_stage(net):
        return Detector
    return LanguageModel if is_language_model(net) else Model
