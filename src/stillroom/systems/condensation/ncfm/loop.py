"""The loop: one condensation from its first iteration, or its last checkpoint, to the end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom import checkpoint
from stillroom.blocks import FrequencySampler, minmax_gradients
from stillroom.condense import BeforeHead, CheckpointPairs, RealImages, Statistics, blend
from stillroom.condense.harness import device_of, fresh_network
from stillroom.data.condensed import CondensedSet
from stillroom.data.formation import decode_formation
from stillroom.data.rows import generator
from stillroom.log import Display, interruptions

if TYPE_CHECKING:
    from stillroom.systems.condensation.ncfm.condenser import NCFM

INITIAL, NETWORK, MATCH, CALIBRATE, SAMPLER = 31, 32, 33, 34, 35  # what a seed's random numbers are for


class Condensation:
    """The state of one condensation, and the steps it is made of."""

    def __init__(
        self, options: NCFM, data: Any, pairs: CheckpointPairs | None, folder: str | Path | None, resume: bool
    ) -> None:
        self.options, self.device = options, device_of(options.device)
        self.real = RealImages(data, seed=options.seed)
        self.statistics = Statistics.of(self.real.samples)
        self.checkpoint = None if folder is None else Path(folder) / "checkpoints" / "last.pt"
        if resume and folder is None:
            raise ValueError("resume=True needs the folder of the run: pass folder=")
        if self.checkpoint is not None and self.checkpoint.exists() and not resume:
            raise FileExistsError(f"{folder} holds a condensation: name a new folder, or pass resume=True")
        pretrained = None if folder is None else Path(folder) / "pretrained"
        self.pairs = pairs if pairs is not None else self._pretrain(pretrained)
        fresh = fresh_network(options.network, self.real.samples, self.real.classes, options.seed)
        self.blended = fresh.to(self.device).eval().requires_grad_(False)  # read at each iteration's own weights
        self.final = copy.deepcopy(self.blended)
        self.features = BeforeHead(self.blended, options.layers)
        self.images, self.labels = self._first_images()
        self.image_optimizer = options.image_optimizer([self.images])
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.image_optimizer, factor=options.plateau_factor, patience=options.plateau_patience
        )
        self.sampler: FrequencySampler | None = None
        self.sampler_optimizer: torch.optim.Optimizer | None = None
        if options.learned_frequencies and options.matching_weight > 0:
            self._make_sampler()
        self.iteration = 0
        self.history: list[list[float]] = []
        if resume:
            self._restore()

    def _pretrain(self, folder: Path | None) -> CheckpointPairs:
        options = self.options
        return CheckpointPairs.pretrain(
            options.network,
            self.real.samples,
            classes=self.real.classes,
            count=options.pretrained,
            training=options.pretraining,
            augment=options.pretraining_augment,
            statistics=self.statistics,
            cutmix=options.cutmix,
            seed=options.seed,
            folder=folder,
            device=options.device,
        )

    def _first_images(self) -> tuple[Tensor, Tensor]:
        """The images that are trained, `(classes * images_per_class, C, H, W)`, class by class, and their labels."""
        count, options = self.options.images_per_class, self.options
        begun = [
            options.initialise(self.real.of(number), count, options.factor, generator(options.seed, INITIAL, number))
            for number in range(self.real.classes)
        ]
        labels = torch.arange(self.real.classes).repeat_interleave(count)
        return torch.cat(begun).float().to(self.device).requires_grad_(), labels.to(self.device)

    def _make_sampler(self) -> None:
        with torch.no_grad():
            (seen,) = self.features(self.statistics.normalise(self.images[:1].detach()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator(self.options.seed, SAMPLER))))
            sampler = FrequencySampler(
                seen.shape[1], frequencies=self.options.frequencies, form=self.options.sampler_form
            )
        self.sampler = sampler.to(self.device).train()
        self.sampler_optimizer = self.options.sampler_optimizer(self.sampler.parameters())

    # ---- the loop ------------------------------------------------------------------------------------------------

    def run(self, checkpoint_every: int, progress: bool) -> CondensedSet:
        """Go from the first iteration, or the last checkpoint, to the end."""
        options = self.options
        with Display("condensing", options.iterations, enabled=progress) as display, interruptions() as stop:
            while self.iteration < options.iterations:
                matched, calibrated = self._one_iteration()
                self.iteration += 1
                self.history.append([matched, calibrated])
                display.step(self.iteration, f"matching {matched:.3f}, calibration {calibrated:.3f}")
                if self.iteration % checkpoint_every == 0 or self.iteration == options.iterations or stop.is_set():
                    self._save()
                if stop.is_set():
                    raise KeyboardInterrupt(f"stopped after iteration {self.iteration} of {options.iterations}")
        every = max(len(self.history) // 50, 1)
        notes = {"method": "NCFM", "iterations": options.iterations, "losses": self.history[::every]}
        images = self.images.detach().clamp(0, 1).cpu()
        return CondensedSet(images, self.labels.cpu(), options.factor, self.real.names, "condensed", notes)

    def _one_iteration(self) -> tuple[float, float]:
        """Match every class, then calibrate every class; the mean losses over classes."""
        self._choose_networks()
        with torch.no_grad():
            self.images.clamp_(0, 1)
        matched = calibrated = 0.0
        if self.options.matching_weight > 0:
            matched = sum(map(self._match, range(self.real.classes))) / self.real.classes
        if self.options.calibration_weight > 0:
            calibrated = sum(map(self._calibrate, range(self.real.classes))) / self.real.classes
        self.plateau.step(matched + calibrated)
        return matched, calibrated

    def _choose_networks(self) -> None:
        numbers = generator(self.options.seed, NETWORK, self.iteration)
        initial, final = self.pairs[int(torch.randint(len(self.pairs), (1,), generator=numbers))]
        self.blended.load_state_dict(blend(initial, final, float(torch.rand(1, generator=numbers))))
        self.final.load_state_dict(final)

    def _match(self, number: int) -> float:
        """One min step of the images and one max step of the sampler on a class."""
        numbers = generator(self.options.seed, MATCH, self.iteration, number)
        real = self.real.batch(number, self.iteration, self.options.real_batch).to(self.device)
        synthetic = self._decoded(number)
        seen = self.augment(torch.cat([real, synthetic]), numbers)
        with torch.no_grad():
            theirs = self.features(seen[: len(real)])
        ours = self.features(seen[len(real) :])
        losses = [
            self.options.matching(one, other, self._frequencies(one.shape[1], numbers))
            for one, other in zip(ours, theirs, strict=True)
        ]
        loss = self.options.matching_weight * torch.stack(losses).sum()
        minmax_gradients(loss, [self.images], () if self.sampler is None else self.sampler.parameters())
        self.image_optimizer.step()
        if self.sampler_optimizer is not None:
            self.sampler_optimizer.step()
        return float(loss.detach())

    def _calibrate(self, number: int) -> float:
        """One step of the images on the cross-entropy of the pretrained network."""
        numbers = generator(self.options.seed, CALIBRATE, self.iteration, number)
        logits = self.final(self.augment(self._decoded(number), numbers))
        loss = self.options.calibration_weight * F.cross_entropy(logits, torch.full_like(logits[:, 0], number).long())
        minmax_gradients(loss, [self.images])
        self.image_optimizer.step()
        return float(loss.detach())

    def _decoded(self, number: int) -> Tensor:
        count = self.options.images_per_class
        mine = slice(number * count, (number + 1) * count)
        return decode_formation(self.images[mine], self.labels[mine], self.options.factor)[0]

    def augment(self, images: Tensor, numbers: torch.Generator) -> Tensor:
        """Normalise and augment all images alike."""
        return self.options.augment.shared(self.statistics.normalise(images), numbers)

    def _frequencies(self, dim: int, numbers: torch.Generator) -> Tensor:
        if self.sampler is not None:
            return self.sampler(generator=numbers)
        return torch.randn(self.options.frequencies, dim, generator=numbers).to(self.device)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def _about(self) -> dict[str, str]:
        data = f"{len(self.real.samples)} images {self.real.samples.shape}, {self.real.classes} classes"
        return self.options.options() | {"data": data}

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        state: dict[str, Any] = {
            "about": self._about(),
            "iteration": self.iteration,
            "images": self.images.detach(),
            "image_optimizer": self.image_optimizer.state_dict(),
            "plateau": self.plateau.state_dict(),
            "history": self.history,
        }
        if self.sampler is not None and self.sampler_optimizer is not None:
            state |= {"sampler": self.sampler.state_dict(), "sampler_optimizer": self.sampler_optimizer.state_dict()}
        checkpoint.save(self.checkpoint, state)

    def _restore(self) -> None:
        state = None if self.checkpoint is None else checkpoint.load(self.checkpoint)
        if state is None:
            return
        about = self._about()
        if changed := sorted(name for name in about if about[name] != state["about"].get(name)):
            first = changed[0]
            raise ValueError(
                f"the checkpoint was made with other options ({', '.join(changed)}; {first} was "
                f"{state['about'].get(first)}, now {about[first]}): resume with the same ones, or use another folder"
            )
        with torch.no_grad():
            self.images.copy_(state["images"])
        self.image_optimizer.load_state_dict(state["image_optimizer"])
        self.plateau.load_state_dict(state["plateau"])
        if self.sampler is not None and self.sampler_optimizer is not None:
            self.sampler.load_state_dict(state["sampler"])
            self.sampler_optimizer.load_state_dict(state["sampler_optimizer"])
        self.iteration, self.history = state["iteration"], state["history"]
