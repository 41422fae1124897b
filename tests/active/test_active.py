"""Pools, oracles, query strategies and rounds, against scikit-activeml's conventions and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skactiveml.base import SingleAnnotatorPoolQueryStrategy
from skactiveml.pool import RandomSampling, SubSamplingWrapper, UncertaintySampling
from sklearn.base import clone
from torch import nn

from stillroom.active import (
    ENTROPY,
    LEAST_CONFIDENT,
    MARGIN,
    UNKNOWN,
    KnownFirst,
    Oracle,
    PoolQuery,
    RandomQuery,
    UncertaintyQuery,
    check_probabilities,
    learn_actively,
    min_max,
    open_set_labels,
    predict,
)
from stillroom.training import Training

SHORT = Training(epochs=2, batch_size=32)


def linear(outputs):
    return nn.Linear(5, outputs)


def pool(size=60, seed=0):
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(size, 5)).astype(np.float32)
    y = np.full(size, np.nan)
    y[:12] = [0, 1] * 4 + [UNKNOWN] * 4
    return X, y


def strategies():
    options = {"classes": 2, "training": SHORT, "random_state": 0}
    return [RandomQuery(random_state=0), UncertaintyQuery(linear, **options), KnownFirst(linear, **options)]


class TestInformativeness:
    def test_by_hand(self):
        p = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
        assert LEAST_CONFIDENT.confidence(p).tolist() == pytest.approx([0.7, 1 / 3])
        assert MARGIN.confidence(p).tolist() == pytest.approx([0.5, 0.0])
        entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
        assert ENTROPY.confidence(p).tolist() == pytest.approx([-entropy, -math.log(3)])
        assert ENTROPY.uncertainty(p).tolist() == pytest.approx([entropy / math.log(3), 1.0])

    @pytest.mark.parametrize("measure", [LEAST_CONFIDENT, MARGIN, ENTROPY], ids=lambda m: m.name)
    def test_confidence_and_uncertainty_order_the_other_way_round(self, measure):
        p = torch.randn(50, 4, dtype=torch.float64).softmax(1)
        assert measure.confidence(p).argsort().equal(measure.uncertainty(p).argsort(descending=True))
        assert 0 <= float(measure.uncertainty(p).min()) <= float(measure.uncertainty(p).max()) <= 1

    def test_certainty_is_finite(self):
        assert float(ENTROPY.uncertainty(torch.tensor([[1.0, 0.0]]))) == 0

    def test_min_max(self):
        assert min_max(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
        assert min_max(torch.tensor([2.0, 2.0])).tolist() == [0.0, 0.0]
        assert min_max(torch.zeros(0)).tolist() == []

    def test_what_is_no_probability_is_refused(self):
        with pytest.raises(
            ValueError, match="every row of p must be 0 or more and sum to 1, given a row that sums to 2"
        ):
            check_probabilities(p=torch.ones(3, 2))
        check_probabilities(total=None, p=torch.ones(3, 2))
        with pytest.raises(ValueError, match="the same positive number, given a row that sums to 3"):
            check_probabilities(total=None, p=torch.tensor([[1.0, 1.0], [1.0, 2.0]]))
        with pytest.raises(ValueError, match=r"p must be probabilities \(N, K\) of 2 or more classes, given \(3, 1\)"):
            check_probabilities(p=torch.ones(3, 1))


class TestOracle:
    def test_it_counts(self):
        oracle = Oracle([0, 1, UNKNOWN, 1])
        assert oracle.ask([2, 0]).tolist() == [UNKNOWN, 0]
        assert oracle.ask([1]).tolist() == [1]
        assert (oracle.accesses, oracle.log) == (3, [[2, 0], [1]])

    def test_a_label_is_bought_once(self):
        oracle = Oracle([0, 1, 1])
        oracle.ask([1])
        with pytest.raises(ValueError, match=r"samples \[1\] were asked for already"):
            oracle.ask([0, 1])
        with pytest.raises(ValueError, match=r"samples \[2\] were asked for already"):
            oracle.ask([2, 2])
        assert oracle.accesses == 1

    def test_what_it_does_not_know_is_refused(self):
        with pytest.raises(IndexError, match="knows samples 0 to 2, asked for 1 to 3"):
            Oracle([0, 1, 1]).ask([1, 3])
        with pytest.raises(ValueError, match="must be a vector of integers"):
            Oracle([0.5, 1.0])

    def test_open_set_labels(self):
        assert open_set_labels([3, 5, 9, 3], [5, 3]).tolist() == [1, 0, UNKNOWN, 1]
        with pytest.raises(ValueError, match=r"two or more different classes, given \[3\]"):
            open_set_labels([3], [3])


class TestQuery:
    @pytest.mark.parametrize("strategy", strategies(), ids=lambda s: type(s).__name__)
    def test_answers_have_the_form_of_scikit_activeml(self, strategy):
        X, y = pool()
        rows, utilities = strategy.query(X, y, batch_size=5, return_utilities=True)
        theirs, their_utilities = RandomSampling(random_state=0).query(X, y, batch_size=5, return_utilities=True)
        assert rows.shape == theirs.shape
        assert utilities.shape == their_utilities.shape
        assert rows.dtype.kind == theirs.dtype.kind == "i"
        assert np.isnan(utilities[:, :12]).all()
        assert np.isnan(their_utilities[:, :12]).all()
        for step in range(5):  # each row is the state before a choice: what was chosen has gone, the best is chosen
            assert np.isnan(utilities[step, rows[:step]]).all()
            assert np.nanargmax(utilities[step]) == rows[step] or utilities[step, rows[step]] == np.nanmax(
                utilities[step]
            )
        assert len(set(rows.tolist()) - set(range(12))) == 5

    @pytest.mark.parametrize("strategy", strategies(), ids=lambda s: type(s).__name__)
    def test_candidates_limit_the_choice(self, strategy):
        X, y = pool()
        assert set(strategy.query(X, y, candidates=[20, 30, 40], batch_size=3).tolist()) == {20, 30, 40}

    @pytest.mark.parametrize("strategy", strategies(), ids=lambda s: type(s).__name__)
    def test_it_can_be_cloned_and_repeated(self, strategy):
        X, y = pool()
        again = clone(strategy)
        assert strategy.query(X, y, batch_size=4).tolist() == again.query(X, y, batch_size=4).tolist()

    def test_it_works_inside_wrappers_of_scikit_activeml(self):
        SingleAnnotatorPoolQueryStrategy.register(PoolQuery)
        X, y = pool()
        wrapped = SubSamplingWrapper(RandomQuery(random_state=0), max_candidates=10, random_state=0)
        assert len(wrapped.query(X, y, batch_size=3)) == 3

    def test_uncertainty_is_that_of_the_classifier(self):
        X, y = pool()
        y[y == UNKNOWN] = 0
        strategy = UncertaintyQuery(linear, classes=2, training=SHORT, random_state=0)
        rows = strategy.query(X, y, batch_size=48)
        p = predict(strategy.classifier_, torch.from_numpy(X[12:]))
        expected = 12 + (p[:, 0] - p[:, 1]).abs().argsort(stable=True)
        assert rows.tolist() == expected.tolist()

    def test_it_agrees_with_scikit_activeml_on_the_same_probabilities(self):
        from skactiveml.classifier import SklearnClassifier
        from sklearn.linear_model import LogisticRegression

        X, y = pool()
        y[y == UNKNOWN] = 1
        fitted = SklearnClassifier(LogisticRegression(), classes=[0, 1]).fit(X, y)
        theirs = UncertaintySampling("margin_sampling", random_state=0).query(X, y, clf=fitted, batch_size=6)
        p = torch.from_numpy(fitted.predict_proba(X[12:]))
        ours = 12 + MARGIN.uncertainty(p).argsort(descending=True)[:6]
        assert ours.tolist() == theirs.tolist()

    def test_known_first_finds_what_is_wanted(self):
        X, y = pool(200)
        X[:, 0] = np.where(np.arange(200) % 2, 3.0, -3.0)  # odd rows are wanted
        y[:12] = [UNKNOWN, 0, UNKNOWN, 1] * 3
        strategy = KnownFirst(linear, classes=2, training=Training(epochs=200, batch_size=32), random_state=0)
        assert np.mean(strategy.query(X, y, batch_size=40) % 2) > 0.9

    def test_bad_input_is_refused(self):
        X, y = pool()
        query = RandomQuery(random_state=0).query
        with pytest.raises(ValueError, match=r"batch_size must lie in \[1, 48\], the number of candidates, given 49"):
            query(X, y, batch_size=49)
        with pytest.raises(ValueError, match=r"one label \(or NaN\) per sample of X, given \(59,\) for 60"):
            query(X, y[1:])
        with pytest.raises(ValueError, match="candidates must be rows without a label, each named once"):
            query(X, y, candidates=[3, 20])
        with pytest.raises(ValueError, match="candidates must be rows without a label, each named once"):
            query(X, y, candidates=[20, 20])
        X[3, 3] = np.nan
        with pytest.raises(ValueError, match="X holds NaN or infinite values"):
            query(X, y)

    def test_strange_labels_are_refused(self):
        X, y = pool()
        y[0] = 2
        with pytest.raises(
            ValueError, match=r"class numbers 0 to 1, -1 for samples of no wanted class.*given \[2\.0\]"
        ):
            UncertaintyQuery(linear, classes=2).query(X, y)
        with pytest.raises(ValueError, match="classes must be 2 or more, given 1"):
            UncertaintyQuery(linear, classes=1).query(X, y)
        with pytest.raises(ValueError, match="at least one labelled sample, given none"):
            UncertaintyQuery(linear, classes=2).query(X, np.full(60, np.nan))


class TestRounds:
    def test_every_label_is_bought_once_and_only_by_asking(self):
        X, _ = pool()
        hidden = np.arange(60) % 3 - 1
        oracle = Oracle(hidden)
        measured = []
        y, history = learn_actively(
            RandomQuery(random_state=1), X, oracle, [0, 1, 2, 3], rounds=4, batch_size=10,
            measure=lambda strategy, X, y: measured.append(int((~np.isnan(y)).sum())) or {"labels": measured[-1]},
        )  # fmt: skip
        bought = [row for one in history for row in one.queried]
        assert len(set(bought)) == len(bought) == 40
        assert oracle.accesses == 44 == history[-1].bought
        assert measured == [14, 24, 34, 44] == [int(one.measured["labels"]) for one in history]
        known = ~np.isnan(y)
        assert (y[known] == hidden[known]).all()
        assert known.sum() == 44
        assert history[0].known_share == np.mean(hidden[history[0].queried] != UNKNOWN)

    def test_a_budget_beyond_the_pool_is_refused(self):
        X, _ = pool()
        with pytest.raises(ValueError, match="4 rounds of 20 after 1 initial labels do not fit a pool of 60"):
            learn_actively(RandomQuery(), X, Oracle([0] * 60), [0], rounds=4, batch_size=20)
        with pytest.raises(ValueError, match="the pool has 60 samples, but the oracle knows 59"):
            learn_actively(RandomQuery(), X, Oracle([0] * 59), [0], rounds=1, batch_size=2)
