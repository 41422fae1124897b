"""Generation: how near made samples are to real ones, how often they are what was asked for, and how varied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.checkpoint import random_state, seed_everything, set_random_state
from stillroom.data.batch import Batch
from stillroom.losses import Reduction
from stillroom.task.base import Meter, Task


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of vectors.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). With Inception features it is the FID.

    Args:
        real: `(N, D)`, N of 2 or more.
        generated: `(M, D)`, M of 2 or more.

    Raises:
        ValueError: other shapes, or too few rows.

    Source: Heusel et al. 2017, arXiv:1706.08500.
    """
    _check_vectors(real, generated, at_least=2)
    real, generated = real.double(), generated.double()
    first, second = (torch.atleast_2d(vectors.T.cov()) for vectors in (real, generated))
    root = torch.linalg.eigvals(first @ second).sqrt().real.sum()
    apart = (real.mean(0) - generated.mean(0)).square().sum()
    return max(float(apart + first.trace() + second.trace() - 2 * root), 0.0)


def coverage(real: Tensor, generated: Tensor, *, neighbours: int = 5) -> float:
    """Share of real vectors that are nearer to some generated one than to their k-th real neighbour.

    Args:
        real: `(N, D)`, N above `neighbours`.
        generated: `(M, D)`, M of 1 or more.
        neighbours: k, 1 or more.

    Returns:
        In [0, 1]; a generator that forgets a part of the data leaves that part uncovered.

    Raises:
        ValueError: other shapes, or too few rows.

    Source: Naeem et al. 2020, arXiv:2002.09797.
    """
    _check_vectors(real, generated, at_least=1)
    if not 1 <= neighbours < len(real):
        raise ValueError(
            f"neighbours must lie in [1, {len(real) - 1}], the number of other vectors, given {neighbours}"
        )
    real, generated = real.double(), generated.double()
    radius = torch.cdist(real, real).kthvalue(neighbours + 1, dim=1).values  # the nearest is the vector itself
    return float((torch.cdist(real, generated).min(dim=1).values < radius).double().mean())


def variance_ratio(real: Tensor, real_labels: Tensor, generated: Tensor, labels: Tensor) -> float:
    """Variance within classes of generated vectors over that of real ones, each the mean over classes.

    1 is as varied as real data; near 0 every class has become one picture. Only classes with two vectors or more on
    both sides count.

    Args:
        real: `(N, D)`.
        real_labels: `(N,)`, class numbers.
        generated: `(M, D)`.
        labels: `(M,)`, the classes that were asked for.

    Raises:
        ValueError: other shapes, or no class has two vectors on both sides.
    """
    _check_vectors(real, generated, at_least=1)
    shares = [
        (real[real_labels == label].double(), generated[labels == label].double())
        for label in real_labels.unique().tolist()
    ]
    shares = [(one, other) for one, other in shares if len(one) > 1 and len(other) > 1]
    if not shares:
        raise ValueError("no class has two vectors or more among both real and generated ones: generate more per class")
    own, made = (torch.stack([pair[side].var(dim=0).sum() for pair in shares]).mean() for side in (0, 1))
    return float(made / own)


def _check_vectors(real: Tensor, generated: Tensor, *, at_least: int) -> None:
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real and generated must be vectors (N, D) and (M, D), given {tuple(real.shape)} and "
            f"{tuple(generated.shape)}"
        )
    if min(len(real), len(generated)) < at_least:
        raise ValueError(f"this takes {at_least} vectors or more of each, given {len(real)} and {len(generated)}")


