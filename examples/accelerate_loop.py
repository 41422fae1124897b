"""A method in a Hugging Face Accelerate loop; start it with `accelerate launch` on any number of processes."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stillroom import KD, Batch
from stillroom.data import digits, sequential
from stillroom.task import Classification


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def train(accelerator: Accelerator, module: nn.Module, loss_of: Callable[..., Tensor], data, epochs: int) -> None:
    loader = DataLoader(data, batch_size=64, shuffle=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    module, optimizer, loader = accelerator.prepare(module, optimizer, loader)
    for _ in range(epochs):
        for inputs, labels in loader:
            accelerator.backward(loss_of(module, inputs, labels))
            optimizer.step()
            optimizer.zero_grad()


def main(epochs: int = 15) -> dict[str, float]:
    torch.manual_seed(0)
    accelerator = Accelerator()
    data = digits()

    teacher = network(256)
    train(accelerator, teacher, lambda net, x, y: nn.functional.cross_entropy(net(x), y), data.train, epochs)

    method = KD(network(12), teacher)  # the teacher is frozen from here on
    train(accelerator, method, lambda kd, x, y: kd(Batch(x, y)).total, data.train, epochs)

    test = list(sequential(data.test, 256))
    return {
        "teacher": Classification().evaluate(teacher, test)["accuracy"],
        "student": Classification().evaluate(method.product, test)["accuracy"],
    }


if __name__ == "__main__":
    print(main())
