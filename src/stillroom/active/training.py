"""Training and asking the classifiers that query strategies are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stillroom.baselines import Alone
from stillroom.checkpoint import seed_everything
from stillroom.data.samples import TensorSamples
from stillroom.fit import fit
from stillroom.training import Training


def train_classifier(
    network: Callable[[int], nn.Module],
    inputs: Tensor,
    labels: Tensor,
    *,
    classes: int,
    training: Training,
    seed: int,
    device: str | None = None,
) -> nn.Module:
    """Build a classifier and train it by cross-entropy, from scratch and without looking at anything else.

    Args:
        network: number of outputs -> a module that takes rows of `inputs`.
        inputs: `(N, ...)`.
        labels: `(N,)` int64 in [0, classes).
        classes: outputs.
        training: epochs, batch size, optimizer.
        seed: of the initial weights and the order of samples.
        device: None for the machine's own choice.

    Returns:
        The classifier after the last step, in eval mode.

    Raises:
        ValueError: nothing to train on.
    """
    if not len(labels):
        raise ValueError("a classifier needs at least one labelled sample, given none: label some samples first")
    seed_everything(seed)
    method = Alone(network(classes))
    fitted = fit(
        method, TensorSamples(inputs, labels), training.change(keep="last"), seed=seed, device=device, progress=False
    )
    return fitted.product


@torch.no_grad()
def predict(network: nn.Module, inputs: Tensor, *, batch_size: int = 1024) -> Tensor:
    """Class probabilities `(N, K)` in float32 on the CPU; the network is asked in eval mode and set back."""
    was_training = network.training
    network.eval()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        parts = [network(part.to(device)).float().softmax(dim=1).cpu() for part in inputs.split(batch_size)]
    finally:
        network.train(was_training)
    return torch.cat(parts)
