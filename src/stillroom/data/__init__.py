"""Data: batches, samples, streams of batches, augmentation, and loading from wherever data lie."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.data.augment import AUGMENTATIONS as AUGMENTATIONS
    from stillroom.data.augment import Augmentation as Augmentation
    from stillroom.data.augment import ResizedCropFlip as ResizedCropFlip
    from stillroom.data.augment import Shift as Shift
    from stillroom.data.augment import augmentation as augmentation
    from stillroom.data.batch import UNLABELLED as UNLABELLED
    from stillroom.data.batch import Batch as Batch
    from stillroom.data.embedded import digits as digits
    from stillroom.data.embedded import keep_labels as keep_labels
    from stillroom.data.procedural import blobs as blobs
    from stillroom.data.procedural import scenes as scenes
    from stillroom.data.procedural import shapes as shapes
    from stillroom.data.rows import choose as choose
    from stillroom.data.rows import hold_out as hold_out
    from stillroom.data.samples import LazySamples as LazySamples
    from stillroom.data.samples import Samples as Samples
    from stillroom.data.samples import Splits as Splits
    from stillroom.data.samples import TensorSamples as TensorSamples
    from stillroom.data.sources import load_data as load_data
    from stillroom.data.stream import Stream as Stream
    from stillroom.data.stream import sequential as sequential
    from stillroom.data.text import Passage as Passage
    from stillroom.data.text import documentation as documentation
    from stillroom.data.text import text_splits as text_splits
    from stillroom.data.text import token_blocks as token_blocks
    from stillroom.data.tokenizer import CharacterTokenizer as CharacterTokenizer
    from stillroom.data.tokenizer import Tokenizer as Tokenizer

_EXPORTS = {
    "AUGMENTATIONS": "augment",
    "Augmentation": "augment",
    "Batch": "batch",
    "CharacterTokenizer": "tokenizer",
    "LazySamples": "samples",
    "Passage": "text",
    "ResizedCropFlip": "augment",
    "Samples": "samples",
    "Shift": "augment",
    "Splits": "samples",
    "Stream": "stream",
    "TensorSamples": "samples",
    "Tokenizer": "tokenizer",
    "UNLABELLED": "batch",
    "augmentation": "augment",
    "choose": "rows",
    "load_data": "sources",
    "shapes": "procedural",
    "scenes": "procedural",
    "blobs": "procedural",
    "digits": "embedded",
    "documentation": "text",
    "hold_out": "rows",
    "keep_labels": "embedded",
    "sequential": "stream",
    "text_splits": "text",
    "token_blocks": "text",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
