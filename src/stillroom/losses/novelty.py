"""What a predictor has not learned yet about a frozen network."""

from __future__ import annotations

from torch import Tensor

from stillroom.losses._shared import Reduction, at_least_float32, check_same_shape, outside_autocast, reduce


@outside_autocast
def novelty_loss(predicted: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Squared distance between a predictor's features and those of a frozen network: `sum_k (g_k - f_k)^2`.

    Args:
        predicted: `(N, K)`, g, any float dtype; computed in float32 or wider.
        target: `(N, K)`, f; receives no gradient.
        reduction: over states; the features are always summed.

    Returns:
        A scalar, or `(N,)` for "none".

    Raises:
        ValueError: shapes disagree or are no rows.

    Source: Burda et al. 2019, arXiv:1810.12894, section 2.2.
    """
    check_same_shape(predicted=predicted, target=target)
    if predicted.ndim != 2:
        raise ValueError(f"predicted must be features (N, K), given {tuple(predicted.shape)}")
    gap = at_least_float32(predicted) - at_least_float32(target.detach())
    return reduce(gap.square().sum(dim=1), reduction)
