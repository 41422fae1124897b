"""Semantic revision: a language model learns from a larger one on sequences, tokens and spans that were revised.

For whom: you have a large and a small causal language model over one tokenizer (your own modules, or models of
`transformers`), prompts with reference answers or plain text, and want a better small model than plain distillation or
distillation on raw student samples gives. The three parts also work by themselves: the repair of what a student wrote
(`locate`, `rewrite`), the KL over a learned part of the vocabulary (`stillroom.losses.clipped_token_kl` with
`ClippingLimits`), and the correlation of neighbours inside spans (`stillroom.losses.span_correlation_loss`).

Not for whom: teacher and student have different tokenizers; the teacher is only reachable as text (its distributions
are needed at every step); you cannot afford to let the student write during training; the models are not causal.

Citation: Liu, Zhang, W. Li, S. Li, Huang, Chen, Tang, Hu, Xiong, Wang. Multi-Granularity Semantic Revision for Large
Language Model Distillation. ACL 2026. arXiv:2407.10068. The schedule and the constants of training are those of Ko et
al. 2024 (DistiLLM), arXiv:2402.03898.

Deviations from the paper: its equations could not be read, and no code of the authors is known; the roles of the three
levels, the choice of one error token at the largest divergence, the learned quantile limits, the equal weights and the
spans of a chunker are confirmed, everything else is a reconstruction. Unconfirmed, and arguments: whether the
teacher's replacement is its likeliest token or a draw (`replacement`), how often samples are repaired
(`repair_every`), the adaptive schedule and its constants (`student_share`, `share_step`, `loss_tolerance`,
`capacity`), inputs, sizes, bounds and beginning of the sub-network (`ClippingLimits`) and the softness of its mask
(`softness`). Unconfirmed and fixed: the quantile is one of the teacher's mass, the target is always kept, what is kept
is renormalised (other clipping is refused: it is no divergence), the cross-entropy is that of reference text only, and
the correlation of two neighbours is the product of their probabilities. The limits step after the student, on what
both models said before its step. The first validation loss is taken at the end of the first epoch, not before
training. Without a chunker of yours, phrases are found by punctuation and English function words. The paper's other
evaluation sets and other methods are not part of `paper`.
"""

from __future__ import annotations

from stillroom.systems.language.semantic_revision.limits import ClippingLimits
from stillroom.systems.language.semantic_revision.method import KeptMassWarning, SemanticRevision
from stillroom.systems.language.semantic_revision.recipe import paper, recipe
from stillroom.systems.language.semantic_revision.revision import Located, judge, locate, prompts_of, rewrite

__all__ = [
    "ClippingLimits",
    "KeptMassWarning",
    "Located",
    "SemanticRevision",
    "judge",
    "locate",
    "paper",
    "prompts_of",
    "recipe",
    "rewrite",
]
