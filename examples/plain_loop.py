"""A method in your own PyTorch loop: no trainer, no framework. About ten seconds on two cores."""

import torch
from torch import nn

from stillroom.data import Stream, digits, sequential
from stillroom.systems.classification.logit_kd import DKD
from stillroom.task import Classification


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def train(module: nn.Module, loss_of, data: Stream, steps: int) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    module.train()
    for batch in data.batches(0, steps):
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(steps: int = 600) -> dict[str, float]:
    torch.manual_seed(0)
    data = digits()
    stream = Stream(data.train, batch_size=64, seed=0)
    test = list(sequential(data.test, 256))

    teacher = network(256)
    train(teacher, lambda batch: nn.functional.cross_entropy(teacher(batch.inputs), batch.labels), stream, steps)

    method = DKD(network(12), teacher, beta=2.0)  # any method: an nn.Module that turns a batch into named losses
    train(method, lambda batch: method(batch).total, stream, steps)

    student = method.product  # what ships: a plain module
    return {
        "teacher": Classification().evaluate(teacher, test)["accuracy"],
        "student": Classification().evaluate(student, test)["accuracy"],
    }


if __name__ == "__main__":
    print(main())
