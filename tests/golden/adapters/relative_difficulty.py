"""Adapters of the vectors of relative difficulty distillation."""

from __future__ import annotations

from stillroom import losses
from stillroom.losses.pixels import both, either, exclusive, students

SELECTIONS = {"XOR": exclusive, "OR": either, "AND": both, "OHEM": students}
DIRECTIONS = {"aux||primary": "auxiliary||primary", "primary||aux": "primary||auxiliary"}


def logits(inputs, name):
    return inputs[name].double()


def tfe_weight(inputs, params):
    teacher = logits(inputs, "teacher_primary"), logits(inputs, "teacher_aux")
    direction = DIRECTIONS[params.get("direction", "aux||primary")]
    found = {"weight": losses.head_agreement(*teacher, direction=direction)}
    if "size" in params:
        found["weight_upsampled"] = losses.head_agreement(*teacher, size=tuple(params["size"]), direction=direction)
    return found


def tfe_task_loss(inputs, params):
    labels = inputs["target"]
    weights = losses.head_agreement(
        logits(inputs, "teacher_primary"), logits(inputs, "teacher_aux"), size=tuple(labels.shape[1:]),
        direction=DIRECTIONS[params.get("direction", "aux||primary")],
    )  # fmt: skip
    auxiliary = inputs.get("student_aux")
    loss = losses.weighted_pixel_loss(
        logits(inputs, "student_primary"),
        labels,
        weights,
        auxiliary_logits=None if auxiliary is None else auxiliary.double(),
        auxiliary_weight=params.get("aux_weight", 0.4),
        ignore_index=params.get("ignore_index", -1),
    )
    return {"loss": loss}


def tse_task_loss(inputs, params):
    labels, student = inputs["target"], logits(inputs, "student_primary")
    ignored = params.get("ignore_index", -1)
    options = {"threshold": params["threshold"], "min_kept": params["min_kept"], "ignore_index": ignored}
    student_hard = losses.hard_positions(student, labels, **options)
    teacher_hard = losses.hard_positions(logits(inputs, "teacher_primary"), labels, **options)
    selected = SELECTIONS[params["mode"]](student_hard, teacher_hard)
    given = params.get("class_weight")
    weights = None if given is None else student.new_tensor(given)
    loss = losses.selected_pixel_loss(student, labels, selected, class_weights=weights, ignore_index=ignored)
    return {"loss": loss, "selected": selected, "student_hard": student_hard, "teacher_hard": teacher_hard}


def pixel_kd(inputs, params):
    rows = [losses.flatten_positions(logits(inputs, name)) for name in ("student_primary", "teacher_primary")]
    return {"loss": losses.kd_loss(*rows, temperature=params["temperature"])}
