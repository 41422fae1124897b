"""Adapters of the Plackett-Luce vectors."""

from __future__ import annotations

import torch

from stillroom import losses


def pld_loss(inputs, params):
    loss = losses.pld_loss(
        inputs["student_logits"].double(),
        inputs["teacher_logits"].double(),
        inputs["labels"],
        teacher_temperature=params["teacher_temperature"],
    )
    return {"loss": loss}


def teacher_optimal_permutation(inputs, params):
    return {"permutation": losses.teacher_optimal_permutation(inputs["teacher_logits"].double(), inputs["labels"])}


def pld_loss_uniform_weights(inputs, params):
    if params["weights"] != "uniform":
        raise ValueError(f"only uniform weights are defined for this function, given {params['weights']!r}")
    student_logits = inputs["student_logits"].double()
    permutation = losses.teacher_optimal_permutation(inputs["teacher_logits"].double(), inputs["labels"])
    weights = torch.full_like(student_logits, 1 / student_logits.shape[1])
    return {"loss": losses.plackett_luce_loss(student_logits, permutation, weights)}
