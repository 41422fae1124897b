"""Self-distillation of kernel ridge regression: the closed forms, the estimator, and the recipe."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import LinAlgWarning
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from stillroom.systems.classification.kernel_self_distillation import (
    KernelSelfDistillation,
    dual_filter,
    paper,
    recipe,
    spectral_filter,
)
from stillroom.systems.classification.kernel_self_distillation.recipe import SINE_TABLE, run_sine

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(25, 3)), DRAW.normal(size=(25, 2))
HELD, TRUTH = DRAW.normal(size=(12, 3)), DRAW.normal(size=(12, 2))
GAMMA, RIDGE = 0.3, 0.4
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def model(**options):
    return KernelSelfDistillation(**{"ridge": RIDGE, "gamma": GAMMA, "steps": 5, "label_weight": 0.35} | options)


def refitted(weights, points, y=Y, ridge=RIDGE):
    """Direct: fit, mix the targets, fit again."""
    targets, fitted = y, None
    for weight in [1.0, *weights]:
        targets = y if fitted is None else weight * y + (1 - weight) * fitted.predict(X)
        fitted = KernelRidge(alpha=ridge, kernel="rbf", gamma=GAMMA).fit(X, targets)
        yield fitted.predict(points)


@parametrize_with_checks(
    [KernelSelfDistillation(), KernelSelfDistillation(kernel="precomputed")],
    expected_failed_checks=lambda estimator: (
        {
            "check_positive_only_tag_during_fit": "random numbers are no kernel matrix",
            "check_estimators_dtypes": "rounded to float32 and back, it is semi-definite to 1e-7, not to 1e-8",
            "check_regressors_train": "rounded to float32 and back, it is semi-definite to 1e-7, not to 1e-8",
        }
        if estimator.kernel == "precomputed"
        else {}
    ),
)
def test_scikit_learns_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


class TestSteps:
    @pytest.mark.parametrize("weight", [0.0, 0.1, 0.35, 1.0])
    def test_closed_form_recursion_and_fitting_again_agree(self, weight):
        fitted = model(label_weight=weight, steps=7).fit(X, Y)
        by_sequence = model(label_weight=[weight] * 6, steps=7).fit(X, Y)
        for step, expected in enumerate(refitted([weight] * 6, HELD), start=1):
            np.testing.assert_allclose(fitted.predict_at(HELD, step), expected, **EXACT)
            np.testing.assert_allclose(by_sequence.predict_at(HELD, step), expected, **EXACT)
        np.testing.assert_allclose(fitted.predict(HELD), expected, **EXACT)
        np.testing.assert_allclose(list(fitted.staged_predict(HELD))[-1], expected, **EXACT)

    def test_the_filter_is_the_geometric_sum(self):
        d, a = np.array([3.0, 1.0, 0.2, 0.0]), 0.3
        first = d / (d + RIDGE)
        for step in range(1, 8):
            ratio = (1 - a) * first
            total = a * first * sum(ratio**i for i in range(step - 1)) + ratio ** (step - 1) * first
            np.testing.assert_allclose(spectral_filter(d, RIDGE, a, step), total, **EXACT)
        np.testing.assert_allclose(spectral_filter(d, RIDGE, a, math.inf), a * d / (a * d + RIDGE), **EXACT)

    def test_shares_that_differ_by_step(self):
        weights = [0.7, 0.0, 0.2]
        fitted = model(steps=4, label_weight=weights).fit(X, Y)
        np.testing.assert_allclose(list(fitted.staged_predict(HELD)), list(refitted(weights, HELD)), **EXACT)

    def test_the_first_step_is_scikit_learns_kernel_ridge(self):
        plain = KernelRidge(alpha=RIDGE, kernel="rbf", gamma=GAMMA).fit(X, Y)
        np.testing.assert_allclose(model(steps=1).fit(X, Y).predict(HELD), plain.predict(HELD), **EXACT)
        np.testing.assert_allclose(model(steps=1).fit(X, Y).dual_coef_, plain.dual_coef_, **EXACT)

    def test_the_limit_is_a_larger_ridge(self):
        larger = KernelRidge(alpha=RIDGE / 0.35, kernel="rbf", gamma=GAMMA).fit(X, Y)
        np.testing.assert_allclose(model(steps=math.inf).fit(X, Y).predict(HELD), larger.predict(HELD), **EXACT)
        np.testing.assert_allclose(model(steps=80).fit(X, Y).predict(HELD), larger.predict(HELD), **EXACT)

    def test_labels_alone_change_nothing(self):
        fitted = model(label_weight=1.0).fit(X, Y)
        for step in (2, 9, math.inf):
            np.testing.assert_allclose(fitted.predict_at(HELD, step), fitted.predict_at(HELD, 1), **EXACT)

    def test_without_labels_the_filter_is_a_power_and_the_function_dies(self):
        fitted = model(label_weight=0.0).fit(X, Y)
        first = fitted.spectral_filter(1)
        np.testing.assert_allclose(fitted.spectral_filter(6), first**6, **EXACT)
        sizes = [np.linalg.norm(fitted.predict_at(X, step)) for step in (1, 2, 5, 50, 500)]
        assert all(later < earlier for earlier, later in itertools.pairwise(sizes))
        assert sizes[-1] < 1e-6 * sizes[0]
        ratios = [fitted.spectral_filter(step)[0] / fitted.spectral_filter(step)[5] for step in (1, 2, 8)]
        assert ratios[0] < ratios[1] < ratios[2]  # small eigenvalues go first

    def test_the_distance_to_the_limit_falls_by_its_factor(self):
        fitted = model().fit(X, Y)
        limit = fitted.predict_at(X, math.inf)
        largest = fitted.eigenvalues_[0]
        factor = 0.65 * largest / (largest + RIDGE)
        gaps = [np.linalg.norm(fitted.predict_at(X, step) - limit) for step in range(1, 12)]
        assert all(later <= factor * earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(gaps))
        assert gaps[0] > 0.01

    def test_it_minimises_its_objective(self):
        kernel = rbf_kernel(X, gamma=GAMMA)
        fitted = model(steps=2).fit(X, Y)
        before, coefficients = fitted.predict_at(X, 1), fitted.dual_coef_

        def objective(alpha):
            said = kernel @ alpha
            norm = np.trace(alpha.T @ kernel @ alpha)
            mixture = 0.35 * ((said - Y) ** 2).sum() + 0.65 * ((said - before) ** 2).sum()
            return mixture / 2 + RIDGE * norm / 2

        nudges = np.random.default_rng(1).normal(size=(20, *coefficients.shape))
        assert all(objective(coefficients + 1e-3 * nudge) > objective(coefficients) for nudge in nudges)

    def test_an_eigenvalue_of_0_is_harmless(self):
        twice = np.concatenate([X, X])
        fitted = model(ridge=1e-3).fit(twice, np.concatenate([Y, Y]))
        assert abs(fitted.eigenvalues_[-1]) < 1e-12
        once = model(ridge=5e-4).fit(X, Y)
        np.testing.assert_allclose(fitted.predict(HELD), once.predict(HELD), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def fitted():
    return model(ridge=0.05, steps=5).fit_validated(X, Y, HELD, TRUTH)


class TestBestWeights:
    def error(self, weights):
        said = list(refitted(weights, HELD, ridge=0.05))[-1]
        return float(((said - TRUTH) ** 2).mean())

    def test_the_free_weight_has_derivative_0(self, fitted):
        chosen = [one.clipped for one in fitted.found_weights_]
        for number, one in enumerate(fitted.found_weights_):
            up, down = (self.error([*chosen[:number], one.unclipped + nudge]) for nudge in (1e-4, -1e-4))
            assert abs(up - down) / 2e-4 < 1e-6

    def test_the_clipped_weight_is_the_best_share(self, fitted):
        chosen = [one.clipped for one in fitted.found_weights_]
        assert any(one.clipped != one.unclipped for one in fitted.found_weights_)
        for number in range(len(chosen)):
            best = self.error(chosen[: number + 1])
            others = [self.error([*chosen[:number], float(other)]) for other in np.linspace(0, 1, 51)]
            assert best <= min(others) + 1e-12

    def test_the_model_has_the_chosen_weights(self, fitted):
        chosen = [one.clipped for one in fitted.found_weights_]
        np.testing.assert_allclose(fitted.predict(HELD), list(refitted(chosen, HELD, ridge=0.05))[-1], rtol=1e-8)
        assert fitted.label_weights_ == chosen

    def test_extrapolation_takes_the_free_weights(self):
        free = model(ridge=0.05, steps=3, extrapolate=True).fit_validated(X, Y, HELD, TRUTH)
        weights = [one.unclipped for one in free.found_weights_]
        assert any(not 0 <= one <= 1 for one in weights)
        np.testing.assert_allclose(free.predict(HELD), list(refitted(weights, HELD, ridge=0.05))[-1], rtol=1e-7)
        again = model(ridge=0.05, steps=3, label_weight=weights, extrapolate=True).fit(X, Y)
        np.testing.assert_allclose(again.predict(HELD), free.predict(HELD), rtol=1e-10)


class TestEstimator:
    def test_one_output_keeps_its_form(self):
        fitted = model().fit(X, Y[:, 0])
        assert fitted.predict(HELD).shape == (12,)
        np.testing.assert_allclose(fitted.predict(HELD), model().fit(X, Y).predict(HELD)[:, 0], **EXACT)

    def test_a_precomputed_kernel_is_the_same(self):
        given = model(kernel="precomputed").fit(rbf_kernel(X, gamma=GAMMA), Y)
        np.testing.assert_allclose(
            given.predict(rbf_kernel(HELD, X, gamma=GAMMA)), model().fit(X, Y).predict(HELD), **EXACT
        )

    def test_a_precomputed_kernel_may_be_in_float32(self):
        rounded = (X @ X.T).astype(np.float32)
        linear = model(kernel="linear").fit(X, Y)
        given = model(kernel="precomputed").fit(rounded, Y)
        np.testing.assert_allclose(given.predict(rounded), linear.predict(X), rtol=1e-3, atol=1e-4)

    def test_a_kernel_may_be_a_function(self):
        def dot(left, right, scale=1.0):
            return scale * float(left @ right)

        given = model(kernel=dot, kernel_params={"scale": 2.0}).fit(X, Y)
        linear = model(kernel="linear", ridge=RIDGE / 2).fit(X, Y)
        np.testing.assert_allclose(given.predict(HELD), linear.predict(HELD), **EXACT)

    def test_it_works_in_a_search(self):
        search = GridSearchCV(model(), {"ridge": [0.1, 1.0], "label_weight": [0.2, 1.0], "steps": [1, 3]}, cv=2)
        assert set(search.fit(X, Y).best_params_) == {"ridge", "label_weight", "steps"}

    def test_what_cannot_be_is_refused(self):
        for options, words in (
            ({"ridge": 0.0}, r"ridge must be a number above 0, given 0\.0"),
            ({"ridge": -1.0}, r"ridge must be a number above 0, given -1\.0"),
            ({"label_weight": 1.5}, r"share of the labels in \[0, 1\], given 1\.5.*extrapolate=True"),
            ({"label_weight": -0.1}, r"share of the labels in \[0, 1\], given -0\.1"),
            ({"label_weight": [0.5]}, "5 steps have 4 label weights .*given 1"),
            ({"steps": 0}, "steps are counted from 1 .*given 0"),
            ({"steps": 2.5}, r"steps are counted from 1 .*given 2\.5"),
            (
                {"steps": math.inf, "label_weight": -1.0, "extrapolate": True},
                r"limit needs a label_weight.*given -1\.0",
            ),
        ):
            with pytest.raises(ValueError, match=words):
                model(**options).fit(X, Y)
        with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[25, 24\]"):
            model().fit(X, Y[:-1])
        with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[12, 11\]"):
            model().fit_validated(X, Y, HELD, TRUTH[:-1])
        with pytest.raises(ValueError, match="y_validation has 1 outputs, but y has 2"):
            model().fit_validated(X, Y, HELD, TRUTH[:, 0])
        with pytest.raises(ValueError, match="given steps=inf"):
            model(steps=math.inf).fit_validated(X, Y, HELD, TRUTH)
        with pytest.raises(ValueError, match="given steps=inf"):
            list(model(steps=math.inf).fit(X, Y).staged_predict(HELD))
        with pytest.raises(ValueError, match=r"step 9 needs 8 label weights .*given 4"):
            model(label_weight=[0.5] * 4).fit(X, Y).predict_at(HELD, 9)
        with pytest.raises(ValueError, match=r"limit belongs to one label weight.*0\.5"):
            dual_filter([1.0], 1.0, [0.5, 0.2], math.inf)

    def test_a_matrix_that_is_no_kernel_is_refused(self):
        with pytest.raises(ValueError, match=r"positive semi-definite, given eigenvalues from -1 to 2"):
            model(kernel="precomputed").fit(np.diag([2.0, -1.0]), np.zeros(2))
        with pytest.raises(ValueError, match=r"positive semi-definite, given eigenvalues from -1e-07 to 2"):
            model(kernel="precomputed").fit(np.diag([2.0, -1e-7]), np.zeros(2))
        with pytest.raises(ValueError, match="must be symmetric"):
            model(kernel="precomputed").fit(np.array([[1.0, 0.5], [0.0, 1.0]]), np.zeros(2))
        almost = np.diag([2.0, -1e-9])  # rounding
        model(kernel="precomputed").fit(almost, np.zeros(2))

    def test_the_limit_without_labels_is_the_zero_function_with_a_warning(self):
        with pytest.warns(UserWarning, match="zero function"):
            fitted = model(label_weight=0.0, steps=math.inf).fit(X, Y)
        assert not fitted.predict(HELD).any()

    def test_a_ridge_that_float64_cannot_see_is_warned_of(self):
        with pytest.warns(LinAlgWarning, match=r"ridge 1e-13 is singular"):
            model(ridge=1e-13, gamma=1e-3).fit(X, Y)


@pytest.mark.parametrize("weight", SINE_TABLE)
def test_the_published_table_to_five_decimals(weight):
    found = run_sine(0, None, label_weight=weight)
    assert found["largest_difference"] < 6e-6
    assert len(found) == 8


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory):
    return recipe(long=200).run(seeds=(100, 101), folder=tmp_path_factory.mktemp("kernel") / "run", progress=False)


def test_the_recipe_runs(small_run):
    assert set(small_run["arms"]) == {
        *("first fit", "labels 0", "labels 0, stopped", "labels 0.1", "labels 0.35", "labels 0.6"),
        *("best labels per step", "tuned ridge", "tuned ridge, labels 0.35"),
    }
    assert small_run["arms"]["tuned ridge"]["role"] == "control"
    verdicts = {claim["on"]: claim["verdict"] for claim in small_run["claims"]}
    assert verdicts["limit_gap"] == verdicts["validation_excess"] == "shown"


def test_the_recipe_takes_arrays_and_refuses_strange_weights(tmp_path):
    experiment = recipe((X.repeat(2, axis=0), Y[:, 0].repeat(2)), gamma=0.3)
    found = experiment.tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert "best labels per step" in found["arms"]
    with pytest.raises(ValueError, match=r"with 0\.35 among them, given \(0\.1,\)"):
        recipe(label_weights=(0.1,))


def test_the_sine_runs(tmp_path):
    found = recipe("sine").run(seeds=(100, 101, 102), folder=tmp_path / "run", progress=False)
    assert [claim["verdict"] for claim in found["claims"]] == ["shown"] * 4


@pytest.mark.parametrize("name", ["digits", "paper"])
def test_the_networks_run(tmp_path: Path, name):
    import torch

    data = (torch.rand(300, 3, 8, 8), torch.arange(300) % 5)
    experiment = recipe("digits", student="mlp-8") if name == "digits" else paper(data, student="conv-4", steps=2)
    found = experiment.tiny().run(seeds=(100,), folder=tmp_path / "run", progress=False)
    assert {"first step", "labels 0", "labels 1", "best of the grid", "estimated"} <= set(found["arms"])
    assert found["arms"]["labels 1"]["role"] == "control"
    assert found["arms"]["best of the grid"]["metrics"]["trainings"] == [5.0 if name == "digits" else 11.0]
    json.dumps(found)


def test_the_papers_settings():
    setting = paper().arms["estimated"].keywords["setting"]
    assert (setting.training.epochs, setting.training.batch_size, setting.steps) == (75, 16, 5)
    assert (setting.training.optimizer.name, setting.training.optimizer.lr) == ("adam", 1e-4)
    assert setting.grid == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert setting.label_noise == 0
