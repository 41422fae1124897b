"""Adapters of the NCFM vectors."""

from __future__ import annotations

from stillroom import data, losses
from stillroom.systems.condensation.ncfm import matching_loss


def _weights(params):
    return {"amplitude_weight": params.get("alpha", 0.5), "phase_weight": params.get("beta", 0.5)}


def cf_discrepancy(inputs, params):
    loss = losses.characteristic_function_discrepancy(
        inputs["feat_syn"].double(), inputs["feat_real"].double(), inputs["freqs"].double(), **_weights(params)
    )
    return {"loss": loss}


def match_loss(inputs, params):
    loss = matching_loss(
        inputs["feat_syn"].double(), inputs["feat_real"].double(), inputs["freqs"].double(), **_weights(params)
    )
    return {"loss": loss}


def multi_formation_decode(inputs, params):
    images, labels = data.decode_formation(inputs["images"].double(), inputs["labels"], params["factor"])
    return {"images": images, "labels": labels}
