"""The arms of the recipe: who writes and who learns, on one teacher and, per seed, one pretrained student."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.baselines import KD, Alone
from stillroom.blocks.causal import CausalTransformer
from stillroom.blocks.frozen import Frozen
from stillroom.checkpoint import seed_everything
from stillroom.data.passages import load_text
from stillroom.data.samples import Samples, Splits
from stillroom.data.stream import sequential
from stillroom.experiment.arm import Context
from stillroom.fit import fit
from stillroom.language import Sequences, evaluating, generate
from stillroom.losses import cross_entropy, token_kl
from stillroom.method import Method
from stillroom.systems.language.semantic_revision.revision import (
    Judged,
    judge,
    locate,
    prompts_of,
    rewrite,
    teacher_token,
)
from stillroom.task import LanguageModelling
from stillroom.training import Optim, Training

VALIDATION = 64
"""Blocks that the schedule's validation loss is measured on."""

LEAD = 0.15
"""Nats per token by which the teacher must be ahead of the student before anything is compared."""


@dataclass(frozen=True)
class Setting:
    """What all arms have in common.

    Attributes:
        data: what `stillroom.data.passages.load_text` reads.
        length: tokens of a block.
        prompt_length: of which at least so many are prompt when the student writes.
        max_new_tokens: the most that it writes.
        train_size: blocks that are trained on; None for all.
        test_size: blocks that are reported on; None for all.
        prompts: of the reported blocks, so many begin what the student writes.
        teacher: width, depth and heads.
        student: width, depth and heads.
        teacher_steps: of the teacher's training on labels.
        first_steps: of the student's training on labels, before the arms part.
        steps: of every arm.
        batch_size: blocks per step.
        teacher_lr: highest learning rate of the teacher.
        first_lr: of the student's first steps.
        lr: of every arm.
        limits_lr: of the sub-network of the limits, where there is one.
    """

    data: Any
    length: int
    prompt_length: int
    max_new_tokens: int
    train_size: int | None
    test_size: int | None
    prompts: int
    teacher: tuple[int, int, int]
    student: tuple[int, int, int]
    teacher_steps: int
    first_steps: int
    steps: int
    batch_size: int
    teacher_lr: float
    first_lr: float
    lr: float
    limits_lr: float

    def tiny(self) -> Setting:
        """A form for tests of the plumbing."""
        return replace(
            self,
            train_size=24,
            test_size=8,
            prompts=4,
            teacher=(16, 1, 2),
            student=(8, 1, 2),
            teacher_steps=12,
            first_steps=2,
            steps=3,
            batch_size=4,
            max_new_tokens=min(self.max_new_tokens, 8),
        )


@dataclass
class World:
    """The data of a setting, the teacher that was trained on them, and its answers to the reported blocks."""

    splits: Splits
    teacher: Frozen
    answers: list[Tensor]
    data: Any


_worlds: dict[tuple[int, Setting], World] = {}
_students: dict[tuple[tuple[int, Setting], int], nn.Module] = {}


def _key(setting: Setting) -> tuple[int, Setting]:
    """Names by their value, other data (which a world keeps alive) by what object they are."""
    data = setting.data
    return (hash(data), setting) if isinstance(data, str) else (id(data), replace(setting, data=None))


def world_of(setting: Setting) -> World:
    """Load the data and train the teacher, once per process; the same for every seed."""
    key = _key(setting)
    if key not in _worlds:
        splits = load_text(setting.data, length=setting.length)
        rows = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
        train, test = splits.train.subset(rows[: setting.train_size]), splits.test
        if setting.test_size is not None:
            test = test.subset(torch.arange(min(setting.test_size, len(test))))
        held = splits.validation
        validation = None if held is None else held.subset(torch.arange(min(len(held), VALIDATION)))
        splits = replace(splits, train=train, test=test, validation=validation)
        seed_everything(0)
        network = network_of(setting.teacher, setting, splits)
        method = Alone(network, task=LanguageModelling())
        trained = _train(
            method, replace(splits, validation=None), setting, 0, steps=setting.teacher_steps, lr=setting.teacher_lr
        )
        teacher = Frozen(trained)
        answers = [teacher(batch.inputs) for batch in sequential(test, 128)]
        _worlds[key] = World(splits, teacher, answers, setting.data)
    return _worlds[key]


