"""SwiftBrush at the size of its paper: Stable Diffusion 2.1-base, prompts from a file, FID and CLIP score on COCO."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stillroom.blocks.diffusion import ddim_sample, lora_copy, paint
from stillroom.blocks.diffusion.schedule import NoiseSchedule
from stillroom.data.named import data_folder
from stillroom.data.prompts import PromptSamples, read_lines
from stillroom.experiment.arm import Context
from stillroom.experiment.claim import Claim
from stillroom.experiment.run import Experiment
from stillroom.extras import require
from stillroom.fit import fit
from stillroom.systems.generation.swiftbrush.method import SwiftBrush
from stillroom.task import Generation, Measured, picture_scores
from stillroom.training import Optim, Training

FILES = "prompts.txt (training prompts), captions.txt (one per measured picture) and images/ (real pictures)"


@dataclass(frozen=True)
class PaperSettings:
    """What the arms at paper scale share; see `paper`."""

    data: str
    teacher: str
    batch_size: int
    epochs: float
    guidance_scale: float
    sampling_scale: float
    student_lr: float
    lora_lr: float
    rank: int
    alpha: float
    precision: Any
    measured: int
    size: int
    feature: Any
    clip: str


class Latents:
    """A latent diffusion pipeline of diffusers, taken apart.

    Args:
        teacher: folder or hub name of a Stable Diffusion pipeline.
        device: where it runs.

    Raises:
        FileNotFoundError: there is no such pipeline here and none can be fetched.
    """

    def __init__(self, teacher: str, device: str) -> None:
        diffusers = require("diffusers")
        try:
            pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
                teacher, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        except OSError as error:
            raise FileNotFoundError(
                f"the teacher {teacher!r} can neither be found nor fetched ({str(error).splitlines()[0][:160]}): pass "
                "teacher=, a folder with a Stable Diffusion pipeline"
            ) from error
        self.pipeline: Any = pipeline.to(device)
        self.device = device
        self.unet: Any = self.pipeline.unet
        self.schedule = NoiseSchedule.of(self.pipeline.scheduler)

    def encode(self, texts: list[str]) -> Tensor:
        """Embed texts: `(N, L, d)`."""
        return self.pipeline.encode_prompt(texts, self.device, 1, False)[0].float().cpu()

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents into pictures `(N, 3, H, W)` in [0, 1]."""
        vae = self.pipeline.vae
        return (vae.decode(latents.to(vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    @property
    def scaling_factor(self) -> float:
        """What latents are divided by before they are decoded."""
        return float(self.pipeline.vae.config.scaling_factor)


def _folder(data: str) -> Path:
    own = data_folder()
    for place in (Path(data).expanduser(), own / data if own is not None else None):
        if place is not None and place.is_dir():
            return place
    raise FileNotFoundError(f"there is no folder {data!r} (nor one of that name in STILLROOM_DATA): put {FILES} there")


def _real(folder: Path, count: int, size: int, batch_size: int = 16) -> Iterator[Tensor]:
    files = sorted(file for file in (folder / "images").glob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise FileNotFoundError(f"{folder / 'images'} holds no .jpg or .png: put {FILES} in {folder}")
    for start in range(0, min(count, len(files)), batch_size):
        pictures = []
        for file in files[start : min(start + batch_size, count)]:
            with Image.open(file) as opened:
                picture = opened.convert("RGB")
                side = min(picture.size)
                left, top = (picture.width - side) // 2, (picture.height - side) // 2
                square = picture.crop((left, top, left + side, top + side)).resize(
                    (size, size), Image.Resampling.BICUBIC
                )
            pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
            pictures.append(pixels.view(size, size, 3).permute(2, 0, 1).float() / 255)
        yield torch.stack(pictures)


def _scores(latents: Latents, settings: PaperSettings, painter: Any, seed: int) -> dict[str, float]:
    """FID and CLIP score of what a painter makes of the captions."""
    folder = _folder(settings.data)
    captions = read_lines(folder / "captions.txt", what="captions")[: settings.measured]
    random = torch.Generator().manual_seed(seed)

    def made() -> Iterator[tuple[Tensor, list[str]]]:
        for start in range(0, len(captions), settings.batch_size):
            texts = captions[start : start + settings.batch_size]
            pictures = painter(latents.encode(texts).to(latents.device), random)
            resized = F.interpolate(pictures, size=(settings.size,) * 2, mode="bicubic", antialias=True)
            yield resized.clamp(0, 1), texts

    return picture_scores(
        made(),
        _real(folder, settings.measured, settings.size),
        feature=settings.feature,
        clip=settings.clip,
        device=latents.device,
    )


def _device(context: Context) -> str:
    return context.device or ("cuda" if torch.cuda.is_available() else "cpu")


def sampled(seed: int, context: Context, *, settings: PaperSettings, steps: int) -> Mapping[str, float]:
    """An arm: the teacher itself in so many steps of DDIM, guided."""
    latents = Latents(settings.teacher, _device(context))
    null = latents.encode([""])[0]
    channels, side = latents.unet.config.in_channels, latents.unet.config.sample_size

    def painter(prompts: Tensor, random: torch.Generator) -> Tensor:
        noise = torch.randn(len(prompts), channels, side, side, generator=random).to(latents.device)
        found = ddim_sample(
            latents.unet,
            latents.schedule,
            prompts,
            noise,
            steps=2 if context.tiny else steps,
            null_prompt=null,
            guidance_scale=settings.sampling_scale,
        )
        return latents.decode(found / latents.scaling_factor)

    return _scores(latents, settings, painter, seed)


def trained(seed: int, context: Context, *, settings: PaperSettings) -> Mapping[str, float]:
    """An arm: SwiftBrush from the prompts of the file; the student's network is saved as diffusers does."""
    latents = Latents(settings.teacher, _device(context))
    prompts = PromptSamples(read_lines(_folder(settings.data) / "prompts.txt"), latents.encode)
    student = copy.deepcopy(latents.unet).requires_grad_(True)
    method = SwiftBrush(
        student,
        latents.unet,
        latents.pipeline.scheduler,
        null_prompt=latents.encode([""])[0],
        guidance_scale=settings.guidance_scale,
        second_teacher=partial(lora_copy, rank=settings.rank, alpha=settings.alpha),
        final_alpha=0.0047,
    )
    training = Training(
        epochs=None if context.tiny else settings.epochs,
        steps=2 if context.tiny else None,
        batch_size=settings.batch_size,
        precision=settings.precision,
        optimizer=Optim("adam", lr=settings.student_lr, schedule="constant", clip=1.0),
        players={"lora": Optim("adam", lr=settings.lora_lr, schedule="constant", clip=1.0)},
    )
    fitted = fit(
        method,
        prompts,
        training,
        task=Generation(),
        seed=seed,
        folder=context.folder,
        resume=context.resume,
        device=context.device,
        trackers=(),
    )
    generator: Any = fitted.product
    generator.network.save_pretrained(context.folder / "student")
    context.extra["steps"] = fitted.steps

    def painter(wanted: Tensor, random: torch.Generator) -> Tensor:
        return paint(generator, wanted, decode=latents.decode, scaling_factor=latents.scaling_factor, random=random)

    return _scores(latents, settings, painter, seed)


def paper(
    data: str = "coco-prompts",
    *,
    teacher: str = "stabilityai/stable-diffusion-2-1-base",
    batch_size: int = 16,
    epochs: float = 3,
    guidance_scale: float = 4.5,
    sampling_scale: float = 7.5,
    student_lr: float = 1e-6,
    lora_lr: float = 1e-3,
    rank: int = 64,
    alpha: float = 108.0,
    precision: str = "bf16",
    measured: int = 30_000,
    size: int = 256,
    feature: Any = 2048,
    clip: str = "openai/clip-vit-base-patch16",
) -> Experiment:
    """Stable Diffusion 2.1-base at 512 px, three epochs over about a million prompts: some days on a few large GPUs.

    Expected on 30,000 captions of COCO-2014: FID 16.67, CLIP score 0.29 (torchmetrics gives 29). Never run here.

    Args:
        data: a folder (or the name of one in STILLROOM_DATA) with prompts.txt, captions.txt and images/.
        teacher: a Stable Diffusion pipeline that predicts noise: a folder, or a name on the Hugging Face hub.
        batch_size: prompts per step.
        epochs: passes over the prompts.
        guidance_scale: g of both teachers.
        sampling_scale: guidance of the teacher's own 50 steps, which the student is compared with.
        student_lr: of the student, Adam, constant.
        lora_lr: of the adapter, Adam, constant.
        rank: of the adapter on to_q and to_v.
        alpha: the adapter is scaled by alpha / rank.
        precision: "bf16", "fp16" or "no".
        measured: captions and real pictures that are measured.
        size: side of the measured pictures.
        feature: of torchmetrics' FrechetInceptionDistance: 2048, or a network (needs torch-fidelity for a number).
        clip: name of the CLIP model; empty leaves the CLIP score out.
    """
    settings = PaperSettings(
        data=str(data),
        teacher=teacher,
        batch_size=batch_size,
        epochs=epochs,
        guidance_scale=guidance_scale,
        sampling_scale=sampling_scale,
        student_lr=student_lr,
        lora_lr=lora_lr,
        rank=rank,
        alpha=alpha,
        precision=precision,
        measured=measured,
        size=size,
        feature=feature,
        clip=clip,
    )
    return Experiment(
        task=Measured("fid", higher_is_better=False),
        arms={
            "teacher-50-steps": partial(sampled, settings=settings, steps=50),
            "teacher-1-step": partial(sampled, settings=settings, steps=1),
            "swiftbrush": partial(trained, settings=settings),
        },
        baseline="teacher-1-step",
        rivals=("teacher-50-steps", "teacher-1-step"),
        claims=[
            Claim("swiftbrush", "<", "teacher-1-step", on="fid"),
            Claim("swiftbrush", "==", 16.67, on="fid", within=1.0),
        ],
        title="SwiftBrush on Stable Diffusion 2.1-base",
        question="A one-step student learns to paint from its teacher and prompts, without a picture.",
        seeds=1,
    )
