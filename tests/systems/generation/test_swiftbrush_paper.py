"""SwiftBrush's paper settings on a Stable Diffusion pipeline of a few thousand weights, built here from configs."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stillroom.systems.generation.swiftbrush import paper

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def build_pipeline(folder):
    """A whole pipeline: one letter is one token."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = folder / "words"
    vocabulary.mkdir()
    (vocabulary / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (vocabulary / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt"), model_max_length=8)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, sample_size=8),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            cross_attention_dim=8,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "teacher")
    return folder / "teacher"


class Colours(nn.Module):
    num_features = 3

    def forward(self, pictures):
        return pictures.mean((2, 3))


@pytest.mark.filterwarnings("ignore")  # what the libraries say of their own formats
def test_the_papers_settings_run_on_a_small_pipeline(tmp_path):
    teacher, data = build_pipeline(tmp_path), tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "prompts.txt").write_text("a cat\na dog\nan owl\nbirds\n")
    (data / "captions.txt").write_text("a fox\na hen\na cow\n")
    for number in range(3):
        Image.new("RGB", (12, 10), (80 * number, 40, 200 - 60 * number)).save(data / "images" / f"{number}.png")
    experiment = paper(
        str(data), teacher=str(teacher), batch_size=2, rank=2, measured=3, size=8, feature=Colours(), clip=""
    )
    results = experiment.tiny().run(seeds=[0], folder=tmp_path / "run", device="cpu", progress=False)
    assert results["metric"] == "fid"
    assert set(results["arms"]) == {"teacher-50-steps", "teacher-1-step", "swiftbrush"}
    assert all(value >= 0 for arm in results["arms"].values() for value in arm["values"])
    back = UNet2DConditionModel.from_pretrained(tmp_path / "run" / "arms" / "swiftbrush" / "seed-0" / "student")
    assert back.config.sample_size == 8


def test_what_is_missing_is_said(tmp_path):
    arm = paper(str(tmp_path / "nowhere")).arms["swiftbrush"]
    from stillroom.systems.generation.swiftbrush import paper as settings
    from stillroom.systems.generation.swiftbrush.paper import _folder, _real

    assert settings is paper
    assert arm.keywords["settings"].guidance_scale == 4.5
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere'.*put prompts.txt \(training prompts\)"):
        _folder(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"images holds no .jpg or .png"):
        next(_real(tmp_path, 3, 8))


def test_they_are_the_papers():
    options = paper().arms["swiftbrush"].keywords["settings"]
    assert (options.student_lr, options.lora_lr, options.batch_size, options.epochs) == (1e-6, 1e-3, 16, 3)
    assert (options.rank, options.alpha, options.guidance_scale, options.measured) == (64, 108, 4.5, 30_000)
    assert options.teacher == "stabilityai/stable-diffusion-2-1-base"
