"""Small language models and text that the tests of language systems share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillroom.blocks import CausalTransformer
from stillroom.data import CharacterTokenizer
from stillroom.data.batch import Batch

TOKENIZER = CharacterTokenizer("abcdefgh ")
LENGTH = 16


def language_model(seed: int = 0, width: int = 8, depth: int = 1, spread: float = 0.4) -> nn.Module:
    """A causal model whose answers differ from place to place."""
    torch.manual_seed(seed)
    network = CausalTransformer(len(TOKENIZER), width=width, depth=depth, heads=2, context=LENGTH)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=spread)
    return network


def text_batch(rows: int = 8, seed: int = 0, prompt: int = 0) -> Batch:
    """Random words; with `prompt`, that many first labels are left out."""
    draws = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, len(TOKENIZER), (rows, LENGTH + 1), generator=draws)
    labels = tokens[:, 1:].clone()
    labels[:, :prompt] = -100
    return Batch(tokens[:, :-1], labels, torch.arange(rows))


class Following(nn.Module):
    """Says, nearly surely, that token t is followed by `following[t]`; one parameter, so that it can be trained."""

    def __init__(self, following: Tensor, sureness: float = 12.0) -> None:
        super().__init__()
        self.register_buffer("following", following)
        self.sureness = nn.Parameter(torch.tensor(sureness))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.sureness * nn.functional.one_hot(self.following[tokens], len(self.following)).float()
