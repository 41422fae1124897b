"""Systems for language models. Their entries in the catalogue."""

from __future__ import annotations

from stillroom.systems.entry import System

SYSTEMS: tuple[System, ...] = (
    System(
        slug="semantic-revision",
        title="Multi-Granularity Semantic Revision for Large Language Model Distillation",
        arxiv="2407.10068",
        year=2024,
        kind="language",
        module="stillroom.systems.language.semantic_revision",
        needs="teacher, text (prompts with answers, or plain)",
        gives="a causal language model",
        methods=(("semantic-revision", "SemanticRevision"),),
    ),
)
