"""Text prompts as training data: read from a file, embedded when a batch asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.data.named import data_folder
from stillroom.data.samples import Samples


class PromptSamples(Samples):
    """Prompts whose embeddings are made batch by batch; they are the inputs, and there is nothing else.

    Args:
        texts: the prompts, one or more.
        encode: texts -> embeddings `(N, L, d)`, such as a text encoder behind its tokenizer.

    Raises:
        ValueError: there is no prompt.

    Example:
        >>> prompts = PromptSamples(["a cat", "a very old dog"], lambda texts: torch.tensor([[len(t)] for t in texts]))
        >>> prompts.batch([1, 0]).inputs.tolist()
        [[14], [5]]
    """

    lazy = True

    def __init__(self, texts: Sequence[str], encode: Callable[[list[str]], Tensor]) -> None:
        self.texts = list(texts)
        if not self.texts:
            raise ValueError("there are 0 prompts to train on: give at least one")
        self.encode = encode
        super().__init__(len(self.texts), self._encoded(self.texts[:1]).shape[1:])

    def _read(self, rows: Tensor) -> tuple[Any, None, Mapping[str, Tensor]]:
        return self._encoded([self.texts[row] for row in rows.tolist()]), None, {}

    @torch.no_grad()
    def _encoded(self, texts: list[str]) -> Tensor:
        return self.encode(texts).detach()


def read_lines(path: str | Path, *, what: str = "prompts") -> list[str]:
    """Read a text file of one prompt per line; empty lines are left out.

    Args:
        path: the file, or its name in the folder that the environment variable STILLROOM_DATA names.
        what: what the lines are, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no line.
    """
    file = Path(path).expanduser()
    own = data_folder()
    if not file.exists() and own is not None and (own / file).exists():
        file = own / file
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}: write the {what} there, one per line")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line]
    if not found:
        raise ValueError(f"{file} holds no {what}: write one per line")
    return found
