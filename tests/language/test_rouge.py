"""ROUGE-L against a count over all subsequences."""

from itertools import combinations

import pytest

from stillroom.language import rouge_l


def longest(first, second):
    """Every subsequence of the shorter, looked for in the other."""
    for size in range(len(first), 0, -1):
        for places in combinations(range(len(first)), size):
            rest = iter(second)
            if all(first[place] in rest for place in places):
                return size
    return 0


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        ("the cat sat", "The cat, it sat down."),
        ("a b c d e", "e d c b a"),
        ("b a a b a", "a b b a b b"),
        ("one two", "three"),
        ("the same text", "the same text"),
    ],
)
def test_it_is_the_f1_of_the_longest_common_subsequence(candidate, reference):
    said, wanted = (text.lower().replace(",", "").replace(".", "").split() for text in (candidate, reference))
    common = longest(said, wanted)
    precision, recall = common / len(said), common / len(wanted)
    expected = 2 * precision * recall / (precision + recall) if common else 0.0
    assert rouge_l(candidate, reference) == pytest.approx(expected)


def test_nothing_said_is_0():
    assert rouge_l("", "a") == rouge_l("a", "...") == rouge_l("", "") == 0.0
