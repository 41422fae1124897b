"""Adapters of the vectors of self-distillation in kernel ridge regression."""

from __future__ import annotations

import math
import warnings

import numpy as np

from stillroom import losses
from stillroom.systems.classification.kernel_self_distillation import KernelSelfDistillation


def _columns(x):
    values = x.double().numpy()
    return values[:, None] if values.ndim == 1 else values


def _model(params, steps, label_weight=1.0):
    return KernelSelfDistillation(
        ridge=params["ridge_lambda"], gamma=params["rbf_gamma"], label_weight=label_weight, steps=steps
    )


def _mse(said, truth):
    return float(np.mean((said.T - truth) ** 2))


def kernel_self_distillation(inputs, params):
    model = _model(params, params["steps"], params["alpha"])
    model.fit(_columns(inputs["x_train"]), inputs["y_train"].double().numpy())
    coarse = _columns(inputs["x_test"]) if "x_test" in inputs else np.linspace(0, 1, 11)[:, None]
    fine = np.linspace(0, 1, 101)[:, None]
    truth = np.sin(2 * np.pi * fine[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without labels the limit is the zero function
        limit, limit_on_fine = model.predict_at(coarse, math.inf), model.predict_at(fine, math.inf)
    return {
        "predictions": np.stack(list(model.staged_predict(coarse))),
        "mse_to_true": [_mse(said, truth) for said in model.staged_predict(fine)],
        "limit_predictions": limit,
        "limit_mse": _mse(limit_on_fine, truth),
    }


def spectral_filter(inputs, params):
    x = _columns(inputs["x_train"])
    model = _model(params, params["steps"], params["alpha"]).fit(x, np.zeros(len(x)))
    return {
        "eigenvalues": model.eigenvalues_,
        "filters": np.stack([model.spectral_filter(step) for step in range(1, params["steps"] + 1)]),
        "limit_filter": model.spectral_filter(math.inf),
    }


def optimal_alpha(inputs, params):
    held, truth = _columns(inputs["x_val"]), inputs["y_val"].double().numpy()
    model = _model(params, max(params["steps"]))
    model.fit_validated(_columns(inputs["x_train"]), inputs["y_train"].double().numpy(), held, truth)
    return {
        "alpha_star": [model.found_weights_[step - 2].unclipped for step in params["steps"]],
        "val_mse": [float(np.mean((model.predict_at(held, step) - truth) ** 2)) for step in params["steps"]],
    }


def probability_mse_loss(inputs, params):
    loss = losses.mixed_mse_loss(
        inputs["student_logits"].double(),
        inputs["teacher_logits"].double(),
        inputs["labels"],
        label_weight=params["alpha"],
    )
    return {"loss": loss}
