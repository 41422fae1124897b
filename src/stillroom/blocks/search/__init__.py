"""Searching for a network's size: choices of width and depth, networks that hold all of them, and what they cost."""

from stillroom.blocks.search.choices import (
    channel_interpolate,
    cost_loss,
    depth_choices,
    ragged_add,
    sample_two_choices,
    temperature_at,
    width_choices,
)
from stillroom.blocks.search.derived import (
    ResNetShape,
    ShapedResNet,
    full_shape,
    multiply_accumulates,
    random_shape,
    shape_cost,
    uniform_shape,
)
from stillroom.blocks.search.searched import SearchedConvolution
from stillroom.blocks.search.supernet import SearchableResNet

__all__ = [
    "ResNetShape",
    "SearchableResNet",
    "SearchedConvolution",
    "ShapedResNet",
    "channel_interpolate",
    "cost_loss",
    "depth_choices",
    "full_shape",
    "multiply_accumulates",
    "ragged_add",
    "random_shape",
    "sample_two_choices",
    "shape_cost",
    "temperature_at",
    "uniform_shape",
    "width_choices",
]
