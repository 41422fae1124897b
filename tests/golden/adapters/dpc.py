"""Adapters of the vectors of Dirichlet-based prediction calibration."""

from __future__ import annotations

import math

from torch import nn

from stillroom import blocks, losses
from stillroom.blocks.clean import ramp
from stillroom.systems.labels.dpc import DPC


def method(params):
    return DPC(
        nn.Linear(2, 2),
        nn.Linear(2, 2),
        hidden=2,
        gamma=float(params["gamma"]),
        kl_weight=float(params.get("beta", 0.5)),
        unlabelled_weight=float(params.get("lambda_u", 25)),
        ramp_epochs=float(params.get("ramp", 16)),
    )


def think(logits, params):
    return losses.calibrated_softmax(logits.double(), gamma=float(params["gamma"]))


def calibrated_softmax(inputs, params):
    return {"probabilities": think(inputs["logits"], params)}


def edl_loss(inputs, params):
    logits, labels, gamma = inputs["logits"].double(), inputs["labels"], float(params["gamma"])
    beta, classes = float(params.get("beta", 0.5)), logits.shape[1]
    nll = losses.calibrated_cross_entropy(logits, labels, gamma=gamma, reduction="none")
    evidence = losses.wrong_evidence_kl(logits, labels, gamma=gamma, reduction="none")
    total = losses.edl_loss(logits, labels, gamma=gamma, kl_weight=beta)
    return {"nll": nll, "kl_scaled": beta / classes * evidence, "total": total}


def margin(inputs, params):
    margins = blocks.label_margins(inputs["logits"].double(), inputs["labels"])
    return {"margin": margins, "normalised": blocks.normalised(margins)}


def clean_probability(inputs, params):
    fit = {"max_iter": int(params["max_iter"]), "tol": params["tol"], "reg_covar": params["reg_covar"]}
    scores = inputs["normalised_margin"].double()
    return {"clean_probability": blocks.clean_probability(scores, largest_kurtosis=math.inf, **fit)}


def guess_labels(inputs, params):
    predictions = [think(logits, params) for name, logits in inputs.items() if name.startswith("logits")]
    return {"targets": blocks.guess_labels(predictions, temperature=float(params["T"]))}


def refine_labels(inputs, params):
    predictions = [think(logits, params) for name, logits in inputs.items() if name.startswith("logits")]
    clean = inputs["clean_probability"].double()
    return {"targets": blocks.refine_labels(inputs["labels"], clean, predictions, temperature=float(params["T"]))}


def semi_loss(inputs, params):
    made, logits = method(params), inputs["logits_x"].double()
    classes = logits.shape[1]
    own, partner = (nn.functional.one_hot(inputs[name], classes).double() for name in ("labels_a", "labels_b"))
    share = own.new_full((len(own),), float(params["mix"]))
    labelled = made.labelled_loss(logits, own, partner, share)
    second = made.probabilities(inputs["logits_u_head2"].double())
    unlabelled = losses.mean_squared_error(second, inputs["targets_u"].double())
    weight = made.unlabelled_weight * ramp(float(params["epoch"]) - float(params["warm_up"]), made.ramp_epochs)
    return {"L_x": labelled, "L_u": unlabelled, "lambda": weight, "objective": labelled + unlabelled}


def prior_penalty(inputs, params):
    return {"penalty": losses.prior_penalty(think(inputs["logits"], params))}


def negative_entropy(inputs, params):
    return {"value": losses.negative_entropy(think(inputs["logits"], params))}
