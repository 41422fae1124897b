"""How honest a classifier's confidence is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.data.samples import Samples
from stillroom.data.stream import sequential
from stillroom.losses._shared import at_least_float32


@torch.no_grad()
def expected_calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> Tensor:
    """Expected calibration error (ECE) over equally wide bins of the confidence.

    Confidence is the largest probability of a sample; the bins ((k - 1) / B, k / B] are closed on the right.
    ECE = sum_b n_b / N * |accuracy_b - mean confidence_b|.

    Args:
        probabilities: `(N, C)`, each row of 0 or more and summing to 1; not logits.
        labels: `(N,)` int64 in [0, C).
        bins: B, 1 or more.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: rows that are no probabilities, no sample, labels of another shape or dtype, or fewer than 1 bin.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.

    Example:
        >>> sure, right = torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([0, 1])
        >>> round(float(expected_calibration_error(sure, right)), 3)
        0.4
    """
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, given {bins}")
    if probabilities.ndim != 2 or not len(probabilities):
        raise ValueError(f"probabilities must be (N, C) of 1 sample or more, given {tuple(probabilities.shape)}")
    if labels.shape != probabilities.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be ({len(probabilities)},) int64 as the probabilities' rows, given {tuple(labels.shape)} "
            f"{labels.dtype}"
        )
    probabilities = at_least_float32(probabilities)
    sums = probabilities.sum(dim=1)
    worst = sums[(sums - 1).abs().argmax()]
    if not bool((sums - 1).abs().max() <= 1e-3) or bool((probabilities < 0).any()):
        raise ValueError(
            "probabilities must be 0 or more and sum to 1 in every row, given a row that sums to "
            f"{float(worst):.4g} and a least value of {float(probabilities.min()):.4g}: take the softmax of the logits"
        )
    confidence, favourite = probabilities.max(dim=1)
    right = (favourite == labels).to(confidence.dtype)
    ends = torch.arange(1, bins + 1, dtype=confidence.dtype, device=confidence.device) / bins
    number = torch.bucketize(confidence, ends).clamp(max=bins - 1)
    gaps = confidence.new_zeros(bins).index_add_(0, number, right - confidence)
    return gaps.abs().sum() / len(confidence)


@torch.no_grad()
def confidence_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """How right and how sure a classifier is.

    Args:
        logits: `(N, C)`.
        labels: `(N,)` int64 in [0, C).

    Returns:
        "calibration_error" over 15 bins, "nll" and mean "entropy" in nats, "accuracy".
    """
    log_probabilities = at_least_float32(logits).log_softmax(dim=1)
    probabilities = log_probabilities.exp()
    return {
        "calibration_error": float(expected_calibration_error(probabilities, labels)),
        "nll": float(F.nll_loss(log_probabilities, labels)),
        "entropy": float(-(probabilities * log_probabilities).sum(dim=1).mean()),
        "accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
    }


@torch.no_grad()
def logits_on(network: nn.Module, samples: Samples) -> tuple[Tensor, Tensor]:
    """What a network says in eval mode about all samples, and their labels, on the CPU: `(N, C)` and `(N,)`."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    before = network.training
    network.eval()
    parts = [(network(batch.to(device).inputs).float().cpu(), batch.labels) for batch in sequential(samples, 256)]
    network.train(before)
    logits, labels = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(labels)
