"""Adapters of the vectors of label-free distillation."""

from __future__ import annotations

from stillroom import losses
from stillroom.data import top_per_class

CODE_EPS = 1e-12  # of the authors' code


def logits(inputs):
    return inputs["student_logits"].double(), inputs["teacher_logits"].double()


def ssld_loss_paddle(inputs, params):
    options = {"temperature": params.get("temperature", 1.0), "eps": params.get("eps", CODE_EPS)}
    return {"loss": losses.symmetric_kl(*logits(inputs), **options)}


def ssld_loss_paddle_sum_times_C(inputs, params):  # noqa: N802 - the vectors' own name
    return {"loss": inputs["student_logits"].shape[-1] * ssld_loss_paddle(inputs, params)["loss"]}


def jensen_shannon(inputs, params):
    return {"loss": losses.generalized_jensen_shannon(*logits(inputs), temperature=params.get("temperature", 1.0))}


def soft_cross_entropy(inputs, params):
    temperature = params.get("temperature", 1.0)
    student, teacher = (one / temperature for one in logits(inputs))
    return {"loss": losses.soft_cross_entropy(student, teacher.softmax(dim=1))}


def select_topk_per_class(inputs, params):
    return {"selected": top_per_class(inputs["teacher_probs"].double(), int(params["k"]))}
