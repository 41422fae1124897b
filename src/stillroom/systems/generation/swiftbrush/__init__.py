"""SwiftBrush: a multi-step diffusion model becomes a one-step generator, from prompts alone, without any image.

For whom: you have a latent diffusion model (diffusers' UNet2DConditionModel, or any network that predicts noise from
noisy data, a step and a prompt) and a text file of prompts, and want a student of the same size that paints in one
network call.

Not for whom: you need the last bit of quality and may use real images (adversarial distillation does better); the
teacher's schedule ends without any signal left; you want a smaller network, which this does not give.

Citation: Thuan Hoang Nguyen, Anh Tran. SwiftBrush: One-Step Text-to-Image Diffusion Model with Variational Score
Distillation. CVPR 2024. arXiv:2312.05239.

Deviations from the paper: a at the last step comes from the teacher's schedule (0.00466 for Stable Diffusion), where
the authors' code has 0.0047 typed in (`final_alpha=0.0047`). The second teacher is a copy of the teacher's modules over
the same weights with the adapter in it, so that no adapter is switched on and off; the arithmetic is the same. Its
default g of 4.5 is the one of the authors' command, their argument's own default is 7.5. The average's first update
keeps a tenth of the initial weights, where diffusers' EMAModel keeps nothing. Where not one entry of the gradient is
finite the loss is NaN instead of 0. The size of the authors' prompt set and number of GPUs are unconfirmed, as is which
prompts were used.
"""

from __future__ import annotations

from stillroom.systems.generation.swiftbrush.method import SDS, SwiftBrush
from stillroom.systems.generation.swiftbrush.paper import paper
from stillroom.systems.generation.swiftbrush.recipe import recipe

__all__ = ["SDS", "SwiftBrush", "paper", "recipe"]
