"""Text as blocks of tokens for causal language models, and the documentation text that comes with Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from stillroom.data.batch import UNLABELLED
from stillroom.data.rows import generator
from stillroom.data.samples import Splits, TensorSamples
from stillroom.data.tokenizer import CharacterTokenizer, Tokenizer

LENGTH = 64
"""Tokens in a block, where nobody says another number."""

_TEST_CHARACTERS, _VALIDATION_CHARACTERS = 45_000, 30_000
_LONGEST_HELD_OUT, _SHORTEST_TOPIC = 20_000, 250


@dataclass(frozen=True)
class Passage:
    """A text, or an answer with the prompt before it.

    Attributes:
        text: what is learned.
        prompt: what comes before it and is read, but not learned; None for plain text.
    """

    text: str
    prompt: str | None = None


def documentation(*, length: int = LENGTH, tokenizer: Tokenizer | None = None) -> Splits:
    """Load the text of Python's own documentation of its language, which every installation carries.

    About 370,000 characters on some sixty topics (`pydoc_data.topics`). Many topics quote others; a paragraph that
    occurs twice is kept once, in the longest topic, and topics of which less than 250 characters are left are dropped.
    Whole topics are then held out, the same for every seed, so that no paragraph is in two splits. The text differs a
    little from one version of Python to the next.

    Args:
        length: tokens in a block, 2 or more.
        tokenizer: what turns text into tokens; None: the 96 most frequent characters of the training topics.

    Returns:
        See `text_splits`; about 12 in a hundred characters are reported, 8 choose.

    Example:
        >>> splits = documentation(length=32)
        >>> splits.train.batch([0]).inputs.shape, len(splits.tokenizer)
        (torch.Size([1, 32]), 98)
    """
    parts = documentation_topics()
    known = tokenizer or CharacterTokenizer.fit(parts["train"].values())
    passages = {part: [Passage(text) for text in topics.values()] for part, topics in parts.items()}
    return text_splits(passages, known, length=length, name="documentation")


def documentation_topics() -> dict[str, dict[str, str]]:
    """The topics of "train", "validation" and "test", each its name and its text, every paragraph once."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    kept: dict[str, str] = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = []
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if words not in seen:
                seen.add(words)
                paragraphs.append(paragraph)
        text = "\n\n".join(paragraphs)
        if len(text) >= _SHORTEST_TOPIC:
            kept[name] = text
    names = sorted(kept)
    parts: dict[str, dict[str, str]] = {"train": {}, "validation": {}, "test": {}}
    wanted = {"test": _TEST_CHARACTERS, "validation": _VALIDATION_CHARACTERS}
    for row in torch.randperm(len(names), generator=generator(0, 5)).tolist():
        name = names[row]
        free = [part for part, most in wanted.items() if sum(map(len, parts[part].values())) < most]
        part = free[0] if free and len(kept[name]) <= _LONGEST_HELD_OUT else "train"
        parts[part][name] = kept[name]
    return parts


