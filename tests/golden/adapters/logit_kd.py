"""Adapters of the vectors of the standard distillation baselines."""

from __future__ import annotations

from stillroom import losses


def kd(inputs, params):
    student_logits, teacher_logits = logits(inputs)
    return {"loss": losses.kd_loss(student_logits, teacher_logits, temperature=params["temperature"])}


def dkd(inputs, params):
    return {"loss": decoupled(*logits(inputs), inputs["labels"], params, params["temperature"])}


def lskd_kd(inputs, params):
    student_logits, teacher_logits = (losses.standardize_logits(given) for given in logits(inputs))
    return {"loss": losses.kd_loss(student_logits, teacher_logits, temperature=params["base_temperature"])}


def lskd_dkd(inputs, params):
    student_logits, teacher_logits = (losses.standardize_logits(given) for given in logits(inputs))
    return {"loss": decoupled(student_logits, teacher_logits, inputs["labels"], params, params["base_temperature"])}


def standardize_logits(inputs, params):
    return {"standardized": losses.standardize_logits(inputs["logits"].double())}


def dist(inputs, params):
    loss = losses.dist_loss(
        *logits(inputs),
        beta=params["beta"],
        gamma=params["gamma"],
        temperature=params["tau"],
    )
    return {"loss": loss}


def attention_transfer(inputs, params):
    student_feature, teacher_feature = features(inputs)
    return {"loss": losses.attention_transfer_loss(student_feature, teacher_feature, power=params["p"])}


def rkd(inputs, params):
    loss = losses.rkd_loss(
        *features(inputs),
        distance_weight=params["distance_weight"],
        angle_weight=params["angle_weight"],
        squared=params["squared"],
        eps=params["eps"],
    )
    return {"loss": loss}


def reviewkd_hcl(inputs, params):
    pairs = zip(inputs["student_feats"], inputs["teacher_feats"], strict=True)
    return {"loss": sum(losses.review_context_loss(student.double(), teacher.double()) for student, teacher in pairs)}


def logits(inputs):
    return inputs["student_logits"].double(), inputs["teacher_logits"].double()


def features(inputs):
    return inputs["student_feat"].double(), inputs["teacher_feat"].double()


def decoupled(student_logits, teacher_logits, labels, params, temperature):
    return losses.dkd_loss(
        student_logits,
        teacher_logits,
        labels,
        alpha=params["alpha"],
        beta=params["beta"],
        temperature=temperature,
    )
