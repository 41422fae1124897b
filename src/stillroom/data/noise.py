"""Wrong labels on purpose: what a method for noisy labels is tried on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor


def corrupt_labels(
    labels: Tensor,
    classes: int,
    rate: float,
    *,
    seed: int,
    redraw: Literal["any", "other"] = "any",
    mapping: Mapping[int, int] | None = None,
) -> Tensor:
    """Give a share of the samples another label.

    Exactly `round(rate * K)` of the K samples that may change are chosen; the realised share of wrong labels is smaller
    with redraw="any", because a redrawn label may be the old one: report `(noisy != labels).float().mean()`.

    Args:
        labels: `(N,)` int64 in [0, classes); not changed in place.
        classes: C, 2 or more.
        rate: share of the samples that are chosen, in [0, 1].
        seed: of the choice and of the new labels.
        redraw: symmetric noise: "any" draws the new label uniformly from all classes, "other" from the other ones.
        mapping: asymmetric noise instead: old class -> new class. Only samples of a class that is named may change.

    Returns:
        The noisy labels, `(N,)` int64, on the labels' device.

    Raises:
        ValueError: labels out of range, rate outside [0, 1], a mapping to or from no class.
    """
    if classes < 2:
        raise ValueError(f"classes must be 2 or more, given {classes}")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], given {rate}")
    if redraw not in ("any", "other"):
        raise ValueError(f'redraw must be "any" or "other", given {redraw!r}')
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must lie in 0 to {classes - 1}, given {int(labels.min())} to {int(labels.max())}")
    if strange := sorted({c for pair in (mapping or {}).items() for c in pair} - set(range(classes))):
        raise ValueError(f"mapping names class {strange[0]}, but the classes are 0 to {classes - 1}")
    generator = torch.Generator().manual_seed(seed)
    old = labels.cpu()
    may = torch.ones(len(old), dtype=torch.bool)
    if mapping is not None:
        may = torch.isin(old, torch.tensor(sorted(mapping)))
    candidates = may.nonzero().flatten()
    order = torch.randperm(len(candidates), generator=generator)
    chosen = candidates[order[: round(rate * len(candidates))]]
    noisy = old.clone()
    if mapping is not None:
        noisy[chosen] = torch.tensor([mapping[int(label)] for label in old[chosen]], dtype=old.dtype)
    elif redraw == "any":
        noisy[chosen] = torch.randint(classes, (len(chosen),), generator=generator).to(old.dtype)
    else:
        step = torch.randint(1, classes, (len(chosen),), generator=generator).to(old.dtype)
        noisy[chosen] = (old[chosen] + step) % classes
    return noisy.to(labels.device)
