"""Semantic revision as a method: what a step trains on, its three losses, and its two players."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.data.batch import UNLABELLED, Batch
from stillroom.language import (
    AdaptiveSchedule,
    ReplayBuffer,
    SpanFinder,
    cut_to_vocabulary,
    evaluating,
    generate,
    logits_of,
    phrases,
)
from stillroom.language.spans import Spans
from stillroom.losses import clipped_token_kl, clipping_mask, cross_entropy, mass_coordinates, span_correlation_loss
from stillroom.losses._shared import at_least_float32, check_not_negative, check_positive
from stillroom.losses.tokens import check_sequences
from stillroom.method import Losses, Method, Needs
from stillroom.systems.language.semantic_revision.limits import ClippingLimits
from stillroom.systems.language.semantic_revision.revision import (
    Replacement,
    judge,
    locate,
    prompts_of,
    responses,
    rewrite,
)

LEAST_KEPT = 0.5
"""Teacher's mass inside the limits below which training warns."""


class KeptMassWarning(UserWarning):
    """The learned limits clip most of what the teacher says: the loss falls without the student learning."""


@dataclass(frozen=True)
class _Seen:
    """What a step's models said on the sequences that it trains on, without gradient."""

    student_logits: Tensor
    teacher_logits: Tensor
    coordinates: Tensor
    targets: Tensor
    valid: Tensor


