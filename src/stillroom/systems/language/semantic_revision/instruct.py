"""The arms of the paper's settings: fine-tune, distil, answer held-out prompts, and be judged by ROUGE-L."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from stillroom.baselines import Alone
from stillroom.checkpoint import seed_everything
from stillroom.data.batch import UNLABELLED
from stillroom.data.samples import Samples, Splits
from stillroom.data.stream import sequential
from stillroom.experiment.arm import Context, build_student, load_splits
from stillroom.fit import fit
from stillroom.language import evaluating, generate, rouge_l
from stillroom.method import Method
from stillroom.systems.language.semantic_revision.revision import prompts_of
from stillroom.task import LanguageModelling
from stillroom.training import Training

Making = Callable[..., Method]
"""`(student, teacher, tokenizer, task) -> Method`."""


@dataclass(frozen=True)
class Instructing:
    """Fine-tunes a student on prompts with answers, then trains it by a method, and lets it answer.

    Args:
        task: the prompts and answers.
        student: anything `stillroom.hub.load` takes.
        method: how it learns after its fine-tuning.
        first_epochs: of fine-tuning, before the method.
        max_new_tokens: of an answer.
        draws: how many answers are sampled to each prompt, with seeds of their own.
        answered: how many of the reported prompts are answered; None for all.
    """

    task: LanguageModelling
    student: Any
    method: Making
    first_epochs: float = 3.0
    max_new_tokens: int = 256
    draws: int = 5
    answered: int | None = None

    def __call__(self, seed: int, context: Context) -> dict[str, float]:
        """Train with one seed, and measure perplexity, cross-entropy and ROUGE-L on the reported prompts."""
        task, training, answered = self.task, context.training, self.answered
        if context.tiny:
            task = task.change(train_size=12, test_size=4)
            training, answered = training.change(steps=2, batch_size=4, evaluate_every=1), 2
        splits = load_splits(task, seed)
        seed_everything(seed)
        student = build_student(self.student, task, splits, context.teacher)
        first = training.change(steps=2) if context.tiny else training.change(epochs=self.first_epochs)
        started = self._fit(Alone(student, task=task), replace_keep(first), task, splits, seed, context)
        method = self.method(started, context.teacher, tokenizer=splits.tokenizer, task=task)
        product = self._fit(method, training, task, splits, seed, context)
        metrics = task.evaluate(product, sequential(splits.test, 8), teacher=context.teacher, device=context.device)
        return metrics | {"rouge_l": self.rouge(product, splits, answered, seed)}

    def _fit(
        self,
        method: Method,
        training: Training,
        task: LanguageModelling,
        splits: Splits,
        seed: int,
        context: Context,
    ) -> nn.Module:
        folder = context.folder / type(method).__name__
        return fit(
            method,
            splits,
            training,
            task=task,
            seed=seed,
            folder=folder,
            resume=context.resume,
            device=context.device,
            workers=context.workers,
            trackers=(),
            progress=False,
            check_teacher=False,
        ).product

    def rouge(self, student: nn.Module, splits: Splits, answered: int | None, seed: int) -> float:
        """Mean ROUGE-L of sampled answers to the reported prompts against the answers that came with them."""
        test: Samples = splits.test
        device = next(student.parameters()).device
        scores: list[float] = []
        with evaluating(student):
            for rows in torch.arange(len(test))[:answered].split(8):
                batch = test.batch(rows).to(device)
                labels = batch.labels
                if labels is None:
                    raise ValueError("ROUGE-L compares answers with those of the data, but these have none")
                prompts = prompts_of(batch.inputs, labels, prompt_length=1, max_new_tokens=self.max_new_tokens)
                wanted = [_text(splits.tokenizer, row[row != UNLABELLED]) for row in labels[prompts.rows]]
                for draw in range(self.draws):
                    found = generate(
                        student,
                        prompts.sequences,
                        max_length=prompts.limits,
                        end_token=splits.tokenizer.end_id,
                        vocabulary_size=len(splits.tokenizer),
                        generator=torch.Generator(device).manual_seed(1000 * seed + draw),
                    )
                    starts = prompts.sequences.lengths
                    for tokens, start, end, reference in zip(found.tokens, starts, found.lengths, wanted, strict=True):
                        scores.append(rouge_l(_text(splits.tokenizer, tokens[start:end]), reference))
        return sum(scores) / len(scores)


def replace_keep(training: Training) -> Training:
    """The same training, whose last weights are kept: the beginning of another one."""
    return replace(training, keep="last", players={})


def labels_only(student: nn.Module, teacher: Any, *, tokenizer: Any, task: LanguageModelling) -> Method:
    """Fine-tuning goes on."""
    return Alone(student, task=task)


def _text(tokenizer: Any, tokens: torch.Tensor) -> str:
    kept = [token for token in tokens.tolist() if token != tokenizer.end_id]
    return str(tokenizer.decode(kept))
