"""Query strategies with scikit-activeml's interface, for PyTorch networks and pools with unwanted classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import Tensor, nn

from stillroom.active.informativeness import MARGIN, Informativeness
from stillroom.active.oracle import UNKNOWN
from stillroom.active.training import predict, train_classifier
from stillroom.data.samples import as_input
from stillroom.training import Training

Array = np.ndarray[Any, Any]


class PoolQuery(BaseEstimator):
    """Base of query strategies: says for which samples of a pool a label is worth its price.

    A subclass writes `utilities`. Arguments of its constructor are kept as they are, as scikit-learn asks for.

    Args:
        random_state: a number, a generator of NumPy, or None.
    """

    def __init__(self, *, random_state: Any = None) -> None:
        self.random_state = random_state

    def utilities(self, X: Tensor, y: Array, candidates: Array, batch_size: int) -> Array:
        """How much the label of each candidate is worth, larger is better.

        Args:
            X: `(N, ...)` all samples, labelled and not.
            y: `(N,)` labels, NaN where there is none.
            candidates: `(M,)` row numbers among which is chosen.
            batch_size: how many will be chosen.
        """
        raise TypeError(f"{type(self).__name__} must define utilities(X, y, candidates, batch_size)")

    def query(
        self,
        X: Any,
        y: Any,
        candidates: Sequence[int] | None = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Choose samples whose labels to buy.

        Args:
            X: `(N, ...)` all samples, labelled and not; an array or tensor, uint8 images are brought to [0, 1].
            y: `(N,)` floats: class numbers, `UNKNOWN` for samples that turned out to be of no wanted class, NaN where
                nobody has labelled yet.
            candidates: row numbers to choose among; None for all rows without a label.
            batch_size: how many to choose.
            return_utilities: also return `(batch_size, N)` utilities as they stood before each choice; NaN at rows that
                could not be chosen.

        Returns:
            `(batch_size,)` row numbers, the most wanted first, and the utilities where they are asked for.

        Raises:
            ValueError: X and y disagree in length, a candidate is labelled or twice there, or there are fewer
                candidates than `batch_size`.
        """
        samples = as_input(torch.as_tensor(X)).float()
        labels = np.asarray(y, dtype=np.float64)
        if labels.ndim != 1 or len(samples) != len(labels):
            raise ValueError(f"y must hold one label (or NaN) per sample of X, given {labels.shape} for {len(samples)}")
        if bool((~samples.isfinite()).any()):
            raise ValueError("X holds NaN or infinite values: clean the samples first")
        missing = np.isnan(labels)
        rows = np.flatnonzero(missing) if candidates is None else np.asarray(candidates, dtype=np.int64)
        if len(np.unique(rows)) != len(rows) or not missing[rows].all():
            raise ValueError("candidates must be rows without a label, each named once")
        if not 1 <= batch_size <= len(rows):
            raise ValueError(f"batch_size must lie in [1, {len(rows)}], the number of candidates, given {batch_size}")
        self._random = check_random_state(self.random_state)
        values = np.asarray(self.utilities(samples, labels, rows, batch_size), dtype=np.float64)
        chosen = np.argsort(-values, kind="stable")[:batch_size]
        self.last_query_ = rows[chosen]
        if not return_utilities:
            return self.last_query_
        table = np.full((batch_size, len(labels)), np.nan)
        table[:, rows] = values
        for before in range(1, batch_size):
            table[before, rows[chosen[:before]]] = np.nan
        return self.last_query_, table

    def _seed(self) -> int:
        """A fresh seed for a training, drawn from the random state."""
        return int(self._random.randint(2**31 - 1))


class RandomQuery(PoolQuery):
    """Chooses at random: what every strategy has to beat.

    Example:
        >>> chosen = RandomQuery(random_state=0).query([[0.0], [1.0], [2.0]], [0.0, float("nan"), float("nan")])
        >>> chosen[0] in (1, 2)
        True
    """

    def utilities(self, X: Tensor, y: Array, candidates: Array, batch_size: int) -> Array:
        """Random numbers."""
        return self._random.random_sample(len(candidates))


class UncertaintyQuery(PoolQuery):
    """Chooses where a classifier trained on the labelled samples is least sure; it knows of no unwanted classes.

    Args:
        network: number of outputs -> a module that takes rows of X.
        classes: wanted classes, two or more.
        informativeness: how sure is measured.
        training: of the classifier.
        random_state: of its initial weights.
        device: None for the machine's own choice.

    Attributes:
        classifier_: trained at the last query.
    """

    def __init__(
        self,
        network: Callable[[int], nn.Module],
        *,
        classes: int,
        informativeness: Informativeness = MARGIN,
        training: Training | None = None,
        random_state: Any = None,
        device: str | None = None,
    ) -> None:
        super().__init__(random_state=random_state)
        self.network = network
        self.classes = classes
        self.informativeness = informativeness
        self.training = training
        self.device = device

    def utilities(self, X: Tensor, y: Array, candidates: Array, batch_size: int) -> Array:
        """Uncertainty of the classifier."""
        self.classifier_ = self.train_known(X, y)
        return self.informativeness.uncertainty(predict(self.classifier_, X[candidates])).numpy()

    def train_known(self, X: Tensor, y: Array) -> nn.Module:
        """Train the wanted classifier from scratch on the labelled samples of wanted classes.

        Raises:
            ValueError: fewer than two classes, or a label that is neither a wanted class nor `UNKNOWN`.
        """
        self.check_labels(y)
        rows = np.flatnonzero(~np.isnan(y) & (y != UNKNOWN))
        return self._train(X, rows, torch.from_numpy(y[rows]).long(), self.classes)

    def train_auxiliary(self, X: Tensor, y: Array) -> nn.Module:
        """Train a further classifier whose last class, number `classes`, stands for all unwanted ones."""
        rows = np.flatnonzero(~np.isnan(y))
        labels = np.where(y[rows] == UNKNOWN, self.classes, y[rows])
        return self._train(X, rows, torch.from_numpy(labels).long(), self.classes + 1)

    def check_labels(self, y: Array) -> None:
        """Refuse labels that are neither wanted classes nor `UNKNOWN` nor missing."""
        if self.classes < 2:
            raise ValueError(f"classes must be 2 or more, given {self.classes}")
        given = y[~np.isnan(y)]
        strange = sorted({float(label) for label in given} - {float(UNKNOWN), *map(float, range(self.classes))})
        if strange:
            raise ValueError(
                f"labels must be class numbers 0 to {self.classes - 1}, {UNKNOWN} for samples of no wanted class or "
                f"NaN for none, given {strange[:5]}"
            )

    def _train(self, X: Tensor, rows: Array, labels: Tensor, outputs: int) -> nn.Module:
        training = self.training or Training(epochs=100, batch_size=128)
        return train_classifier(
            self.network, X[rows], labels, classes=outputs, training=training, seed=self._seed(), device=self.device
        )


class KnownFirst(UncertaintyQuery):
    """Chooses what most probably belongs to a wanted class, by an auxiliary classifier (the idea of LfOSA).

    Until a sample of no wanted class has been labelled it chooses at random.

    Source: Ning et al. 2022, arXiv:2201.06758, reduced to its detector of unwanted classes.
    """

    def utilities(self, X: Tensor, y: Array, candidates: Array, batch_size: int) -> Array:
        """One minus the probability of the class that stands for all unwanted ones."""
        self.classifier_ = self.train_known(X, y)
        if not (y == UNKNOWN).any():
            return self._random.random_sample(len(candidates))
        unknown = predict(self.train_auxiliary(X, y), X[candidates])[:, self.classes]
        return 1 - unknown.numpy()
