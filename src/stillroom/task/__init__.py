"""Tasks: what a network's outputs mean, how they are trained on, measured and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from stillroom.task.base import Meter, Task
from stillroom.task.calibration import confidence_metrics, expected_calibration_error, logits_on
from stillroom.task.detection import Detection, recall_at_precision, score_boxes
from stillroom.task.generation import (
    Generation,
    Reference,
    coverage,
    frechet_distance,
    picture_scores,
    variance_ratio,
)
from stillroom.task.labelled import Classification, MultiLabel, Segmentation, multi_label_metrics, spearman_without
from stillroom.task.language import LanguageModelling
from stillroom.task.measured import Measured
from stillroom.task.recommendation import Recommendation, ranking_metrics
from stillroom.task.restoration import SuperResolution, luminance, psnr_y, ssim_y
from stillroom.task.vectors import Embeddings, Regression, nearest

__all__ = [
    "TASKS",
    "Classification",
    "Detection",
    "Embeddings",
    "Generation",
    "LanguageModelling",
    "Measured",
    "Meter",
    "MultiLabel",
    "Recommendation",
    "Reference",
    "Regression",
    "Segmentation",
    "SuperResolution",
    "Task",
    "TaskName",
    "confidence_metrics",
    "coverage",
    "expected_calibration_error",
    "frechet_distance",
    "logits_on",
    "luminance",
    "multi_label_metrics",
    "nearest",
    "picture_scores",
    "psnr_y",
    "ranking_metrics",
    "recall_at_precision",
    "score_boxes",
    "spearman_without",
    "ssim_y",
    "task_for",
    "teacher_beats_chance",
    "variance_ratio",
]

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        *(Classification, MultiLabel, Segmentation, Detection, Regression, Embeddings, LanguageModelling),
        SuperResolution,
    )
}
TaskName = Literal[
    "classification",
    "multi-label",
    "segmentation",
    "detection",
    "regression",
    "embeddings",
    "language-modelling",
    "super-resolution",
]


def task_for(name: str, data: Any = None, **options: Any) -> Task:
    """Build a task by its name.

    Raises:
        ValueError: unknown name, with the known ones.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known tasks: {', '.join(TASKS)}")
    return TASKS[name](data, **options)


def teacher_beats_chance(measured: dict[str, float], task: Task, labels: Tensor, samples: Sequence[int] | int) -> str:
    """Say in one sentence why a teacher is no teacher for this data; empty when it is one.

    The teacher must be better than a guess by two standard errors (classification and its kin), or better at all.

    Args:
        measured: the teacher's metrics on the data.
        task: the task, which knows what guessing scores.
        labels: labels of the measured samples.
        samples: how many they are.
    """
    guess = task.chance(labels).get(task.metric)
    if guess is None or task.metric not in measured:
        return ""
    count = samples if isinstance(samples, int) else len(samples)
    if task.metric == "accuracy" and guess == 1:
        return (
            f"all {count} samples that the teacher is measured on have the same label, so that it cannot be told from "
            "a guess: measure it on samples of several classes"
        )
    margin = 2 * (guess * (1 - guess) / count) ** 0.5 if task.metric == "accuracy" else 0.0
    sign = 1 if task.higher_is_better else -1
    if sign * measured[task.metric] > sign * guess + margin:
        return ""
    name = task.metric.replace("_", " ")
    how = "not clearly better" if sign * measured[task.metric] > sign * guess else "no better"
    return (
        f"the teacher's {name} on {count} samples of this data is {measured[task.metric]:.3f}, "
        f"{how} than guessing ({guess:.3f}): check {task.teacher_faults}, give it weights, or train it first "
        "(--teacher-epochs)"
    )
