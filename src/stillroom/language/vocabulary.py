"""One vocabulary for teacher and student: checked, and logits that are padded beyond it cut to its true size."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, Literal

from torch import Tensor

LEAST_PADDING, MOST_PADDING = 128, 1024


def padding_allowed(size: int) -> int:
    """How many logits more than tokens may be padding: an eighth of the vocabulary, within 128 to 1,024."""
    return min(max(size // 8, LEAST_PADDING), MOST_PADDING)


def cut_to_vocabulary(
    logits: Tensor, tokenizer: Sized | int, *, whose: str = "the model", dim: Literal[-1, 0] = -1
) -> Tensor:
    """Cut logits, or an output layer's weight, that are padded beyond a tokenizer to its true size, before any softmax.

    Models of one family pad their vocabulary to different multiples (of 64, 128, ...); the rows beyond the tokenizer
    stand for nothing and are never trained. Logits that have fewer entries than the tokenizer, or so many more that
    they cannot be padding (an eighth of the vocabulary, at least 128, at most 1,024), are of another vocabulary.

    Args:
        logits: `(..., W)`; or, with `dim=0`, an output layer's weight `(W, D)` or bias `(W,)`, which give W logits.
        tokenizer: the tokenizer of the model, or its size V.
        whose: what gives the logits, for the message.
        dim: where W is: -1 for logits, 0 for weight and bias.

    Returns:
        `(..., V)`, or `(V, ...)` for `dim=0`; what was given itself where W is V.

    Raises:
        ValueError: W is below V, or above it by more than padding.

    Example:
        >>> import torch
        >>> cut_to_vocabulary(torch.zeros(2, 5, 128), 98).shape
        torch.Size([2, 5, 98])
        >>> cut_to_vocabulary(torch.zeros(128, 16), 98, dim=0).shape
        torch.Size([98, 16])
    """
    size = tokenizer if isinstance(tokenizer, int) else len(tokenizer)
    width = logits.shape[dim]
    if width == size:
        return logits
    name = getattr(tokenizer, "name", None) or getattr(tokenizer, "name_or_path", None)
    called = f"its tokenizer ({name})" if name else "its tokenizer"
    if width < size:
        raise ValueError(
            f"{whose} gives {width} logits per position, but {called} has {size} tokens: take the tokenizer that the "
            "model was trained with, or resize the model's embeddings to it"
        )
    if width - size > padding_allowed(size):
        raise ValueError(
            f"{whose} gives {width} logits per position, {width - size} more than the {size} tokens of {called}, too "
            f"many to be padding (at most {padding_allowed(size)}): take the tokenizer that the model was trained with"
        )
    return logits.narrow(dim, 0, size)


def require_one_vocabulary(teacher: Any, student: Any, *, teacher_name: str, student_name: str) -> None:
    """Refuse a teacher and a student whose tokenizers do not give every token the same number.

    Args:
        teacher: a tokenizer with `get_vocab()` (Hugging Face), or `characters`.
        student: the same.
        teacher_name: what the teacher is called in the message.
        student_name: what the student is called in the message.

    Raises:
        ValueError: the vocabularies differ, with both names, both sizes and a token that differs.
    """
    theirs, own = _numbers(teacher), _numbers(student)
    if theirs == own:
        return
    odd = next(token for token in sorted({*theirs, *own}) if theirs.get(token) != own.get(token))
    raise ValueError(
        f"teacher {teacher_name} has a vocabulary of {len(theirs)} tokens and student {student_name} another one of "
        f"{len(own)} (token {odd!r} is {_told(theirs.get(odd))} and {_told(own.get(odd))}): distillation per token "
        "needs one tokenizer, so take two models of one family"
    )


def _numbers(tokenizer: Any) -> dict[str, int]:
    if hasattr(tokenizer, "get_vocab"):
        found: Mapping[str, int] = tokenizer.get_vocab()
        return dict(found)
    return {character: tokenizer.encode(character)[0] for character in tokenizer.characters}


def _told(number: int | None) -> str:
    return "missing" if number is None else f"number {number}"
