"""Adapters of the vectors of mixup in distillation."""

from __future__ import annotations

import torch
from torch import nn

from stillroom.data import Mixture
from stillroom.data.batch import Batch
from stillroom.systems.classification.mix_kd import MixKD


def partial_mixup(inputs, params):
    share = torch.where(inputs["keep_clean"].bool(), 1.0, inputs["lambda"].double())
    mixture = Mixture(inputs["perm1"].long(), inputs["perm2"].long(), share)
    labels = torch.nn.functional.one_hot(inputs["labels"].long(), params["num_classes"]).double()
    mixed = mixture.mix(Batch(inputs["images"].double()))
    plain = mixture.labels(inputs["labels"].long(), params["num_classes"])
    torch.testing.assert_close(plain.double(), mixture.labels(labels, params["num_classes"]), rtol=0, atol=1e-6)
    return {"mixed_images": mixed.inputs, "mixed_labels": mixture.labels(labels, params["num_classes"])}


def std_mix_kd_loss(inputs, params):
    student, teacher = inputs["student_logits"].double(), inputs["teacher_logits"].double()
    method = MixKD(
        nn.Linear(2, student.shape[1]),
        nn.Linear(2, student.shape[1]),
        label_weight=params["gamma"],
        distill_weight=params["alpha"],
        allow_two_classes=student.shape[1] < 3,
    )
    label, distill = method.terms(student, teacher, inputs["mixed_labels"].double())
    label, distill = params["gamma"] * label, params["alpha"] * distill
    return {"loss_cls": label, "loss_div": distill, "loss": label + distill}