def student_of(setting: Setting, seed: int) -> nn.Module:
    """The student of a seed after its first steps, from which all arms start."""
    world = world_of(setting)
    key = (_key(setting), seed)
    if key not in _students:
        seed_everything(seed)
        network = network_of(setting.student, setting, world.splits)
        method = Alone(network, task=LanguageModelling())
        splits = replace(world.splits, validation=None)
        _students[key] = _train(method, splits, setting, seed, steps=setting.first_steps, lr=setting.first_lr)
    return copy.deepcopy(_students[key])


def network_of(sizes: tuple[int, int, int], setting: Setting, splits: Splits) -> nn.Module:
    """A causal transformer for the tokens of a data set."""
    width, depth, heads = sizes
    return CausalTransformer(len(splits.tokenizer), width=width, depth=depth, heads=heads, context=setting.length)


def _train(method: Method, splits: Splits, setting: Setting, seed: int, *, steps: int, lr: float) -> nn.Module:
    optimizer = Optim(lr=lr, weight_decay=0.01, clip=1.0, warmup=0.05)
    training = Training(
        steps=steps,
        batch_size=setting.batch_size,
        optimizer=optimizer,
        players={"limits": replace(optimizer, lr=setting.limits_lr)},
        augment="none",
        evaluate_every=max(len(splits.train) // setting.batch_size, 1),  # at the ends of epochs
        keep="last",
    )
    fitted = fit(
        method, splits, training, task=LanguageModelling(), seed=seed, progress=False, check_teacher=False, device="cpu"
    )
    return fitted.product


# ---- measuring -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(student: nn.Module, world: World) -> dict[str, float]:
    """Cross-entropy on the reported text, and KL(teacher || student) there; nats per token."""
    nats = kl = 0.0
    count = 0
    with evaluating(student):
        for batch, theirs in zip(sequential(world.splits.test, 128), world.answers, strict=True):
            logits, labels = student(batch.inputs), batch.labels
            valid = labels != -100  # type: ignore[operator]
            nats += float(cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))  # type: ignore[union-attr]
            kl += float(token_kl(logits, theirs, valid=valid, reduction="sum"))
            count += int(valid.sum())
    return {"cross_entropy": nats / count, "kl_to_teacher": kl / count}


@torch.no_grad()
def token_nll(judged: Judged, sequences: Sequences) -> Tensor:
    """The teacher's negative log-likelihood of every token after the first `(B, L - 1)`; 0 outside of responses."""
    logs = judged.teacher_logits.log_softmax(dim=-1)
    picked = logs.gather(-1, sequences.tokens[:, 1:].unsqueeze(-1)).squeeze(-1)
    return torch.where(judged.valid, -picked, 0.0)


@dataclass(frozen=True)
class Written:
    """What a student wrote behind held-out prompts, and what both models say about it."""

    sequences: Sequences
    starts: Tensor
    limits: Tensor
    judged: Judged


def write(student: nn.Module, world: World, setting: Setting, seed: int) -> Written:
    """Let a student continue the prompts of a seed."""
    test: Samples = world.splits.test
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(test), generator=generator)[: setting.prompts]
    batch = test.batch(rows)
    prompts = prompts_of(
        batch.inputs,
        batch.labels,  # type: ignore[arg-type]
        prompt_length=setting.prompt_length,
        max_new_tokens=setting.max_new_tokens,
    )
    sequences = generate(
        student,
        prompts.sequences,
        max_length=prompts.limits,
        end_token=world.splits.tokenizer.end_id,
        generator=generator,
    )
    return read(student, world, sequences, prompts.sequences.lengths, prompts.limits)


def read(student: nn.Module, world: World, sequences: Sequences, starts: Tensor, limits: Tensor) -> Written:
    """Let both models read sequences."""
    with evaluating(student):
        judged = judge(student, world.teacher, sequences, starts)
    return Written(sequences, starts, limits, judged)


def response_nll(written: Written) -> float:
    """The teacher's negative log-likelihood per token of all responses."""
    return float(token_nll(written.judged, written.sequences).sum() / written.judged.valid.sum())


# ---- experiment 1: writing -------------------------------------------------------------------------------------------


Pick = Callable[[Written, torch.Generator], Tensor]
"""Which position of each response is repaired, `(B,)`."""


def worst(written: Written, generator: torch.Generator) -> Tensor:
    """The position at which student and teacher differ most."""
    judged = written.judged
    return locate(judged.student_logits, judged.teacher_logits, judged.valid).position


def anywhere(written: Written, generator: torch.Generator) -> Tensor:
    """A position of the response at random, all equally likely; -1 where there is none."""
    valid = written.judged.valid
    drawn = torch.rand(valid.shape, generator=generator).masked_fill(~valid, -1).argmax(dim=1)
    return torch.where(valid.any(dim=1), drawn, -1)


