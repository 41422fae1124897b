"""Active learning: a pool, an oracle that counts what it is asked, query strategies, and the rounds between them.

The interface is scikit-activeml's: labels `y` hold NaN where nobody has labelled yet, and a strategy is asked with
`query(X, y, candidates=None, batch_size=1, return_utilities=False)`. Pools may hold classes that nobody wants: such
samples come back from the oracle as `UNKNOWN`.
"""

from stillroom.active.informativeness import (
    ENTROPY,
    LEAST_CONFIDENT,
    MARGIN,
    Informativeness,
    check_probabilities,
    min_max,
)
from stillroom.active.oracle import UNKNOWN, Oracle, open_set_labels
from stillroom.active.query import KnownFirst, PoolQuery, RandomQuery, UncertaintyQuery
from stillroom.active.rounds import Round, learn_actively
from stillroom.active.training import predict, train_classifier

__all__ = [
    "ENTROPY",
    "LEAST_CONFIDENT",
    "MARGIN",
    "UNKNOWN",
    "Informativeness",
    "KnownFirst",
    "Oracle",
    "PoolQuery",
    "RandomQuery",
    "Round",
    "UncertaintyQuery",
    "check_probabilities",
    "learn_actively",
    "min_max",
    "open_set_labels",
    "predict",
    "train_classifier",
]
