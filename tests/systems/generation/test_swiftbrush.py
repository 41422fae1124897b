"""SwiftBrush: what moves whom, closed forms, a UNet of diffusers, refusals, and the recipe's small form."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from stillroom.blocks.diffusion import (
    GaussianNoise,
    NoiseMLP,
    NoisePredictor,
    NoiseSchedule,
    full_copy,
    lora_copy,
    lora_copy_of_linears,
    paint,
)
from stillroom.blocks.frozen import fingerprint
from stillroom.check import check_method
from stillroom.data.batch import Batch
from stillroom.data.named import data_folder
from stillroom.data.samples import TensorSamples
from stillroom.fit import fit
from stillroom.systems.generation.swiftbrush import SDS, SwiftBrush, recipe
from stillroom.systems.generation.swiftbrush.recipe import UntrackedSwiftBrush
from stillroom.task import Generation
from stillroom.training import Optim, Training
from stillroom.tripwires import TrainingError

SCHEDULE = NoiseSchedule.scaled_linear()
NULL = torch.tensor(3)
PROMPTS = Batch(torch.arange(8) % 3)


def teacher_of(shape=(6,)):
    made = NoiseMLP(shape, 3, width=16)
    nn.init.normal_(made.head.weight, std=0.1)
    return made


def swiftbrush(teacher=None, kind=SwiftBrush, **options):
    teacher = teacher or teacher_of()
    if kind is SwiftBrush:
        options = {"second_teacher": partial(lora_copy_of_linears, rank=2)} | options
    options = {"null_prompt": NULL, "shape": (6,)} | options
    return kind(copy.deepcopy(teacher).requires_grad_(True), teacher, SCHEDULE, **options)


def adam(parameters, lr=1e-2):
    return torch.optim.Adam(list(parameters), lr=lr)


def step(method, optimizers, batch=PROMPTS):
    terms = {}
    for player, losses in method.turns(batch):
        losses.total.backward(inputs=method.players()[player])
        optimizers[player].step()
        optimizers[player].zero_grad()
        method.after_step(player)
        terms |= {name: float(term.detach()) for name, term in losses.items()}
    return terms


@pytest.mark.parametrize("second", [partial(lora_copy_of_linears, rank=2), full_copy], ids=["lora", "full"])
def test_the_battery(second):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = check_method(swiftbrush(second_teacher=second), PROMPTS, processes=False, raises=False)
    assert report.ok, str(report)
    assert len(report.passed) > 18


def test_the_battery_of_score_distillation_sampling():
    report = check_method(swiftbrush(kind=SDS), PROMPTS, processes=False, raises=False)
    assert report.ok, str(report)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0, 1.5, 7.5])
def test_nothing_pushes_the_student_until_the_second_teacher_has_learned(scale):
    method = swiftbrush(guidance_scale=scale)
    optimizers = {name: adam(group) for name, group in method.players().items()}
    samples = method.student(PROMPTS.inputs)
    loss = method.student_loss(samples, PROMPTS.inputs)
    assert loss.item() == 0
    assert float(torch.autograd.grad(loss, samples)[0].abs().max()) == 0
    step(method, optimizers)
    for _ in range(2):  # the first step moves B alone, away from 0
        method.second_loss(samples, PROMPTS.inputs, without_prompts=scale == 0).backward()
        optimizers["lora"].step()
    assert method.student_loss(method.student(PROMPTS.inputs), PROMPTS.inputs).item() > 0


def test_the_push_is_the_difference_of_the_guided_predictions():
    method = swiftbrush(guidance_scale=2.5)
    with torch.no_grad():
        for weight in method.second.parameters():
            weight.normal_(std=0.3)
    samples = torch.randn(8, 6, requires_grad=True)
    times, noise = torch.randint(20, 981, (8,)), torch.randn(8, 6)
    loss = method.student_loss(samples, PROMPTS.inputs, timesteps=times, noise=noise)
    loss_gradient = torch.autograd.grad(3 * loss, samples, retain_graph=True)[0]
    alphas = SCHEDULE.alphas_cumprod[times].view(8, 1)
    noisy = alphas.sqrt() * samples.detach() + (1 - alphas).sqrt() * noise
    said = []
    for network in (method.teacher.network, method.second):
        with torch.no_grad():
            with_prompt, without = (network(noisy, times, y) for y in (PROMPTS.inputs, torch.full((8,), 3)))
        said.append(without + 2.5 * (with_prompt - without))
    push = (1 - alphas) * (said[0] - said[1])
    torch.testing.assert_close(loss_gradient, 3 * push / 48, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(loss, 0.5 * push.square().mean(), rtol=1e-4, atol=1e-7)
    loss.backward()
    assert all(weight.grad is None for weight in method.second.parameters())
    assert all(weight.grad is None for weight in method.teacher.network.parameters())


def test_a_hundred_steps_leave_the_shared_weights_as_they_were():
    teacher = teacher_of()
    before = fingerprint(teacher)
    method = swiftbrush(teacher)
    adapter = {name: weight.detach().clone() for name, weight in method.second.named_parameters()}
    optimizers = {name: adam(group, 1e-3) for name, group in method.players().items()}
    for _ in range(100):
        step(method, optimizers)
    assert fingerprint(teacher) == before
    shared = {id(weight) for weight in teacher.parameters()}
    bases = [w for name, w in method.second.network.named_parameters() if "lora_" not in name]
    assert {id(weight) for weight in bases} == shared
    moved = [float((weight - adapter[name]).detach().abs().max()) for name, weight in method.second.named_parameters()]
    assert min(moved) > 0


def test_exact_gaussians_push_the_mean_towards_the_teachers():
    """Teacher N(m1, I), student N(m2, I): G = s^3 sqrt(a) (m2 - m1), whatever the sample."""
    own, theirs = torch.tensor([[1.0, -2.0, 0.5]]).double(), torch.tensor([[-1.0, 0.0, 2.0]]).double()
    exact = GaussianNoise(theirs, schedule=SCHEDULE)
    method = SwiftBrush(
        NoiseMLP((3,), 1, width=4).double(),
        exact,
        SCHEDULE,
        null_prompt=torch.tensor(1),
        shape=(3,),
        guidance_scale=1.0,
        second_teacher=lambda network: GaussianNoise(own, schedule=SCHEDULE),
    )
    samples = (own + torch.randn(6, 3, dtype=torch.float64)).requires_grad_()
    times = torch.tensor([20, 100, 300, 500, 800, 980])
    loss = method.student_loss(samples, torch.zeros(6).long(), timesteps=times)
    push = 18 * torch.autograd.grad(loss, samples)[0]
    alphas = SCHEDULE.alphas_cumprod[times].double().view(6, 1)
    torch.testing.assert_close(push, (1 - alphas) ** 1.5 * alphas.sqrt() * (own - theirs), rtol=1e-9, atol=1e-9)
    mean = own.clone()
    for _ in range(60):
        mean = mean - (1 - alphas[3]) ** 1.5 * alphas[3].sqrt() * (mean - theirs)
    torch.testing.assert_close(mean, theirs, atol=1e-3, rtol=0)


def test_the_second_teachers_loss_is_weighted_denoising_of_samples_that_get_no_gradient():
    method = swiftbrush()
    samples = torch.randn(8, 6, requires_grad=True)
    times, noise = torch.randint(0, 1000, (8,)), torch.randn(8, 6)
    alphas = SCHEDULE.alphas_cumprod[times].view(8, 1)
    noisy = alphas.sqrt() * samples + (1 - alphas).sqrt() * noise
    for without, prompts in ((False, PROMPTS.inputs), (True, torch.full((8,), 3))):
        loss = method.second_loss(samples, PROMPTS.inputs, timesteps=times, noise=noise, without_prompts=without)
        expected = (alphas * (method.second(noisy, times, prompts) - noise).square()).mean()
        torch.testing.assert_close(loss, expected)
        loss.backward()
    assert samples.grad is None


class Watched(nn.Module):
    """Notes what it is asked."""

    def __init__(self, network):
        super().__init__()
        self.network, self.times, self.prompts = network, [], []

    def forward(self, noisy, timesteps, prompts):
        self.times.append(timesteps)
        self.prompts.append(prompts)
        return self.network(noisy, timesteps, prompts)


def test_the_two_time_ranges_and_the_prompts_that_are_lost():
    watched = []

    def second(network):
        watched.append(Watched(full_copy(network)))
        return watched[0]

    method = swiftbrush(second_teacher=second, guidance_scale=1.0)
    prompts, samples = torch.arange(4000) % 3, torch.randn(4000, 6)
    method.student_loss(samples.requires_grad_(), prompts)
    for _ in range(300):
        method.second_loss(samples[:40], prompts[:40])
    first, *others = watched[0].times
    assert (int(first.min()), int(first.max())) == (20, 980)
    together = torch.cat(others)
    assert (int(together.min()), int(together.max())) == (0, 999)
    lost = [asked for asked in watched[0].prompts[1:] if bool((asked == 3).any())]
    assert all(bool((asked == 3).all()) for asked in lost)  # a batch loses all of its prompts or none
    assert 10 < len(lost) < 60


def test_both_turns_share_one_image_made_before_the_students_step():
    method = swiftbrush()
    turns = method.turns(PROMPTS)
    _, first = next(turns)
    with torch.no_grad():
        for weight in method.student.parameters():
            weight.add_(1.0)
    player, second = next(turns)
    assert player == "lora"
    assert torch.equal(first.outputs, second.outputs)


def test_what_ships_is_the_average_and_paints_in_one_call():
    method = swiftbrush(ema_decay=0.5)
    assert method.product is method.average.module
    before = copy.deepcopy(method.product)
    with torch.no_grad():
        method.student.network.head.bias.add_(1.0)
    method.after_step("lora")
    assert torch.equal(method.product.network.head.bias, before.network.head.bias)
    method.after_step("student")
    assert 0 < float(method.product.network.head.bias[0]) < 1
    assert swiftbrush(ema_decay=None).product is not None
    plain = swiftbrush(ema_decay=None)
    assert plain.product is plain.student
    z = torch.randn(8, 6)
    expected = (z - math.sqrt(1 - 0.0047) * plain.student.network(z, torch.full((8,), 999), PROMPTS.inputs)) / (
        0.0047**0.5
    )
    fixed = swiftbrush(plain.teacher.network, ema_decay=None, final_alpha=0.0047)
    fixed.student.network.load_state_dict(plain.student.network.state_dict())
    torch.testing.assert_close(fixed.product(PROMPTS.inputs, z), expected)


def test_fit_trains_both_players_from_prompts_alone_and_resumes(tmp_path):
    torch.manual_seed(3)
    teacher = teacher_of()
    prompts = TensorSamples(torch.arange(40) % 3)
    training = Training(
        steps=6, batch_size=8, optimizer=Optim("adam", lr=1e-3, clip=1.0), players={"lora": Optim("adam", lr=1e-2)}
    )
    options = {"task": Generation(), "device": "cpu", "trackers": (), "progress": False, "log_every": 1}
    torch.manual_seed(0)
    fitted = fit(swiftbrush(teacher), prompts, training, **options)
    terms = [values for _, values, _ in fitted.terms]
    assert terms[0]["vsd"] == 0
    assert all(values["vsd"] > 0 for values in terms[2:])
    assert fitted.product(torch.tensor([0, 1])).shape == (2, 6)
    torch.manual_seed(0)
    again = fit(swiftbrush(teacher), prompts, training, folder=tmp_path, **options)
    for one, other in zip(fitted.product.parameters(), again.product.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_second_teacher_that_does_not_learn_is_found_out():
    method = swiftbrush(kind=UntrackedSwiftBrush, second_teacher=partial(lora_copy_of_linears, rank=2))
    prompts = TensorSamples(torch.arange(40) % 3)
    with pytest.raises(TrainingError, match="'vsd' has been exactly 0 for the first 50 steps"):
        fit(method, prompts, Training(steps=60, batch_size=8), task=Generation(), device="cpu", progress=False)


def unet():
    torch.manual_seed(5)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


@pytest.fixture(scope="module")
def with_unet():
    teacher = unet()
    before = fingerprint(teacher)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    method = SwiftBrush(copy.deepcopy(teacher), teacher, scheduler, null_prompt=torch.zeros(5, 6))
    prompts = TensorSamples(torch.randn(12, 5, 6))
    training = Training(steps=4, batch_size=4, optimizer=Optim("adam", lr=1e-3, clip=1.0))
    options = {"task": Generation(), "device": "cpu", "progress": False, "log_every": 1}
    return method, fit(method, prompts, training, **options), teacher, before


def test_a_unet_of_diffusers_is_distilled(with_unet):
    method, fitted, teacher, before = with_unet
    assert fingerprint(teacher) == before
    assert {name.split("/")[-4] for name in method.second.adapter} == {"to_q", "to_v"}
    assert fitted.terms[0][1]["vsd"] == 0
    assert fitted.terms[-1][1]["vsd"] > 0
    assert not any("lora" in name for name in fitted.product.state_dict())
    pictures = paint(fitted.product, torch.randn(3, 5, 6), decode=lambda latents: latents[:, :3].sigmoid())
    assert pictures.shape == (3, 3, 8, 8)


def test_the_students_unet_is_saved_and_loaded_as_diffusers_does(with_unet, tmp_path):
    network = with_unet[1].product.network
    network.save_pretrained(tmp_path)
    back = UNet2DConditionModel.from_pretrained(tmp_path)
    sample, times, prompts = torch.randn(2, 4, 8, 8), torch.tensor([999, 999]), torch.randn(2, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(back(sample, times, prompts).sample, network(sample, times, prompts).sample)


def test_images_and_wrong_prompts_are_refused(with_unet):
    method = with_unet[0]
    with pytest.raises(ValueError, match=r"prompts alone, given \(2, 4, 8, 8\), which are samples"):
        method(Batch(torch.randn(2, 4, 8, 8)))
    with pytest.raises(
        ValueError, match=r"shape \(2, 3, 8, 8\).*null prompt has shape \(5, 6\).*images are no prompts"
    ):
        method(Batch(torch.randn(2, 3, 8, 8)))
    with pytest.raises(ValueError, match="batch is empty"):
        method(Batch(torch.randn(0, 5, 6)))
    with pytest.raises(ValueError, match=r"given \(3, 6\), which are samples"):
        swiftbrush()(Batch(torch.randn(3, 6)))
    with pytest.raises(ValueError, match=r"shape \(3,\) and dtype torch.float32"):
        swiftbrush()(Batch(torch.randn(3)))


def test_what_the_method_cannot_take_is_refused():
    for scale in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"finite number, given {scale}"):
            swiftbrush(guidance_scale=scale)
    velocity = NoiseSchedule(SCHEDULE.alphas_cumprod, prediction="v_prediction")
    teacher = teacher_of()
    with pytest.raises(ValueError, match=r"'v_prediction': wrap both in .*NoisePredictor"):
        SwiftBrush(copy.deepcopy(teacher), teacher, velocity, null_prompt=NULL, shape=(6,))
    with pytest.raises(ValueError, match=r"is 1e-07, but must lie in"):
        swiftbrush(final_alpha=1e-7)
    with pytest.raises(ValueError, match=r"share weights: pass copy\.deepcopy"):
        SwiftBrush(teacher, teacher, SCHEDULE, null_prompt=NULL, shape=(6,))
    with pytest.raises(ValueError, match=r"vsd_steps must be .* within 0 and 999, given \(20, 1000\)"):
        swiftbrush(vsd_steps=(20, 1000))
    with pytest.raises(ValueError, match=r"null_probability must lie in .*given 1\.5"):
        swiftbrush(null_probability=1.5)
    with pytest.raises(ValueError, match=r"no layer of NoiseMLP is called 'to_q': adapters can go to head, time"):
        swiftbrush(second_teacher=lora_copy)
    with pytest.raises(TypeError, match=r"teacher must be a diffusion network .*given function"):
        SwiftBrush(teacher, lambda batch: batch, SCHEDULE, null_prompt=NULL, shape=(6,))
    with pytest.raises(ValueError, match="there are 0 samples to train on"):
        fit(swiftbrush(), TensorSamples(torch.zeros(0).long()), Training(steps=1), task=Generation(), device="cpu")


def test_a_schedule_without_terminal_signal_is_refused():
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="zero terminal signal cannot be used"):
        SwiftBrush(teacher_of(), teacher_of(), scheduler, null_prompt=NULL, shape=(6,))


def test_a_wrapped_velocity_teacher_is_taken():
    velocity = NoiseSchedule(SCHEDULE.alphas_cumprod, prediction="v_prediction")
    teacher = NoisePredictor(teacher_of(), velocity)
    method = SwiftBrush(
        copy.deepcopy(teacher), teacher, velocity, null_prompt=NULL, shape=(6,), second_teacher=full_copy
    )
    losses = method(PROMPTS)
    assert losses["vsd"].item() == 0
    assert bool(losses["lora"].isfinite())


def test_the_defaults_are_the_papers():
    method = SwiftBrush(unet(), unet(), SCHEDULE, null_prompt=torch.zeros(5, 6))
    assert (method.guidance_scale, method.null_probability) == (4.5, 0.1)
    assert (method.vsd_steps, method.lora_steps) == ((20, 980), (0, 999))
    config = method.second.network.peft_config["default"] if hasattr(method.second.network, "peft_config") else None
    ranks = {weight.shape[0] for name, weight in method.second.named_parameters() if "lora_A" in name}
    assert ranks == {64}
    assert config is None or config.lora_alpha == 108
    assert (method.average.decay, method.average.warmup) == (0.9999, True)
    assert method.student.timestep == 999
    assert method.student.alpha_cumprod == pytest.approx(0.00466, abs=1e-5)


def test_the_recipes_small_form_runs(tmp_path):
    results = recipe(steps=4).tiny().run(seeds=[100], folder=tmp_path / "run", progress=False)
    assert results["metric"] == "frechet_distance"
    assert results["arms"]["swiftbrush"]["metrics"]["push_at_start"] == [0.0]
    assert {"untrained", "swiftbrush", "sds", "untracked"} <= set(results["arms"])
    assert results["arms"]["untracked"]["role"] == "control"
    assert all(len(arm["values"]) == 1 for arm in results["arms"].values())


@pytest.mark.skipif(not (data_folder() and (data_folder() / "cifar10").is_dir()), reason="needs CIFAR-10 on disk")
def test_the_recipe_takes_real_images(tmp_path):
    experiment = recipe("cifar10", train_size=60, test_size=40, image_size=8, steps=2).tiny()
    arms = {name: experiment.arms[name] for name in ("untrained", "swiftbrush")}
    small = replace(experiment, arms=arms, claims=(), rivals=(), controls=())
    results = small.run(seeds=[100], folder=tmp_path / "run", progress=False)
    assert results["arms"]["swiftbrush"]["values"][0] > 0
