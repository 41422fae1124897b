"""How far the filling of a cache is, said where it takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


class Pace:
    """Says now and then how far something is, from the first `every` seconds on.

    Args:
        say: takes a line.
        every: seconds between two lines.
    """

    def __init__(self, say: Callable[[str], None], *, every: float = 10.0) -> None:
        self.say, self.every = say, every
        self.began = self.said = time.monotonic()
        self.from_share: float | None = None

    def step(self, share: float, what: str) -> None:
        """Note that another piece is done.

        Args:
            share: of the whole, in [0, 1].
            what: that is filled.
        """
        now = time.monotonic()
        if self.from_share is None:  # what an earlier run did took none of this time
            self.from_share, self.began = share, now
        if now - self.said < self.every or share <= self.from_share:
            return
        self.said = now
        left = (now - self.began) * (1 - share) / (share - self.from_share)
        self.say(f"{what}: {share:.0%}, about {left / 60:.0f} min left" if left > 90 else f"{what}: {share:.0%}")


def to_stderr(line: str) -> None:
    """Write a line where progress is shown."""
    print(line, file=sys.stderr, flush=True)
