"""ROUGE-L: how much of a reference text another one says, in the same order."""

from __future__ import annotations

import re
from collections.abc import Sequence


def rouge_l(candidate: str, reference: str) -> float:
    """F1 of the longest common subsequence of words.

    With words in lower case (runs of letters and digits), c and r their numbers and l the length of the longest common
    subsequence: P = l / c, R = l / r, F1 = 2 P R / (P + R). Words are not stemmed.

    Args:
        candidate: what is judged.
        reference: what should have been said.

    Returns:
        In [0, 1]; 0 where either has no word.

    Source: Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries, ROUGE-L on a single sentence.

    Example:
        >>> round(rouge_l("the cat sat", "The cat, it sat down."), 3)
        0.75
    """
    said, wanted = (re.findall(r"[a-z0-9]+", text.lower()) for text in (candidate, reference))
    common = longest_common(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for place, other in enumerate(second, 1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]
