"""Spans of text that belong together, and the tokens that lie inside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Spans = Callable[[str], list[tuple[int, int]]]
"""text -> half-open character ranges: `phrases`, `words`, or a chunker of yours (spaCy's noun chunks, NLTK's)."""

FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the this that these those my your his her its our their some any each every no all both "
        "of in on at by for with from to into onto over under about after before between through during without within "
        "against among as than like near off out up down "
        "and or but nor so yet if because while although though when where which who whom whose what how is are was "
        "were be been being am do does did has have had will would shall should can could may might must not",
    )
)
"""English words that say how others belong together: articles, prepositions, conjunctions, auxiliaries."""

_WORDS = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]+|\n\s*\n")


def words(text: str) -> list[tuple[int, int]]:
    """Split at white space: one span per word, as character ranges.

    Example:
        >>> words("to be, or")
        [(0, 2), (3, 6), (7, 9)]
    """
    return [match.span() for match in re.finditer(r"\S+", text)]


def phrases(text: str) -> list[tuple[int, int]]:
    """Split at punctuation and before function words: rough phrases of English, without any dependency.

    A phrase begins behind punctuation, or with the first function word behind another word, and runs up to the next
    beginning: "on the mat" is one. A chunker that parses is better; pass it as `spans=`.

    Example:
        >>> [text[a:b] for text in ["The old cat sat on the mat, asleep."] for a, b in phrases(text)]
        ['The old cat sat', 'on the mat', 'asleep']
    """
    found: list[tuple[int, int]] = []
    open_phrase, after_content = False, False
    for match in _WORDS.finditer(text):
        word = match.group()
        if not (word[0].isalnum() or word[0] == "_"):
            open_phrase = after_content = False
            continue
        function = word.lower() in FUNCTION_WORDS
        if open_phrase and not (function and after_content):
            found[-1] = (found[-1][0], match.end())
        else:
            found.append(match.span())
        open_phrase, after_content = True, not function
    return found


def token_ranges(pieces: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Join the texts of tokens, and say where each one's characters stand, white space at its ends left out.

    Args:
        pieces: text of each token, with the white space that belongs to it.

    Returns:
        The text, and a character range per token; empty (start equals end) where a token is white space or nothing.
    """
    ranges, place = [], 0
    for piece in pieces:
        start = place + len(piece) - len(piece.lstrip())
        end = place + len(piece.rstrip())
        ranges.append((start, max(start, end)))
        place += len(piece)
    return "".join(pieces), ranges


def token_spans(spans: Sequence[tuple[int, int]], ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Turn character spans into token spans: the tokens whose own characters lie inside.

    White space between two tokens inside is inside as well.

    Args:
        spans: half-open character ranges.
        ranges: of each token, in order (`token_ranges`, or a tokenizer's offsets).

    Returns:
        Half-open ranges of token numbers, one for each span that holds a token.
    """
    found = []
    for start, end in spans:
        inside = [number for number, (a, b) in enumerate(ranges) if a < b and start <= a and b <= end]
        if inside:
            found.append((inside[0], inside[-1] + 1))
    return found


class SpanFinder:
    """Finds the token spans in batches of sequences.

    The text of a token is what it adds to a text that goes on, so white space and sub-words stay where they were
    written; tokens that are parts of one character stand for a replacement sign each.

    Args:
        tokenizer: has `decode(ids) -> text`: one of `transformers`, or `stillroom.data.CharacterTokenizer`.
        spans: text -> half-open character ranges.

    Raises:
        TypeError: the tokenizer has no `decode`, or spans cannot be called.

    Example:
        >>> from stillroom.data import CharacterTokenizer
        >>> tokenizer = CharacterTokenizer("abc ")
        >>> tokens = torch.tensor([tokenizer.encode("ab cab")])
        >>> SpanFinder(tokenizer, words)(tokens, torch.ones(1, 6))
        [[(0, 2), (3, 6)]]
    """

    def __init__(self, tokenizer: Any, spans: Spans = phrases) -> None:
        if not callable(getattr(tokenizer, "decode", None)):
            raise TypeError(f"spans need a tokenizer with decode(ids) -> text, given {type(tokenizer).__name__}")
        if not callable(spans):
            raise TypeError(f"spans must be a function text -> [(start, end)], given {type(spans).__name__}")
        self.tokenizer = tokenizer
        self.spans = spans
        self._pieces: dict[int, str] = {}

    def __call__(self, tokens: Tensor, valid: Tensor) -> list[list[tuple[int, int]]]:
        """Find the spans among the tokens that count.

        Args:
            tokens: `(N, L)` int64, what is read where `valid` is 0 or False does not matter.
            valid: `(N, L)`, which tokens count; a gap in them breaks the text.

        Returns:
            Per sequence, half-open ranges of positions in [0, L].
        """
        counted = valid.bool()
        found: list[list[tuple[int, int]]] = []
        for row, keep in zip(torch.where(counted, tokens, -1).tolist(), counted.tolist(), strict=True):
            found.append([])
            for begin, end in _runs(keep):
                text, ranges = token_ranges([self.piece(token) for token in row[begin:end]])
                found[-1] += [(begin + a, begin + b) for a, b in token_spans(self.spans(text), ranges)]
        return found

    def piece(self, token: int) -> str:
        """The text that a token adds to a text that goes on."""
        if token not in self._pieces:
            once, twice = (self._decode([token] * count) for count in (1, 2))
            self._pieces[token] = twice[len(once) :]
        return self._pieces[token]

    def _decode(self, ids: list[int]) -> str:
        if hasattr(self.tokenizer, "convert_ids_to_tokens"):
            return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return str(self.tokenizer.decode(ids))


def _runs(keep: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of neighbours that are kept."""
    begin = None
    for place, kept in enumerate([*keep, False]):
        if kept and begin is None:
            begin = place
        elif not kept and begin is not None:
            yield begin, place
            begin = None
