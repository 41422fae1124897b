"""Adapters of the vectors of information distillation, adaptive cropping and the luminance's PSNR."""

from __future__ import annotations

import torch
from torch import nn

from stillroom import task
from stillroom.blocks import ContrastAttention, InformationDistillation, adaptive_crop, contrast
from stillroom.blocks.imdb import deviation

ATTENTION = {"conv_du.0": "squeeze", "conv_du.2": "expand"}
SHORT = {"w1": "squeeze.weight", "b1": "squeeze.bias", "w2": "expand.weight", "b2": "expand.bias"}


def load(module: nn.Module, weights):
    module.double()
    own = {}
    for name, value in weights.items():
        name = name.replace("cca.", "attention.")
        for theirs, ours in ATTENTION.items():
            name = name.replace(theirs, ours)
        own[name] = value.double().view_as(module.state_dict()[name])
    module.load_state_dict(own)
    return module


def contrast_statistic(inputs, params):
    x = inputs["x"].double()
    return {"std": deviation(x), "mean": x.mean((2, 3), keepdim=True), "std_plus_mean": contrast(x)}


def cca_layer(inputs, params):
    x = inputs["x"].double()
    out = load(
        ContrastAttention(params["channels"], params["reduction"]), {name: inputs[key] for key, name in SHORT.items()}
    )(x)
    objective = (inputs["coef"].double() * out).sum() if "coef" in inputs else out.sum()
    return {"out": out, "objective": objective}


def imdb_block(inputs, params):
    block = InformationDistillation(
        params["channels"], rate=params["distillation_rate"], reduction=params["cca_reduction"]
    )
    out = load(block, {name: value for name, value in inputs.items() if name not in ("x", "coef")})(
        inputs["x"].double()
    )
    objective = (inputs["coef"].double() * out).sum() if "coef" in inputs else out.sum()
    return {"out": out, "objective": objective}


def adaptive_crop_forward(inputs, params):
    def network(crops):
        rows = torch.arange(crops.shape[2], dtype=crops.dtype).view(1, 1, -1, 1)
        return crops - crops.mean((1, 2, 3), keepdim=True) + 0.01 * rows

    options = {name: params[name] for name in ("overlap", "multiple", "scale") if name in params}
    return {"out": adaptive_crop(network, inputs["x"].double(), **options)}


def psnr_y(inputs, params):
    pred, target = (inputs[name].double().permute(2, 0, 1)[None] / 255 for name in ("pred", "target"))
    return {"psnr": task.psnr_y(pred, target, border=params["border"])[0]}
