"""Sequences sampled from a causal language model: from any module tokens -> logits, or from one of `transformers`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stillroom.blocks.taps import tap_root
from stillroom.language.vocabulary import cut_to_vocabulary


@dataclass(frozen=True)
class Sequences:
    """Sequences of different lengths, one a row, filled up behind their end.

    Attributes:
        tokens: `(N, L)` int64; what stands behind a row's end means nothing.
        lengths: `(N,)` int64, tokens of each row, in [1, L].

    Raises:
        ValueError: tokens and lengths do not fit each other.
    """

    tokens: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be (N, L) int64, given {tuple(self.tokens.shape)} {self.tokens.dtype}")
        rows, longest = self.tokens.shape
        if self.lengths.shape != (rows,) or self.lengths.dtype != torch.int64:
            raise ValueError(f"lengths must be ({rows},) int64, given {tuple(self.lengths.shape)} {self.lengths.dtype}")
        if rows and not 1 <= int(self.lengths.min()) <= int(self.lengths.max()) <= longest:
            raise ValueError(
                f"lengths must lie in [1, {longest}], given {int(self.lengths.min())} to {int(self.lengths.max())}"
            )

    def left_padded(self, pad_token: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Bring all ends to one column: the form that models with a cache continue.

        Args:
            pad_token: what stands before the rows' beginnings.

        Returns:
            tokens, attention mask (0 at padding) and explicit positions (0 at each row's first token), all `(N, T)`
            int64 with T the longest length.
        """
        longest = int(self.lengths.max())
        places = torch.arange(longest, device=self.tokens.device) - (longest - self.lengths).unsqueeze(1)
        mask = places >= 0
        tokens = self.tokens.gather(1, places.clamp(min=0)).masked_fill(~mask, pad_token)
        return tokens, mask.long(), places.clamp(min=0)


class LogitsModel(Protocol):
    """Anything that takes tokens `(N, L)` and gives logits `(N, L, V)`, or an output with such `.logits`."""

    def __call__(self, tokens: Tensor, /) -> Any:
        """Answer."""


