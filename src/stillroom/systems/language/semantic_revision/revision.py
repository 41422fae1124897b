"""Repair of what a student wrote: its worst token is replaced by its teacher's, and the student goes on from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.data.batch import UNLABELLED
from stillroom.language import Sequences, cut_to_vocabulary, draw, generate, logits_of
from stillroom.losses import token_kl
from stillroom.losses.tokens import check_sequences

Replacement = Literal["greedy", "sample"]


@dataclass(frozen=True)
class Prompts:
    """What a student is to continue.

    Attributes:
        sequences: the prompts, `(N, L)` tokens right-padded.
        limits: `(N,)` how long each may become.
        rows: `(N,)` which rows of the batch they are of.
    """

    sequences: Sequences
    limits: Tensor
    rows: Tensor


def prompts_of(inputs: Tensor, labels: Tensor, *, prompt_length: int, max_new_tokens: int) -> Prompts:
    """The prompts of a batch: what comes before its first label, but at least `prompt_length` tokens.

    Args:
        inputs: `(N, L)` int64 tokens.
        labels: `(N, L)` int64, shifted, -100 where none is predicted; rows without any label are left out.
        prompt_length: 1 or more; never beyond the inputs.
        max_new_tokens: by how much a prompt may grow, up to L + 1 tokens in all.

    Raises:
        ValueError: no row has a label.
    """
    counted = labels != UNLABELLED
    rows = counted.any(dim=1).nonzero().flatten()
    if not len(rows):
        raise ValueError(f"none of the {labels.numel()} positions is valid: at least one must have a label")
    length = inputs.shape[1]
    starts = (counted[rows].long().argmax(dim=1) + 1).clamp(min=prompt_length).clamp(max=length)
    return Prompts(Sequences(inputs[rows], starts), (starts + max_new_tokens).clamp(max=length + 1), rows)


@dataclass(frozen=True)
class Located:
    """Where a student errs most, in each sequence.

    Attributes:
        divergence: `(B, L)` KL(teacher || student) per position, in nats, at every position.
        position: `(B,)` the valid position where it is largest (the first of equals); -1 in a row without any.
        replacement: `(B,)` the teacher's token there.
    """

    divergence: Tensor
    position: Tensor
    replacement: Tensor


@torch.no_grad()
def locate(
    student_logits: Tensor,
    teacher_logits: Tensor,
    valid: Tensor,
    *,
    replacement: Replacement = "greedy",
    generator: torch.Generator | None = None,
) -> Located:
    """Find the token of each sequence at which student and teacher differ most, and what the teacher would say there.

    D_t = KL(softmax(teacher_t) || softmax(student_t)) at temperature 1; the position is argmax over the valid t.

    Args:
        student_logits: `(B, L, V)`, both models read the same sequences.
        teacher_logits: the same shape.
        valid: `(B, L)`, 1 or True where the token that is predicted belongs to the response.
        replacement: "greedy" takes the teacher's likeliest token, "sample" draws from its distribution.
        generator: of that draw; None for torch's global one.

    Raises:
        ValueError: shapes disagree (vocabularies of two sizes), or no position is valid.
    """
    counted = check_sequences(student_logits, teacher_logits, valid=valid)
    divergence = token_kl(student_logits, teacher_logits, reduction="none")
    position = divergence.masked_fill(~counted, -torch.inf).argmax(dim=1)
    chosen = teacher_token(teacher_logits, position, replacement=replacement, generator=generator)
    return Located(divergence, torch.where(counted.any(dim=1), position, -1), chosen)


def teacher_token(
    teacher_logits: Tensor, position: Tensor, *, replacement: Replacement, generator: torch.Generator | None = None
) -> Tensor:
    """The teacher's token `(B,)` at one position of each sequence; see `locate`."""
    if replacement not in ("greedy", "sample"):
        raise ValueError(f'replacement must be "greedy" or "sample", given {replacement!r}')
    there = teacher_logits[torch.arange(len(position), device=position.device), position]
    return draw(there, temperature=float(replacement == "sample"), generator=generator)


@dataclass(frozen=True)
class Judged:
    """What both models say about sequences, teacher-forced.

    Attributes:
        student_logits: `(B, L - 1, V)`, position t predicts token t + 1.
        teacher_logits: the same of the teacher.
        valid: `(B, L - 1)` bool, where the token that is predicted belongs to the response.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    valid: Tensor


@torch.no_grad()
def judge(
    student: nn.Module, teacher: Any, sequences: Sequences, starts: Tensor, *, vocabulary_size: int | None = None
) -> Judged:
    """Let both models read sequences.

    Args:
        student: tokens -> logits.
        teacher: the same.
        sequences: prompts with responses.
        starts: `(B,)` tokens of each prompt.
        vocabulary_size: wider logits are cut to it; None for all.
    """
    inputs = sequences.tokens[:, :-1]
    answers = []
    for model, whose in ((student, "the student"), (teacher, "the teacher")):
        logits = logits_of(model(inputs))
        answers.append(logits if vocabulary_size is None else cut_to_vocabulary(logits, vocabulary_size, whose=whose))
    return Judged(answers[0], answers[1], responses(sequences, starts))


def responses(sequences: Sequences, starts: Tensor) -> Tensor:
    """Which positions t, of all but the last, predict a token of the response: starts - 1 <= t < lengths - 1."""
    places = torch.arange(sequences.tokens.shape[1] - 1, device=starts.device)
    return (places >= starts.unsqueeze(1) - 1) & (places < sequences.lengths.unsqueeze(1) - 1)


@torch.no_grad()
def rewrite(
    student: nn.Module,
    sequences: Sequences,
    position: Tensor,
    replacement: Tensor,
    *,
    max_length: int | Tensor,
    end_token: int | None = None,
    vocabulary_size: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Sequences:
    """Replace the token that one position predicts, forget what followed, and let the student continue.

    Args:
        student: continues; see `stillroom.language.generate` for this and the options of its draws.
        sequences: what was written.
        position: `(B,)`: token `position + 1` is replaced; -1 leaves a row as it is.
        replacement: `(B,)` tokens that are put there. A row whose replacement is the end token ends with it.
        max_length: no row becomes longer.
        end_token: of a sequence; None where there is none.
        vocabulary_size: tokens that may be drawn.
        temperature: of the draws.
        top_k: of the draws.
        top_p: of the draws.
        generator: of the draws.
    """
    changed = position >= 0
    lengths = torch.where(changed, position + 2, sequences.lengths)
    tokens = sequences.tokens.clone()
    rows = torch.arange(len(tokens), device=tokens.device)
    tokens[rows[changed], position[changed] + 1] = replacement[changed]
    limits = torch.as_tensor(max_length, device=lengths.device).expand(lengths.shape)
    ended = ~changed if end_token is None else ~changed | (replacement == end_token)
    return generate(
        student,
        Sequences(tokens, lengths),
        max_length=torch.where(ended, lengths, limits),
        end_token=end_token,
        vocabulary_size=vocabulary_size,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=generator,
    )
