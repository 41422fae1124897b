"""What several language systems use: one vocabulary, generation, replay of what was generated, spans of tokens."""

from stillroom.language.generate import Sequences, draw, evaluating, generate, logits_of
from stillroom.language.replay import AdaptiveSchedule, ReplayBuffer
from stillroom.language.rouge import rouge_l
from stillroom.language.spans import SpanFinder, phrases, token_ranges, token_spans, words
from stillroom.language.vocabulary import cut_to_vocabulary, require_one_vocabulary

__all__ = [
    "AdaptiveSchedule",
    "ReplayBuffer",
    "Sequences",
    "SpanFinder",
    "cut_to_vocabulary",
    "draw",
    "evaluating",
    "generate",
    "logits_of",
    "phrases",
    "require_one_vocabulary",
    "rouge_l",
    "token_ranges",
    "token_spans",
    "words",
]
