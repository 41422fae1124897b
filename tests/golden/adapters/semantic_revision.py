"""Adapters of the semantic revision vectors."""

from __future__ import annotations

from stillroom import losses
from stillroom.systems.language.semantic_revision import locate


def dac_kl(inputs, params):
    if params["mask_mode"] not in ("hard", "soft"):
        raise ValueError(f"a mask is hard or soft, given {params['mask_mode']!r}")
    softness = params.get("tau_mask", 0.02) if params["mask_mode"] == "soft" else 0.0
    temperature = params.get("temperature", 1.0)
    teacher, student = inputs["teacher_logits"].double(), inputs["student_logits"].double()
    lower, upper = inputs["lower"].double(), inputs["upper"].double()

    def kl(**options):
        return losses.clipped_token_kl(
            student, teacher, inputs["target"], lower, upper, softness=softness, temperature=temperature, **options
        )

    coordinates = losses.mass_coordinates((teacher / temperature).softmax(-1))
    kept = losses.clipping_mask(coordinates, inputs["target"], lower, upper, softness=softness)
    return {"loss": kl(valid=inputs["valid"]), "per_position": kl(reduction="none"), "kept": kept}


def scrg_locate(inputs, params):
    found = locate(inputs["student_logits"].double(), inputs["teacher_logits"].double(), inputs["valid"])
    return {"divergence": found.divergence, "position": found.position, "replacement": found.replacement}


def span_correlation_loss(inputs, params):
    spans = [[(int(start), int(end)) for start, end in row] for row in inputs["spans"]]
    loss = losses.span_correlation_loss(
        inputs["student_logits"].double(),
        inputs["teacher_logits"].double(),
        spans,
        temperature=params.get("temperature", 1.0),
    )
    return {"loss": loss}
