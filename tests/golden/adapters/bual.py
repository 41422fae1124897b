"""Adapters of the vectors of bidirectional uncertainty."""

from __future__ import annotations

from stillroom import losses
from stillroom.active import ENTROPY, LEAST_CONFIDENT, MARGIN
from stillroom.systems.labels import bual

MEASURES = {measure.name: measure for measure in (LEAST_CONFIDENT, MARGIN, ENTROPY)}


def negative_learning_loss(inputs, params):
    loss = losses.negative_learning_loss(
        inputs["logits"].double(), inputs["complementary_labels"], floor=params["clamp"]
    )
    return {"loss": loss}


def bidirectional_score_published(inputs, params):
    score = bual.bidirectional_score(
        inputs["negative_prob_sum"].double(),
        inputs["positive_prob"].double(),
        None if params["first_round"] else inputs["aux_unknown_prob"].double(),
        ratio=params["ratio"],
        informativeness=MEASURES[params["strategy"]],
    )
    return {"score": score, "order": score.argsort(stable=True)}


def bidirectional_uncertainty(inputs, params):
    score = bual.bidirectional_uncertainty(
        inputs["negative_prob_mean"].double(),
        inputs["positive_prob"].double(),
        inputs["aux_unknown_prob"].double(),
        ratio=params["ratio"],
        informativeness=MEASURES[params["strategy"]],
    )
    return {"score": score, "order": score.argsort(stable=True, descending=True)}


def complementary_label(inputs, params):
    found = losses.complementary_labels(inputs["labels"], params["K"], offsets=inputs["offsets"])
    return {"complementary": found}
