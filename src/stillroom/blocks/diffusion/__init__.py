"""The core of diffusion: schedules, guidance, samplers, second networks, small and exact networks."""

from __future__ import annotations

from stillroom.blocks.diffusion.copies import (
    AdaptedCopy,
    check_targets,
    full_copy,
    lora_copy,
    lora_copy_of_linears,
    shared_copy,
)
from stillroom.blocks.diffusion.networks import GaussianNoise, NoiseMLP, NoisePredictor, train_denoiser
from stillroom.blocks.diffusion.sampling import (
    OneStepGenerator,
    check_rows,
    check_scale,
    ddim_sample,
    ddim_timesteps,
    guided,
    guided_prediction,
    null_like,
    paint,
    shape_of,
)
from stillroom.blocks.diffusion.schedule import Network, NoiseSchedule, Prediction, predict

__all__ = [
    "AdaptedCopy",
    "GaussianNoise",
    "Network",
    "NoiseMLP",
    "NoisePredictor",
    "NoiseSchedule",
    "OneStepGenerator",
    "Prediction",
    "check_rows",
    "check_scale",
    "check_targets",
    "ddim_sample",
    "ddim_timesteps",
    "full_copy",
    "guided",
    "guided_prediction",
    "lora_copy",
    "lora_copy_of_linears",
    "null_like",
    "paint",
    "predict",
    "shape_of",
    "shared_copy",
    "train_denoiser",
]
