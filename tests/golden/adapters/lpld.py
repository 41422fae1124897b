"""Adapters of the LPLD vectors."""

from __future__ import annotations

import torch
from torch import nn

from stillroom import losses
from stillroom.blocks import mine_low_confidence as mine
from stillroom.systems.detection.lpld import follow


def lpld_loss(inputs, params):
    loss = losses.lpld_loss(
        inputs["student_logits"].double(),
        inputs["teacher_logits"].double(),
        inputs["weights"].double(),
        scale=params["scale"],
    )
    return {"loss": loss}


def lpld_weights(inputs, params):
    return {"weights": losses.lpld_weights(inputs["student_features"].double(), inputs["teacher_features"].double())}


def mine_low_confidence(inputs, params):
    logits = inputs["teacher_logits"].double()
    classes = params.get("num_classes", logits.shape[1] - 1)
    found = mine(
        inputs["proposals"].double(),
        inputs["teacher_deltas"].double().reshape(len(logits), -1, 4)[:, :classes],
        logits,
        inputs["high_confidence_boxes"].double().reshape(-1, 4),
        iou=params["iou"],
        foreground=params["foreground"],
        background=params["background"],
        delta_weights=params["delta_weights"],
    )
    return {"kept": found.kept, "refined_boxes": found.refined_boxes}


class _Network(nn.Module):
    def __init__(self, state):
        super().__init__()
        for name, value in state.items():
            self.register_buffer(name, value.double() if torch.is_floating_point(value) else value.clone())


def ema_update(inputs, params):
    student, teacher = (_Network(inputs[who]) for who in ("student", "teacher"))
    follow(teacher, student, keep_rate=params["keep_rate"])
    return {"teacher": teacher.state_dict()}
