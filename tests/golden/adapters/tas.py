"""Adapters of the vectors of transformable architecture search."""

from __future__ import annotations

import torch

from stillroom import losses
from stillroom.blocks import search


def channel_interpolate(inputs, params):
    return {"y": search.channel_interpolate(inputs["x"].double(), params["out_channels"])}


def sample_two_choices(inputs, params):
    _, weights, chances = search.sample_two_choices(
        inputs["logits"].double(),
        temperature=params["tau"],
        exponential_noise=inputs["exponential_noise"].double(),
        picked=inputs["picked"],
    )
    found = {"pair_weights": weights, "perturbed_probabilities": chances}
    if "upstream_grad" in inputs:
        found["objective"] = (weights * inputs["upstream_grad"].double()).sum()
    return found


def width_choices(inputs, params):
    return {"choices": [search.width_choices(int(channels)) for channels in inputs["channels"]]}


def depth_choices(inputs, params):
    return {"choices": [search.depth_choices(int(blocks)) for blocks in inputs["blocks"]]}


def searched_conv(inputs, params):
    weight, probabilities = inputs["weight"].double(), inputs["width_probabilities"].double()
    layer = search.SearchedConvolution(
        weight.shape[1], weight.shape[0], weight.shape[2], choices=params["choices"]
    ).double()
    layer.convolution.weight.data = weight
    for norm in layer.norms:
        norm.eps = params["bn_eps"]
    mixed = layer(inputs["x"].double(), params["picked"], torch.tensor(params["pair_weights"]).double())
    outputs = (probabilities * torch.tensor(params["choices"]).double()).sum()
    height, width = params["out_size"]
    cost = layer.cost(params["expected_in_channels"], outputs, 1) * height * width
    return {"y": mixed, "expected_out_channels": outputs, "expected_cost": cost}


def cost_loss(inputs, params):
    expected = torch.tensor(params["expected"], dtype=torch.float64)
    options = {"target": params["target"], "tolerance": params["tolerance"]}
    return {"loss": torch.stack([search.cost_loss(expected, float(one), **options) for one in inputs["derived_cost"]])}


def ragged_add(inputs, params):
    return {"sum": search.ragged_add(inputs["a"].double(), inputs["b"].double())}


def kd_loss(inputs, params):
    student, teacher = inputs["student_logits"].double(), inputs["teacher_logits"].double()
    distill = losses.kd_loss(student, teacher, temperature=params["temperature"])
    label = losses.cross_entropy(student, inputs["labels"])
    return {"loss": (1 - params["alpha"]) * label + params["alpha"] * distill}


def tau_schedule(inputs, params):
    ends = {"highest": params["tau_max"], "lowest": params["tau_min"]}
    return {"tau": [search.temperature_at(float(ratio), **ends) for ratio in inputs["ratio"]]}
