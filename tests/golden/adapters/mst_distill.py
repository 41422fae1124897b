"""Adapters of the MST-Distill vectors."""

from __future__ import annotations

import torch
from torch import nn

from stillroom import losses
from stillroom.blocks import ChannelMask, Edits, MapMask, Router, top_picks
from stillroom.systems.multimodal.mst_distill import decayed_weight


def response_kl(inputs, params):
    return {
        "loss": losses.mutual_kd_loss(inputs["learner"].double(), inputs["target"].double(), temperature=params["T"])
    }


def cotraining_loss(inputs, params):
    logits = {name: inputs[name].double() for name in ("teacher", "auxiliary", "student")}
    supervised = sum(losses.cross_entropy(one, inputs["labels"]) for one in logits.values())
    return {"loss": supervised + losses.all_pairs_kd_loss(logits, temperature=params["T"])}


def _channel_mask(inputs, heads, prefix=""):
    """Our mask network with the weights of a vector put in; its parameters are the vector's own tensors."""
    feature_size = inputs[f"{prefix}embed_w"].shape[1]
    mask = ChannelMask(feature_size, heads=heads, width=inputs[f"{prefix}embed_w"].shape[0] // feature_size).double()
    places = {
        "embed_w": (mask.embed, "weight"),
        "embed_b": (mask.embed, "bias"),
        "in_proj_w": (mask.attention, "in_proj_weight"),
        "in_proj_b": (mask.attention, "in_proj_bias"),
        "out_proj_w": (mask.attention.out_proj, "weight"),
        "out_proj_b": (mask.attention.out_proj, "bias"),
        "fc_w": (mask.score, "weight"),
        "fc_b": (mask.score, "bias"),
    }
    for name, place in places.items():
        _put(*place, inputs[f"{prefix}{name}"])
    return mask.train()  # no dropout in it; in eval mode attention would take a path of its own without gradients


def _put(module, name, value):
    """Exchange a parameter for a tensor that gradients may be asked of."""
    assert getattr(module, name).shape == value.shape
    delattr(module, name)
    setattr(module, name, value.double())


def mask_vector(inputs, params):
    mask = _channel_mask(inputs, params["heads"])
    assert mask.width == params["hidden"]
    gates = mask(inputs["feature"].double())
    masked = gates * inputs["feature"]
    return {"mask": gates, "masked": masked, "objective": masked.sum()}


def mask_map(inputs, params):
    channels = inputs["feature"].shape[1]
    mask = MapMask(channels, heads=params["heads"], width=params["hidden"], batch_norm_eps=params["bn_eps"]).double()
    mask.mask = _channel_mask(inputs, params["heads"])
    mask.load_state_dict(
        {
            "depthwise.weight": inputs["dw_w"],
            "pointwise.weight": inputs["pw_w"],
            "norm.weight": inputs["bn_w"],
            "norm.bias": inputs["bn_b"],
            "norm.running_mean": inputs["bn_mean"],
            "norm.running_var": inputs["bn_var"],
        },
        strict=False,
    )
    mask.norm.eval()
    return {"mask": mask(inputs["feature"].double())}


def specialized_teachers(inputs, params):
    layers = {}
    for number in (1, 2, 3):
        weight = inputs[f"fc{number}_weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
        layer.load_state_dict({"weight": weight, "bias": inputs[f"fc{number}_bias"]})
        layers[f"fc{number}"] = layer
    relu = nn.ReLU()
    teacher = nn.Sequential()
    for name, layer in layers.items():
        teacher.add_module(name, layer)
        if name != "fc3":
            teacher.add_module(f"after_{name}", relu)
    found = {"plain": teacher(inputs["x"].double())}
    for number in (1, 2):
        mask = _channel_mask(inputs, params["heads"], f"m{number}_")
        with Edits(teacher, {f"fc{number}": lambda output, mask=mask: mask(output) * output}):
            found[f"specialized_{number}"] = teacher(inputs["x"].double())
    return found


def routed_distillation(inputs, params):
    student, teachers = inputs["student"].double(), inputs["teachers"].double()
    router = Router(student.shape[1], len(teachers)).double()
    for layer, number in ((router.first, 1), (router.second, 2)):
        _put(layer, "weight", inputs[f"gate_w{number}"])
        _put(layer, "bias", inputs[f"gate_b{number}"])
    probabilities = router(student)
    picks = top_picks(probabilities, params["k"])
    distill = losses.routed_kd_loss(student, teachers, picks, temperature=params["T"])
    balance = losses.balance_kl_loss(probabilities)
    label = losses.cross_entropy(student, inputs["labels"])
    return {
        "gate_prob": probabilities,
        "picked": picks,
        "kd": distill,
        "balance_kl": balance,
        "balance_cv": losses.balance_cv_loss(probabilities),
        "total": label + params["w_kl"] * distill + params["w_lb"] * balance,
    }


def loss_weight_schedule(inputs, params):
    epochs = torch.as_tensor(inputs["epoch"]).tolist()
    return {
        "w_kl": [decayed_weight(epoch, initial=params["w_kl0"], factor=0.5, every=30) for epoch in epochs],
        "w_lb": [decayed_weight(epoch, initial=params["w_lb0"], factor=0.9, every=10) for epoch in epochs],
    }
