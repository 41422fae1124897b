"""Ten-line networks and data that the tests share."""

import torch
from torch import Tensor, nn

from stillroom.data.batch import Batch
from stillroom.data.samples import Splits, TensorSamples


def mlp(features: int = 6, hidden: int = 8, classes: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def conv(classes: int = 3, width: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, classes),
    )  # fmt: skip


def cloud(count: int = 120, features: int = 6, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Well-separated clouds, one per class."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2.5 * torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return centres[labels] + torch.randn(count, features, generator=generator), labels


def splits(count: int = 120, labels: int | None = None) -> Splits:
    inputs, targets = cloud(count)
    test_inputs, test_targets = cloud(90, seed=1)
    whole = TensorSamples(inputs, targets)
    held = torch.arange(0, count, 4)
    kept = torch.tensor([row for row in range(count) if row % 4])
    train, pool = whole.subset(kept), None
    if labels is not None:
        train, pool = whole.subset(kept[:labels]), whole.subset(kept[labels:]).relabel(None)
    return Splits(
        train,
        TensorSamples(test_inputs, test_targets),
        whole.subset(held),
        pool,
        classes=["a", "b", "c"],
        name="clouds",
    )


def batch(count: int = 12) -> Batch:
    inputs, labels = cloud(count)
    return Batch(inputs, labels, torch.arange(count))


def trained_teacher() -> nn.Sequential:
    """A teacher that knows the clouds."""
    teacher = mlp(hidden=32, seed=5)
    inputs, labels = cloud(300, seed=3)
    optimizer = torch.optim.Adam(teacher.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(inputs), labels).backward()
        optimizer.step()
    return teacher
