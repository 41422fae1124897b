"""What a network family is asked for, and what it answers: how to build the network and what the network expects."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

HALF = 0.5


@dataclass(frozen=True)
class Wish:
    """What the caller has and wants.

    Attributes:
        classes: how many outputs; None: as many as the family gives by itself.
        channels: of the inputs.
        image_size: height and width of the inputs, where they are images and it is known.
        size: height and width that the network is to work at; None: the family decides.
        pretrained: whether the family's own weights are wanted.
    """

    classes: int | None
    channels: int
    image_size: int | None
    size: int | None
    pretrained: bool


@dataclass(frozen=True)
class Plan:
    """One way to build a network, and the inputs it then expects.

    Attributes:
        kind: the family.
        name: the network's name there.
        options: what the family's builder is called with, JSON-able.
        net_channels: channels the network takes.
        size: height and width images are resized to; None: taken as they come.
        mean: per channel; None: not normalised.
        std: per channel; None: not normalised.
        note: a sentence for the user; empty where there is nothing to say.
    """

    kind: str
    name: str
    options: dict[str, Any]
    net_channels: int
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    note: str = ""


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Statistics for another number of channels: their average, for each."""
    values = tuple(float(value) for value in values)
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def nearest(name: str, known: Iterable[str], *, shown: int = 3) -> str:
    """The nearest known names, for a message."""
    known = list(known)
    found = difflib.get_close_matches(name, known, n=shown, cutoff=0.4) or known[:shown]
    return ", ".join(found)


def size_note(whose: str, image_size: int | None, size: int | None, own: int, *, rebuilt: bool = False) -> str:
    """Say what happens to images of another size than a network was made for; empty where nothing does.

    Args:
        whose: the network's name as the user wrote it.
        image_size: what comes in.
        size: what it is resized to; None: not resized.
        own: what the network was made for.
        rebuilt: whether the network itself is built for `size` instead of `own`.
    """
    if image_size is None:
        return ""
    if size is not None and not rebuilt:
        return f"{whose} works at {size} pixels: inputs of {image_size} are resized" if size != image_size else ""
    used = size or image_size
    if rebuilt and used != own:
        patches = "fewer" if used < own else "more"
        return f"{whose} is built for {used} pixels instead of {own}, so it sees {patches} patches"
    if used * 2 <= own:
        return (
            f"{whose} was made for {own} pixels and is used at {used}: its first layers shrink the image early; write "
            f"{whose}@{own} to have inputs enlarged, at the price of time"
        )
    return ""
