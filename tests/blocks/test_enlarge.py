"""Networks that enlarge images: sizes, parameter counts, names, released weights, refusals."""

import pytest
import torch
from torch import nn

from stillroom.blocks import IMDN, AnyScaleIMDN, PlainSR, TinyIMDN, build_enlarger, load_released
from stillroom.data import bicubic_resize


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_are_the_authors():
    assert [count(IMDN(scale)) for scale in (2, 3, 4)] == [694_404, 703_059, 715_176]
    assert count(AnyScaleIMDN()) == 752_104
    assert count(TinyIMDN()) == 20_190


def test_the_plain_control_has_as_many_parameters_and_the_same_depth():
    imdn, plain = build_enlarger("imdn-16-3-x2"), build_enlarger("plain-sr-14-3-x2")
    assert abs(count(plain) / count(imdn) - 1) < 0.03
    depths = [sum(m.kernel_size == (3, 3) for m in n.modules() if isinstance(m, nn.Conv2d)) for n in (imdn, plain)]
    assert depths == [15, 15]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_images_become_larger_by_the_scale(scale):
    images = torch.rand(2, 3, 9, 7)
    for kind in (IMDN, PlainSR, TinyIMDN):
        options = {"reduction": 4} if kind is IMDN else {}
        assert kind(scale, channels=12, blocks=1, **options)(images).shape == (2, 3, 9 * scale, 7 * scale)


@pytest.mark.parametrize("kind", ["imdn", "plain-sr"])
def test_with_the_image_skip_an_untrained_network_is_bicubic_enlargement(kind):
    images = torch.rand(1, 3, 11, 10)
    bicubic = bicubic_resize(images, 22, 20)
    torch.testing.assert_close(build_enlarger(f"{kind}-8-1-x2-skip")(images), bicubic, rtol=0, atol=1e-6)
    assert (build_enlarger(f"{kind}-8-1-x2")(images) - bicubic).abs().mean() > 0.1


def test_what_a_network_sees_is_twenty_seven_pixels_around_each():
    """Six blocks of four 3x3 convolutions and three more; the attention, which sees everything, is made constant."""
    network = IMDN(2, channels=8, blocks=6, reduction=4).double()
    for block in network.body.blocks:
        nn.init.zeros_(block.attention.expand.weight)
    images = torch.rand(1, 3, 61, 5, dtype=torch.float64, requires_grad=True)
    network(images)[0, :, 60:62].sum().backward()
    rows = (images.grad.abs().sum((0, 1, 3)) > 0).nonzero().flatten()
    assert [rows.min().item(), rows.max().item()] == [30 - 27, 30 + 27]


def test_any_scale_keeps_the_size_and_rescales_to_any():
    network = AnyScaleIMDN(channels=8, blocks=1, reduction=2).eval()
    images = torch.rand(1, 3, 16, 12)
    assert network(images).shape == images.shape
    assert torch.equal(network.rescale(images, height=16, width=12), network(images))
    larger = network.rescale(images, height=40, width=32)
    assert torch.equal(larger, network(bicubic_resize(images, 40, 32)))
    odd = [network.rescale(images, height=41, width=31, overlap=8, sequential=one) for one in (False, True)]
    assert odd[0].shape == (1, 3, 41, 31)
    torch.testing.assert_close(odd[0], odd[1])
    with pytest.raises(ValueError, match="multiples of 4, given 18x12: use rescale"):
        network(torch.rand(1, 3, 18, 12))


def released(network: IMDN) -> dict[str, torch.Tensor]:
    """The same weights under the names that the authors' files have."""
    names = {"stem": "fea_conv", "body.gather": "c.0", "body.fuse": "LR_conv", "upsample": "upsampler.0"}
    inner = {"attention.squeeze": "cca.conv_du.0", "attention.expand": "cca.conv_du.2"}
    found = {}
    for name, value in network.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module.startswith("body.blocks."):
            number, _, rest = module.removeprefix("body.blocks.").partition(".")
            found[f"IMDB{int(number) + 1}.{inner.get(rest, rest)}.{kind}"] = value
        else:
            found[f"{names[module]}.{kind}"] = value
    return found


def test_released_weights_are_loaded_by_their_names():
    source, target = (IMDN(2, channels=16, blocks=2, reduction=4) for _ in range(2))
    state = released(source)
    assert "IMDB2.cca.conv_du.2.bias" in state
    load_released(target, {f"module.{name}": value for name, value in state.items()})
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(target(images), source(images))


def test_weights_of_another_network_are_refused():
    network = IMDN(2, channels=16, blocks=2, reduction=4)
    with pytest.raises(ValueError, match=r"upsample.* has shape \(48,.*expected \(12,.*scale"):
        load_released(network, released(IMDN(4, channels=16, blocks=2, reduction=4)))
    with pytest.raises(ValueError, match=r"'IMDB3.c1.weight', which IMDN with 2 blocks has not"):
        load_released(network, released(IMDN(2, channels=16, blocks=3, reduction=4)))
    state = released(network)
    del state["LR_conv.bias"]
    with pytest.raises(ValueError, match=r"lack 'body.fuse.bias'"):
        load_released(network, state)


def test_wrong_images_are_refused():
    network = IMDN(2, channels=16, blocks=1, reduction=4, check_range=True)
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\), given \(1, 1, 8, 8\)"):
        network(torch.rand(1, 1, 8, 8))
    with pytest.raises(TypeError, match=r"floats in \[0, 1\], given torch.uint8: divide bytes by 255"):
        network(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"in \[0, 1\], given values from 0 to 1.5"):
        network(torch.tensor([0.0, 1.5]).repeat(1, 3, 8, 4))
    IMDN(2, channels=16, blocks=1, reduction=4)(torch.full((1, 3, 8, 8), 1.5))  # not looked at unless asked


def test_wrong_networks_are_refused():
    with pytest.raises(ValueError, match="scale must be 2, 3 or 4, given 5: AnyScaleIMDN"):
        IMDN(5)
    with pytest.raises(ValueError, match="between 1 and the 8 channels, given 16"):
        IMDN(2, channels=8, reduction=16)
    with pytest.raises(ValueError, match=r"rate 0.1 keeps 0 of 8 channels"):
        IMDN(2, channels=8, rate=0.1, reduction=4)
    with pytest.raises(ValueError, match="blocks must be 1 or more, given 0"):
        PlainSR(2, blocks=0)
    with pytest.raises(ValueError, match=r"image_skip must be .*given 'bilinear'"):
        IMDN(2, image_skip="bilinear")
    with pytest.raises(ValueError, match="'imdn-64-x4', expected a name such as 'imdn-64-6-x4'"):
        build_enlarger("imdn-64-x4")
    with pytest.raises(ValueError, match="its own 3 channels, expected 10 outputs"):
        build_enlarger("imdn-8-1-x2", classes=10)