def text_splits(
    passages: Mapping[str, Sequence[Passage]], tokenizer: Tokenizer, *, length: int = LENGTH, name: str = "text"
) -> Splits:
    """Tokenize texts and lay them out as blocks of one length.

    Plain texts of a split follow each other with the end token between them and are cut into blocks. A prompt with its
    answer is a block by itself: the prompt's positions, and what fills the block up, carry no label; where
    both do not fit, a prompt longer than half a block loses its beginning, then an answer its end.

    Args:
        passages: "train", "test" and, where there is one, "validation".
        tokenizer: what turns text into tokens.
        length: tokens in a block, 2 or more.
        name: what the data set is called.

    Returns:
        Inputs `(length,)` int64 tokens; labels `(length,)` int64, already shifted: the label of position t is the token
        that follows it, -100 where none is to be predicted. The field `characters` `(length,)` says how many characters
        of the text the label stands for.

    Raises:
        ValueError: `length` is below 2, or a split has no text.
    """
    if length < 2:
        raise ValueError(f"a block must hold 2 or more tokens, given {length}")
    notes: list[str] = []
    found: dict[str, TensorSamples] = {}
    first = 0
    for part, texts in passages.items():
        rows = [
            _answer(one.prompt, one.text, tokenizer, length) for one in texts if one.prompt is not None and one.text
        ]
        plain = [one.text for one in texts if one.prompt is None and one.text]
        blocks = [(tokens, labels, counts) for tokens, labels, counts, _ in rows]
        if shortened := sum(cut for *_, cut in rows):
            notes.append(
                f"{shortened} of {len(rows)} {part} answers or prompts do not fit into {length} tokens and are cut"
            )
        if plain:
            blocks.append(_packed(plain, tokenizer, length))
        if not blocks:
            raise ValueError(f"the {part} part of {name!r} holds no text: give at least one that is not empty")
        tokens, labels, counts = (torch.cat(column) for column in zip(*blocks, strict=True))
        index = torch.arange(first, first + len(tokens))
        first += len(tokens)
        found[part] = TensorSamples(tokens, labels, index, fields={"characters": counts})
    return Splits(
        found["train"],
        found["test"],
        found.get("validation"),
        name=name,
        notes=notes,
        kind="language-modelling",
        tokenizer=tokenizer,
    )


def token_blocks(tokens: Tensor, *, length: int = LENGTH, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Cut a row of tokens into blocks and their labels, the same row one token later.

    Args:
        tokens: `(T,)` int64, T of 2 or more.
        length: tokens in a block.
        fill: the token that fills the last block up; its positions carry no label.

    Returns:
        Inputs `(N, length)` and labels `(N, length)`, -100 behind the end, N = ceil((T - 1) / length).

    Raises:
        ValueError: there are fewer than two tokens, or several rows of them.
    """
    if tokens.ndim != 1 or len(tokens) < 2:
        raise ValueError(f"tokens must be one row of 2 or more, given shape {tuple(tokens.shape)}")
    count = -(-(len(tokens) - 1) // length)
    inputs = tokens.new_full((count * length,), fill)
    labels = tokens.new_full((count * length,), UNLABELLED)
    inputs[: len(tokens) - 1] = tokens[:-1]
    labels[: len(tokens) - 1] = tokens[1:]
    return inputs.view(count, length), labels.view(count, length)


def _packed(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> tuple[Tensor, Tensor, Tensor]:
    ids, counts = [tokenizer.end_id], [0]
    for text in texts:
        found, each = _tokens(text, tokenizer)
        ids += [*found, tokenizer.end_id]
        counts += [*each, 0]
    inputs, labels = token_blocks(torch.tensor(ids), length=length, fill=tokenizer.end_id)
    _, characters = token_blocks(torch.tensor(counts), length=length)
    return inputs, labels, characters.clamp(min=0).short()


def _answer(prompt: str | None, text: str, tokenizer: Tokenizer, length: int) -> tuple[Tensor, Tensor, Tensor, bool]:
    before, (after, each) = tokenizer.encode(prompt or ""), _tokens(text, tokenizer)
    room = max(length // 2, length - len(after))
    asked = before[-room:] or [tokenizer.end_id]
    ids = [*asked, *after, tokenizer.end_id][: length + 1]
    inputs, labels = token_blocks(torch.tensor(ids), length=length, fill=tokenizer.end_id)
    characters = torch.zeros(1, length, dtype=torch.int16)
    learned = slice(len(asked) - 1, len(asked) - 1 + len(after))
    labels[0, : len(asked) - 1] = UNLABELLED
    kept = torch.tensor(each, dtype=torch.int16)[: len(characters[0, learned])]
    characters[0, learned] = kept
    return inputs, labels, characters, len(asked) < len(before) or len(asked) + len(after) > length


def _tokens(text: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Token ids, and how many characters each stands for; together they stand for all of the text."""
    ids = tokenizer.encode(text)
    ends = [0, *(end for _, end in tokenizer.offsets(text))]
    ends[-1] = len(text)
    return ids, [max(after - before, 0) for before, after in pairwise(ends)]
