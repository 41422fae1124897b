"""What several language systems use: vocabularies that must be one and the same."""

from stillroom.language.vocabulary import cut_to_vocabulary, require_one_vocabulary

__all__ = ["cut_to_vocabulary", "require_one_vocabulary"]
