"""Tiny networks and a problem that a few steps solve."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from stillroom.data.batch import Batch
from stillroom.method import Method

CLASSES = 5


class ConvNet(nn.Module):
    """Three stages of maps 8x8, 4x4 and 2x2, with the widths w, 2w and 4w."""

    def __init__(self, width: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.stage1 = block(1, width, 1)
        self.stage2 = block(width, 2 * width, 2)
        self.stage3 = block(2 * width, 4 * width, 2)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stage3(self.stage2(self.stage1(images))).mean((2, 3)))


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, 2 * width)
        self.back = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.back(self.mix(tokens + tokens.mean(1, keepdim=True)).relu())


class TokenNet(nn.Module):
    """Patches of 2x2 as 16 tokens behind a class token, two blocks."""

    def __init__(self, width: int = 6, classes: int = CLASSES) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(Layer(width), Layer(width))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.head(self.blocks(tokens)[:, 0])


def mlp(width: int = 16, classes: int = CLASSES) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )


def segmenter(width: int = 4, classes: int = CLASSES) -> nn.Sequential:
    """Logits at 4x4 positions."""
    return nn.Sequential(block(1, width, 2), nn.Conv2d(width, classes, 1))


def problem(samples: int, seed: int = 0) -> Batch:
    """Images of 8x8: each class is a fixed pattern, under noise as strong as itself."""
    patterns = torch.rand(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % CLASSES
    noise = torch.rand(samples, 1, 8, 8, generator=generator)
    return Batch((patterns[labels] + noise) / 2, labels, torch.arange(samples))


@functools.cache
def trained_teacher() -> ConvNet:
    """A teacher that has learned the problem."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        teacher, batch = ConvNet(8), problem(200)
        optimizer = torch.optim.Adam(teacher.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(teacher(batch.inputs), batch.labels).backward()
            optimizer.step()
    return teacher.eval()


def train(method: Method, batch: Batch, steps: int = 60, lr: float = 0.01) -> list[dict[str, float]]:
    """A plain loop; returns the terms of every step."""
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=lr)
    terms = []
    for _ in range(steps):
        losses = method(batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        terms.append({name: float(term.detach()) for name, term in losses.items()})
    return terms


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    """On samples that nobody trained on; chance is 0.2."""
    batch, mode = problem(300, seed=5), network.training
    network.eval()
    right = network(batch.inputs).argmax(1) == batch.labels
    network.train(mode)
    return float(right.double().mean())
