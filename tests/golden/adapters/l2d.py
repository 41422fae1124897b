"""Adapters of the vectors of multi-label distillation."""

from __future__ import annotations

from stillroom import losses
from stillroom.losses.relations import pair_distances


def led_options(params):
    return {name: float(params[name]) for name in ("beta", "eps") if name in params}


def embeddings(inputs):
    return inputs["student_embeddings"].double(), inputs["teacher_embeddings"].double(), inputs["targets"]


def mld_loss(inputs, params):
    student, teacher = inputs["student_logits"].double(), inputs["teacher_logits"].double()
    reduction = params.get("reduction", "batchmean")
    ours = {"batchmean": "mean", "sum": "sum", "mean": "mean"}[reduction]  # a row is a sum over labels here
    loss = losses.mld_loss(student, teacher, eps=float(params.get("eps", 1e-8)), reduction=ours)
    return {"loss": loss / student.shape[1] if reduction == "mean" else loss}


def led_class_aware(inputs, params):
    return {"loss": losses.led_class_aware_loss(*embeddings(inputs), **led_options(params))}


def led_instance_aware(inputs, params):
    return {"loss": losses.led_instance_aware_loss(*embeddings(inputs), **led_options(params))}


def led_loss(inputs, params):
    loss = losses.led_loss(
        *embeddings(inputs),
        class_aware_weight=float(params.get("lambda_cd", 100.0)),
        instance_aware_weight=float(params.get("lambda_id", 1000.0)),
        **led_options(params),
    )
    return {"loss": float(params.get("lambda_led", 1.0)) * loss}


def relational_huber(inputs, params):
    student, teacher = inputs["student"].double(), inputs["teacher"].double()
    options = led_options(params)
    distances = {name: value for name, value in options.items() if name == "eps"}
    return {
        "loss": losses.rkd_distance_loss(student, teacher, reduction="sum", **options),
        "student_distances": pair_distances(student, **distances),
    }


def multilabel_bce(inputs, params):
    smallest = float(params.get("eps", 1e-8))
    loss = losses.binary_cross_entropy(
        inputs["logits"].double(), inputs["targets"].double(), smallest=smallest, reduction="sum"
    )
    return {"loss": loss}
