"""Adapters of the vectors of balanced divergences."""

from __future__ import annotations

from torch import nn

from stillroom import losses
from stillroom.data.batch import Batch
from stillroom.systems.classification.bd_kd import BDKD
from stillroom.task import expected_calibration_error as calibration_error


def method(params):
    return BDKD(
        nn.Linear(2, 2),
        nn.Linear(2, 2),
        temperature=params["temperature"],
        kd_weight=params["kd_weight"],
        boost=params["boost"],
        entropy_temperature=params["entropy_temperature"],
        softness=params.get("softness", 0.1 if params.get("rule") == "soft" else 0.0),
    )


def logits(inputs):
    return {"student": inputs["student_logits"].double(), "teacher": inputs["teacher_logits"].double()}


def balance_weights(inputs, params):
    outputs, made = logits(inputs), method(params)
    gap = losses.entropy_gap(outputs["student"], outputs["teacher"], entropy_temperature=params["entropy_temperature"])
    forward, reverse = made.weights(gap)
    return {"entropy_gap": gap, "w_forward": forward, "w_reverse": reverse}


def student_loss(inputs, params):
    outputs = logits(inputs)
    batch = Batch(outputs["student"].detach(), inputs["labels"])
    return {"loss": method(params).losses_of("student", outputs, batch).total}


def teacher_loss(inputs, params):
    outputs = logits(inputs)
    batch = Batch(outputs["student"].detach(), inputs["labels"])
    return {"loss": method(params).losses_of("teacher", outputs, batch).total}


def expected_calibration_error(inputs, params):
    return {"ece": calibration_error(inputs["probs"].double(), inputs["labels"], bins=params["bins"])}
