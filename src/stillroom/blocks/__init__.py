"""Small modules that methods are built from: frozen teachers, taps, aligners, providers, averages and memories."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.blocks.align import Align, HintRegressor
    from stillroom.blocks.auxiliary import (
        AuxiliaryHeads,
        LightHead,
        Observed,
        StageCopyHead,
        WithHeads,
        light_heads,
        stage_copy_heads,
    )
    from stillroom.blocks.calibrated import Tempered, fit_temperature
    from stillroom.blocks.causal import CausalTransformer
    from stillroom.blocks.class_averages import ClassAverages
    from stillroom.blocks.clean import (
        clean_probability,
        guess_labels,
        label_margins,
        normalised,
        refine_labels,
        sharpen,
    )
    from stillroom.blocks.detection import (
        Mined,
        Regions,
        TwoStage,
        background_last,
        decode_boxes,
        is_two_stage,
        mine_low_confidence,
        rescale_boxes,
    )
    from stillroom.blocks.ema import EMA, decay_of
    from stillroom.blocks.enlarge import IMDN, AnyScaleIMDN, Enlarger, PlainSR, TinyIMDN, build_enlarger, load_released
    from stillroom.blocks.frequencies import FrequencySampler
    from stillroom.blocks.frozen import Frozen, fingerprint
    from stillroom.blocks.heads import SecondHead, SummedLogits, with_fresh_head
    from stillroom.blocks.imdb import ContrastAttention, InformationDistillation, contrast
    from stillroom.blocks.label_queries import LabelQueries, LabelQueryNetwork, label_queries_in, with_label_queries
    from stillroom.blocks.masks import ChannelMask, MapMask, Masked, mask_width
    from stillroom.blocks.minmax import minmax_gradients
    from stillroom.blocks.modalities import Sees, check_paired, pick_modality
    from stillroom.blocks.models import build
    from stillroom.blocks.modes import evaluating
    from stillroom.blocks.propagation import FixedNodes, LightGCN, MaskedLightGCN
    from stillroom.blocks.providers import Average, Cached, FunctionTeacher, Provider
    from stillroom.blocks.pruning import guided_edge_importance, surviving
    from stillroom.blocks.queue import FeatureQueue, gathered
    from stillroom.blocks.router import Router, random_picks, routing_shares, top_picks
    from stillroom.blocks.scores import SampleScores
    from stillroom.blocks.segmenter import FCN
    from stillroom.blocks.shapes import as_map, as_tokens, grid_of, kind_of, pooled, resize
    from stillroom.blocks.stages import MatchedTaps, default_taps, last_hidden_layers, matched_taps
    from stillroom.blocks.taps import BriefTaps, Edits, Taps, tap_root, unwrapped
    from stillroom.blocks.tiling import adaptive_crop

_EXPORTS = {
    "Tempered": "calibrated",
    "fit_temperature": "calibrated",
    "last_hidden_layers": "stages",
    "Edits": "taps",
    "pick_modality": "modalities",
    "check_paired": "modalities",
    "Sees": "modalities",
    "top_picks": "router",
    "routing_shares": "router",
    "random_picks": "router",
    "Router": "router",
    "mask_width": "masks",
    "Masked": "masks",
    "MapMask": "masks",
    "ChannelMask": "masks",
    "Align": "align",
    "AuxiliaryHeads": "auxiliary",
    "LightHead": "auxiliary",
    "Observed": "auxiliary",
    "StageCopyHead": "auxiliary",
    "WithHeads": "auxiliary",
    "light_heads": "auxiliary",
    "stage_copy_heads": "auxiliary",
    "Mined": "detection",
    "Regions": "detection",
    "TwoStage": "detection",
    "background_last": "detection",
    "decode_boxes": "detection",
    "is_two_stage": "detection",
    "mine_low_confidence": "detection",
    "rescale_boxes": "detection",
    "Average": "providers",
    "Cached": "providers",
    "ClassAverages": "class_averages",
    "CausalTransformer": "causal",
    "EMA": "ema",
    "FCN": "segmenter",
    "SampleScores": "scores",
    "FeatureQueue": "queue",
    "FixedNodes": "propagation",
    "FrequencySampler": "frequencies",
    "Frozen": "frozen",
    "FunctionTeacher": "providers",
    "HintRegressor": "align",
    "LabelQueries": "label_queries",
    "LabelQueryNetwork": "label_queries",
    "label_queries_in": "label_queries",
    "with_label_queries": "label_queries",
    "LightGCN": "propagation",
    "MaskedLightGCN": "propagation",
    "MatchedTaps": "stages",
    "Provider": "providers",
    "Taps": "taps",
    "BriefTaps": "taps",
    "as_map": "shapes",
    "as_tokens": "shapes",
    "build": "models",
    "decay_of": "ema",
    "default_taps": "stages",
    "fingerprint": "frozen",
    "gathered": "queue",
    "grid_of": "shapes",
    "guided_edge_importance": "pruning",
    "kind_of": "shapes",
    "matched_taps": "stages",
    "minmax_gradients": "minmax",
    "pooled": "shapes",
    "resize": "shapes",
    "surviving": "pruning",
    "tap_root": "taps",
    "unwrapped": "taps",
    "with_fresh_head": "heads",
    "evaluating": "modes",
    "SecondHead": "heads",
    "SummedLogits": "heads",
    "clean_probability": "clean",
    "guess_labels": "clean",
    "label_margins": "clean",
    "normalised": "clean",
    "refine_labels": "clean",
    "sharpen": "clean",
    "IMDN": "enlarge",
    "AnyScaleIMDN": "enlarge",
    "Enlarger": "enlarge",
    "PlainSR": "enlarge",
    "TinyIMDN": "enlarge",
    "build_enlarger": "enlarge",
    "load_released": "enlarge",
    "ContrastAttention": "imdb",
    "InformationDistillation": "imdb",
    "contrast": "imdb",
    "adaptive_crop": "tiling",
}

__all__ = [
    "EMA",
    "FCN",
    "IMDN",
    "Align",
    "AnyScaleIMDN",
    "AuxiliaryHeads",
    "Average",
    "BriefTaps",
    "Cached",
    "CausalTransformer",
    "ChannelMask",
    "ClassAverages",
    "ContrastAttention",
    "Edits",
    "Enlarger",
    "FeatureQueue",
    "FixedNodes",
    "FrequencySampler",
    "Frozen",
    "FunctionTeacher",
    "HintRegressor",
    "InformationDistillation",
    "LabelQueries",
    "LabelQueryNetwork",
    "LightGCN",
    "LightHead",
    "MapMask",
    "Masked",
    "MaskedLightGCN",
    "MatchedTaps",
    "Mined",
    "Observed",
    "PlainSR",
    "Provider",
    "Regions",
    "Router",
    "SampleScores",
    "SecondHead",
    "Sees",
    "StageCopyHead",
    "SummedLogits",
    "Taps",
    "Tempered",
    "TinyIMDN",
    "TwoStage",
    "WithHeads",
    "adaptive_crop",
    "as_map",
    "as_tokens",
    "background_last",
    "build",
    "build_enlarger",
    "check_paired",
    "clean_probability",
    "contrast",
    "decay_of",
    "decode_boxes",
    "default_taps",
    "evaluating",
    "fingerprint",
    "fit_temperature",
    "gathered",
    "grid_of",
    "guess_labels",
    "guided_edge_importance",
    "is_two_stage",
    "kind_of",
    "label_margins",
    "label_queries_in",
    "last_hidden_layers",
    "light_heads",
    "load_released",
    "mask_width",
    "matched_taps",
    "mine_low_confidence",
    "minmax_gradients",
    "normalised",
    "pick_modality",
    "pooled",
    "random_picks",
    "refine_labels",
    "rescale_boxes",
    "resize",
    "routing_shares",
    "sharpen",
    "stage_copy_heads",
    "surviving",
    "tap_root",
    "top_picks",
    "unwrapped",
    "with_fresh_head",
    "with_label_queries",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
