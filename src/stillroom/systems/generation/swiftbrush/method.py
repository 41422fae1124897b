"""SwiftBrush as a method: one image, two updates; and score distillation sampling, which lacks the second teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.diffusion import (
    NoisePredictor,
    NoiseSchedule,
    OneStepGenerator,
    check_rows,
    check_scale,
    guided_prediction,
    lora_copy,
    null_like,
    predict,
)
from stillroom.blocks.ema import EMA
from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch, tensors_in
from stillroom.losses import denoising_loss, vsd_loss
from stillroom.method import Losses, Method, Needs

SMALLEST_ALPHA = 1e-6
"""Below this the division by sqrt(a) at the last step is refused."""


class SwiftBrush(Method):
    """Turns a diffusion teacher into a one-step generator, from prompts alone.

    The student starts as a copy of its teacher and is read as x = (z - sqrt(1 - a) eps(z, T - 1, y)) / sqrt(a). A
    second teacher, which starts as the first, learns to predict noise in the student's own samples; the student moves
    along the difference of the two guided predictions, which is 0 where its samples are distributed as the teacher's.

    Args:
        student: `network(noisy, timesteps, prompts)` that predicts noise, as diffusers' UNet2DConditionModel; a copy of
            the teacher to start from (`copy.deepcopy(teacher)`), with parameters of its own.
        teacher: the same; frozen here.
        schedule: `NoiseSchedule`, or the teacher's diffusers scheduler.
        null_prompt: one row of prompts that stands for no prompt: the embedding `(L, d)` of the empty text, or a class
            number.
        shape: of one sample (latents), without the batch; empty to read it off the student's config.
        guidance_scale: g of both teachers, finite.
        second_teacher: teacher network -> what follows the student: `lora_copy` (shared weights and an adapter on the
            layers to_q and to_v of rank 64), `lora_copy_of_linears`, `full_copy`, or partials of these.
        null_probability: of training the second teacher on the null prompt, per batch, in [0, 1].
        vsd_steps: first and last t of the student's loss.
        lora_steps: first and last t of the second teacher's loss.
        ema_decay: of the averaged student that ships (with warm-up); None ships the student itself.
        final_alpha: a at the last step; None takes it from the schedule. The authors' code has 0.0047 typed in.

    Losses:
        vsd: `stillroom.losses.vsd_loss`, the turn of player "student".
        lora: `stillroom.losses.denoising_loss` weighted by a_t, on the same samples: the turn of player "lora".

    Raises:
        ValueError: a network predicts v or clean data (wrap it in `NoisePredictor`), a at the last step is below 1e-6,
            guidance that is not finite, steps outside the schedule, student and teacher share weights.

    Source: Nguyen and Tran 2023, arXiv:2312.05239.

    Example:
        >>> import copy
        >>> from stillroom.blocks.diffusion import NoiseMLP, NoiseSchedule, full_copy
        >>> teacher, null = NoiseMLP((8,), classes=3), torch.tensor(3)  # yours: a UNet, the embedding of ""
        >>> method = SwiftBrush(
        ...     copy.deepcopy(teacher), teacher, NoiseSchedule.scaled_linear(), null_prompt=null, shape=(8,),
        ...     second_teacher=full_copy)
        >>> list(method(Batch(torch.tensor([0, 2, 1]))))
        ['vsd', 'lora']
        >>> method.product(torch.tensor([0, 2])).shape  # prompts -> samples, in one call
        torch.Size([2, 8])
    """

    needs = Needs(
        labels="none",
        teacher_at="own",
        whole_batch="one draw per batch decides whether the second teacher sees the prompts",
        tasks=("generation",),
    )

    null_prompt: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        schedule: Any,
        *,
        null_prompt: Tensor,
        shape: Sequence[int] = (),
        guidance_scale: float = 4.5,
        second_teacher: Callable[[nn.Module], nn.Module] = lora_copy,
        null_probability: float = 0.1,
        vsd_steps: tuple[int, int] = (20, 980),
        lora_steps: tuple[int, int] = (0, 999),
        ema_decay: float | None = 0.9999,
        final_alpha: float | None = None,
    ) -> None:
        network = teacher.network if isinstance(teacher, Frozen) else teacher
        if not isinstance(network, nn.Module):
            raise TypeError(f"teacher must be a diffusion network (torch.nn.Module), given {type(network).__name__}")
        if not isinstance(student, nn.Module):
            raise TypeError(f"student must be a torch.nn.Module, given {type(student).__name__}")
        if {id(weight) for weight in student.parameters()} & {id(weight) for weight in network.parameters()}:
            raise ValueError("student and teacher share weights: pass copy.deepcopy(teacher) as the student")
        table = NoiseSchedule.of(schedule)
        last = len(table) - 1
        alpha = float(table.alphas_cumprod[-1]) if final_alpha is None else final_alpha
        _check(table, network, student, alpha, guidance_scale, null_probability)
        for name, steps in (("vsd_steps", vsd_steps), ("lora_steps", lora_steps)):
            if not 0 <= steps[0] <= steps[1] <= last:
                raise ValueError(f"{name} must be a first and a last step within 0 and {last}, given {tuple(steps)}")
        super().__init__(OneStepGenerator(student, shape, alpha_cumprod=alpha, timestep=last), teacher)
        self.schedule = table
        self.register_buffer("null_prompt", torch.as_tensor(null_prompt).detach(), persistent=False)
        self.guidance_scale = guidance_scale
        self.null_probability = null_probability
        self.vsd_steps, self.lora_steps = vsd_steps, lora_steps
        self.second = self._second_teacher(second_teacher, network)
        self.average = None if ema_decay is None else EMA(self.student, decay=ema_decay, warmup=True)

    def _second_teacher(self, build: Callable[[nn.Module], nn.Module], network: nn.Module) -> nn.Module | None:
        return build(network)

    @property
    def product(self) -> nn.Module:
        """The averaged one-step generator (the student's, where there is no average): prompts -> samples."""
        return super().product if self.average is None else self.average.module

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The student's parameters, and those of the second teacher that train."""
        groups = {"student": list(self.student.parameters())}
        if self.second is not None:
            groups["lora"] = list(self.second.parameters())
        return {name: [weight for weight in group if weight.requires_grad] for name, group in groups.items()}

    def turns(self, batch: Batch) -> Iterator[tuple[str, Losses]]:
        """Paint once; yield the student's loss, then the second teacher's on the same samples."""
        prompts = self._prompts(batch)
        samples = self.student(prompts)
        yield "student", Losses(vsd=self.student_loss(samples, prompts), outputs=samples)
        if self.second is not None:
            yield "lora", Losses(lora=self.second_loss(samples.detach(), prompts), outputs=samples.detach())

    def forward(self, batch: Batch) -> Losses:
        """Return both losses of a batch of prompts; each has a gradient for its own player alone."""
        found = [losses for _, losses in self.turns(batch)]
        terms: dict[str, Any] = {name: term for losses in found for name, term in losses.items()}
        return Losses(outputs=found[0].outputs, **terms)

    def student_loss(
        self, samples: Tensor, prompts: Any, *, timesteps: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Score distillation of some samples; its gradient in them is G over their number of entries.

        Args:
            samples: `(N, *shape)`, with gradient.
            prompts: of N rows.
            timesteps: `(N,)`; drawn uniformly from `vsd_steps` when not given.
            noise: of the samples' shape; drawn when not given.
        """
        timesteps = self._draw(samples, self.vsd_steps) if timesteps is None else timesteps
        noise = torch.randn_like(samples) if noise is None else noise
        with torch.no_grad():
            noisy = self._as_input(self.schedule.add_noise(samples.detach(), noise, timesteps))
            teacher_noise = self._guided(self.teacher, noisy, timesteps, prompts)
            second_noise = self._second_noise(noisy, timesteps, prompts, noise)
        return vsd_loss(samples, teacher_noise, second_noise, alphas_cumprod=self.schedule.at(timesteps, samples))

    def second_loss(
        self,
        samples: Tensor,
        prompts: Any,
        *,
        timesteps: Tensor | None = None,
        noise: Tensor | None = None,
        without_prompts: bool | None = None,
    ) -> Tensor:
        """Denoising loss of the second teacher on some samples.

        Args:
            samples: `(N, *shape)`; receive no gradient.
            prompts: of N rows.
            timesteps: `(N,)`; drawn uniformly from `lora_steps` when not given.
            noise: of the samples' shape; drawn when not given.
            without_prompts: whether the whole batch is seen with the null prompt; drawn when not given.
        """
        if self.second is None:
            raise ValueError(f"{type(self).__name__} has no second teacher")
        samples = samples.detach()
        timesteps = self._draw(samples, self.lora_steps) if timesteps is None else timesteps
        noise = torch.randn_like(samples) if noise is None else noise
        if without_prompts is None:
            without_prompts = float(torch.rand(())) < self.null_probability
        noisy = self._as_input(self.schedule.add_noise(samples, noise, timesteps))
        seen = null_like(prompts, self.null_prompt) if without_prompts else prompts
        predicted = predict(self.second, noisy, timesteps, seen)
        return denoising_loss(predicted, noise, weights=self.schedule.at(timesteps, samples))

    def after_step(self, player: str) -> None:
        """Let the average follow the student."""
        if player == "student" and self.average is not None:
            self.average.update()

    def _second_noise(self, noisy: Tensor, timesteps: Tensor, prompts: Any, noise: Tensor) -> Tensor:
        return self._guided(self.second, noisy, timesteps, prompts)

    def _guided(self, network: Any, noisy: Tensor, timesteps: Tensor, prompts: Any) -> Tensor:
        return guided_prediction(
            network, noisy, timesteps, prompts, null_prompt=self.null_prompt, scale=self.guidance_scale
        )

    def _prompts(self, batch: Batch) -> Any:
        prompts = batch.inputs
        if not len(batch):
            raise ValueError("the batch is empty: this method learns from prompts, given none")
        for tensor in tensors_in(prompts):
            if tensor.shape[1:] == self.student.shape and tensor.shape[1:] != self.null_prompt.shape:
                raise ValueError(
                    f"{type(self).__name__} learns from prompts alone, given {tuple(tensor.shape)}, which are samples "
                    "(images or latents): pass prompt embeddings or class numbers as inputs"
                )
        if isinstance(prompts, Tensor):
            check_rows(prompts, self.null_prompt)
        return prompts

    def _draw(self, samples: Tensor, steps: tuple[int, int]) -> Tensor:
        return torch.randint(steps[0], steps[1] + 1, (len(samples),), device=samples.device)

    def _as_input(self, noisy: Tensor) -> Tensor:
        """Noised samples in the dtype of the networks."""
        return noisy.to(next(iter(self.student.parameters())).dtype)


class SDS(SwiftBrush):
    """Score distillation sampling into a one-step generator: SwiftBrush with the mixed-in noise as second teacher.

    Without something that follows the student, every prompt is pulled to what the teacher finds likeliest, and variety
    is lost: the baseline that SwiftBrush is measured against.

    Args:
        student: as for `SwiftBrush`.
        teacher: as for `SwiftBrush`.
        schedule: as for `SwiftBrush`.
        null_prompt: as for `SwiftBrush`.
        shape: as for `SwiftBrush`.
        guidance_scale: of the teacher.
        vsd_steps: first and last t of the loss.
        ema_decay: of the averaged student that ships; None ships the student itself.
        final_alpha: a at the last step; None takes it from the schedule.

    Losses:
        vsd: `stillroom.losses.vsd_loss` with the noise in place of the second prediction.

    Source: Poole et al. 2022, arXiv:2209.14988.
    """

    needs = Needs(labels="none", teacher_at="own", tasks=("generation",))

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        schedule: Any,
        *,
        null_prompt: Tensor,
        shape: Sequence[int] = (),
        guidance_scale: float = 4.5,
        vsd_steps: tuple[int, int] = (20, 980),
        ema_decay: float | None = 0.9999,
        final_alpha: float | None = None,
    ) -> None:
        super().__init__(
            student,
            teacher,
            schedule,
            null_prompt=null_prompt,
            shape=shape,
            guidance_scale=guidance_scale,
            vsd_steps=vsd_steps,
            lora_steps=vsd_steps,
            ema_decay=ema_decay,
            final_alpha=final_alpha,
        )

    def _second_teacher(self, build: Callable[[nn.Module], nn.Module], network: nn.Module) -> nn.Module | None:
        return None

    def _second_noise(self, noisy: Tensor, timesteps: Tensor, prompts: Any, noise: Tensor) -> Tensor:
        return noise


def _check(
    schedule: NoiseSchedule,
    teacher: nn.Module,
    student: nn.Module,
    alpha: float,
    guidance_scale: float,
    null_probability: float,
) -> None:
    check_scale(guidance_scale)
    wrapped = isinstance(teacher, NoisePredictor) and isinstance(student, NoisePredictor)
    if schedule.prediction != "epsilon" and not wrapped:
        raise ValueError(
            f"student and teacher must predict noise, but the schedule says {schedule.prediction!r}: wrap both in "
            "stillroom.blocks.diffusion.NoisePredictor(network, schedule)"
        )
    if not alpha >= SMALLEST_ALPHA or alpha > 1:
        raise ValueError(
            f"alphas_cumprod at the last step is {alpha:.3g}, but must lie in [{SMALLEST_ALPHA:g}, 1]: the student "
            "divides by its square root (a schedule with zero terminal signal cannot be used)"
        )
    if not 0 <= null_probability <= 1:
        raise ValueError(f"null_probability must lie in [0, 1], given {null_probability}")
