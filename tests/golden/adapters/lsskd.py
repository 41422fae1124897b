"""Adapters of the vectors of layered self-supervised distillation."""

from __future__ import annotations

import torch

from stillroom import losses
from stillroom.blocks import Observed, build
from stillroom.data.batch import Batch
from stillroom.data.transforms import Flip, Rotate, TransformTask, channel_permutations, flips, rotations
from stillroom.systems.classification.lsskd import LSSKD

SETS = {"rotations": rotations, "flips": flips, "channel_permutations": channel_permutations}
SETS |= {"rotation": rotations, "flip": flips, "channels": channel_permutations}


def transforms(params, default=4):
    """The transforms that the parameters name, or so many quarter turns (copies of the image beyond four)."""
    name = params.get("transforms", params.get("transform_set", params.get("num_transforms", default)))
    if isinstance(name, str):
        return SETS[name]()
    number = int(params.get("num_rotations", params.get("M", name)))
    return rotations() if number == 4 else TransformTask([Flip(), *(Rotate(row % 4) for row in range(1, number))])


def rotate_and_label(inputs, params):
    task, images = transforms(params), inputs["images"]
    return {"rotated": task.apply(images), "joint_labels": task.labels(inputs["labels"])}


def class_logits_from_joint(inputs, params):
    return {"class_logits": losses.class_scores(inputs["joint_logits"].double(), len(transforms(params)))}


def class_probs_from_joint(inputs, params):
    return {"class_probs": losses.class_probabilities(inputs["joint_logits"].double(), len(transforms(params)))}


def joint_kl(inputs, params):
    student, teacher = inputs["student_joint"].double(), inputs["teacher_joint"].double()
    return {"loss": losses.kd_loss(student, teacher, temperature=params["temperature"])}


def lsskd_total(inputs, params):
    labels, task = inputs["labels"], transforms(params, len(inputs["main_logits"]) // len(inputs["labels"]))
    joint = [one.double().detach().requires_grad_() for one in inputs["joint_logits"]]
    features = [one.double().detach().requires_grad_() for one in inputs["features"]]
    main = inputs["main_logits"].double()
    main = main if main.requires_grad else main.requires_grad_()
    small = build("conv-2-2", classes=2, in_channels=3, image_size=4)
    method = LSSKD(
        small,
        probe=Batch(torch.rand(2, 3, 4, 4)),
        heads="light",
        transforms=task,
        temperature=params["temperature"],
        joint_weight=params["w_aux"],
        kd_weight=params["w_kl"],
        feature_weight=params["w_feat"],
        main_weight=params.get("w_main", 0.0),
        teacher_stage=params["teacher_stage"],
    )
    loss = method.losses_of(Observed(main, tuple(joint), tuple(features)), labels).total
    wanted = {
        "main_logits": main,
        **{f"joint_{row}": one for row, one in enumerate(joint)},
        **{f"feature_{row}": one for row, one in enumerate(features)},
    }
    named = {
        "joint_first": joint[0],
        "joint_last": joint[-1],
        "feature_first": features[0],
        "feature_last": features[-1],
    }
    every = wanted | named
    gradients = torch.autograd.grad(3 * loss, list(every.values()), retain_graph=True, allow_unused=True)
    found = {
        f"grad_of_{name}": torch.zeros_like(value) if gradient is None else gradient / 3
        for (name, value), gradient in zip(every.items(), gradients, strict=True)
    }
    stacked = {"grad_of_joint_logits": "joint", "grad_of_features": "feature"}
    for name, prefix in stacked.items():
        found[name] = [found[f"grad_of_{prefix}_{row}"] for row in range(len(joint))]
    return {"loss": loss, **found}
