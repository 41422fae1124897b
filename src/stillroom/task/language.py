"""Causal language modelling: which token comes next, at every position of a block of text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.data.batch import UNLABELLED, Batch, tensors_in
from stillroom.losses import Reduction, cross_entropy, kd_loss
from stillroom.task.base import Meter, Task

MEASURED_AT_ONCE = 2**24
"""Logits of one batch of an evaluation, at most: 64 MiB in float32."""

LARGE_VOCABULARY = 50_000
"""What is assumed of a network that has not answered yet."""


class LanguageModelling(Task):
    """The next token at every position. Outputs are logits `(N, L, V)`, labels `(N, L)` int64 tokens, -100 for none.

    Labels are shifted already: `outputs[:, t]` predicts `labels[:, t]`, the token after `inputs[:, t]`. Positions with
    the label -100 (prompts, filling) are in no loss and no metric.

    Args:
        data: "documentation" (Python's own), a .txt, .jsonl or .parquet file or a folder of such, "hf:NAME" or a
            Hugging Face data set with a column of text or with prompts and responses, texts in a list, rows of tokens
            `(N, L)` or `(tokens, labels)`, or `Splits`.
        length: tokens in a block; None for 64.
        tokenizer: what turns text into tokens: a tokenizer, or the folder or name of a Hugging Face model; None for the
            96 most frequent characters of the training text.
        train_size: how many blocks the student sees; None for all.
        teacher_size: how many blocks a teacher sees that is trained first; None for all.
        test_size: how many blocks the results are reported on; None for all.
        labels: how many training blocks keep their labels; the others are only read with the teacher's answers.
        unlabelled: further text that is only read with the teacher's answers.
        validation_share: part of the text kept for choosing weights, where the data bring none.

    Example:
        >>> task = LanguageModelling("documentation", length=32, test_size=10)
        >>> batch = task.load().test.batch([0])
        >>> batch.inputs.shape == batch.labels.shape == (1, 32)
        True
    """

    name = "language-modelling"
    metric = "perplexity"
    higher_is_better = False
    kd_weights = (0.5, 0.5)
    kd_temperature = 1.0
    augments: ClassVar[bool] = False
    verb: ClassVar[str] = "predict the next token of"
    outputs_are: ClassVar[str] = "tokens in the vocabulary"
    takes: ClassVar[str] = "blocks of token numbers, int64 (N, L), and gives logits (N, L, V)"
    teacher_faults: ClassVar[str] = "its tokenizer and that labels are one token later"
    demonstration: ClassVar[dict[str, Any]] = {
        "data": "documentation",
        "teacher": "gpt-2-64",
        "student": "gpt-1-48",
        "teacher_epochs": 4.0,
        "epochs": 2.0,
        "batch_size": 8,
        "lr": 4e-3,
        "seeds": 3,
    }
    """Sizes, steps, T and the weights were chosen by held-out perplexity on seeds 100 and 101."""

    def __init__(
        self,
        data: Any = None,
        *,
        length: int | None = None,
        tokenizer: Any = None,
        train_size: int | None = None,
        teacher_size: int | None = None,
        test_size: int | None = None,
        labels: int | None = None,
        unlabelled: Any = None,
        validation_share: float = 0.1,
    ) -> None:
        super().__init__(
            data,
            train_size=train_size,
            teacher_size=teacher_size,
            test_size=test_size,
            labels=labels,
            unlabelled=unlabelled,
            validation_share=validation_share,
        )
        if length is not None and length < 2:
            raise ValueError(f"length must be 2 tokens or more, given {length}")
        self.length = length
        self.tokenizer = tokenizer

    def load(self, seed: int = 0, *, everything: bool = False) -> Any:
        """Read and tokenize the text; see `Task.load`."""
        from stillroom.data import load_data
        from stillroom.data.passages import load_text

        if self.data is None:
            raise ValueError("this LanguageModelling task has no data: pass data=")
        splits = load_text(
            self.data,
            length=self.length,
            tokenizer=_tokenizer(self.tokenizer),
            validation_share=self.validation_share,
            unlabelled=None if everything else self.unlabelled,
        )
        return load_data(
            splits,
            seed=seed,
            labels=None if everything else self.labels,
            train_size=self.teacher_size if everything else self.train_size,
            test_size=self.test_size,
            validation_share=self.validation_share,
        )

    def for_models(self, teacher: Any, student: Any) -> Task:
        """Take the tokenizer that the models come with; teacher and student must have one vocabulary."""
        if self.tokenizer is not None:
            return self
        from stillroom.hub.language import tokenizer_of_models

        found = tokenizer_of_models(teacher, student)
        return self if found is None else self.change(tokenizer=found)

    def width(self, splits: Any) -> int | None:
        """As many outputs as the tokenizer has tokens; the teacher decides where there is none."""
        return None if splits.tokenizer is None else len(splits.tokenizer)

    def width_of(self, outputs: Tensor) -> int:
        """The vocabulary is the last dimension."""
        return outputs.shape[-1]

    def sample_name(self, splits: Any) -> str:
        """A sample is a block."""
        return f"{splits.train.shape[0]}-token block"

    def pieces(self, batch: Batch, width: int | None) -> Iterator[Batch]:
        """Cut a batch so that its logits take 64 MiB or less at a time."""
        tokens = next(tensors_in(batch.inputs))[0].numel()
        rows = max(MEASURED_AT_ONCE // ((width or LARGE_VOCABULARY) * max(tokens, 1)), 1)
        for first in range(0, len(batch), rows):
            yield batch[first : first + rows]

    def supervised_loss(self, outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Cross-entropy in nats per labelled token; `(N, L)` for "none", 0 where there is no label."""
        _check_shapes(outputs, labels)
        values = cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction=reduction)
        return values.view(labels.shape) if reduction == "none" else values

    def distillation_loss(
        self,
        student_outputs: Tensor,
        teacher_outputs: Tensor,
        *,
        temperature: float = 1.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Tempered KL divergence of each position's next-token distribution, with T squared, mean over positions."""
        if student_outputs.shape != teacher_outputs.shape:
            raise ValueError(
                f"student logits have shape {tuple(student_outputs.shape)}, teacher logits "
                f"{tuple(teacher_outputs.shape)}: both need the same positions and one vocabulary (one tokenizer)"
            )
        student, teacher = student_outputs.flatten(0, -2), teacher_outputs.flatten(0, -2)
        values = kd_loss(student, teacher, temperature=temperature, reduction=reduction)
        return values.view(student_outputs.shape[:-1]) if reduction == "none" else values

    def distill(
        self, student_outputs: Tensor, teacher_outputs: Tensor, labels: Tensor | None, *, temperature: float = 1.0
    ) -> Tensor:
        """The distillation loss over the positions that carry a label; over all positions of blocks without any."""
        if labels is None or student_outputs.shape != teacher_outputs.shape:
            return self.distillation_loss(student_outputs, teacher_outputs, temperature=temperature)
        _check_shapes(student_outputs, labels)
        counted = labels != UNLABELLED
        counted |= ~counted.any(1, keepdim=True)
        return self.distillation_loss(student_outputs[counted], teacher_outputs[counted], temperature=temperature)

    def check(self, batch: Batch, outputs: Tensor | None = None) -> None:
        """Check tokens, labels and logits once, on the first batch; see `Task.check`."""
        for tensor in tensors_in(batch.inputs):
            if tensor.is_floating_point() and batch.labels is not None and tensor.shape == batch.labels.shape:
                raise ValueError(f"inputs must be int64 token numbers (N, L), given dtype {tensor.dtype}")
            if outputs is not None and not tensor.is_floating_point() and tensor.numel():
                low, high = int(tensor.min()), int(tensor.max())
                if low < 0 or high >= outputs.shape[-1]:
                    raise ValueError(
                        f"token numbers run from {low} to {high}, but the network's vocabulary has "
                        f"{outputs.shape[-1]} tokens (0 to {outputs.shape[-1] - 1}): tokenize with its own tokenizer"
                    )
        super().check(batch, outputs)

    def check_labels(self, labels: Tensor, outputs: Tensor | None) -> None:
        """Labels must be int64 tokens below the vocabulary, or -100, one per position."""
        if labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64 token numbers, given dtype {labels.dtype}")
        if outputs is None:
            return
        _check_shapes(outputs, labels)
        known = labels[labels != UNLABELLED]
        if len(known) and (int(known.min()) < 0 or int(known.max()) >= outputs.shape[-1]):
            raise ValueError(
                f"labels run from {int(known.min())} to {int(known.max())}, but the network's vocabulary has "
                f"{outputs.shape[-1]} tokens: tokenize with its own tokenizer"
            )

    def chance(self, labels: Tensor) -> dict[str, float]:
        """The perplexity of knowing only how frequent each token is."""
        known = labels[labels != UNLABELLED]
        if not len(known):
            return {}
        share = known.unique(return_counts=True)[1].double() / len(known)
        return {self.metric: float((-(share * share.log()).sum()).exp())}

    def meter(self, width: int | None, *, with_teacher: bool = False) -> TokenMeter:
        """Perplexity, cross-entropy per token, bits per character; with a teacher, agreement with it."""
        return TokenMeter()

    def collect(self, meter: Meter, outputs: Tensor, batch: Batch, teacher_outputs: Tensor | None) -> None:
        """Let a meter take one batch, and how many characters its labels stand for."""
        meter.update(outputs, batch.labels, teacher_outputs)
        counts = batch.fields.get("characters")
        if isinstance(meter, TokenMeter) and counts is not None and batch.labels is not None:
            meter.characters += int(counts[batch.labels != UNLABELLED].sum())


class TokenMeter(Meter):
    """Sums over labelled tokens, batch by batch; nothing is kept of the logits.

    Attributes:
        characters: how many characters of the text the labels stand for, where that is known.
    """

    def __init__(self) -> None:
        super().__init__(lambda *_: {})
        self.tokens = self.characters = self.compared = 0
        self.nats = self.kl = self.same = 0.0

    def update(self, outputs: Tensor, labels: Tensor | None, teacher_outputs: Tensor | None = None) -> None:
        """Take one batch: logits `(N, L, V)`, labels `(N, L)`."""
        counted = torch.ones(outputs.shape[:-1], dtype=torch.bool, device=outputs.device)
        if labels is not None:
            _check_shapes(outputs, labels)
            counted = labels != UNLABELLED
            self.tokens += int(counted.sum())
            self.nats += float(F.cross_entropy(outputs[counted].float(), labels[counted], reduction="sum"))
        if teacher_outputs is not None and teacher_outputs.shape == outputs.shape and bool(counted.any()):
            student, teacher = outputs[counted].float(), teacher_outputs[counted].float()
            self.compared += len(student)
            self.kl += float(kd_loss(student, teacher, temperature=1.0, reduction="sum"))
            self.same += float((student.argmax(-1) == teacher.argmax(-1)).sum())

    def compute(self) -> dict[str, float]:
        """Compute the metrics over all batches."""
        found: dict[str, float] = {}
        if self.tokens:
            each = self.nats / self.tokens
            found |= {"perplexity": math.exp(min(each, 700.0)), "cross_entropy": each}
        if self.tokens and self.characters:
            found["bits_per_character"] = self.nats / math.log(2) / self.characters
        if self.compared:
            found |= {"agreement": self.same / self.compared, "kl_to_teacher": self.kl / self.compared}
        return found


def _check_shapes(outputs: Tensor, labels: Tensor) -> None:
    if outputs.ndim != 3 or labels.shape != outputs.shape[:2]:
        raise ValueError(
            f"labels must have shape (N, L) for logits (N, L, V), given labels {tuple(labels.shape)} for logits "
            f"{tuple(outputs.shape)}"
        )


def _tokenizer(given: Any) -> Any:
    """The tokenizer itself, of a name, a folder, or one of transformers."""
    from stillroom.hub.language import HuggingFaceTokenizer, load_tokenizer

    if isinstance(given, (str, Path)):
        return load_tokenizer(given)
    if hasattr(given, "is_fast"):
        return HuggingFaceTokenizer(given, getattr(given, "name_or_path", "") or type(given).__name__)
    return given
