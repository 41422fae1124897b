"""Adapters of the vectors of trilateral geometry."""

from __future__ import annotations

import torch
from torch import nn

from stillroom import losses
from stillroom.bilevel import weight_hypergradient
from stillroom.blocks import ClassAverages
from stillroom.systems.classification import tgeo_kd


def geometry_state(inputs, params):
    student, teacher = inputs["student_probs"].double(), inputs["teacher_probs"].double()
    averages = ClassAverages(params["num_classes"]).double()
    averages.put(teacher, inputs["labels"])
    options = {"state": params["state"]} if "state" in params else {}
    state = tgeo_kd.geometry_state(student, teacher, inputs["labels"], averages(inputs["labels"]), **options)
    return {"state": state}


def controller(inputs, params):
    state = inputs["state"].double()
    made = tgeo_kd.Controller(state.shape[1], widths=(len(inputs["fc1.bias"]), len(inputs["fc2.bias"]))).double()
    linear = [layer for layer in made.layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for number, layer in enumerate(linear, start=1):
            layer.weight.copy_(inputs[f"fc{number}.weight"])
            layer.bias.copy_(inputs[f"fc{number}.bias"])
    return {"alpha": made(state)}


def fused_loss(inputs, params):
    loss = losses.blended_kd_loss(
        inputs["student_logits"].double(),
        inputs["teacher_logits"].double(),
        inputs["labels"],
        inputs["alpha"].double(),
        temperature=params["temperature"],
    )
    return {"loss": loss}


def hypergradient_alpha(inputs, params):
    weight, alpha, labels = inputs["W"].double(), inputs["alpha"].double(), inputs["labels"]
    student = nn.Linear(weight.shape[1], weight.shape[0]).double()
    with torch.no_grad():
        student.weight.copy_(weight)
        student.bias.copy_(inputs["b"])

    def weighed(at):
        logits = at(inputs["x"].double())
        label = losses.cross_entropy(logits, labels, reduction="none")
        distill = losses.kd_loss(
            logits, inputs["teacher_logits"].double(), temperature=params["temperature"], reduction="none"
        )
        return label.mean(), (distill - label) / len(labels)

    def upper(at):
        return losses.cross_entropy(at(inputs["x_val"].double()), inputs["labels_val"])

    found = weight_hypergradient(student, weighed, upper, alpha, rate=float(params["eta"]))
    return {"val_loss": found.value, "grad_of_alpha": found.gradients[0]}
