"""The strategy: two uncertainties from two heads, and the score that joins them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.active import (
    MARGIN,
    UNKNOWN,
    Informativeness,
    UncertaintyQuery,
    check_probabilities,
    min_max,
    predict,
)
from stillroom.blocks.heads import with_fresh_head
from stillroom.checkpoint import seed_everything
from stillroom.data.batch import UNLABELLED, Batch
from stillroom.data.samples import TensorSamples
from stillroom.fit import fit
from stillroom.losses import complementary_labels, negative_learning_loss
from stillroom.method import Losses, Method, Needs
from stillroom.training import Optim, Training

SMALLEST_RATIO = 1e-3


def bidirectional_score(
    negative_scores: Tensor,
    positive_probabilities: Tensor,
    unknown_probabilities: Tensor | None,
    *,
    ratio: float,
    informativeness: Informativeness = MARGIN,
) -> Tensor:
    """Score of the published code; the SMALLEST are queried.

    With confidences c- of the negative head, c+ of the positive classifier and the probability a of being unwanted,
    each brought to [0, 1] over the candidates: `a c- + r (1 - a) c+`. Before any unwanted sample is labelled:
    `c- + r c+`.

    Args:
        negative_scores: `(N, K)`, the negative head's probabilities, averaged or summed over snapshots.
        positive_probabilities: `(N, K)`, the wanted classifier's.
        unknown_probabilities: `(N,)` in [0, 1]; None where no unwanted sample is labelled yet.
        ratio: r, the share of wanted samples in the last query, in [0, 1].
        informativeness: how sure is measured.

    Returns:
        `(N,)`.

    Raises:
        ValueError: what cannot be probabilities, or a ratio outside [0, 1].

    Source: Zong et al. 2024, arXiv:2402.15198, the released sampling code.
    """
    check_probabilities(positive_probabilities=positive_probabilities)
    check_probabilities(negative_scores=negative_scores, total=None)
    _check_ratio(ratio, unknown_probabilities)
    negative = min_max(informativeness.confidence(negative_scores))
    positive = min_max(informativeness.confidence(positive_probabilities))
    if unknown_probabilities is None:
        return negative + ratio * positive
    unknown = min_max(unknown_probabilities)
    return unknown * negative + ratio * (1 - unknown) * positive


def bidirectional_uncertainty(
    negative_probabilities: Tensor,
    positive_probabilities: Tensor,
    unknown_probabilities: Tensor | None,
    *,
    ratio: float,
    informativeness: Informativeness = MARGIN,
) -> Tensor:
    """Equation 3 of the paper; the LARGEST are queried: `a u- + r (1 - a) u+`, without rescaling.

    Args:
        negative_probabilities: `(N, K)`, averaged over snapshots.
        positive_probabilities: `(N, K)`.
        unknown_probabilities: `(N,)` in [0, 1]; None (no unwanted sample is labelled yet) gives `u- + r u+`.
        ratio: r in [0, 1].
        informativeness: whose uncertainty is used.

    Returns:
        `(N,)`.

    Raises:
        ValueError: what cannot be probabilities, or a ratio outside [0, 1].

    Source: Zong et al. 2024, arXiv:2402.15198, equation 3; the margin is `1 - (p1 - p2)` and the entropy the whole sum,
        as the paper's text and code have it against its equations 5 and 6.
    """
    check_probabilities(negative_probabilities=negative_probabilities, positive_probabilities=positive_probabilities)
    _check_ratio(ratio, unknown_probabilities)
    negative = informativeness.uncertainty(negative_probabilities)
    positive = informativeness.uncertainty(positive_probabilities)
    if unknown_probabilities is None:
        return negative + ratio * positive
    return unknown_probabilities * negative + ratio * (1 - unknown_probabilities) * positive


def _check_ratio(ratio: float, unknown: Tensor | None) -> None:
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is a share of samples in [0, 1], given {ratio}")
    if unknown is not None and len(unknown) and not 0 <= float(unknown.min()) <= float(unknown.max()) <= 1:
        raise ValueError(
            f"unknown_probabilities must lie in [0, 1], given {float(unknown.min()):g} to {float(unknown.max()):g}"
        )


class NegativeLearning(Method):
    """Trains a classifier on classes that its samples do not belong to, one drawn anew for every sample and step.

    Args:
        student: inputs -> logits `(N, K)`.
        pool: `(M, ...)` inputs whose probabilities are collected on the way; None for none.
        snapshot_every: epochs between two collections.

    Losses:
        negative: `stillroom.losses.negative_learning_loss`; a labelled sample never gets its own label.

    Source: Zong et al. 2024, arXiv:2402.15198, section 3.2.
    """

    needs = Needs(labels="some", teacher=False, whole_batch="complementary labels are drawn anew in every step")

    def __init__(self, student: nn.Module, teacher: Any = None, *, pool: Tensor | None = None, snapshot_every: int = 5):
        super().__init__(student)
        if snapshot_every < 1:
            raise ValueError(f"snapshot_every is a number of epochs of 1 or more, given {snapshot_every}")
        self.pool = pool
        self.snapshot_every = snapshot_every
        self.snapshots: list[Tensor] = []

    def forward(self, batch: Batch) -> Losses:
        """Return the negative learning loss of a batch."""
        logits = self.student(batch.inputs)
        labels = batch.labels
        if labels is None:
            labels = torch.full((len(batch),), UNLABELLED, device=logits.device)
        drawn = complementary_labels(labels, logits.shape[1])
        return Losses(negative=negative_learning_loss(logits, drawn), outputs=logits)

    def after_step(self, player: str) -> None:
        """Collect the pool's probabilities after every `snapshot_every` epochs."""
        if self.pool is None:
            return
        due = int((self.clock.epoch + 1e-6) // self.snapshot_every)  # epochs that were complete before this step
        if due > len(self.snapshots):
            self.snapshots.append(predict(self.student, self.pool))

    def collected(self) -> Tensor:
        """Average of the snapshots, the last state included: `(M, K)`."""
        if self.pool is None:
            raise ValueError("there is no pool to collect probabilities of: pass pool=")
        return torch.stack([*self.snapshots, predict(self.student, self.pool)]).mean(dim=0)


class BUAL(UncertaintyQuery):
    """Chooses what to label in an open-set pool by positive and negative uncertainty.

    Ask it round after round: it remembers what it asked for last and reads from `y` how much of that was wanted.

    Args:
        network: number of outputs -> a module that takes rows of X; it ends in a linear layer.
        classes: wanted classes K, two or more, numbered from 0 in `y`.
        informativeness: LEAST_CONFIDENT, MARGIN or ENTROPY of `stillroom.active`.
        form: "confidence" as the released code, "paper" as equation 3.
        training: of the wanted and of the auxiliary classifier.
        negative_training: of the negative head.
        subset: unlabelled samples that negative learning sees, drawn uniformly.
        snapshot_every: epochs between two predictions of the pool.
        random_state: of weights, orders and the subset.
        device: None for the machine's own choice.

    Attributes:
        classifier_: the wanted classifier of the last query, which is what ships.
        ratio_: share of wanted samples in the query before.
        unknown_: `(M,)` the candidates' probability of being unwanted; None where no unwanted sample is labelled yet.
        negative_: `(M, K)` the candidates' probabilities under the negative head.
        candidates_: their row numbers.

    Source: Zong et al. 2024, arXiv:2402.15198.

    Example:
        >>> X, y = torch.randn(40, 5), np.full(40, np.nan)
        >>> y[:8] = [0, 1, 0, 1, 0, 1, -1, -1]  # -1: belongs to no wanted class
        >>> short = Training(epochs=2)
        >>> bual = BUAL(lambda outputs: nn.Linear(5, outputs), classes=2, training=short, negative_training=short)
        >>> rows = bual.query(X, y, batch_size=4)  # ask somebody, write the answers into y, query again
        >>> len(set(rows.tolist()) - set(range(8)))
        4
    """

    def __init__(
        self,
        network: Callable[[int], nn.Module],
        *,
        classes: int,
        informativeness: Informativeness = MARGIN,
        form: Literal["confidence", "paper"] = "confidence",
        training: Training | None = None,
        negative_training: Training | None = None,
        subset: int = 5000,
        snapshot_every: int = 5,
        random_state: Any = None,
        device: str | None = None,
    ) -> None:
        super().__init__(
            network,
            classes=classes,
            informativeness=informativeness,
            training=training,
            random_state=random_state,
            device=device,
        )
        self.form = form
        self.negative_training = negative_training
        self.subset = subset
        self.snapshot_every = snapshot_every

    def utilities(self, X: Tensor, y: np.ndarray[Any, Any], candidates: np.ndarray[Any, Any], batch_size: int) -> Any:
        """How much a label is worth; candidates that seem unwanted come last, the least unwanted of them first."""
        if self.form not in ("confidence", "paper"):
            raise ValueError(f'form must be "confidence" or "paper", given {self.form!r}')
        self.ratio_ = self._ratio(y)
        self.candidates_ = candidates
        self.classifier_ = self.train_known(X, y)
        positive = predict(self.classifier_, X[candidates])
        unknown, kept = None, torch.ones(len(candidates), dtype=torch.bool)
        if (y == UNKNOWN).any():
            every = self.ask_auxiliary(X, y, candidates)
            unknown, kept = every[:, self.classes], every.argmax(dim=1) != self.classes
        self.unknown_ = unknown
        self.negative_ = self._negative(X, y, candidates)
        values = torch.empty(len(candidates), dtype=torch.float64)
        chosen = None if unknown is None else unknown[kept]
        values[kept] = self.value(self.negative_[kept], positive[kept], chosen).double()
        if unknown is not None and not bool(kept.all()):
            lowest = float(values[kept].min()) if bool(kept.any()) else 0.0
            values[~kept] = lowest - 1 - unknown[~kept].double()
        return values.numpy()

    def value(self, negative: Tensor, positive: Tensor, unknown: Tensor | None) -> Tensor:
        """What the candidates that count are ordered by, larger first: `(M,)`."""
        if not len(positive):
            return positive.new_zeros(0)
        options = {"ratio": self.ratio_, "informativeness": self.informativeness}
        if self.form == "paper":
            return bidirectional_uncertainty(negative, positive, unknown, **options)  # type: ignore[arg-type]
        return -bidirectional_score(negative, positive, unknown, **options)  # type: ignore[arg-type]

    def ask_auxiliary(self, X: Tensor, y: np.ndarray[Any, Any], candidates: np.ndarray[Any, Any]) -> Tensor:
        """Train the auxiliary classifier; `(M, K + 1)` probabilities of the candidates, the unwanted class last."""
        return predict(self.train_auxiliary(X, y), X[candidates])

    def _ratio(self, y: np.ndarray[Any, Any]) -> float:
        last = getattr(self, "last_query_", None)
        if last is None or np.isnan(y[last]).any():
            return 0.0
        return max(float((y[last] != UNKNOWN).mean()), SMALLEST_RATIO)

    def _negative(self, X: Tensor, y: np.ndarray[Any, Any], candidates: np.ndarray[Any, Any]) -> Tensor:
        """Keep the classifier's backbone, give it a fresh head, teach it what samples are not, and ask on the way."""
        known = np.flatnonzero(~np.isnan(y) & (y != UNKNOWN))
        some = self._random.choice(candidates, size=min(self.subset, len(candidates)), replace=False)
        rows = np.concatenate([known, some])
        labels = torch.full((len(rows),), UNLABELLED)
        labels[: len(known)] = torch.from_numpy(y[known]).long()
        seed = self._seed()
        seed_everything(seed)
        head = with_fresh_head(self.classifier_)
        method = NegativeLearning(head, pool=X[candidates], snapshot_every=self.snapshot_every)
        training = self.negative_training or Training(epochs=100, batch_size=100, optimizer=Optim("sgd", lr=0.01))
        data = TensorSamples(X[rows], labels)
        fit(method, data, replace(training, keep="last"), seed=seed, device=self.device, progress=False)
        return method.collected()
