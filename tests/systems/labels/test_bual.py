"""BUAL: its score, its negative head, and that it reads no label that was not bought."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.active import ENTROPY, LEAST_CONFIDENT, MARGIN, UNKNOWN, Oracle, learn_actively, min_max
from stillroom.check import check_method
from stillroom.data.batch import Batch
from stillroom.data.samples import TensorSamples
from stillroom.fit import fit
from stillroom.systems.labels.bual import BUAL, NegativeLearning, bidirectional_score, bidirectional_uncertainty, paper
from stillroom.systems.labels.bual import recipe as bual_recipe
from stillroom.training import Optim, Training

SHORT = Training(epochs=3, batch_size=32)


def mlp(outputs):
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, outputs))


def probabilities(rows=30, classes=4):
    return torch.randn(rows, classes, dtype=torch.float64).softmax(1)


def strategy(**options):
    return BUAL(mlp, **{"classes": 3, "training": SHORT, "negative_training": SHORT, "subset": 20} | options)


def pool(size=80):
    draw = np.random.default_rng(0)
    X = draw.normal(size=(size, 5)).astype(np.float32)
    hidden = np.argmax(X[:, :4], 1)
    return X, np.where(hidden == 3, UNKNOWN, hidden)


@pytest.mark.parametrize("measure", [LEAST_CONFIDENT, MARGIN, ENTROPY], ids=lambda m: m.name)
class TestScore:
    def test_what_is_certainly_wanted_is_ordered_by_the_classifier(self, measure):
        negative, positive = probabilities(), probabilities()
        score = bidirectional_score(negative, positive, torch.zeros(30), ratio=1.0, informativeness=measure)
        assert score.argsort().equal(measure.confidence(positive).argsort())

    def test_what_is_certainly_unwanted_is_ordered_by_the_negative_head(self, measure):
        negative, positive = probabilities(), probabilities()
        unknown = torch.ones(30, dtype=torch.float64)
        paper_form = bidirectional_uncertainty(negative, positive, unknown, ratio=1.0, informativeness=measure)
        assert paper_form.argsort(descending=True).equal(measure.confidence(negative).argsort())
        unknown[0] = 0  # rescaled over the candidates: one of them must be wanted for the others to be unwanted
        score = bidirectional_score(negative, positive, unknown, ratio=1.0, informativeness=measure)
        assert score[1:].argsort().equal(min_max(measure.confidence(negative))[1:].argsort())

    def test_without_unwanted_labels_and_ratio_only_the_negative_head_counts(self, measure):
        negative, positive = probabilities(), probabilities()
        score = bidirectional_score(negative, positive, None, ratio=0.0, informativeness=measure)
        assert score.argsort().equal(measure.confidence(negative).argsort())

    def test_the_two_forms_are_two_orders(self, measure):
        negative, positive, unknown = probabilities(), probabilities(), torch.rand(30, dtype=torch.float64)
        options = {"ratio": 0.3, "informativeness": measure}
        score = bidirectional_score(negative, positive, unknown, **options)
        papers = bidirectional_uncertainty(negative, positive, unknown, **options)
        assert not score.argsort().equal(papers.argsort(descending=True))


def test_summed_snapshots_are_scored_as_averaged_ones_by_margins():
    negative, positive, unknown = probabilities(), probabilities(), torch.rand(30, dtype=torch.float64)
    once = bidirectional_score(negative, positive, unknown, ratio=0.4)
    torch.testing.assert_close(once, bidirectional_score(7 * negative, positive, unknown, ratio=0.4))


def test_bad_scores_are_refused():
    good, unknown = probabilities(), torch.rand(30)
    with pytest.raises(ValueError, match="every row of positive_probabilities must be 0 or more and sum to 1"):
        bidirectional_score(good, 2 * good, unknown, ratio=0.5)
    with pytest.raises(ValueError, match=r"ratio is a share of samples in \[0, 1\], given 1\.5"):
        bidirectional_score(good, good, unknown, ratio=1.5)
    with pytest.raises(ValueError, match=r"unknown_probabilities must lie in \[0, 1\], given"):
        bidirectional_uncertainty(good, good, unknown + 1, ratio=0.5)


class TestNegativeLearning:
    def test_the_battery(self):
        batch = Batch(torch.randn(10, 5), torch.arange(10) % 3, torch.arange(10))
        report = check_method(NegativeLearning(mlp(3)), batch, processes=False, raises=False)
        assert report.ok, str(report)

    def test_it_learns_from_complements_alone(self):
        X = torch.randn(300, 5)
        labels = X[:, :3].argmax(1)
        method = NegativeLearning(mlp(3))
        training = Training(epochs=60, batch_size=64, optimizer=Optim("adam", lr=0.01))
        product = fit(method, TensorSamples(X, labels), training, progress=False, device="cpu").product
        assert float((product(X).argmax(1) == labels).double().mean()) > 0.9

    def test_snapshots_begin_after_the_first_epochs(self):
        X = torch.randn(40, 5)
        method = NegativeLearning(mlp(3), pool=X, snapshot_every=5)
        training = Training(epochs=20, batch_size=20, optimizer=Optim("sgd", lr=0.1))
        fit(method, TensorSamples(X, torch.full((40,), -100)), training, progress=False, device="cpu")
        assert len(method.snapshots) == 3  # after 5, 10 and 15 epochs; the last state makes four
        torch.testing.assert_close(method.collected().sum(1), torch.ones(40))
        with pytest.raises(ValueError, match="there is no pool"):
            NegativeLearning(mlp(3)).collected()
        with pytest.raises(ValueError, match="1 or more, given 0"):
            NegativeLearning(mlp(3), snapshot_every=0)


class TestQuery:
    def test_no_label_is_read_before_it_is_bought(self):
        X, hidden = pool()

        class Watched(Oracle):
            def ask(self, rows):
                answers = super().ask(rows)
                self._labels = self._labels.copy()
                self._labels[rows] = 99  # whoever looks again without asking sees nonsense
                return answers

        oracle = Watched(hidden)
        first = np.flatnonzero(hidden != UNKNOWN)[:9].tolist()
        chooser = strategy(random_state=np.random.RandomState(0))
        y, history = learn_actively(chooser, X, oracle, first, rounds=3, batch_size=8)
        bought = [row for one in history for row in one.queried]
        assert len(set(bought) | set(first)) == 33 == oracle.accesses
        assert (y[bought] == hidden[bought]).all()
        assert chooser.ratio_ == max(history[1].known_share, 1e-3)

    def test_the_ratio_starts_at_nothing_and_never_vanishes_again(self):
        X, hidden = pool()
        y = np.full(80, np.nan)
        y[np.flatnonzero(hidden != UNKNOWN)[:9]] = hidden[np.flatnonzero(hidden != UNKNOWN)[:9]]
        chooser = strategy(random_state=np.random.RandomState(0))
        rows = chooser.query(X, y, batch_size=4)
        assert chooser.ratio_ == 0
        assert chooser.unknown_ is None
        y[rows] = UNKNOWN
        chooser.query(X, y, batch_size=4)
        assert chooser.ratio_ == 1e-3
        assert chooser.unknown_ is not None

    def test_what_seems_unwanted_comes_last_and_the_least_unwanted_of_it_first(self):
        X, hidden = pool()
        y = np.full(80, np.nan)
        y[:12] = hidden[:12]

        class Told(BUAL):
            def ask_auxiliary(self, X, y, candidates):
                unknown = torch.linspace(0.9, 0.6, len(candidates), dtype=torch.float64)
                unknown[:3] = 0.1
                rest = (1 - unknown) / 3
                return torch.stack([rest, rest, rest, unknown], 1)

        told = Told(mlp, classes=3, training=SHORT, negative_training=SHORT, subset=20, random_state=0)
        rows = told.query(X, y, batch_size=6)
        candidates = np.flatnonzero(np.isnan(y))
        assert set(rows[:3]) == set(candidates[:3])
        assert rows[3:].tolist() == candidates[::-1][:3].tolist()

    def test_equal_seeds_give_equal_queries(self):
        X, hidden = pool()
        y = np.full(80, np.nan)
        y[:12] = hidden[:12]
        rows = [strategy(random_state=3).query(X, y, batch_size=6).tolist() for _ in range(2)]
        assert rows[0] == rows[1]

    def test_bad_input_is_refused(self):
        X, hidden = pool()
        y = np.full(80, np.nan)
        y[:12] = hidden[:12]
        with pytest.raises(ValueError, match="classes must be 2 or more, given 1"):
            strategy(classes=1).query(X, y)
        with pytest.raises(ValueError, match=r"batch_size must lie in \[1, 68\]"):
            strategy().query(X, y, batch_size=69)
        with pytest.raises(ValueError, match=r'form must be "confidence" or "paper", given \'other\''):
            strategy(form="other").query(X, y)
        y[0] = 7
        with pytest.raises(ValueError, match=r"given \[7\.0\]"):
            strategy().query(X, y)


def test_the_recipe_runs_in_small_and_the_budget_is_kept():
    results = bual_recipe().tiny().run([0], progress=False, device="cpu")
    assert set(results["arms"]) >= {"random", "margin", "bual", "shuffled", "bual, closed pool"}
    assert len(results["claims"]) == 7
    assert {arm["steps"][0] for arm in results["arms"].values()} == {32}  # 12 at first and 2 x 10
    assert results["arms"]["shuffled"]["role"] == "control"


def test_the_papers_settings_run_in_small():
    given = paper(data="digits", network="conv-4-8").tiny()
    assert given.arms["bual"].keywords["setting"].budget == 1500
    results = given.run([0], progress=False, device="cpu")
    assert 0 <= results["arms"]["bual"]["mean"] <= 1