@torch.no_grad()
def picture_scores(
    made: Iterable[tuple[Tensor, list[str]]],
    real: Iterable[Tensor],
    *,
    feature: Any = 2048,
    clip: str = "openai/clip-vit-base-patch16",
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """FID of pictures and how well they fit their captions, batch by batch.

    Args:
        made: `(pictures (N, 3, H, W) in [0, 1], captions)`.
        real: pictures `(N, 3, H, W)` in [0, 1].
        feature: 2048 for Inception features (needs torch-fidelity and its weights), or a network with `num_features`.
        clip: name of the CLIP model; empty leaves that score out.
        device: where the networks run.

    Returns:
        `fid`, and `clip_score` (100 times the cosine, at least 0).
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance(feature=feature, normalize=True).to(device)
    score: Any = None
    if clip:
        from torchmetrics.multimodal.clip_score import CLIPScore

        score = CLIPScore(model_name_or_path=clip).to(device)  # type: ignore[arg-type]
    for pictures in real:
        distance.update(pictures.to(device), real=True)
    for pictures, captions in made:
        distance.update(pictures.to(device), real=False)
        if score is not None:
            score.update((255 * pictures).round().to(torch.uint8).to(device), captions)
    found = {"fid": float(distance.compute())}
    return found if score is None else found | {"clip_score": float(score.compute())}


class Reference:
    """Real data that generated samples are measured against.

    Args:
        images: `(N, ...)` held-out real data, on the scale of the generated ones.
        labels: `(N,)` class numbers.
        train_images: real data that a classifier is fitted to, which then says what the samples show.
        train_labels: their class numbers.
        components: principal components of the held-out data in which distances are taken.

    Example:
        >>> images, labels = torch.randn(60, 8), torch.arange(60) % 3
        >>> reference = Reference(images + 4 * labels[:, None], labels, images + 4 * labels[:, None], labels)
        >>> found = reference.measure(images + 4 * labels[:, None], labels)
        >>> round(found["frechet_distance"], 6), found["coverage"], round(found["variance_ratio"], 6)
        (0.0, 1.0, 1.0)
    """

    def __init__(
        self, images: Tensor, labels: Tensor, train_images: Tensor, train_labels: Tensor, *, components: int = 32
    ) -> None:
        from sklearn.decomposition import PCA
        from sklearn.linear_model import LogisticRegression

        self.images, self.labels = images.flatten(1).cpu(), labels.cpu()
        flat = self.images.double().numpy()
        self.pca = PCA(min(components, *flat.shape), random_state=0).fit(flat)
        self.features = torch.from_numpy(self.pca.transform(flat))
        classifier = LogisticRegression(max_iter=300)
        self.classifier = classifier.fit(train_images.flatten(1).cpu().numpy(), train_labels.cpu().numpy())

    def measure(self, samples: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Measure samples that were generated.

        Args:
            samples: `(M, ...)`.
            labels: `(M,)` the classes that were asked for; None leaves out accuracy and variance ratio.

        Returns:
            `frechet_distance` (in principal components), `coverage` (five neighbours), `accuracy` (share that the
            classifier takes for the class that was asked for), `variance_ratio` (within classes, to real).
        """
        flat = samples.flatten(1).cpu()
        found = {
            "frechet_distance": frechet_distance(self.features, torch.from_numpy(self.pca.transform(flat.double()))),
            "coverage": coverage(self.images, flat, neighbours=min(5, len(self.images) - 1)),
        }
        if labels is not None:
            said = torch.from_numpy(self.classifier.predict(flat.numpy()))
            found["accuracy"] = float((said == labels.cpu()).double().mean())
            found["variance_ratio"] = variance_ratio(self.images, self.labels, flat, labels.cpu())
        return found


class Generation(Task):
    """Samples made from prompts. Outputs are samples `(N, ...)`; labels, where there are any, the classes asked for.

    Args:
        data: real data, where the task is to load some.
        reference: what generated samples are measured against; without one nothing can be measured.
        seed: of the noise in every measurement.
        train_size: how many real samples are trained on; None for all.
        test_size: how many held-out ones are measured against; None for all.
        image_size: side that images are brought to; None for their own.
        channels: 1 for grey, 3 for colour, None for their own.
    """

    name = "generation"
    metric = "frechet_distance"
    higher_is_better = False
    needs_labels = False

    def __init__(
        self,
        data: Any = None,
        *,
        reference: Reference | None = None,
        seed: int = 0,
        train_size: int | None = None,
        test_size: int | None = None,
        image_size: int | None = None,
        channels: int | None = None,
    ) -> None:
        super().__init__(
            data,
            train_size=train_size,
            test_size=test_size,
            image_size=image_size,
            channels=channels,
            validation_share=0.0,
        )
        self.reference = reference
        self.seed = seed

    def supervised_loss(self, outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Nothing: a generator learns from no labels."""
        raise TypeError("the generation task has no supervised loss: generators learn from a teacher or from data")

    def width(self, splits: Any) -> int | None:
        """The samples' shape decides, not a number of classes."""
        return None

    def evaluate(
        self,
        network: nn.Module | Callable[[Any], Tensor],
        batches: Iterable[Batch],
        *,
        teacher: Callable[[Any], Tensor] | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, float]:
        """Measure a generator on prompts, with the same noise at every call; random states are left as they were.

        Args:
            network: prompts -> samples.
            batches: prompts in `inputs`, and in `labels` the classes that they ask for.
            teacher: not asked.
            device: where prompts are moved; None for the network's own.
        """
        before = random_state()
        seed_everything(self.seed)
        try:
            return super().evaluate(network, batches, device=device)
        finally:
            set_random_state(before)

    def meter(self, width: int | None, *, with_teacher: bool = False) -> Meter:
        """What `Reference.measure` gives."""
        reference = self.reference
        if reference is None:
            raise ValueError("generated samples are measured against real ones: pass reference=")
        return Meter(lambda outputs, labels, teacher: reference.measure(outputs, labels))
