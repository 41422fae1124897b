"""Which labels look right: margins, a mixture of two kinds of samples, and targets that trust a label so far."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.losses._shared import (
    at_least_float32,
    check_finite,
    check_label_range,
    check_logits,
    check_positive,
)


@torch.no_grad()
def label_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """How much the given label stands out: its logit minus the largest other one.

    Args:
        logits: `(N, C)`, C of 2 or more.
        labels: `(N,)` int64 in [0, C), as given: some may be wrong.

    Returns:
        `(N,)`, below 0 where the network favours another class.

    Raises:
        ValueError: shapes disagree, no samples, fewer than 2 classes, a label out of range, logits not finite.

    Source: Zong et al. 2024, arXiv:2401.07062.

    Example:
        >>> label_margins(torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1]))
        tensor([ 2., -2.])
    """
    check_logits(logits, logits, labels)
    check_label_range(labels, logits.shape[1])
    check_finite(logits=logits)
    logits = at_least_float32(logits)
    own = logits.gather(1, labels.unsqueeze(1))
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return (own - others.amax(dim=1, keepdim=True)).squeeze(1)


@torch.no_grad()
def normalised(values: Tensor) -> Tensor:
    """Bring values `(N,)` to [0, 1] by their smallest and largest; where all are the same there is 1 for each."""
    if values.ndim != 1 or not len(values):
        raise ValueError(f"there must be one value for each of 1 or more samples, given {tuple(values.shape)}")
    check_finite(values=values)
    low, high = values.min(), values.max()
    return torch.ones_like(values) if low == high else (values - low) / (high - low)


@torch.no_grad()
def clean_probability(
    scores: Tensor,
    *,
    largest_kurtosis: float = 1.2,
    max_iter: int = 10,
    tol: float = 1e-2,
    reg_covar: float = 5e-4,
) -> Tensor:
    """Probability that each label of a data set is right, from scores that are higher for labels that are.

    The scores are brought to [0, 1]; a mixture of two Gaussians is fitted, and the answer is the posterior of the one
    with the larger mean. Where the scores form one peak (an excess kurtosis above `largest_kurtosis`), the two means
    come out closer than 0.001, or there are fewer than three different scores, the normalised scores are the answer.

    Args:
        scores: `(N,)`, of all samples of a data set: `label_margins`, or losses with their sign changed.
        largest_kurtosis: where a mixture is no longer fitted; `math.inf` always fits one, `-math.inf` never.
        max_iter: of the fit, 1 or more.
        tol: gain in log-likelihood at which the fit ends, above 0.
        reg_covar: added to both variances, above 0.

    Returns:
        `(N,)` in [0, 1], on the device and in the dtype of the scores. It need not rise with the score: far out, the
        wider Gaussian wins.

    Raises:
        ValueError: no samples, scores that are not finite, a number out of range.

    Source: Zong et al. 2024, arXiv:2401.07062, section "label selection" and appendix; Arazo et al. 2019 and Li et al.
        2020, arXiv:2002.07394 (mixtures of losses).

    Example:
        >>> scores = torch.cat([torch.linspace(-3, -2, 20), torch.linspace(2, 4, 20)])
        >>> clean_probability(scores).round().sum()
        tensor(20.)
    """
    check_positive(max_iter=max_iter, tol=tol, reg_covar=reg_covar)
    between = normalised(scores)
    values = between.double().cpu()
    centred = values - values.mean()
    variance = centred.square().mean()
    if len(values.unique()) < 3 or centred.pow(4).mean() / variance.square() - 3 > largest_kurtosis:
        return between
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(2, max_iter=max_iter, tol=tol, reg_covar=reg_covar, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so few rounds are the published setting
        mixture.fit(values[:, None].numpy())
    means = mixture.means_[:, 0]
    if abs(means[0] - means[1]) < 1e-3:
        return between
    return torch.from_numpy(mixture.predict_proba(values[:, None].numpy())[:, means.argmax()]).to(scores)


@torch.no_grad()
def sharpen(probabilities: Tensor, temperature: float = 0.5) -> Tensor:
    """Make rows of probabilities `(N, C)` surer: p^(1/T) / sum; computed in float32 or wider, through logarithms.

    Raises:
        ValueError: the temperature is not above 0.
    """
    check_positive(temperature=temperature)
    probabilities = at_least_float32(probabilities)
    return (probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log() / temperature).softmax(dim=1)


@torch.no_grad()
def guess_labels(predictions: Sequence[Tensor], *, temperature: float = 0.5) -> Tensor:
    """Targets for samples whose labels are not trusted: what several views and networks think, sharpened.

    Args:
        predictions: probabilities `(N, C)`, one for each view and network.
        temperature: T of `sharpen`.

    Returns:
        `(N, C)`, without gradient.

    Raises:
        ValueError: no predictions.

    Source: Berthelot et al. 2019, arXiv:1905.02249; with two networks Li et al. 2020, arXiv:2002.07394.
    """
    return sharpen(_mean(predictions), temperature)


@torch.no_grad()
def refine_labels(labels: Tensor, clean: Tensor, predictions: Sequence[Tensor], *, temperature: float = 0.5) -> Tensor:
    """Targets for samples whose labels are trusted: the label as far as it is, else what the network thinks.

    target = sharpen(w onehot(label) + (1 - w) mean of the predictions).

    Args:
        labels: `(N,)` int64 in [0, C).
        clean: w, `(N,)` in [0, 1].
        predictions: probabilities `(N, C)`, one for each view.
        temperature: T of `sharpen`.

    Returns:
        `(N, C)`, without gradient.

    Raises:
        ValueError: no predictions, or shapes that disagree.

    Source: Li et al. 2020, arXiv:2002.07394, equation 8.
    """
    mean = _mean(predictions)
    if labels.shape != mean.shape[:1] or clean.shape != labels.shape:
        raise ValueError(
            f"labels and clean must be ({len(mean)},) as the predictions' rows, given {tuple(labels.shape)} and "
            f"{tuple(clean.shape)}"
        )
    check_label_range(labels, mean.shape[1])
    trust = clean.to(mean).unsqueeze(1)
    return sharpen(trust * F.one_hot(labels, mean.shape[1]).to(mean) + (1 - trust) * mean, temperature)


def ramp(epochs: float, length: float) -> float:
    """Rise from 0 to 1 over `length` epochs, then stay at 1; 1 at once for a length of 0."""
    if length <= 0 or math.isinf(epochs):
        return 1.0
    return min(max(epochs / length, 0.0), 1.0)


def _mean(predictions: Sequence[Tensor]) -> Tensor:
    if not predictions:
        raise ValueError("there must be predictions of at least one view, given none")
    return torch.stack([at_least_float32(one) for one in predictions]).mean(dim=0)
