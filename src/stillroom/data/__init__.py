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
    from stillroom.data.batch import Ragged as Ragged
    from stillroom.data.boxes import BoxSamples as BoxSamples
    from stillroom.data.cluttered import digit_scenes as digit_scenes
    from stillroom.data.condensed import CondensedSet as CondensedSet
    from stillroom.data.degrade import bicubic_resize as bicubic_resize
    from stillroom.data.embedded import digits as digits
    from stillroom.data.embedded import keep_labels as keep_labels
    from stillroom.data.feedback import load_interactions as load_interactions
    from stillroom.data.feedback import read_interactions_csv as read_interactions_csv
    from stillroom.data.formation import decode_formation as decode_formation
    from stillroom.data.formation import encode_formation as encode_formation
    from stillroom.data.graphs import Adjacency as Adjacency
    from stillroom.data.graphs import adjacency as adjacency
    from stillroom.data.grids import digit_grids as digit_grids
    from stillroom.data.interactions import Interactions as Interactions
    from stillroom.data.interactions import InteractionSplits as InteractionSplits
    from stillroom.data.joined import JoinedSamples as JoinedSamples
    from stillroom.data.mined import MinedPool as MinedPool
    from stillroom.data.mined import mine as mine
    from stillroom.data.mined import near_duplicates as near_duplicates
    from stillroom.data.mined import top_per_class as top_per_class
    from stillroom.data.mixing import Mixture as Mixture
    from stillroom.data.mixing import draw_batch_mixture as draw_batch_mixture
    from stillroom.data.mixing import draw_mixture as draw_mixture
    from stillroom.data.modalities import av_mnist as av_mnist
    from stillroom.data.modalities import digit_halves as digit_halves
    from stillroom.data.modalities import pair_by_class as pair_by_class
    from stillroom.data.modalities import spoken_and_written_digits as spoken_and_written_digits
    from stillroom.data.pairs import ImagePairs as ImagePairs
    from stillroom.data.pairs import PatchPairs as PatchPairs
    from stillroom.data.photographs import load_pairs as load_pairs
    from stillroom.data.procedural import blobs as blobs
    from stillroom.data.procedural import scenes as scenes
    from stillroom.data.procedural import shapes as shapes
    from stillroom.data.prompts import PromptSamples as PromptSamples
    from stillroom.data.prompts import read_lines as read_lines
    from stillroom.data.rows import choose as choose
    from stillroom.data.rows import hold_out as hold_out
    from stillroom.data.samples import LazySamples as LazySamples
    from stillroom.data.samples import Samples as Samples
    from stillroom.data.samples import Splits as Splits
    from stillroom.data.samples import TensorSamples as TensorSamples
    from stillroom.data.sound import log_mel as log_mel
    from stillroom.data.sound import read_wav as read_wav
    from stillroom.data.sound import spoken_digits as spoken_digits
    from stillroom.data.sources import load_data as load_data
    from stillroom.data.stream import Stream as Stream
    from stillroom.data.stream import sequential as sequential
    from stillroom.data.text import Passage as Passage
    from stillroom.data.text import documentation as documentation
    from stillroom.data.text import text_splits as text_splits
    from stillroom.data.text import token_blocks as token_blocks
    from stillroom.data.tokenizer import CharacterTokenizer as CharacterTokenizer
    from stillroom.data.tokenizer import Tokenizer as Tokenizer
    from stillroom.data.transforms import Flip as Flip
    from stillroom.data.transforms import PermuteChannels as PermuteChannels
    from stillroom.data.transforms import Rotate as Rotate
    from stillroom.data.transforms import TransformTask as TransformTask
    from stillroom.data.transforms import channel_permutations as channel_permutations
    from stillroom.data.transforms import flips as flips
    from stillroom.data.transforms import rotations as rotations
    from stillroom.data.transforms import transform_task as transform_task

_EXPORTS = {
    "Flip": "transforms",
    "PermuteChannels": "transforms",
    "Rotate": "transforms",
    "TransformTask": "transforms",
    "channel_permutations": "transforms",
    "flips": "transforms",
    "rotations": "transforms",
    "transform_task": "transforms",
    "Mixture": "mixing",
    "draw_batch_mixture": "mixing",
    "draw_mixture": "mixing",
    "PromptSamples": "prompts",
    "av_mnist": "modalities",
    "ImagePairs": "pairs",
    "PatchPairs": "pairs",
    "bicubic_resize": "degrade",
    "load_pairs": "photographs",
    "digit_grids": "grids",
    "digit_halves": "modalities",
    "pair_by_class": "modalities",
    "read_lines": "prompts",
    "spoken_and_written_digits": "modalities",
    "log_mel": "sound",
    "read_wav": "sound",
    "spoken_digits": "sound",
    "AUGMENTATIONS": "augment",
    "Adjacency": "graphs",
    "Augmentation": "augment",
    "Batch": "batch",
    "BoxSamples": "boxes",
    "Ragged": "batch",
    "digit_scenes": "cluttered",
    "CondensedSet": "condensed",
    "CharacterTokenizer": "tokenizer",
    "InteractionSplits": "interactions",
    "Interactions": "interactions",
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
    "adjacency": "graphs",
    "augmentation": "augment",
    "choose": "rows",
    "decode_formation": "formation",
    "encode_formation": "formation",
    "JoinedSamples": "joined",
    "MinedPool": "mined",
    "mine": "mined",
    "near_duplicates": "mined",
    "top_per_class": "mined",
    "load_data": "sources",
    "load_interactions": "feedback",
    "read_interactions_csv": "feedback",
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