@dataclass(frozen=True)
class Writing:
    """The pretrained student writes; with `pick`, one token is replaced by the teacher's and it goes on from there.

    Args:
        setting: what all arms have in common.
        pick: where; None leaves what was written.
    """

    setting: Setting
    pick: Pick | None = None

    def __call__(self, seed: int, context: Context) -> dict[str, float]:
        """Write with one seed and measure what the teacher thinks of it."""
        setting = self.setting.tiny() if context.tiny else self.setting
        world, student = world_of(setting), student_of(setting, seed)
        metrics = measure(student, world)
        raw = write(student, world, setting, seed)
        if self.pick is None:
            return metrics | {"response_nll": response_nll(raw)}
        generator = torch.Generator().manual_seed(1_000_003 + seed)
        position = self.pick(raw, generator)
        chosen = teacher_token(raw.judged.teacher_logits, position.clamp(min=0), replacement="greedy")
        repaired = rewrite(
            student,
            raw.sequences,
            position,
            chosen,
            max_length=raw.limits,
            end_token=world.splits.tokenizer.end_id,
            generator=generator,
        )
        edited = read(student, world, repaired, raw.starts, raw.limits)
        context.extra["note"] = f"mean position {float((position + 2 - raw.starts)[position >= 0].float().mean()):.1f}"
        return metrics | {"response_nll": response_nll(edited)} | gains(raw, edited, position)


def gains(raw: Written, edited: Written, position: Tensor) -> dict[str, float]:
    """By how many nats per token an edit helped: behind it alone, and everywhere but at the token that was replaced."""
    found = {}
    places = torch.arange(raw.judged.valid.shape[1])
    behind = places > position.unsqueeze(1)
    elsewhere = places != position.unsqueeze(1)
    for name, counted in (("suffix_gain", behind), ("rest_gain", elsewhere)):
        valid = [written.judged.valid & counted & (position >= 0).unsqueeze(1) for written in (raw, edited)]
        both = valid[0].any(dim=1) & valid[1].any(dim=1)
        means = []
        for written, kept in zip((raw, edited), valid, strict=True):
            kept = kept & both.unsqueeze(1)
            means.append(float(token_nll(written.judged, written.sequences)[kept].mean()))
        found[name] = means[0] - means[1]
    return found


# ---- experiment 2: learning ------------------------------------------------------------------------------------------


def labels_alone(student: nn.Module, teacher: Any, *, tokenizer: Any) -> Method:
    """The student alone: cross-entropy on reference text."""
    return Alone(student, task=LanguageModelling())


def labels_and_kl(student: nn.Module, teacher: Any, *, tokenizer: Any) -> Method:
    """Cross-entropy and the plain forward KL at temperature 1, both of weight 1, on reference text."""
    return KD(student, teacher, temperature=1.0, label_weight=1.0, distill_weight=1.0, task=LanguageModelling())


@dataclass(frozen=True)
class Learning:
    """The pretrained student learns by a method and is measured; then it writes.

    Args:
        setting: what all arms have in common.
        method: `(student, teacher, tokenizer) -> Method`.
    """

    setting: Setting
    method: Callable[..., Method]

    def __call__(self, seed: int, context: Context) -> dict[str, float]:
        """Train with one seed."""
        setting = self.setting.tiny() if context.tiny else self.setting
        world, student = world_of(setting), student_of(setting, seed)
        seed_everything(seed)
        method = self.method(student, world.teacher, tokenizer=world.splits.tokenizer)
        product = _train(method, world.splits, setting, seed, steps=setting.steps, lr=setting.lr)
        context.extra.update(steps=setting.steps)
        return measure(product, world) | {"response_nll": response_nll(write(product, world, setting, seed))}


@dataclass(frozen=True)
class Teaching:
    """The teacher, measured as the students are; nothing else is compared unless it is ahead.

    Args:
        setting: what all arms have in common.
    """

    setting: Setting

    def __call__(self, seed: int, context: Context) -> dict[str, float]:
        """Measure the teacher, and refuse one that has no lead."""
        setting = self.setting.tiny() if context.tiny else self.setting
        world, student = world_of(setting), student_of(setting, seed)
        found, theirs = measure(world.teacher.network, world), measure(student, world)
        lead = theirs["cross_entropy"] - found["cross_entropy"]
        if lead < LEAD and not context.tiny:
            raise ValueError(
                f"the teacher is {lead:.3f} nats per token ahead of the student, expected {LEAD} or more: train it more"
            )
        return found | {"lead": lead}
