"""Distil a language model without ever holding its logits: for large vocabularies. About five seconds on two cores."""

import torch
from torch import nn

from stillroom.blocks import CausalTransformer
from stillroom.language import cut_to_vocabulary
from stillroom.losses import vocabulary_kl

TOKENS = 500
"""Of the tokenizer. The models below pad their output layers beyond it, the one to 512 rows and the other to 576."""


def without_head(network: nn.Module) -> nn.Linear:
    """Take the output layer off, so that the network gives the hidden states that it would read.

    With a causal model of transformers, `model.base_model(tokens).last_hidden_state` are the hidden states and
    `model.get_output_embeddings()` is the output layer.
    """
    head = network.head
    network.head = nn.Identity()
    return head


def main(steps: int = 60) -> dict[str, float]:
    torch.manual_seed(0)
    teacher = CausalTransformer(576, width=64, depth=1, heads=2, context=16).eval().requires_grad_(False)
    nn.init.normal_(teacher.head.weight, std=0.3)  # stands in for a teacher that was trained: it has opinions
    student = CausalTransformer(512, width=32, depth=1, heads=2, context=16)
    teacher_head, student_head = without_head(teacher), without_head(student)
    optimizer = torch.optim.AdamW([*student.parameters(), *student_head.parameters()], lr=1e-2)
    history = []
    for _ in range(steps):
        tokens = torch.randint(TOKENS, (8, 16))
        valid = torch.ones(tokens.shape)
        valid[:, :4] = 0  # prompts are read, and not learned
        with torch.no_grad():
            theirs = teacher(tokens)
        loss = vocabulary_kl(
            student(tokens),
            cut_to_vocabulary(student_head.weight, TOKENS, whose="the student", dim=0),
            theirs,
            cut_to_vocabulary(teacher_head.weight, TOKENS, whose="the teacher", dim=0),
            valid=valid,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    student.head = student_head  # what ships: the whole model
    return {"first loss": history[0], "last loss": history[-1]}


if __name__ == "__main__":
    print(main())
