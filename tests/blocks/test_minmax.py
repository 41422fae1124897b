"""The frequency sampler and the gradients of its game with the images."""

import pytest
import torch
import torch.nn.functional as F

from stillroom.blocks import FrequencySampler, minmax_gradients
from stillroom.losses import characteristic_function_discrepancy


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_every_frequency_of_the_mixture_is_another_one():
    frequencies = FrequencySampler(6, frequencies=160)()
    assert frequencies.shape == (160, 6)
    assert len(frequencies.unique(dim=0)) == 160


def test_the_released_form_has_few_frequencies_inside_of_1():
    frequencies = FrequencySampler(6, frequencies=160, form="released")()
    assert frequencies.shape == (160, 6)
    assert len(frequencies.unique(dim=0)) == 10
    assert frequencies.abs().max().item() < 1
    assert torch.equal(frequencies[0], frequencies[15])


def test_scales_times_normals_with_noise_from_outside():
    sampler = FrequencySampler(3, frequencies=8, repeats=4)
    noise, normals = torch.randn(2, 3), torch.randn(8, 3)
    frequencies = sampler(noise, normals)
    torch.testing.assert_close(frequencies, sampler.blocks(noise).repeat_interleave(4, 0) * normals)
    first = sampler(generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, sampler(generator=torch.Generator().manual_seed(3)))


def game(sampler, images, real, noise, normals):
    """The discrepancy as the players see it, at noise that stays."""
    return characteristic_function_discrepancy(F.normalize(images), real, sampler(noise, normals))


def players():
    sampler = FrequencySampler(5, frequencies=64)
    images = torch.randn(6, 5, requires_grad=True)
    real = F.normalize(torch.randn(40, 5) + 0.5)
    return sampler, images, real, torch.randn(4, 5), torch.randn(64, 5)


def test_a_step_of_the_sampler_raises_the_discrepancy_and_changes_it():
    sampler, images, real, *noise = players()
    before = [parameter.detach().clone() for parameter in sampler.parameters()]
    loss = game(sampler, images, real, *noise)
    minmax_gradients(300 * loss, [images], sampler.parameters())
    torch.optim.SGD(sampler.parameters(), lr=1e-5).step()
    changes = [(new - old).abs().max().item() for new, old in zip(sampler.parameters(), before, strict=True)]
    assert max(changes) > 1e-6
    assert game(sampler, images, real, *noise).item() > loss.item()


def test_a_step_of_the_images_lowers_it():
    sampler, images, real, *noise = players()
    loss = game(sampler, images, real, *noise)
    minmax_gradients(loss, [images], sampler.parameters())
    torch.optim.SGD([images], lr=1e-2).step()
    assert game(sampler, images, real, *noise).item() < loss.item()


def test_both_players_get_the_gradient_of_one_loss_and_nothing_older():
    sampler, images, real, *noise = players()
    parameters = list(sampler.parameters())
    expected = torch.autograd.grad(3 * game(sampler, images, real, *noise), [images, *parameters])
    for tensor in (images, *parameters):
        tensor.grad = torch.full_like(tensor, 7.0)  # what an earlier pass left
    minmax_gradients(3 * game(sampler, images, real, *noise), [images], parameters)
    torch.testing.assert_close(images.grad, expected[0])
    for parameter, gradient in zip(parameters, expected[1:], strict=True):
        torch.testing.assert_close(parameter.grad, -gradient)


def test_the_same_tensor_on_both_sides_is_refused():
    tensor = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match="in both groups"):
        minmax_gradients(tensor.sum(), [tensor], [tensor])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frequencies": 16}, r"16 / 16 = 1: use 32"),
        ({"frequencies": 50}, r"50 / 16 = 3.125: use 64"),
        ({"form": "paper"}, "mixture, released, given 'paper'"),
        ({"repeats": 0}, "given 4 and 0"),
    ],
)
def test_samplers_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FrequencySampler(4, **options)
