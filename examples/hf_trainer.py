"""A method inside the Hugging Face Trainer: the Trainer sees a module that returns a loss and logits."""

import tempfile

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from stillroom import KD, Batch
from stillroom.data import digits, sequential
from stillroom.task import Classification


class Logits(nn.Module):
    """A transformers classifier that returns its logits."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        config = ViTConfig(
            hidden_size=hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * hidden,
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
        )
        self.model = ViTForImageClassification(config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=images).logits


class ForTrainer(nn.Module):
    """Between any method and the Trainer."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        losses = self.method(Batch(pixel_values, labels))
        return {"loss": losses.total, "logits": losses.outputs}


class Items(Dataset):
    def __init__(self, samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        image, label = self.samples[row]
        return {"pixel_values": image, "labels": label}


def main(steps: int = 150) -> dict[str, float]:
    torch.manual_seed(0)
    data = digits()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    whole = data.train.batch(range(len(data.train)))
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(whole.inputs), whole.labels).backward()
        optimizer.step()

    method = KD(Logits(hidden=32), teacher)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=64,
            learning_rate=3e-3,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model=ForTrainer(method), args=arguments, train_dataset=Items(data.train)).train()
    test = list(sequential(data.test, 256))
    return {"student": Classification().evaluate(method.product, test)["accuracy"]}


if __name__ == "__main__":
    print(main())
