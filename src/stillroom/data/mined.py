"""Mining a pool without labels: near-duplicates of the reported images out, a teacher's surest images per class in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch, tensors_in
from stillroom.data.samples import Samples
from stillroom.data.stream import sequential


@dataclass(frozen=True)
class MinedPool:
    """What is kept of a pool.

    Attributes:
        samples: the kept samples, without labels.
        rows: `(M,)` int64, rising: their rows in the pool.
        counts: `(C,)` int64: how many were kept of each class that the teacher sees; 0 where it sees none of a class.
        probabilities: `(M, C)`: what the teacher said of them.
    """

    samples: Samples
    rows: Tensor
    counts: Tensor
    probabilities: Tensor

    @property
    def empty_classes(self) -> list[int]:
        """Classes of which the pool gave nothing."""
        return (self.counts == 0).nonzero().flatten().tolist()


def top_per_class(probabilities: Tensor, k: int) -> list[Tensor]:
    """For each class, the rows in which it is the most probable one, the surest first, at most k of them.

    Args:
        probabilities: `(N, C)`, or any scores; the class of a row is its argmax, the first of equal ones.
        k: 1 or more.

    Returns:
        C tensors of int64 row numbers, some shorter than k or empty; equal scores in the order of the rows.

    Raises:
        ValueError: k below 1, another shape, or NaN.

    Source: Cui et al. 2021, arXiv:2103.05959.
    """
    if k < 1:
        raise ValueError(f"k, the most images kept of a class, must be 1 or more, given {k}")
    if probabilities.ndim != 2:
        raise ValueError(f"probabilities must have shape (N, C), given {tuple(probabilities.shape)}")
    if bool(probabilities.isnan().any()):
        raise ValueError("probabilities must be numbers, given NaN: check the teacher that made them")
    classes = probabilities.shape[1]
    if not len(probabilities):
        return [torch.empty(0, dtype=torch.int64) for _ in range(classes)]
    scores, favourites = probabilities.max(dim=1)
    order = scores.argsort(descending=True, stable=True)
    sorted_favourites = favourites[order]
    return [order[sorted_favourites == number][:k] for number in range(classes)]


def near_duplicates(
    pool: Samples,
    evaluation: Samples,
    *,
    radius: float = 0.02,
    embed: Callable[[Any], Tensor] | None = None,
    batch_size: int = 256,
) -> Tensor:
    """Rows of a pool that are, or nearly are, images of the evaluation set.

    The distance between two images is the root of the mean squared difference of their values, to the nearest
    evaluation image. The authors match SIFT features, which also finds crops and other sizes of an image: give a
    network as `embed` for that.

    Args:
        pool: what is searched through.
        evaluation: the images that results are reported on.
        radius: largest distance of a near-duplicate, 0 or more; 0.02 of inputs in [0, 1] is five grey levels of 255.
        embed: inputs -> `(N, ...)` vectors that are compared instead of the inputs; choose the radius anew.
        batch_size: images that are read at once.

    Returns:
        `(M,)` int64 row numbers of the pool, rising.

    Raises:
        ValueError: the radius is below 0, or the images differ in size.

    Example:
        >>> from stillroom.data import TensorSamples, near_duplicates
        >>> images = torch.rand(10, 1, 8, 8)
        >>> near_duplicates(TensorSamples(images), TensorSamples(images[4:6] + 0.01)).tolist()
        [4, 5]
    """
    if not 0 <= radius < float("inf"):
        raise ValueError(f"radius must be a number of 0 or more, given {radius}")
    reported = _vectors(evaluation, embed, batch_size)
    searched = _vectors(pool, embed, batch_size)
    if not len(reported) or not len(searched):
        return torch.empty(0, dtype=torch.int64)
    if reported.shape[1] != searched.shape[1]:
        raise ValueError(
            f"images of the pool have {searched.shape[1]} values, those of the evaluation set {reported.shape[1]}: "
            "load both at one size"
        )
    from sklearn.neighbors import NearestNeighbors

    neighbours = NearestNeighbors(n_neighbors=1).fit(reported.numpy())
    distance = torch.from_numpy(neighbours.kneighbors(searched.numpy())[0][:, 0])
    return (distance <= radius * searched.shape[1] ** 0.5).nonzero().flatten()


@torch.no_grad()
def mine(
    pool: Samples,
    teacher: nn.Module | Callable[[Batch], Any],
    k: int,
    *,
    evaluation: Samples | None,
    radius: float = 0.02,
    batch_size: int = 256,
) -> MinedPool:
    """Keep, of each class, the k images of a pool of which a teacher is surest.

    Args:
        pool: images; their labels, where there are any, are looked at by nobody.
        teacher: a classifier, asked in eval mode; or a function `predict(batch) -> logits`.
        k: the most images kept of a class, 1 or more; about 4,000 for ImageNet (unconfirmed).
        evaluation: the images that results are reported on, none of which may lie in the pool; None where there are
            none to compare with.
        radius: see `near_duplicates`.
        batch_size: images that are asked about at once.

    Raises:
        ValueError: k below 1, evaluation images in the pool, or a teacher that gives no logits `(N, C)`.

    Source: Cui et al. 2021, arXiv:2103.05959.

    Example:
        >>> from stillroom.data import TensorSamples, mine
        >>> pool, test = (TensorSamples(torch.rand(rows, 16)) for rows in (50, 20))
        >>> mined = mine(pool, nn.Linear(16, 3), 5, evaluation=test)
        >>> bool((mined.counts <= 5).all()) and len(mined.samples) == int(mined.counts.sum())
        True
    """
    if k < 1:
        raise ValueError(f"k, the most images kept of a class, must be 1 or more, given {k}")
    if evaluation is not None and len(found := near_duplicates(pool, evaluation, radius=radius)):
        raise ValueError(
            f"{len(found)} images of the pool are images of the evaluation set or nearly so (the first is row "
            f"{int(found[0])}): take the rows that near_duplicates(pool, evaluation) names out of the pool"
        )
    frozen = (teacher if isinstance(teacher, Frozen) else Frozen(teacher)).settled
    device = next((one.device for one in _parameters(frozen.network)), torch.device("cpu"))
    said = []
    for batch in sequential(pool.relabel(None), batch_size):
        logits = frozen(batch.to(device))
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the teacher must give logits (N, C) to mine by, given {given}")
        said.append(logits.float().softmax(dim=1).cpu())
    if not said:
        raise ValueError("the pool holds 0 images: give at least one")
    probabilities = torch.cat(said)
    chosen = top_per_class(probabilities, k)
    rows = torch.cat(chosen).sort().values
    counts = torch.tensor([len(one) for one in chosen])
    return MinedPool(pool.subset(rows).relabel(None), rows, counts, probabilities[rows])


def _vectors(samples: Samples, embed: Callable[[Any], Tensor] | None, batch_size: int) -> Tensor:
    found = []
    asked = Frozen(embed) if isinstance(embed, nn.Module) else embed
    device = next((one.device for one in _parameters(embed)), torch.device("cpu"))
    for batch in sequential(samples, batch_size):
        if asked is not None:
            found.append(asked(batch.to(device).inputs).detach().float().flatten(1).cpu())
        else:
            found.append(torch.cat([one.float().flatten(1) for one in tensors_in(batch.inputs)], dim=1))
    return torch.cat(found) if found else torch.empty(0, 0)


def _parameters(network: Any) -> Any:
    return network.parameters() if isinstance(network, nn.Module) else iter(())
