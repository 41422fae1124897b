"""Co-divide: two networks that sort each other's training samples into trusted and not, and learn from both parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.clean import clean_probability, guess_labels, ramp, refine_labels
from stillroom.blocks.heads import SummedLogits
from stillroom.blocks.modes import evaluating
from stillroom.blocks.scores import SampleScores
from stillroom.data.augment import Augmentation, draws_of
from stillroom.data.batch import Batch, map_tensors, tensors_in
from stillroom.data.mixing import Mixture, draw_batch_mixture
from stillroom.data.rows import generator
from stillroom.data.samples import Samples
from stillroom.data.stream import Stream, join
from stillroom.losses import cross_entropy, mean_squared_error, negative_entropy, prior_penalty, soft_cross_entropy
from stillroom.losses._shared import at_least_float32, check_not_negative, check_positive
from stillroom.method import Losses, Method, Needs, Stage
from stillroom.online import refuse_shared
from stillroom.task import logits_on

NAMES = ("first", "second")
ORDER, VIEWS, READ = 21, 22, 23  # what a stream's seed is used for here, beside its own purposes
WEAK = 2  # views of a sample that targets come from


@dataclass(frozen=True)
class Part:
    """Samples of one kind in a step: views of each, their given labels, and how far these are trusted.

    Attributes:
        views: inputs of the same samples, each time augmented anew, one for each of `DivideMix.policies`.
        labels: `(N,)` int64 as given.
        clean: `(N,)` in [0, 1].
    """

    views: tuple[Any, ...]
    labels: Tensor
    clean: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def none(self) -> Part:
        """The same without a sample."""
        return Part(self.views, self.labels[:0], self.clean[:0])


class DivideMix(Method):
    """Trains two networks on labels of which many may be wrong; they ship together.

    After a warm-up on all labels, once per epoch each network tells apart samples whose labels look right (a small
    loss) from the others, for the other one: that one learns from the labels of the former, and from what both networks
    think of the latter, all of it mixed (MixMatch). It must be told what it is trained on (`fit` does so): the sorting
    looks at all training samples, without augmentation; the two views of a sample come from the training's own
    augmentation, and each step draws as many trusted samples as untrusted ones. In a loop of your own call
    `begin_training` first, `enter_stage(method.stages()[0])` for the warm-up and `[1]` after it, and tell it the time,
    so that it sorts anew in each epoch; without a stream every batch is taken for the whole data set, and both views
    are the batch as it is.

    Args:
        network: inputs -> logits `(N, C)`.
        second_network: the same, with other initial weights.
        warm_up_share: the part of all steps that the warm-up takes, in (0, 1); 10 of 300 epochs in the papers.
        unlabelled_weight: largest weight of what is learned from untrusted samples, 0 or more.
        clean_threshold: tau in (0, 1): samples above it are trusted.
        sharpening: T of the targets, above 0.
        beta: of the Beta distribution of the mixing shares, above 0.
        ramp_epochs: epochs after the warm-up over which `unlabelled_weight` rises from 0; 0 for at once.
        entropy_weight: of the negative entropy in the warm-up, 0 or more; 1 for noise between certain classes.

    Losses:
        warm_up: cross-entropy of the given labels; in the first stage only, with
        entropy: `stillroom.losses.negative_entropy`.
        labelled: cross-entropy with the mixed targets, over rows that keep a trusted sample.
        unlabelled: mean squared difference of probabilities and mixed targets, over the other rows.
        prior: `stillroom.losses.prior_penalty` over all rows.
        second_labelled, ...: the second network's.

    Source: Li et al. 2020, arXiv:2002.07394.

    Example:
        >>> from stillroom.data import TensorSamples
        >>> method = DivideMix(nn.Linear(4, 3), nn.Linear(4, 3), warm_up_share=0.5)
        >>> noisy = TensorSamples(torch.randn(32, 4), torch.randint(3, (32,)))
        >>> method.begin_training(Stream(noisy, batch_size=8, seed=0))
        >>> [player for player, losses in method.turns(noisy.batch(range(8)))]
        ['first', 'second']
    """

    needs = Needs(labels="every", teacher=False, whole_batch="samples are sorted and mixed with each other")
    may_be_negative = ("entropy", "second_entropy")
    largest_kurtosis = math.inf

    student: SummedLogits
    selected_at: Tensor
    selections: Tensor
    drawn: Tensor

    def __init__(
        self,
        network: nn.Module,
        second_network: nn.Module,
        *,
        warm_up_share: float = 1 / 30,
        unlabelled_weight: float = 25.0,
        clean_threshold: float = 0.5,
        sharpening: float = 0.5,
        beta: float = 4.0,
        ramp_epochs: float = 16.0,
        entropy_weight: float = 0.0,
    ) -> None:
        for name, given in (("network", network), ("second_network", second_network)):
            if not isinstance(given, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, given {type(given).__name__}")
        refuse_shared({"network": network, "second_network": second_network})
        super().__init__(SummedLogits([network, second_network]))
        check_positive(sharpening=sharpening, beta=beta)
        check_not_negative(unlabelled_weight=unlabelled_weight, ramp_epochs=ramp_epochs, entropy_weight=entropy_weight)
        for name, share in (("clean_threshold", clean_threshold), ("warm_up_share", warm_up_share)):
            if not 0 < share < 1:
                raise ValueError(f"{name} must lie inside (0, 1), given {share}")
        self.warm_up_share, self.clean_threshold = warm_up_share, clean_threshold
        self.unlabelled_weight, self.entropy_weight = unlabelled_weight, entropy_weight
        self.sharpening, self.beta, self.ramp_epochs = sharpening, beta, ramp_epochs
        self.clean = nn.ModuleList([SampleScores(), SampleScores()])
        self.stream: Stream | None = None
        self.register_buffer("selected_at", torch.tensor(-1))  # the epoch of the running stage
        self.register_buffer("selections", torch.tensor(0))
        self.register_buffer("drawn", torch.zeros(2, dtype=torch.int64))  # steps since the last selection

    # ---- what a method of this kind may decide otherwise ---------------------------------------------------------

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits into probabilities."""
        return at_least_float32(logits).softmax(dim=1)

    def warm_up_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What is learned from all labels before any is distrusted."""
        return cross_entropy(logits, labels)

    def labelled_loss(self, logits: Tensor, own: Tensor, partner: Tensor, share: Tensor) -> Tensor:
        """What is learned from mixed rows that keep a trusted sample.

        Args:
            logits: `(N, C)`.
            own: targets `(N, C)` of the samples that have the larger share.
            partner: of those mixed in.
            share: `(N,)`, the part of the former.
        """
        weight = share.to(own).unsqueeze(1)
        return soft_cross_entropy(logits, weight * own + (1 - weight) * partner)

    def cleanness(self, logits: Tensor, labels: Tensor) -> Tensor:
        """A score per sample that is higher where the label looks right: here the loss with its sign changed."""
        return -cross_entropy(logits, labels, reduction="none")

    def both_heads(self, number: int, inputs: Any) -> tuple[Tensor, Tensor]:
        """Logits that trusted samples train, and those that the others train; here the same."""
        logits = self.student.networks[number](inputs)
        return logits, logits

    def policies(self) -> list[Augmentation | None]:
        """How the views of a sample are augmented; the first two are what targets are guessed from and mixed."""
        augment = None if self.stream is None else self.stream.augment
        return [augment] * WEAK

    def further(
        self, number: int, strong: Any, mixture: Mixture, probabilities: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Terms beside the usual ones, and their weights; by default none.

        Args:
            number: 0 or 1, the network that is trained.
            strong: the views that follow the first two, as long as `mixture`; None where there are none.
            mixture: how the first two were mixed.
            probabilities: of the mixed rows, `(N, C)`.
        """
        return {}, {}

    def parameters_of(self, number: int) -> list[nn.Parameter]:
        """What belongs to a network."""
        return list(self.student.networks[number].parameters())

    # ---- sorting -------------------------------------------------------------------------------------------------

    def begin_training(self, stream: Stream) -> None:
        """Learn what it is trained on: samples, augmentation, batch size and seed."""
        self.stream = stream

    @torch.no_grad()
    def scores(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Both networks' `cleanness` of all samples, in eval mode and without augmentation, on the CPU.

        Raises:
            ValueError: no samples, or samples without labels.
        """
        if not len(samples):
            raise ValueError("there are 0 samples to sort: give at least one")
        found = []
        with evaluating(*self.student.networks):
            for network in self.student.networks:
                logits, labels = logits_on(network, samples)
                found.append(self.cleanness(logits, labels))
        return found[0], found[1]

    def select(self, samples: Samples) -> None:
        """Sort all samples anew: remember each network's probability that a label is right."""
        memories: Any = self.clean
        for memory, scores in zip(memories, self.scores(samples), strict=True):
            memory.put(samples.index, clean_probability(scores, largest_kurtosis=self.largest_kurtosis))
        self.selections += 1
        self.drawn.zero_()

    def trusted(self, number: int, index: Tensor) -> Tensor:
        """How far a network trusts the labels of samples, by the other network's judgement: `(N,)` in [0, 1].

        Args:
            number: 0 or 1, the network that is trained.
            index: `(N,)` int64, numbers of samples.
        """
        judge: Any = self.clean[1 - number]
        return judge.get(index)

    # ---- a step --------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        """A warm-up on all labels, then learning from those that look right."""
        return Stage("warm-up", share=self.warm_up_share), Stage("semi-supervised", share=1 - self.warm_up_share)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """Each network with an optimizer of its own."""
        return {
            name: [one for one in self.parameters_of(number) if one.requires_grad] for number, name in enumerate(NAMES)
        }

    def turns(self, batch: Batch) -> Iterator[tuple[str, Losses]]:
        """Let each network take its step; after the warm-up on samples that the other one has sorted."""
        if batch.labels is None or not len(batch):
            raise ValueError(f"{type(self).__name__} learns from batches of 1 or more labelled samples, given {batch}")
        if self.stage.name == "warm-up":
            for number, name in enumerate(NAMES):
                yield name, self._warm_up(number, batch)
            return
        judged = self._judge(batch) if self.stream is None else None
        if self.stream is not None:
            epoch = int(self.stage_clock.epoch) if math.isfinite(self.stage_clock.epoch) else 0  # nobody tells the time
            if int(self.selected_at) != epoch:
                self.select(self.stream.samples)
                self.selected_at.fill_(epoch)
        for number, name in enumerate(NAMES):
            if judged is None:
                yield name, self._learn(number, *self.draw(number, next(tensors_in(batch.inputs)).device))
                continue
            clean, logits = judged[1 - number][0], judged[number][1]
            parts = [self._part(batch[rows], clean[rows]) for rows in _split(clean, self.clean_threshold)]
            yield name, self._learn(number, *parts, outputs=logits)

    def forward(self, batch: Batch) -> Losses:
        """The first network's losses."""
        return next(self.turns(batch))[1]

    def _warm_up(self, number: int, batch: Batch) -> Losses:
        logits, _ = self.both_heads(number, batch.inputs)
        terms = {
            "warm_up": self.warm_up_loss(logits, batch.labels),
            "entropy": negative_entropy(self.probabilities(logits)),
        }
        return _named(number, terms, {"entropy": self.entropy_weight}, logits)

    def _judge(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Sort a batch by itself: probabilities and logits of both networks."""
        found = []
        with torch.no_grad(), evaluating(*self.student.networks):
            for network in self.student.networks:
                logits = network(batch.inputs)
                scores = self.cleanness(logits, batch.labels)
                found.append((clean_probability(scores, largest_kurtosis=self.largest_kurtosis), logits))
        return found

    def draw(self, number: int, device: torch.device | str = "cpu") -> tuple[Part, Part]:
        """Draw the next trusted and untrusted samples of a network, two views of each.

        Both kinds have orders of their own, which begin anew with each selection; a kind of which there are fewer
        samples than a batch comes whole each time.

        Args:
            number: 0 or 1, the network that is trained.
            device: where the samples go.
        """
        if self.stream is None:
            raise ValueError("there are no samples to draw from: call begin_training(stream) first")
        samples, place = self.stream.samples, int(self.drawn[number])
        clean = self.trusted(number, samples.index).cpu()
        self.drawn[number] += 1
        parts = []
        for kind, rows in enumerate(_split(clean, self.clean_threshold)):
            size = min(self.stream.batch_size, len(rows))
            purpose = (self.stream.seed, number, kind, int(self.selections))
            if size:
                cycle, row = divmod(place, len(rows) // size)
                order = torch.randperm(len(rows), generator=generator(ORDER, *purpose, cycle))
                rows = rows[order[row * size : (row + 1) * size]][self.stream.rank :: self.stream.world]
            views = [
                self._view(rows, size, policy, (*purpose, place, view)) for view, policy in enumerate(self.policies())
            ]
            labels = views[0].labels.to(device)
            parts.append(Part(tuple(view.to(device).inputs for view in views), labels, clean[rows].to(device)))
        return parts[0], parts[1]

    def _view(self, rows: Tensor, size: int, augment: Augmentation | None, purpose: Sequence[int]) -> Batch:
        """Read rows and augment them by numbers that depend on the purpose alone."""
        stream: Any = self.stream
        if not len(rows):
            return stream.samples.batch([0])[:0]
        mine, draws = slice(stream.rank, None, stream.world), stream.samples.draws
        read = torch.rand(size, draws, generator=generator(READ, *purpose))[mine] if draws else None
        batch = stream.samples.batch(rows, read)
        if augment is None:
            return batch
        return augment(batch, torch.rand(size, draws_of(augment), generator=generator(VIEWS, *purpose))[mine])

    def _part(self, batch: Batch, clean: Tensor) -> Part:
        """Rows of a batch that is taken for the whole data set."""
        device = next(tensors_in(batch.inputs)).device
        views = [
            policy(batch, torch.rand(len(batch), draws_of(policy)).to(device)) if policy and len(batch) else batch
            for policy in self.policies()
        ]
        return Part(tuple(view.inputs for view in views), batch.labels, clean)

    def _learn(self, number: int, trusted: Part, others: Part, *, outputs: Tensor | None = None) -> Losses:
        network, other = self.student.networks[number], self.student.networks[1 - number]
        trusted, others = _enough(trusted, others)
        parts = [part for part in (trusted, others) if len(part)]
        targets: list[Tensor] = []
        with torch.no_grad(), evaluating(other):
            for part in parts:
                weak = part.views[:WEAK]
                thoughts = [self.probabilities(network(view)) for view in weak]
                if part is trusted:
                    made = refine_labels(part.labels, part.clean, thoughts, temperature=self.sharpening)
                else:
                    thoughts += [self.probabilities(other(view)) for view in weak]
                    made = guess_labels(thoughts, temperature=self.sharpening)
                targets += [made] * WEAK
        torch.clear_autocast_cache()  # what was cast without gradients would be used with them
        own = torch.cat(targets)
        mixture = draw_batch_mixture(len(own), beta=self.beta)
        kept, partner = WEAK * len(trusted), own[mixture.second.to(own.device)]
        inputs = reduce(join, [view for part in parts for view in part.views[:WEAK]])
        further_views = [view for part in parts for view in part.views[WEAK:]]
        strong = reduce(join, further_views) if further_views else None
        logits, second_logits = self.both_heads(number, map_tensors(inputs, mixture.apply))
        probabilities = self.probabilities(logits)
        terms: dict[str, Tensor] = {}
        if len(trusted):
            share = mixture.share[:kept]
            terms["labelled"] = self.labelled_loss(logits[:kept], own[:kept], partner[:kept], share)
        if len(others):
            guessed = mixture.apply(own)[kept:]
            terms["unlabelled"] = mean_squared_error(self.probabilities(second_logits[kept:]), guessed)
        terms["prior"] = prior_penalty(probabilities)
        further, weights = self.further(number, strong, mixture, probabilities)
        if len(others):
            ramped = ramp(self.stage_clock.epoch, self.ramp_epochs)
            weights = {"unlabelled": self.unlabelled_weight * ramped, **weights}
        return _named(number, {**terms, **further}, weights, outputs)


def _enough(trusted: Part, others: Part) -> tuple[Part, Part]:
    """Both kinds, but for a single sample beside more of the other kind, which batch norm could not normalise."""
    if len(trusted) == 1 < len(others):
        return trusted.none(), others
    return trusted, others.none() if len(others) == 1 < len(trusted) else others


def _split(clean: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Rows that are trusted, and the others."""
    trusted = clean > threshold
    return trusted.nonzero().flatten(), (~trusted).nonzero().flatten()


def _named(number: int, terms: Mapping[str, Tensor], weights: Mapping[str, float], outputs: Tensor | None) -> Losses:
    """Terms under the player's name, where that is not the first."""
    prefix = "" if number == 0 else f"{NAMES[number]}_"
    return Losses(
        outputs=outputs,
        weights={f"{prefix}{name}": weight for name, weight in weights.items()},
        **{f"{prefix}{name}": term for name, term in terms.items()},
    )
