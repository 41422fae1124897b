"""Kernel ridge regression that is distilled into itself: a scikit-learn estimator."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgWarning, eigh
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data

from stillroom.redistil import LabelWeight, optimal_label_weight
from stillroom.systems.classification.kernel_self_distillation.spectral import (
    Array,
    check_ridge,
    check_step,
    dual_filter,
)


class KernelSelfDistillation(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Kernel ridge regression, fitted again and again to a mixture of the labels and its own last fit.

    Step targets `t_1 = y`, `t_tau = a y + (1 - a) K (K + ridge I)^-1 t_(tau-1)`; a step's fit is
    `f(x) = k(x)^T (K + ridge I)^-1 t`, the minimiser of `a/2 ||f - y||^2 + (1 - a)/2 ||f - f_before||^2 + ridge/2
    ||f||^2` with sums over points (scikit-learn's `KernelRidge(alpha=ridge)`; a mean over n points would need ridge
    n). The kernel matrix is decomposed once, in float64, and any step follows in closed form.

    Args:
        ridge: lambda, above 0.
        label_weight: a, the share of the LABELS in the targets from the second step on, in [0, 1]; or one share per
            such step. 1 changes nothing, 0 collapses to the zero function in the end.
        steps: of the model, with the first fit; `math.inf` for the limit, which is the ridge `ridge / label_weight`.
        kernel: as `sklearn.metrics.pairwise.pairwise_kernels` takes it, or "precomputed".
        gamma: of the kernels that have one ("rbf": it multiplies the SQUARED distance); None for scikit-learn's
            1 / features.
        degree: of the polynomial kernel.
        coef0: of the polynomial and sigmoid kernels.
        kernel_params: further arguments of a kernel that is a function.
        extrapolate: allow shares outside [0, 1], and do not clip those that `fit_validated` finds.

    Attributes:
        eigenvalues_: of the kernel matrix, falling, `(n,)`.
        eigenvectors_: its columns, `(n, n)`.
        projected_: `V^T y`, `(n, outputs)`.
        dual_coef_: of the model's step, `(n,)` or `(n, outputs)`.
        label_weights_: the shares of the steps from the second on; a number where it is one for all.
        found_weights_: after `fit_validated` the best share per step, unclipped and clipped.
        X_fit_: the training points (the kernel matrix where it is precomputed).
        n_features_in_: columns of X.

    Source: Borup and Andersen 2021, arXiv:2102.13088.

    Example:
        >>> X = np.linspace(0, 1, 20).reshape(-1, 1)
        >>> y = np.sin(6 * X[:, 0])
        >>> model = KernelSelfDistillation(ridge=0.1, label_weight=0.35, steps=4, gamma=10.0).fit(X, y)
        >>> model.predict(X).shape, [round(model.score_at(X, y, step), 3) for step in (1, 4, math.inf)]
        ((20,), [0.997, 0.992, 0.99])
        >>> model.fit_validated(X[::2], y[::2], X[1::2], y[1::2]).found_weights_[0].clipped
        1.0
    """

    def __init__(
        self,
        *,
        ridge: float = 1.0,
        label_weight: float | Sequence[float] = 0.35,
        steps: int | float = 6,
        kernel: str | Callable[..., float] = "rbf",
        gamma: float | None = None,
        degree: float = 3,
        coef0: float = 1,
        kernel_params: Mapping[str, Any] | None = None,
        extrapolate: bool = False,
    ) -> None:
        self.ridge = ridge
        self.label_weight = label_weight
        self.steps = steps
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.kernel_params = kernel_params
        self.extrapolate = extrapolate

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Decompose the kernel matrix of the training points and take the model's step.

        Args:
            X: `(n, features)`, or `(n, n)` kernel values for "precomputed".
            y: `(n,)` or `(n, outputs)`; outputs are independent of each other.

        Raises:
            ValueError: an option outside its range, X and y of different lengths, or a kernel matrix that is not
                symmetric and positive semi-definite.
        """
        weights = self._checked_weights()
        self._decompose(X, y)
        self._take(weights)
        return self

    def fit_validated(self, X: ArrayLike, y: ArrayLike, X_validation: ArrayLike, y_validation: ArrayLike) -> Self:
        """Fit with, at each step, the share of the labels that is best on held-out points.

        `label_weight` plays no part. The weights, free and clipped, are in `found_weights_`.

        Args:
            X: as for `fit`.
            y: as for `fit`.
            X_validation: `(m, features)`, or `(m, n)` kernel values for "precomputed"; none of the training points.
            y_validation: `(m,)` or `(m, outputs)`.

        Raises:
            ValueError: as for `fit`, other outputs, or steps without end.
        """
        check_ridge(self.ridge)
        check_step(self.steps)
        if self.steps == math.inf:
            raise ValueError("a label weight per step needs a number of steps, given steps=inf")
        self._decompose(X, y)
        targets = check_array(y_validation, ensure_2d=False, dtype=np.float64)
        targets = targets.reshape(len(targets), -1)
        seen = self.projected_kernel(X_validation)
        check_consistent_length(seen, targets)
        if targets.shape[1] != self._outputs:
            raise ValueError(f"y_validation has {targets.shape[1]} outputs, but y has {self._outputs}")
        d, first = self.eigenvalues_, self.dual_filter(1)
        by_labels = seen @ (first[:, None] * self.projected_)
        found: list[LabelWeight] = []
        factors = first
        for _ in range(1, int(self.steps)):
            pure = d * factors / (d + self.ridge)  # the step that learns from the last fit alone
            weight = optimal_label_weight(targets, by_labels, seen @ (pure[:, None] * self.projected_))
            found.append(weight)
            share = weight.unclipped if self.extrapolate else weight.clipped
            factors = share * first + (1 - share) * pure
        self.found_weights_ = found
        self._take([one.unclipped if self.extrapolate else one.clipped for one in found])
        return self

    def predict(self, X: ArrayLike) -> Array:
        """Predict with the model's step: `(m,)` or `(m, outputs)`."""
        check_is_fitted(self)
        return self._kernel_of(self._checked(X)) @ self.dual_coef_

    def predict_at(self, X: ArrayLike, step: int | float) -> Array:
        """Predict with any step (`math.inf` for the limit), without fitting again.

        Args:
            X: `(m, features)`, or `(m, n)` kernel values.
            step: from 1; with shares that differ by step no further than they go.
        """
        check_is_fitted(self)
        return self._kernel_of(self._checked(X)) @ self._coefficients(step)

    def staged_predict(self, X: ArrayLike) -> Iterator[Array]:
        """Yield the predictions of step 1, 2, ... up to the model's (which has to have an end)."""
        check_is_fitted(self)
        if self.steps == math.inf:
            raise ValueError("stages need a number of steps, given steps=inf: ask predict_at for single steps")
        kernel = self._kernel_of(self._checked(X))
        for step in range(1, int(self.steps) + 1):
            yield kernel @ self._coefficients(step)

    def score_at(self, X: ArrayLike, y: ArrayLike, step: int | float) -> float:
        """R^2 of any step."""
        from sklearn.metrics import r2_score

        return float(r2_score(y, self.predict_at(X, step)))

    def dual_filter(self, step: int | float) -> Array:
        """Factors of the eigenvectors in the coefficients of a step, `(n,)`; see `dual_filter`."""
        check_is_fitted(self, "eigenvalues_")
        weight = getattr(self, "label_weights_", 1.0)
        return dual_filter(self.eigenvalues_, self.ridge, weight, step)

    def spectral_filter(self, step: int | float) -> Array:
        """Factors of the eigenvectors in the fit of a step at the training points, `(n,)`; see `spectral_filter`."""
        return self.eigenvalues_ * self.dual_filter(step)

    def projected_kernel(self, X: ArrayLike) -> Array:
        """`k(x)^T V`, `(m, n)`: times `g[:, None] * projected_` it predicts with the dual filter g of any step."""
        check_is_fitted(self, "eigenvalues_")
        return self._kernel_of(self._checked(X)) @ self.eigenvectors_

    def _checked_weights(self) -> float | Sequence[float]:
        check_ridge(self.ridge)
        check_step(self.steps)
        given = np.atleast_1d(np.asarray(self.label_weight, dtype=np.float64))
        if not np.isfinite(given).all() or (not self.extrapolate and not ((given >= 0) & (given <= 1)).all()):
            raise ValueError(
                f"label_weight is a share of the labels in [0, 1], given {self.label_weight}: shares outside need "
                "extrapolate=True"
            )
        if np.ndim(self.label_weight) == 0:
            weight = float(self.label_weight)  # type: ignore[arg-type]
            if self.steps == math.inf and not 0 <= weight <= 1:
                raise ValueError(f"the limit needs a label_weight in [0, 1], given {weight}")
            return weight
        if self.steps == math.inf or len(given) != self.steps - 1:
            raise ValueError(
                f"{self.steps} steps have {self.steps - 1} label weights (one per step from the second), given "
                f"{len(given)}"
            )
        return [float(one) for one in given]

    def _decompose(self, X: ArrayLike, y: ArrayLike) -> None:
        for fitted in ("label_weights_", "found_weights_"):
            if hasattr(self, fitted):
                delattr(self, fitted)
        narrow = getattr(X, "dtype", None) == np.float32  # a precomputed kernel of rounded numbers
        tolerance = 1e-6 if narrow and self.kernel == "precomputed" else 1e-8
        inputs, numbers = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        self.X_fit_: Array = inputs
        self._flat = numbers.ndim == 1
        targets: Array = np.asarray(numbers, dtype=np.float64).reshape(len(numbers), -1)
        self._outputs = targets.shape[1]
        kernel = np.asarray(self._kernel_of(inputs), dtype=np.float64)
        if kernel.shape != (len(inputs), len(inputs)):
            raise ValueError(f"a precomputed kernel must be square, given {kernel.shape}")
        scale = float(np.abs(kernel).max())
        if float(np.abs(kernel - kernel.T).max()) > tolerance * scale:
            raise ValueError("the kernel matrix must be symmetric: check the kernel function or the precomputed values")
        values, vectors = eigh((kernel + kernel.T) / 2)
        if values[0] < -tolerance * max(abs(values[0]), abs(values[-1])):
            raise ValueError(
                f"the kernel matrix must be positive semi-definite, given eigenvalues from {values[0]:.3g} to "
                f"{values[-1]:.3g}: use another kernel"
            )
        values = values.clip(min=0)
        condition = (values[-1] + self.ridge) / (values[0] + self.ridge)
        if condition > 1e11:
            warnings.warn(
                f"the kernel matrix with ridge {self.ridge:g} is singular in float64 (condition {condition:.1g}): the "
                "fit between the training points is rounding noise; use a larger ridge",
                LinAlgWarning,
                stacklevel=3,
            )
        self.eigenvalues_, self.eigenvectors_ = values[::-1].copy(), vectors[:, ::-1].copy()
        self.projected_ = self.eigenvectors_.T @ targets

    def _take(self, weights: float | Sequence[float]) -> None:
        self.label_weights_ = weights
        self.dual_coef_ = self._coefficients(self.steps)

    def _coefficients(self, step: int | float) -> Array:
        if step == math.inf and self.label_weights_ == 0:
            warnings.warn(
                "without labels (label_weight=0) the limit is the zero function: give the labels a share above 0, or "
                "stop at a step",
                UserWarning,
                stacklevel=3,
            )
        found = self.eigenvectors_ @ (self.dual_filter(step)[:, None] * self.projected_)
        return found.ravel() if self._flat else found

    def _checked(self, X: ArrayLike) -> Array:
        return validate_data(self, X, dtype=np.float64, reset=False)

    def _kernel_of(self, X: Array) -> Array:
        if self.kernel == "precomputed":
            return X
        options: dict[str, Any] = {"gamma": self.gamma, "degree": self.degree, "coef0": self.coef0}
        if callable(self.kernel):
            return pairwise_kernels(X, self.X_fit_, metric=self.kernel, **(self.kernel_params or {}))
        return pairwise_kernels(X, self.X_fit_, metric=self.kernel, filter_params=True, **options)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags
