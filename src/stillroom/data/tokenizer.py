"""Tokenizers: what turns text into numbers. One that counts characters is here; others are wrapped to look like it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

CHARACTERS_FILE = "characters.json"
SIZE = 96


@runtime_checkable
class Tokenizer(Protocol):
    """What this library asks of a tokenizer.

    Attributes:
        name: what it is called in messages.
        end_id: the token between two texts; it also fills blocks up, where it carries no label.
    """

    name: str
    end_id: int

    def __len__(self) -> int:
        """Return the number of tokens: ids run from 0 to this minus 1."""

    def encode(self, text: str) -> list[int]:
        """Turn text into token ids, nothing added before or behind."""

    def decode(self, ids: Sequence[int]) -> str:
        """Turn token ids into text."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of `encode(text)` begins and ends in the text, in characters."""

    def save_pretrained(self, folder: str | Path) -> object:
        """Write it beside a model."""


class CharacterTokenizer:
    """One token per character, for the characters that are known; a single token for all others.

    Id 0 stands for an unknown character, id 1 for the end of a text, the characters follow.

    Args:
        characters: the known characters, each once.

    Raises:
        ValueError: no characters, or one twice.

    Example:
        >>> tokenizer = CharacterTokenizer.fit(["banana"], size=2)
        >>> tokenizer.encode("nab")
        [3, 2, 0]
        >>> tokenizer.decode([2, 3, 2]), len(tokenizer)
        ('ana', 4)
    """

    unknown_id = 0
    end_id = 1
    _FIRST = 2

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = "".join(characters)
        if not self.characters or len(set(self.characters)) < len(self.characters):
            raise ValueError(f"characters must be known ones, each once, given {self.characters[:20]!r}")
        self.name = f"{len(self.characters)} characters"
        self._ids = {character: number for number, character in enumerate(self.characters, self._FIRST)}

    @classmethod
    def fit(cls, texts: Iterable[str], *, size: int = SIZE) -> CharacterTokenizer:
        """Know the most frequent characters of some texts, the most frequent first (ties: in order of code points)."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        return cls(sorted(counts, key=lambda character: (-counts[character], character))[:size])

    def __len__(self) -> int:
        return len(self.characters) + self._FIRST

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharacterTokenizer) and other.characters == self.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    def __repr__(self) -> str:
        return f"CharacterTokenizer({self.name})"

    def encode(self, text: str) -> list[int]:
        """Turn text into one id per character."""
        return [self._ids.get(character, self.unknown_id) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into text: an unknown character is written as U+FFFD, the end of a text as nothing."""
        special = {self.unknown_id: "\N{REPLACEMENT CHARACTER}", self.end_id: ""}
        return "".join(special[one] if one in special else self.characters[one - self._FIRST] for one in map(int, ids))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token begins and ends in the text: one character each."""
        return [(place, place + 1) for place in range(len(text))]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the characters into a folder, beside a model."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"characters": self.characters}, ensure_ascii=False)
        (place / CHARACTERS_FILE).write_text(content + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> CharacterTokenizer:
        """Read what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: there is no such file in the folder.
        """
        return cls(json.loads((Path(folder) / CHARACTERS_FILE).read_text(encoding="utf-8"))["characters"])
