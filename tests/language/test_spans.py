"""Spans of text, and the tokens inside: characters, sub-words with their white space, gaps, refusals."""

import pytest
import torch

from stillroom.data import CharacterTokenizer
from stillroom.language import SpanFinder, phrases, token_ranges, token_spans, words


def said(text, spans):
    return [text[start:end] for start, end in spans]


def test_words_are_what_white_space_parts():
    text = "  to be,\nor not "
    assert said(text, words(text)) == ["to", "be,", "or", "not"]
    assert words("") == []


def test_phrases_begin_behind_punctuation_and_with_function_words():
    text = "The old cat sat on the mat; it doesn't move. New\n\nparagraph of text"
    assert said(text, phrases(text)) == [
        "The old cat sat", "on the mat", "it doesn't move", "New", "paragraph", "of text"
    ]  # fmt: skip
    assert phrases("... , !") == []


def test_tokens_lie_inside_by_their_own_characters():
    text, ranges = token_ranges(["The", " cat", " s", "at", " ", "on", ""])
    assert text == "The cat sat on"
    assert ranges == [(0, 3), (4, 7), (8, 9), (9, 11), (12, 12), (12, 14), (14, 14)]
    assert token_spans([(0, 3), (4, 11), (8, 10), (11, 14)], ranges) == [(0, 1), (1, 4), (2, 3), (5, 6)]


def test_spans_of_characters_stand_where_they_count():
    tokenizer = CharacterTokenizer("abcd ")
    tokens = torch.tensor([tokenizer.encode("ab cd abc"), tokenizer.encode("a bcd a b")])
    valid = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 1, 1, 0]])
    found = SpanFinder(tokenizer, words)(torch.where(valid == 1, tokens, -100), valid)
    # "b", "cd", "abc"; "a", "b" up to the gap, "d", "a"
    assert found == [[(1, 2), (3, 5), (6, 9)], [(0, 1), (2, 3), (4, 5), (6, 7)]]


class Pieces:
    """A tokenizer whose text has no space before its first word, as sentence pieces have."""

    vocabulary = ("▁the", "▁cat", "s", "▁sat", "<end>")

    def convert_ids_to_tokens(self, ids):
        return [self.vocabulary[one] for one in ids]

    def decode(self, ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        kept = [self.vocabulary[one] for one in ids if one != 4 or not skip_special_tokens]
        return "".join(kept).replace("▁", " ").removeprefix(" ")


def test_white_space_before_sub_words_is_kept():
    finder = SpanFinder(Pieces(), words)
    assert [finder.piece(token) for token in range(5)] == [" the", " cat", "s", " sat", ""]
    assert finder(torch.tensor([[0, 1, 2, 3, 4]]), torch.ones(1, 5)) == [[(0, 1), (1, 3), (3, 4)]]


def test_a_chunker_of_ones_own():
    tokenizer = CharacterTokenizer("abc ")
    finder = SpanFinder(tokenizer, lambda text: [(0, len(text))])
    assert finder(torch.tensor([tokenizer.encode("ab c")]), torch.ones(1, 4)) == [[(0, 4)]]


def test_what_cannot_find_spans_is_refused():
    with pytest.raises(TypeError, match=r"tokenizer with decode\(ids\) -> text, given NoneType"):
        SpanFinder(None)
    with pytest.raises(TypeError, match="spans must be a function"):
        SpanFinder(CharacterTokenizer("ab"), "words")