def logits_of(answer: Any) -> Tensor:
    """The logits in a language model's answer: the tensor itself, or its `.logits` (the outputs of `transformers`).

    Raises:
        TypeError: there are none.
    """
    logits = answer if isinstance(answer, Tensor) else getattr(answer, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(f"a language model must answer with logits or an output that has .logits, given {type(answer)}")
    return logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a module into eval mode (no dropout), and every part of it back into its own mode at the end."""
    before = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = before[name]


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequences,
    *,
    max_length: int | Tensor,
    end_token: int | None = None,
    vocabulary_size: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Sequences:
    """Continue prompts of different lengths by sampling token by token; without gradient, and with dropout off.

    A causal model of `transformers` is continued with its cache: left padding, attention mask and explicit positions.
    Any other module is asked about the sequences so far, right-padded, which a causal module cannot notice.

    Args:
        model: tokens -> logits, causal. It is in eval mode meanwhile, and in its own modes again afterwards.
        prompts: what is continued.
        max_length: no row becomes longer, prompt included: a number, or `(N,)` int64.
        end_token: a row ends when it is drawn; None where there is none.
        vocabulary_size: tokens that may be drawn; wider (padded) logits are cut to it. None for the `classes` of a
            model of `stillroom.hub`, else for all.
        temperature: of the draws; 0 takes the likeliest token.
        top_k: draw among the k likeliest; 0 for all.
        top_p: draw among the likeliest tokens that together have this mass, in (0, 1]; 1 for all.
        generator: of the draws, on the logits' device; None for torch's global one.

    Returns:
        Prompts with their continuations; a prompt of `max_length` tokens stays as it is.

    Raises:
        ValueError: a number out of range, or a prompt longer than `max_length`.

    Example:
        >>> from stillroom.blocks import CausalTransformer
        >>> model = CausalTransformer(20, width=8, depth=1, heads=2, context=16)
        >>> prompts = Sequences(torch.tensor([[3, 4, 5], [6, 0, 0]]), torch.tensor([3, 1]))
        >>> generate(model, prompts, max_length=8).lengths
        tensor([8, 8])
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature and top_k must be 0 or more and top_p in (0, 1], given {temperature}, {top_k} and {top_p}"
        )
    limits = torch.as_tensor(max_length, device=prompts.lengths.device).expand(prompts.lengths.shape)
    if bool((prompts.lengths > limits).any()):
        row = int((prompts.lengths - limits).argmax())
        raise ValueError(
            f"prompt {row} has {int(prompts.lengths[row])} tokens, more than max_length={int(limits[row])}: cut it, or "
            "allow more"
        )
    longest = int(prompts.lengths.max()) if len(limits) else 0
    tokens = prompts.tokens.new_zeros(len(limits), int(limits.max()) if len(limits) else 0)
    tokens[:, :longest] = prompts.tokens[:, :longest]
    lengths = prompts.lengths.clone()
    rows = torch.arange(len(tokens), device=tokens.device)
    running = lengths < limits
    size = getattr(model, "classes", None) if vocabulary_size is None else vocabulary_size
    with evaluating(model):
        network = tap_root(model)
        asked = _Cached(network) if _has_cache(network) else _Plain(model)
        while bool(running.any()):
            logits = asked.next_logits(Sequences(tokens, lengths), running)
            if size is not None:
                logits = cut_to_vocabulary(logits, size)
            drawn = draw(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
            tokens[rows[running], lengths[running]] = drawn[running]
            lengths = lengths + running
            running &= lengths < limits
            if end_token is not None:
                running &= drawn != end_token
    return Sequences(tokens, lengths)


def draw(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, generator: torch.Generator | None
) -> Tensor:
    """Draw a token per row of logits `(N, V)`, see `generate`; returns `(N,)` int64."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        falling, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        beyond = falling.cumsum(dim=-1) - falling >= top_p  # the likeliest token always stays
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)


class _Plain:
    """Asks a module about the whole sequences so far."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def next_logits(self, sequences: Sequences, running: Tensor) -> Tensor:
        longest = int(sequences.lengths[running].max())
        logits = logits_of(self.model(sequences.tokens[:, :longest]))
        last = (sequences.lengths - 1).clamp(max=longest - 1)
        return logits[torch.arange(len(last), device=last.device), last]


class _Cached:
    """Asks a causal model of `transformers` about each row's last token; what came before is in its cache."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.takes_positions = "position_ids" in _parameters(model)
        self.cache: Any = None
        self.mask = self.positions = torch.empty(0)

    def next_logits(self, sequences: Sequences, running: Tensor) -> Tensor:
        if self.cache is None:
            tokens, self.mask, self.positions = sequences.left_padded()
        else:  # rows that have ended go on unread, so that the cache stays rectangular
            tokens = sequences.tokens.gather(1, (sequences.lengths - 1).unsqueeze(1))
            self.mask = torch.cat([self.mask, torch.ones_like(tokens)], dim=1)
            self.positions = torch.where(running.unsqueeze(1), self.positions[:, -1:] + 1, self.positions[:, -1:])
        options = {"position_ids": self.positions} if self.takes_positions else {}
        answer = self.model(
            input_ids=tokens, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **options
        )
        self.cache = answer.past_key_values
        return logits_of(answer)[:, -1]


def _parameters(model: nn.Module) -> set[str]:
    inner: Any = model
    if hasattr(inner, "get_base_model"):  # an adapter of peft around the model
        inner = inner.get_base_model()
    return set(inspect.signature(inner.forward).parameters)


def _has_cache(model: nn.Module) -> bool:
    return {"input_ids", "attention_mask", "past_key_values", "use_cache"} <= _parameters(model)