class SemanticRevision(Method):
    """Trains a small causal language model from a larger one: on repaired samples, clipped vocabularies and spans.

    Each step trains on reference text, or (as often as `schedule` says) on text that the student wrote, in which the
    token where student and teacher differ most was replaced by the teacher's and continued by the student. There it
    matches the teacher's distributions between two learned limits, and correlations of neighbours inside spans. The
    label's cross-entropy is always that of the reference text.

    Batches hold `inputs` `(N, L)` int64 tokens and `labels` `(N, L)`, shifted already: `labels[:, t]` is the token
    after `inputs[:, t]`, -100 at prompts and filling.

    Args:
        student: tokens `(N, L)` -> logits `(N, L, V)`, or a causal model of `transformers`; causal.
        teacher: the same over the same tokenizer; frozen here.
        tokenizer: of both models; it has `decode` and a length. Padded logits are cut to its length. None only with
            `span_weight=0`, and then both models must give equally many logits.
        spans: text -> half-open character ranges of phrases: `stillroom.language.phrases`, `words`, or a chunker.
        prompt_length: tokens of a sequence that are always prompt, 1 or more; more where labels begin later.
        max_new_tokens: the most that the student writes behind a prompt; never beyond the batch's length.
        end_token: ends what is written; None for the tokenizer's `end_id` or `eos_token_id`.
        replacement: the teacher's token is its likeliest ("greedy") or drawn ("sample"). Which one the authors use is
            not confirmed.
        repair_every: every how many of the student's batches are repaired; 0 leaves all as they were written.
        student_share: phi at the beginning: how often the student's own text is trained on, in [0, 1].
        share_step: by how much phi grows when the validation loss has risen.
        loss_tolerance: by how much it must have risen.
        capacity: sequences that are kept for replay; at least a batch.
        sampling_temperature: of the student's writing, 0 or more.
        top_k: of the student's writing; 0 for the whole vocabulary.
        top_p: of the student's writing; 1 for the whole vocabulary.
        temperature: T of both losses, above 0.
        softness: tau of the limits' edges while training, above 0.
        limits: the sub-network that predicts the limits; a fresh `ClippingLimits` when not given.
        label_weight: 0 or more.
        clipped_weight: 0 or more.
        span_weight: 0 or more.

    Losses:
        label: cross-entropy of the student on the reference text.
        clipped: `stillroom.losses.clipped_token_kl` on the sequences of the step.
        span: `stillroom.losses.span_correlation_loss` there.
        limits: `clipped` again, for the sub-network alone (player "limits").
        kept_mass: the teacher's mass inside the limits, of weight 0; a `KeptMassWarning` below 0.5.

    Raises:
        ValueError: an option out of range, or a span weight without tokenizer.

    Source: Liu et al. 2024, arXiv:2407.10068; the schedule: Ko et al. 2024, arXiv:2402.03898.

    Example:
        >>> from stillroom.blocks import CausalTransformer
        >>> from stillroom.data import CharacterTokenizer
        >>> tokenizer = CharacterTokenizer("abcdefgh ")
        >>> student = CausalTransformer(len(tokenizer), width=8, depth=1, heads=2, context=16)
        >>> teacher = CausalTransformer(len(tokenizer), width=16, depth=2, heads=2, context=16)
        >>> method = SemanticRevision(student, teacher, tokenizer=tokenizer, prompt_length=4, student_share=1.0)
        >>> text = torch.tensor([tokenizer.encode("a bad cafe faded ")])
        >>> losses = method(Batch(text[:, :-1], text[:, 1:]))
        >>> sorted(losses)
        ['clipped', 'label', 'span']
    """

    needs = Needs(
        labels="every",
        teacher_at="own",
        whole_batch="its losses are means over the tokens and spans of a batch, which two halves share unequally",
        tasks=("language-modelling",),
    )
    zero_at_teacher = ("clipped", "span", "limits")

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        *,
        tokenizer: Any = None,
        spans: Spans = phrases,
        prompt_length: int = 1,
        max_new_tokens: int = 256,
        end_token: int | None = None,
        replacement: Replacement = "greedy",
        repair_every: int = 1,
        student_share: float = 0.0,
        share_step: float = 0.1,
        loss_tolerance: float = 0.1,
        capacity: int = 1000,
        sampling_temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        temperature: float = 1.0,
        softness: float = 0.02,
        limits: ClippingLimits | None = None,
        label_weight: float = 1.0,
        clipped_weight: float = 1.0,
        span_weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        check_positive(temperature=temperature, softness=softness)
        check_not_negative(
            label_weight=label_weight, clipped_weight=clipped_weight, span_weight=span_weight, repair_every=repair_every
        )
        if prompt_length < 1 or max_new_tokens < 1:
            raise ValueError(
                f"prompt_length and max_new_tokens must be 1 or more, given {prompt_length} and {max_new_tokens}"
            )
        if replacement not in ("greedy", "sample"):
            raise ValueError(f'replacement must be "greedy" or "sample", given {replacement!r}')
        if tokenizer is None and span_weight > 0:
            raise ValueError(
                f"span_weight={span_weight} needs the text of the tokens, given no tokenizer: pass tokenizer=, or "
                "span_weight=0"
            )
        self.vocabulary_size = None if tokenizer is None else len(tokenizer)
        ends = [getattr(tokenizer, name, None) for name in ("end_id", "eos_token_id")]
        self.end_token = next((end for end in (end_token, *ends) if end is not None), None)
        self.find_spans = None if tokenizer is None else SpanFinder(tokenizer, spans)
        self.prompt_length, self.max_new_tokens = prompt_length, max_new_tokens
        self.replacement: Replacement = replacement
        self.repair_every = repair_every
        self.sampling = {"temperature": sampling_temperature, "top_k": top_k, "top_p": top_p}
        self.temperature, self.softness = temperature, softness
        self.weights = {"label": label_weight, "clipped": clipped_weight, "span": span_weight}
        self.limits = ClippingLimits() if limits is None else limits
        self.replay = ReplayBuffer(capacity)
        self.schedule = AdaptiveSchedule(student_share, step=share_step, tolerance=loss_tolerance)
        self.written = self.epochs_told = 0

    # ---- what a step trains on ---------------------------------------------------------------------------------------

    def sequences(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Choose what a step trains on: the reference, fresh sequences of the student, or earlier ones.

        Returns:
            inputs and labels, as in a batch; no gradient has flowed.
        """
        inputs, labels = _checked(batch)
        if self.schedule.share == 0:
            return inputs, labels
        uniform = float(torch.rand(()))
        source = self.schedule.choose(uniform, progress=self.clock.progress, full=self.replay.full)
        if source == "generate":
            fresh = self.write(inputs, labels)
            self.replay.push(*fresh)
            return fresh
        if source == "replay":
            kept = self.replay.sample(len(inputs))
            return kept[0].to(inputs.device), kept[1].to(inputs.device)
        return inputs, labels

    @torch.no_grad()
    def write(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Let the student answer the prompts of a batch, and repair what it wrote.

        Args:
            inputs: `(N, L)` int64.
            labels: `(N, L)` int64; rows without any label have no response and are left out.

        Returns:
            inputs and labels `(M, L)` of prompts with the student's responses.

        Raises:
            ValueError: no row has a label.
        """
        prompts = prompts_of(inputs, labels, prompt_length=self.prompt_length, max_new_tokens=self.max_new_tokens)
        starts = prompts.sequences.lengths
        options: dict[str, Any] = {
            "max_length": prompts.limits,
            "end_token": self.end_token,
            "vocabulary_size": self.vocabulary_size,
            **self.sampling,
        }
        written = generate(self.student, prompts.sequences, **options)
        if self.repair_every and self.written % self.repair_every == 0:
            with evaluating(self.student):
                judged = judge(self.student, self.teacher, written, starts, vocabulary_size=self.vocabulary_size)
            found = locate(judged.student_logits, judged.teacher_logits, judged.valid, replacement=self.replacement)
            written = rewrite(self.student, written, found.position, found.replacement, **options)
        self.written += 1
        inputs = written.tokens[:, :-1]
        return inputs, torch.where(responses(written, starts), written.tokens[:, 1:], UNLABELLED)

    # ---- losses ------------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Losses:
        """Return the student's losses of a batch; their gradient reaches the limits too."""
        return self._student_turn(batch)[0]

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The student, and the sub-network of the limits."""
        student = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        return {"student": student, "limits": list(self.limits.parameters())}

    def turns(self, batch: Batch) -> Iterator[tuple[str, Losses]]:
        """First the student steps, then the limits, on what both models said before that step."""
        losses, seen = self._student_turn(batch)
        yield "student", losses
        yield "limits", self._limits_turn(seen)

    def after_evaluation(self, metrics: Mapping[str, float], epoch: float) -> None:
        """Tell the schedule the validation loss, once for every epoch that has ended."""
        ended = math.floor(epoch + 1e-9)
        if ended > self.epochs_told and "cross_entropy" in metrics:
            self.epochs_told = ended
            self.schedule.tell(metrics["cross_entropy"])

    def _student_turn(self, batch: Batch) -> tuple[Losses, _Seen]:
        inputs, labels = self.sequences(batch)
        reference = self._ask(self.student, batch.inputs, "the student")
        own = reference if inputs is batch.inputs else self._ask(self.student, inputs, "the student")
        theirs = self._ask(self.teacher, inputs, "the teacher")
        valid = labels != UNLABELLED
        check_sequences(own, theirs, labels, valid)
        coordinates = mass_coordinates((at_least_float32(theirs) / self.temperature).softmax(dim=-1))
        seen = _Seen(own.detach(), theirs, coordinates, labels, valid)
        found = [[] for _ in labels] if self.find_spans is None else self.find_spans(labels, valid)
        terms = {
            "label": cross_entropy(reference.flatten(0, 1), batch.labels.flatten()),  # type: ignore[union-attr]
            "clipped": self._clipped(own, seen)[0],
            "span": span_correlation_loss(own, theirs, found, temperature=self.temperature),
        }
        return Losses(outputs=reference, weights=self.weights, **terms), seen

    def _limits_turn(self, seen: _Seen) -> Losses:
        loss, lower, upper = self._clipped(seen.student_logits, seen)
        with torch.no_grad():
            targets = torch.where(seen.valid, seen.targets, 0)
            mask = clipping_mask(seen.coordinates, targets, lower, upper, softness=self.softness)
            shares = (at_least_float32(seen.teacher_logits) / self.temperature).softmax(dim=-1)
            kept = (mask * shares).sum(dim=-1)[seen.valid].mean()
        if float(kept) < LEAST_KEPT:
            warnings.warn(
                f"the limits keep only {float(kept):.2f} of the teacher's mass, expected {LEAST_KEPT} or more: bound "
                "them more tightly (ClippingLimits) or train them more slowly (the player 'limits')",
                KeptMassWarning,
                stacklevel=2,
            )
        return Losses(limits=loss, kept_mass=kept, weights={"kept_mass": 0.0})

    def _clipped(self, student_logits: Tensor, seen: _Seen) -> tuple[Tensor, Tensor, Tensor]:
        logs = [
            (at_least_float32(logits.detach()) / self.temperature).log_softmax(dim=-1)
            for logits in (seen.teacher_logits, student_logits)
        ]
        lower, upper = self.limits(*logs)
        loss = clipped_token_kl(
            student_logits,
            seen.teacher_logits,
            seen.targets,
            lower,
            upper,
            valid=seen.valid,
            coordinates=seen.coordinates,
            softness=self.softness,
            temperature=self.temperature,
        )
        return loss, lower, upper

    def _ask(self, model: Any, tokens: Tensor, whose: str) -> Tensor:
        logits = logits_of(model(tokens))
        return logits if self.vocabulary_size is None else cut_to_vocabulary(logits, self.vocabulary_size, whose=whose)

    def get_extra_state(self) -> dict[str, int]:
        """How many batches the student wrote, and how many epochs' ends the schedule was told."""
        return {"written": self.written, "epochs_told": self.epochs_told}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Go on from there."""
        self.written, self.epochs_told = int(state["written"]), int(state["epochs_told"])


def _checked(batch: Batch) -> tuple[Tensor, Tensor]:
    """Refuse what is no batch of labelled token sequences."""
    inputs, labels = batch.inputs, batch.labels
    if not isinstance(inputs, Tensor) or inputs.ndim != 2 or inputs.dtype != torch.int64:
        given = f"{tuple(inputs.shape)} {inputs.dtype}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs must be int64 tokens (N, L), given {given}")
    if not len(inputs):
        raise ValueError("the batch is empty: at least one sequence is needed")
    if labels is None:
        raise ValueError("semantic revision learns from labels (the token after each), but this batch has none")
    if labels.shape != inputs.shape or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 tokens of the inputs' shape {tuple(inputs.shape)}, shifted by one, given "
            f"{tuple(labels.shape)} {labels.dtype}"
        )
    return inputs, labels
