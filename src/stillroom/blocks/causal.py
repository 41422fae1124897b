"""A small language model: tokens through causal transformer blocks, each position predicting the next token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalTransformer(nn.Module):
    """A decoder-only transformer with learned positions, in the form of GPT-2.

    Args:
        vocabulary_size: number of tokens, 1 or more.
        width: of the tokens' features, a multiple of `heads`.
        depth: number of blocks.
        heads: of each block's attention.
        context: the longest sequence it takes.

    Raises:
        ValueError: a number below 1, or a width that the heads cannot share.

    Example:
        >>> network = CausalTransformer(98, width=32, depth=1, heads=2, context=64)
        >>> network(torch.zeros(2, 10, dtype=torch.int64)).shape
        torch.Size([2, 10, 98])
    """

    def __init__(self, vocabulary_size: int, *, width: int = 128, depth: int = 3, heads: int = 4, context: int) -> None:
        super().__init__()
        sizes = {"vocabulary_size": vocabulary_size, "width": width, "depth": depth, "heads": heads, "context": context}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, given {value}")
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, given a width of {width} and {heads} heads")
        self.context = context
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary_size, bias=False)
        nn.init.normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens `(N, L)` to logits `(N, L, vocabulary_size)` of the token that follows each position.

        Raises:
            ValueError: the tokens are no int64 rows, or longer than the context.
        """
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be (N, L) int64, given {tuple(tokens.shape)} {tokens.dtype}")
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(f"this model reads {self.context} tokens at most, given {length}: cut the text")
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions[:length])))


class _Block(nn.Module):
    """Causal attention and a perceptron four times as wide, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))
